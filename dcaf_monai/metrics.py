"""How good probabilities are, each figure with a 95 % interval over patients.

The bootstrap draws whole patients (groups), because images of one patient are not independent
(Efron and Tibshirani, percentile interval). A draw with replacement is a whole-number weight per
patient, so every metric here is a function of case weights, vectorised over all draws at once: the
first row of weights is all ones and gives the figure itself.

A calibration error is never below zero and a draw repeats cases, so draws look a little less calibrated
than the cases themselves: its interval leans upwards and, of a well calibrated model, may lie above the
figure. Differences of two models on the same draws (`compare`) are free of most of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcaf_monai import operating

ECE_BINS = 15
"""Bins of both calibration errors and of the reliability diagram."""
_SMALLEST = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: how often the top class is right, by how probable it is said to be.

    Args:
        edges: ``(bins + 1,)``, equal steps from 0 to 1; a bin holds its lower edge, the last both.
        confidence: ``(bins,)``, mean probability of the top class; NaN in an empty bin.
        accuracy: ``(bins,)``, share of right answers; NaN in an empty bin.
        count: ``(bins,)``, cases.
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def report(probs: np.ndarray, labels: np.ndarray, groups: Sequence[str], classes: Sequence[str], *,
           cutoffs: Mapping[str, float] | None = None, prevalence: Mapping[str, float] | None = None,
           resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Every figure of `figures` and every operating point, each ``{"value", "low", "high"}``; plain JSON.

    A figure that does not exist (AUROC of a class without a case) is None, and so is an interval that
    fewer than two patients or less than half of the draws could give.

    ``operating_points`` has, for each class with a cut-off, ``cutoff``, ``sensitivity``, ``specificity``,
    ``prevalence``, whether that is ``stated`` or the share in the ``data`` (``prevalence_from``), and
    ``ppv`` and ``npv`` at that prevalence, which is the same in all draws.

    Args:
        probs: ``(cases, classes)``, rows summing to one.
        labels: ``(cases,)`` class indices.
        groups: Patient of each case.
        classes: Class names in the order of the columns.
        cutoffs: Class name to cut-off in [0, 1]; positive means probability >= cut-off.
        prevalence: Class name to its share, in [0, 1], among those who will be examined; of a class
            not named, the share in the data.
        resamples: Bootstrap draws.
        seed: Of the draws; the same seed gives the same intervals.

    Raises:
        ValueError: For shapes that do not fit, no case, rows that are no probabilities, labels
            that are no class index, or cut-offs or prevalences of unknown classes or outside [0, 1].
    """
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    check(probs, labels, groups, classes)
    cutoffs, prevalence = cutoffs or {}, prevalence or {}
    _check_shares("cutoffs", cutoffs, classes)
    _check_shares("prevalence", prevalence, classes)
    weights = group_weights(groups, resamples=resamples, seed=seed)
    patients = len(set(groups))
    whole, each = figures(probs, labels, weights)

    def point(name: str) -> dict[str, Any]:
        column = list(classes).index(name)
        positive = labels == column
        share = float(prevalence.get(name, positive.mean()))
        sensitivity, specificity = operating.rates(probs[:, column], positive, weights, cutoff=cutoffs[name])
        ppv, npv = operating.ppv_npv(sensitivity, specificity, share)
        shown = {"sensitivity": sensitivity, "specificity": specificity, "ppv": ppv, "npv": npv}
        return {"cutoff": float(cutoffs[name]), "prevalence": share,
                "prevalence_from": "stated" if name in prevalence else "data",
                **{kind: interval(values, patients) for kind, values in shown.items()}}

    return {
        "cases": len(labels), "patients": patients, "resamples": resamples,
        **{kind: interval(values, patients) for kind, values in whole.items()},
        "per_class": {name: {"cases": int((labels == column).sum()),
                             **{kind: interval(values, patients) for kind, values in each[column].items()}}
                      for column, name in enumerate(classes)},
        "operating_points": {name: point(name) for name in classes if name in cutoffs}}


def figures(probs: np.ndarray, labels: np.ndarray,
            weights: np.ndarray) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """All figures without a cut-off in every draw, ``(draws,)`` each: of the whole, and of each class.

    Of each class against the rest: AUROC, AUPR (average precision), recall and F1 of the most probable
    class. AUROC, AUPR and F1 of the whole and balanced accuracy (of recalls) are means over classes: the
    first two over classes that have both positive and negative cases, the others over classes that have
    a case; NaN in a draw that lost all cases of one of them. Beside them accuracy, NLL (nats), Brier score
    (squares summed over the classes: 0 to 2) and both calibration errors.

    Args:
        probs: ``(cases, classes)``, rows summing to one.
        labels: ``(cases,)`` class indices.
        weights: ``(draws, cases)``, from `group_weights`.
    """
    predicted, confidence = probs.argmax(1), probs.max(1)
    correct = predicted == labels
    likelihood = probs[np.arange(len(labels)), labels]
    squares = ((probs - np.eye(probs.shape[1])[labels]) ** 2).sum(1)
    each = []
    for column in range(probs.shape[1]):
        positive = labels == column
        recall, f1 = _recall_and_f1(predicted == column, positive, weights)
        each.append({"auroc": auroc(probs[:, column], positive, weights),
                     "aupr": average_precision(probs[:, column], positive, weights),
                     "recall": recall, "f1": f1})
    present = [column for column in range(probs.shape[1]) if (labels == column).any()]
    separable = present if len(present) > 1 else []

    def macro(kind: str, columns: list[int]) -> np.ndarray:
        rows = [each[column][kind] for column in columns]
        return np.mean(rows, axis=0) if rows else np.full(len(weights), np.nan)

    return {"accuracy": _weighted_mean(correct, weights),
            "balanced_accuracy": macro("recall", present), "f1": macro("f1", present),
            "auroc": macro("auroc", separable), "aupr": macro("aupr", separable),
            "nll": _weighted_mean(-np.log(np.maximum(likelihood, _SMALLEST)), weights),
            "brier": _weighted_mean(squares, weights),
            "ece": calibration_error(confidence, correct, weights),
            "adaptive_ece": adaptive_calibration_error(confidence, correct, weights)}, each


def group_weights(groups: Sequence[str], *, resamples: int, seed: int) -> np.ndarray:
    """How often each case occurs, ``(1 + resamples, cases)``: first once each, then in each draw."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)),
                                                     size=resamples)
    return np.concatenate([np.ones((1, len(member))), counts[:, member]])


def interval(values: np.ndarray, patients: int) -> dict[str, float | None]:
    """``{"value", "low", "high"}``: the first of ``values``, and the middle 95 % of the others.

    Args:
        values: ``(1 + resamples,)``, the figure itself and then each draw; NaN where it does not exist.
        patients: How many there are; fewer than two give no interval, nor do fewer than half the draws.
    """
    value, draws = values[0], values[1:][np.isfinite(values[1:])]
    trusted = patients > 1 and len(draws) and len(draws) * 2 >= len(values) - 1 and np.isfinite(value)
    low, high = np.percentile(draws, [2.5, 97.5]) if trusted else (None, None)
    return {"value": float(value) if np.isfinite(value) else None,
            "low": None if low is None else float(low), "high": None if high is None else float(high)}


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, ties counting half, per row of weights; NaN where it does not exist."""
    hits, alarms = tallies(scores, positive, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.diff(alarms, axis=1, prepend=0)
        middle = hits - np.diff(hits, axis=1, prepend=0) / 2
        return (steps * middle).sum(1) / (hits[:, -1] * alarms[:, -1])


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Precision averaged over the steps of recall, per row of weights; NaN without a positive case."""
    hits, alarms = tallies(scores, positive, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(hits / (hits + alarms))  # no case yet: the step of recall is zero
        return (np.diff(hits, axis=1, prepend=0) * precision).sum(1) / hits[:, -1]


def calibration_error(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error of the top class: `ECE_BINS` equal bins over [0, 1], L1."""
    member = np.eye(ECE_BINS)[_bin(confidence, ECE_BINS)]
    gap = np.abs((weights * (correct - confidence)) @ member)
    return gap.sum(1) / weights.sum(1)


def calibration_error_by_chance(confidence: np.ndarray, *, draws: int = 500,
                                seed: int = 0) -> dict[str, float | None]:
    """ECE that cases of these confidences would have, were the model calibrated perfectly.

    Bins of few cases are never even: 50 cases have an ECE of several hundredths by chance alone, and an ECE
    inside the interval tells nothing against the calibration.

    Returns:
        Mean and middle 95 % of the ECE of outcomes drawn with the confidences as their probabilities.
    """
    outcomes = np.random.default_rng(seed).random((draws, len(confidence))) < confidence
    once = np.ones((1, len(confidence)))
    found = np.array([calibration_error(confidence, correct, once)[0] for correct in outcomes])
    low, high = np.percentile(found, [2.5, 97.5])
    return {"value": float(found.mean()), "low": float(low), "high": float(high)}


def adaptive_calibration_error(confidence: np.ndarray, correct: np.ndarray,
                               weights: np.ndarray) -> np.ndarray:
    """Calibration error of the top class over `ECE_BINS` bins of equal mass, L1, each draw binned anew.

    In order of confidence, a case lies in the bin that holds the middle of its weight. Cases of equal
    confidence share one bin, so neither the order of cases nor a repeated case can split them: bins
    are of equal mass as far as ties allow, and may be empty where one tie is heavier than a bin.
    """
    order = np.argsort(confidence, kind="stable")
    first_of_tie = np.flatnonzero(np.diff(confidence[order], prepend=-1))
    mass = np.add.reduceat(weights[:, order], first_of_tie, axis=1)
    gap = np.add.reduceat(weights[:, order] * (correct - confidence)[order], first_of_tie, axis=1)
    total = weights.sum(1, keepdims=True)
    middle = mass.cumsum(1) - mass / 2
    bins = np.minimum((middle * ECE_BINS / total).astype(int), ECE_BINS - 1)
    place = bins + ECE_BINS * np.arange(len(weights))[:, None]
    gaps = np.bincount(place.ravel(), gap.ravel(), ECE_BINS * len(weights)).reshape(-1, ECE_BINS)
    return np.abs(gaps).sum(1) / total[:, 0]


def reliability(probs: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS) -> Reliability:
    """The reliability diagram of the top class; with `ECE_BINS` bins, of the bins of the ECE.

    Args:
        probs: ``(cases, classes)``, rows summing to one.
        labels: ``(cases,)`` class indices.
        bins: Equal bins over [0, 1], at least 1.

    Raises:
        ValueError: For shapes that do not fit, no case, rows that are no probabilities, labels that
            are no class index, or no bin.
    """
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    if probs.ndim != 2:
        raise ValueError(f"probs: need (cases, classes), got {probs.shape}.")
    check(probs, labels, range(len(labels)), range(probs.shape[1]))
    if bins < 1:
        raise ValueError(f"bins: need at least 1, got {bins}.")
    confidence = probs.max(1)
    place = _bin(confidence, bins)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(np.linspace(0, 1, bins + 1), np.bincount(place, confidence, bins) / count,
                           np.bincount(place, probs.argmax(1) == labels, bins) / count, count)


def tallies(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted positives and others at or above each distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(weights[:, order] * positive[order], axis=1)[:, last_of_tie]
    alarms = np.cumsum(weights[:, order] * ~positive[order], axis=1)[:, last_of_tie]
    return hits, alarms


def check(probs: np.ndarray, labels: np.ndarray, groups: Sequence[Any], classes: Sequence[Any]) -> None:
    """Refuse what are no probabilities of these classes, or no labels and patients of these cases.

    Raises:
        ValueError: For shapes that do not fit, no case, rows that are no probabilities, or labels
            that are no class index.
    """
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


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(1)


def _recall_and_f1(called: np.ndarray, positive: np.ndarray,
                   weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and F1 of a class; NaN in a draw without a case of it, where 0 would blame the model."""
    hits, cases = weights @ (called & positive), weights @ positive
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / cases
        return recall, np.where(cases > 0, 2 * hits / (weights @ called + cases), np.nan)


def _bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.minimum((confidence * bins).astype(int), bins - 1)


def _check_shares(what: str, shares: Mapping[str, float], classes: Sequence[str]) -> None:
    for name, share in shares.items():
        if name not in classes:
            raise ValueError(f"{what}: need classes among {', '.join(classes)}, got {name!r}.")
        if not 0 <= share <= 1:
            raise ValueError(f"{what}: need a number from 0 to 1 for {name}, got {share}.")
