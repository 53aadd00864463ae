"""Likely label errors: cases whose label a learner that never saw it finds hard to believe.

A cheap learner (logistic regression on standardised vectors) answers for every case out of fold, and no
patient is ever on both sides of a fold: a learner that has seen a patient's other images knows their
label, wrong or not, and would believe it. Confident learning (Northcutt, Jiang and Chuang, J. Artif.
Intell. Res. 70, 2021), as cleanlab has it, then says how often given and true class seem to differ and
which cases are the likely ones. A suspect is work for a reader; nothing is relabelled here.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from cleanlab.count import estimate_joint
from cleanlab.filter import find_label_issues
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Ranking = Literal["self_confidence", "normalized_margin"]
STRENGTHS = (0.0003, 0.003, 0.03, 0.3)
"""Inverse strengths of the penalty that are tried; the one with the smallest out-of-fold loss is kept."""
CAVEAT = ("An estimate, not a count: where classes overlap, hard images with right labels look wrong, and "
          "labels that are wrong the same way throughout a patient or a source look right. Only a second "
          "reading tells.")


@dataclass(frozen=True)
class OutOfFold:
    """Answers about cases whose patient the learner did not see.

    Args:
        probs: ``(cases, classes)`` float64, rows summing to one.
        fold: ``(cases,)`` the fold in which each case was held out.
        strength: The inverse strength of the penalty that was kept.
        nll: Mean negative log-likelihood of the given labels, nats.
    """

    probs: np.ndarray
    fold: np.ndarray
    strength: float
    nll: float


@dataclass(frozen=True)
class Suspect:
    """A case whose label may be wrong.

    Args:
        uid: The case.
        given: Its label.
        suggested: The class the learner finds most probable.
        probability_given: Of the label, 0 to 1.
        probability_suggested: Of the suggested class.
        rank: From 1, the least believable first.
    """

    uid: str
    given: str
    suggested: str
    probability_given: float
    probability_suggested: float
    rank: int


@dataclass(frozen=True)
class Noise:
    """How many labels seem wrong.

    Args:
        share: Estimated share of wrong labels, 0 to 1.
        joint: Estimated share of cases by given class and by true class, ``joint[given][true]``.
        caveat: What the estimate cannot know.
    """

    share: float
    joint: Mapping[str, Mapping[str, float]]
    caveat: str = CAVEAT


def out_of_fold(vectors: np.ndarray, labels: np.ndarray, groups: Sequence[str] | np.ndarray, *,
                folds: int = 5, seed: int = 0) -> OutOfFold:
    """Probabilities of every case from a learner that saw neither the case nor its patient.

    Args:
        vectors: ``(cases, units)``, finite; made without these labels, or the answers are not honest.
        labels: ``(cases,)`` class indices from 0, every class there.
        groups: Patient of each case.
        folds: At most so many; never more than the rarest class has patients.
        seed: Of the draw of the folds.

    Raises:
        ValueError: For shapes that do not fit, vectors that are not finite, fewer than two classes or a
            class with fewer than two patients, or fewer than two folds.
    """
    vectors, labels, groups = np.asarray(vectors, np.float64), np.asarray(labels), np.asarray(groups)
    _check(vectors, labels, groups, folds)
    classes = int(labels.max()) + 1
    folds = min(folds, *(len(set(groups[labels == index])) for index in range(classes)))
    draw = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = list(draw.split(vectors, labels, groups))
    fold = np.empty(len(labels), np.int64)
    for number, (_, held) in enumerate(parts):
        fold[held] = number
    best: OutOfFold | None = None
    for strength in STRENGTHS:
        probs = np.zeros((len(labels), classes))
        for learnt, held in parts:
            probs[held] = _answers(vectors, labels, learnt, held, classes, strength)
        nll = float(-np.log(np.maximum(probs[np.arange(len(labels)), labels], 1e-12)).mean())
        if best is None or nll < best.nll:
            best = OutOfFold(probs, fold, strength, nll)
    assert best is not None
    return best


def find_suspects(uids: Sequence[str], labels: np.ndarray, probs: np.ndarray, classes: Sequence[str], *,
                  ranked_by: Ranking = "self_confidence") -> tuple[tuple[Suspect, ...], Noise]:
    """The likely label errors, the least believable first, and the estimated noise.

    Args:
        uids: Name of each case.
        labels: ``(cases,)`` class indices.
        probs: ``(cases, classes)`` from a learner that did not see the labels, see `out_of_fold`.
        classes: Class names in the order of the columns.
        ranked_by: ``self_confidence``, the probability of the label; or ``normalized_margin``, that
            less the largest other one.

    Raises:
        ValueError: For shapes that do not fit, or a class without a case.
    """
    labels, probs = np.asarray(labels), np.asarray(probs, np.float64)
    if probs.shape != (len(labels), len(classes)) or len(uids) != len(labels):
        raise ValueError(f"probs, labels, uids: need (cases, {len(classes)}), (cases,) and (cases,), got "
                         f"{probs.shape}, {labels.shape} and {len(uids)}.")
    missing = [name for index, name in enumerate(classes) if not (labels == index).any()]
    if missing:
        raise ValueError(f"labels: need cases of every class, got none of {', '.join(missing)}. "
                         "Leave the class out.")
    joint = estimate_joint(labels, probs)
    found = find_label_issues(labels, probs, return_indices_ranked_by=ranked_by, n_jobs=1)
    suspects = tuple(
        Suspect(uids[case], classes[labels[case]], classes[int(probs[case].argmax())],
                float(probs[case, labels[case]]), float(probs[case].max()), rank)
        for rank, case in enumerate(found, start=1))
    return suspects, Noise(
        float(max(0.0, 1 - np.trace(joint))),
        {given: {true: float(joint[row, column]) for column, true in enumerate(classes)}
         for row, given in enumerate(classes)})


def write_suspects(suspects: Sequence[Suspect], path: Path, *,
                   splits: Mapping[str, str] | None = None) -> None:
    """Write suspects as a CSV table, whole or not at all.

    Args:
        suspects: In the order of the table.
        path: The table.
        splits: Split of each case by uid, for a column of its own.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("rank", "file", *(["split"] if splits else []), "given", "suggested",
                     "probability_given", "probability_suggested"))
    for suspect in suspects:
        writer.writerow((suspect.rank, suspect.uid, *([splits[suspect.uid]] if splits else []), suspect.given,
                         suspect.suggested, f"{suspect.probability_given:.6f}",
                         f"{suspect.probability_suggested:.6f}"))
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
    os.replace(temporary, path)


def _answers(vectors: np.ndarray, labels: np.ndarray, learnt: np.ndarray, held: np.ndarray, classes: int,
             strength: float) -> np.ndarray:
    """Probabilities of the held cases; scale and learner know the learnt cases only."""
    learner = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a near minimum serves: only the order counts
        learner.fit(vectors[learnt], labels[learnt])
    probs = np.zeros((len(held), classes))
    probs[:, learner.classes_] = learner.predict_proba(vectors[held])
    return probs


def _check(vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int) -> None:
    if vectors.ndim != 2 or not len(labels) or not labels.shape == groups.shape == (len(vectors),):
        raise ValueError("vectors, labels, groups: need (cases, units), (cases,) and (cases,) with at least "
                         f"one case, got {vectors.shape}, {labels.shape} and {groups.shape}.")
    if not np.isfinite(vectors).all():
        raise ValueError("vectors: need finite numbers, got inf or nan. Check the trunk weights.")
    if folds < 2:
        raise ValueError(f"folds: need at least 2, got {folds}.")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() < 1:
        raise ValueError("labels: need class indices of at least two classes from 0, got others.")
    for index in range(int(labels.max()) + 1):
        if (patients := len(set(groups[labels == index]))) < 2:
            raise ValueError(f"class {index}: need images of at least 2 patients, got {patients}. "
                             "Add images or leave the class out.")
