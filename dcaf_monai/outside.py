"""Pictures a model was never meant for: does it tell them from its own, and does `predict` warn?

*Inside* are the images of the test split. *Outside* are the same images changed on purpose (`shifts`) and
whatever other pictures are at hand. Each score is asked to tell the two apart.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from dcaf_monai.answers import Answers, File, gathered
from dcaf_monai.cohort import SUFFIXES, Case
from dcaf_monai.drift import Reference, ood_figures
from dcaf_monai.image import Geometry, Image, ImageError, Placement
from dcaf_monai.predict import Predictor
from dcaf_monai.shifts import SHIFTS, shifted
from dcaf_monai.transforms import image_to_input, read_input

MOST_IMAGES = 100
"""Each shift is tried on so many images at most, evenly spaced over the split."""
SEVERITIES = (1, 3, 5)
"""Of the five a corruption has; the others lie between."""
ABOUT_THE_FILE = frozenset({"burned_in", "for_processing", "not_reoriented", "executable_preamble",
                            "long_pixel_data", "window_ignored"})
"""Notices that speak of how a file was written; every other one speaks against the answer."""
Progress = Callable[[int, int], None]
_Item = TypeVar("_Item")


def shifted_answers(predictor: Predictor, cases: Sequence[Case], *, most: int = MOST_IMAGES,
                    severities: Sequence[int] = SEVERITIES, seed: int = 0,
                    progress: Progress | None = None) -> Iterator[tuple[str, int, Answers]]:
    """``(kind, severity, answers)`` of every shift; severity is 0 where a kind has only one.

    Args:
        predictor: With the model.
        cases: Of the test split; files that cannot be read are passed over.
        most: How many of them are changed.
        severities: Of the corruptions.
        seed: Of everything random in a shift.
        progress: Told (passes done, passes in all).

    Raises:
        ValueError: When none of the images can be read.
    """
    task = predictor.model.task
    read: list[tuple[Case, Image, torch.Tensor]] = []
    for case in spaced(cases, most):
        try:
            image, tensor, _ = read_input(case.path, predictor.model.preprocessing, uid=case.uid,
                                          frame=case.frame)
        except ImageError:
            continue
        read.append((case, image, tensor))
    if not read:
        raise ValueError("data: need at least one readable image to change, got none.")
    plan = [(kind, severity) for kind, shift in SHIFTS.items() for severity in shift.severities
            if len(shift.severities) == 1 or severity in severities]
    labels = np.array([task.class_index(case.label) for case, _, _ in read], np.int64)
    for done, (kind, severity) in enumerate(plan, start=1):
        placed = [_changed(image, shifted(tensor, kind, severity=severity, seed=seed, case=case.uid),
                           predictor) for case, image, tensor in read]
        found = gathered(predictor.predict_placed(placed), predictor)
        if progress:
            progress(done, len(plan))
        yield (kind, severity if len(SHIFTS[kind].severities) > 1 else 0,
               replace(found, labels=labels, groups=tuple(case.group for case, _, _ in read)))


def _changed(image: Image, tensor: torch.Tensor,
             predictor: Predictor) -> tuple[Image, torch.Tensor, Placement]:
    """The changed input as a picture in its own right, so that `predict` can warn of it as of any other."""
    pixels = tensor[0].numpy()
    picture = Image(image.uid, pixels, Geometry((pixels.shape[0], pixels.shape[1])), header=image.header)
    _, placement, notices = image_to_input(picture, predictor.model.preprocessing)
    kept = [notice for notice in image.notices if notice.code not in {other.code for other in notices}]
    return replace(picture, notices=(*kept, *notices)), tensor, placement


def outside_row(title: str, inside: Answers, outside: Answers, *, family: str = "other data", kind: str = "",
                severity: int = 0, reference: Reference | None = None, resamples: int = 1000,
                seed: int = 0) -> dict[str, Any]:
    """How one set of pictures is told from the test split; plain JSON values.

    Args:
        title: What a person reads.
        inside: Answers to the test split.
        outside: Answers to the other pictures.
        family: Sort of change.
        kind: Key of `SHIFTS`, if it is one.
        severity: Of the shift; 0 when there are no several.
        reference: For the distance of the features from those of training.
        resamples: Bootstrap draws of patients; one who is inside and outside is drawn on both sides.
        seed: Of the draws.

    Returns:
        ``scores``: by name ``auroc`` and ``fpr95``, each value, low, high; ``warned``: share of images
        `predict` warns of; ``notices``: share by code; ``mean_probability`` of the answers; ``accuracy``
        where the labels still hold.
    """
    scores = {name: (values, outside.doubt[name]) for name, values in inside.doubt.items()}
    if reference is not None:
        scores["drift"] = (reference.distance(inside.pooled), reference.distance(outside.pooled))
    known = outside.labels >= 0
    return {"title": title, "family": family, "kind": kind, "severity": severity, "images": len(outside),
            "scores": {name: ood_figures(*pair, inside_groups=inside.groups, outside_groups=outside.groups,
                                         resamples=resamples, seed=seed) for name, pair in scores.items()},
            "warned": warned_share(outside), "notices": notice_shares(outside),
            "mean_probability": float(outside.probs.max(1).mean()),
            "accuracy": float(outside.correct.mean()) if known.all() and kind != "blank" else None}


def warned_share(answers: Answers) -> float:
    """Share of images with a notice that speaks against the answer."""
    return float(np.mean([bool(set(codes) - ABOUT_THE_FILE) for codes in answers.notices]))


def notice_shares(answers: Answers) -> dict[str, float]:
    """Share of images with each notice, by code."""
    codes = sorted({code for found in answers.notices for code in found})
    return {code: float(np.mean([code in found for found in answers.notices])) for code in codes}


def outside_files(source: Path) -> list[File]:
    """Images of a folder (searched below) or of the column ``file`` of a CSV table, whatever their labels.

    Raises:
        ValueError: When there is no such folder or table, or it names no image.
    """
    source = Path(source)
    if source.is_dir():
        found = [path for path in sorted(source.rglob("*"))
                 if path.is_file() and not path.name.startswith(".") and (
                     path.name.lower().endswith(SUFFIXES) or not path.suffix)]
    elif source.is_file():
        with source.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened)
            if "file" not in (reader.fieldnames or []):
                raise ValueError(f"{source.name}: need the column file, got "
                                 f"{', '.join(reader.fieldnames or []) or 'none'}.")
            found = [source.parent / row["file"] for row in reader if row["file"]]
    else:
        raise ValueError(f"--outside: need a folder or a CSV table, got {source.name!r}, which is neither.")
    if not found:
        raise ValueError(f"--outside: need images in {source.name!r}, got none.")
    return [(None, path, None) for path in found]


def spaced(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most so many of the items, evenly spaced."""
    places = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).astype(int))
    return [items[place] for place in places]
