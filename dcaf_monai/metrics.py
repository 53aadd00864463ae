"""How good probabilities are, each figure with a 95 % interval over patients.

The bootstrap draws whole patients (groups), because images of one patient are not independent
(Efron and Tibshirani, percentile interval). A draw with replacement is a whole-number weight per
patient, so every metric here is a function of case weights, vectorised over all draws at once: the
first row of weights is all ones and gives the figure itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

ECE_BINS = 15
_SMALLEST = np.finfo(np.float64).tiny


def report(probs: np.ndarray, labels: np.ndarray, groups: Sequence[str], classes: Sequence[str], *,
           resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Accuracy, AUROC, AUPR, NLL and ECE, each ``{"value", "low", "high"}``; plain JSON values.

    AUROC and AUPR (average precision) are one class against the rest; the macro figures are means
    over the classes that have both positive and negative cases. A figure that does not exist (AUROC
    of a class without a case) is None, and so is an interval that fewer than two patients or
    less than half of the draws could give.

    Args:
        probs: ``(cases, classes)``, rows summing to one.
        labels: ``(cases,)`` class indices.
        groups: Patient of each case.
        classes: Class names in the order of the columns.
        resamples: Bootstrap draws.
        seed: Of the draws; the same seed gives the same intervals.

    Raises:
        ValueError: For shapes that do not fit, no case, rows that are no probabilities, or labels
            that are no class index.
    """
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    _check(probs, labels, groups, classes)
    weights = group_weights(groups, resamples=resamples, seed=seed)
    patients = len(set(groups))
    predicted, confidence = probs.argmax(1), probs.max(1)
    likelihood = probs[np.arange(len(labels)), labels]
    areas = {name: (auroc(probs[:, column], labels == column, weights),
                    average_precision(probs[:, column], labels == column, weights))
             for column, name in enumerate(classes)}
    exists = [name for column, name in enumerate(classes) if 0 < (labels == column).sum() < len(labels)]
    macro = [_mean([areas[name][kind] for name in exists], len(weights)) for kind in (0, 1)]

    def figure(values: np.ndarray) -> dict[str, float | None]:
        return _interval(values, patients)

    return {
        "cases": len(labels), "patients": patients, "resamples": resamples,
        "accuracy": figure(_weighted_mean(predicted == labels, weights)),
        "auroc": figure(macro[0]), "aupr": figure(macro[1]),
        "nll": figure(_weighted_mean(-np.log(np.maximum(likelihood, _SMALLEST)), weights)),
        "ece": figure(calibration_error(confidence, predicted == labels, weights)),
        "per_class": {name: {"cases": int((labels == column).sum()), "auroc": figure(areas[name][0]),
                             "aupr": figure(areas[name][1])} for column, name in enumerate(classes)}}


def group_weights(groups: Sequence[str], *, resamples: int, seed: int) -> np.ndarray:
    """How often each case occurs, ``(1 + resamples, cases)``: first once each, then in each draw."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)),
                                                     size=resamples)
    return np.concatenate([np.ones((1, len(member))), counts[:, member]])


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, ties counting half, per row of weights; NaN where it does not exist."""
    hits, alarms = _curve(scores, positive, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.diff(alarms, axis=1, prepend=0)
        middle = hits - np.diff(hits, axis=1, prepend=0) / 2
        return (steps * middle).sum(1) / (hits[:, -1] * alarms[:, -1])


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Precision averaged over the steps of recall, per row of weights; NaN without a positive case."""
    hits, alarms = _curve(scores, positive, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(hits / (hits + alarms))  # no case yet: the step of recall is zero
        return (np.diff(hits, axis=1, prepend=0) * precision).sum(1) / hits[:, -1]


def calibration_error(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error of the top class: `ECE_BINS` equal bins over [0, 1], L1."""
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    member = np.eye(ECE_BINS)[bins]
    gap = np.abs((weights * (correct - confidence)) @ member)
    return gap.sum(1) / weights.sum(1)


def _curve(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted true and false positives at each distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(weights[:, order] * positive[order], axis=1)[:, last_of_tie]
    alarms = np.cumsum(weights[:, order] * ~positive[order], axis=1)[:, last_of_tie]
    return hits, alarms


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(1)


def _mean(rows: list[np.ndarray], draws: int) -> np.ndarray:
    """Mean over classes in every draw; NaN in a draw that lost all cases of one of them."""
    return np.mean(rows, axis=0) if rows else np.full(draws, np.nan)


def _interval(values: np.ndarray, patients: int) -> dict[str, float | None]:
    value, draws = values[0], values[1:][np.isfinite(values[1:])]
    trusted = patients > 1 and len(draws) and len(draws) * 2 >= len(values) - 1 and np.isfinite(value)
    low, high = np.percentile(draws, [2.5, 97.5]) if trusted else (None, None)
    return {"value": float(value) if np.isfinite(value) else None,
            "low": None if low is None else float(low), "high": None if high is None else float(high)}


def _check(probs: np.ndarray, labels: np.ndarray, groups: Sequence[str], classes: Sequence[str]) -> None:
    if probs.shape != (len(labels), len(classes)) or len(groups) != len(labels) or not len(labels):
        raise ValueError("probs, labels, groups: need (cases, classes), (cases,) and (cases,) with at least "
                         f"one case and {len(classes)} classes, got {probs.shape}, {labels.shape} and "
                         f"{len(groups)}.")
    if probs.min() < 0 or not np.allclose(probs.sum(1), 1, atol=1e-4):
        raise ValueError("probs: need rows of probabilities that sum to one, got others. "
                         "Give probabilities, not logits.")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels: need class indices 0 to {len(classes) - 1}, got {labels.min()} to "
                         f"{labels.max()}.")
