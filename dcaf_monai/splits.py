"""Splits: which patients a model learns from, is tuned on and is judged on. Drawn once, then read again.

A frozen split is a table with the columns ``group`` and ``split``; `cohort.write_cohort` writes it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

SPLITS = ("train", "val", "test")
FOLDS = 7
"""One of seven folds is the test split, one the validation split: about 71 / 14 / 14 per cent."""


def draw_split(groups: Sequence[str], labels: Sequence[str], *, classes: Sequence[str],
               seed: int = 0) -> dict[str, str]:
    """Split per group, stratified by class: a seeded draw of whole groups.

    Args:
        groups: Of each image.
        labels: Of each image, in the same order.
        classes: All that must be in every split.
        seed: Of the draw.

    Raises:
        ValueError: For a class with images of fewer patients than there are splits.
    """
    of, named = np.array(groups), np.array(labels)
    fewest = min((len(set(of[named == label])), label) for label in classes)
    if fewest[0] < len(SPLITS):
        raise ValueError(f"{fewest[1]}: need images of at least {len(SPLITS)} patients to make three splits, "
                         f"got {fewest[0]}. Add images.")
    folds = StratifiedGroupKFold(min(FOLDS, fewest[0]), shuffle=True, random_state=seed)
    drawn = [set(of[held]) for _, held in folds.split(of, named, of)]
    return {group: "test" if group in drawn[0] else "val" if group in drawn[1] else "train"
            for group in groups}


def read_split(path: Path) -> dict[str, str]:
    """Split per group from a table written earlier, empty without one; its files need not be there any more.

    Raises:
        ValueError: For a file that is no such table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as opened:
            known = {record["group"]: record["split"] for record in csv.DictReader(opened)}
    except FileNotFoundError:
        return {}
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name}: need a frozen split with the columns group and split, got another "
                         "file.") from error
    if not set(known.values()) <= set(SPLITS):
        raise ValueError(f"{path.name}: need splits {', '.join(SPLITS)}, got others.")
    return known
