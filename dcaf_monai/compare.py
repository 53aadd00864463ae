"""Whether one model is better than another on the same cases, and how far several seeds spread.

Differences are the first model's figure minus the second's. The paired bootstrap draws the same patients for
both models, so what makes a patient hard for both cancels. DeLong's test (E. R. DeLong, D. M. DeLong and
D. L. Clarke-Pearson, Biometrics 44 (1988) 837-845; with mid-ranks as X. Sun and W. Xu, IEEE Signal Process.
Lett. 21 (2014) 1389-1393) needs no drawing, but takes cases as independent: where a patient has several
images its standard error is usually too small, and the bootstrap is to be believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from dcaf_monai import metrics, selective

_ROUNDING = 1e-12
"""Areas are multiples of half a pair: a standard error so small is rounding, not evidence."""


@dataclass(frozen=True)
class DeLong:
    """Two areas under the ROC curve on the same cases.

    Args:
        a, b: The areas.
        difference: ``a - b``.
        standard_error: Of the difference.
        low, high: 95 % interval of the difference, by the normal law; None without a standard error.
        p: Two-sided; None when the standard error is zero, as for equal orders or perfect separation by
            both: there the test has nothing to say.
    """

    a: float
    b: float
    difference: float
    standard_error: float
    low: float | None
    high: float | None
    p: float | None


def paired(a_probs: np.ndarray, b_probs: np.ndarray, labels: np.ndarray, groups: Sequence[str],
           classes: Sequence[str], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Differences of two models, first minus second, on the same cases; plain JSON values.

    ``figures`` has each figure of `metrics.figures` and of `selective.figures` (certainty being the largest
    probability) as ``{"a", "b", "difference", "low", "high"}``, the interval from paired draws of patients.
    ``per_class`` has under each class ``auroc`` in that form and ``delong`` (the fields of `DeLong`; None
    for a class with fewer than two positive or negative cases). ``prefer`` says which interval of an AUROC to
    believe: ``bootstrap`` when a patient has several cases, else ``delong``.

    Args:
        a_probs: ``(cases, classes)`` of the first model, rows summing to one.
        b_probs: The same of the second, the same cases in the same order.
        labels: ``(cases,)`` class indices.
        groups: Patient of each case.
        classes: Class names in the order of the columns.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        ValueError: For shapes that do not fit, no case, rows that are no probabilities, or labels
            that are no class index.
    """
    labels = np.asarray(labels)
    both = [np.asarray(probs, np.float64) for probs in (a_probs, b_probs)]
    for probs in both:
        metrics.check(probs, labels, groups, classes)
    weights = metrics.group_weights(groups, resamples=resamples, seed=seed)
    patients = len(set(groups))

    def difference(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
        found = metrics.interval(a - b, patients)
        ends = {"low": found["low"], "high": found["high"]}
        return {"a": _number(a[0]), "b": _number(b[0]), "difference": found["value"], **ends}

    (a_whole, a_each), (b_whole, b_each) = (_draws(probs, labels, weights) for probs in both)
    return {
        "cases": len(labels), "patients": patients, "resamples": resamples,
        "prefer": "bootstrap" if patients < len(labels) else "delong",
        "figures": {kind: difference(a_whole[kind], b_whole[kind]) for kind in a_whole},
        "per_class": {name: {"auroc": difference(a_each[column]["auroc"], b_each[column]["auroc"]),
                             "delong": _delong_of_class(both, labels, column)}
                      for column, name in enumerate(classes)}}


def delong(a_scores: np.ndarray, b_scores: np.ndarray, positive: np.ndarray) -> DeLong:
    """DeLong's test of two scores of the same, independent cases.

    Args:
        a_scores: ``(cases,)``, larger for the positive; any finite scale, only the order counts.
        b_scores: The same cases by the second model.
        positive: ``(cases,)`` bool.

    Raises:
        ValueError: For shapes that do not fit, scores that are not finite, or fewer than two positive or
            two negative cases.
    """
    a_scores, b_scores = np.asarray(a_scores, np.float64), np.asarray(b_scores, np.float64)
    positive = np.asarray(positive, bool)
    if positive.ndim != 1 or not a_scores.shape == b_scores.shape == positive.shape:
        raise ValueError("a_scores, b_scores, positive: need one of each for every case, got "
                         f"{a_scores.shape}, {b_scores.shape} and {positive.shape}.")
    if not (np.isfinite(a_scores).all() and np.isfinite(b_scores).all()):
        raise ValueError("a_scores, b_scores: need finite numbers, got some that are not.")
    if positive.sum() < 2 or (~positive).sum() < 2:
        raise ValueError("positive: need at least two positive and two negative cases for a standard error, "
                         f"got {positive.sum()} and {(~positive).sum()}.")
    a_wins, a_losses = _placements(a_scores, positive)
    b_wins, b_losses = _placements(b_scores, positive)
    a, b = a_wins.mean(), b_wins.mean()
    # the variance of the difference is that of the differences: no cancelling of nearly equal covariances
    variance = sum(np.var(found, ddof=1) / len(found) for found in (a_wins - b_wins, a_losses - b_losses))
    error = float(np.sqrt(variance))
    if error < _ROUNDING:
        return DeLong(float(a), float(b), float(a - b), 0.0, None, None, None)
    reach = ndtri(0.975) * error
    return DeLong(float(a), float(b), float(a - b), error, float(a - b - reach), float(a - b + reach),
                  float(2 * ndtr(-abs(a - b) / error)))


def spread(values: Iterable[float]) -> dict[str, float | int | None]:
    """``{"mean", "sd", "n"}`` of one figure over several seeds; the sample's sd, None for one seed.

    Raises:
        ValueError: For no value or values that are not finite.
    """
    found = np.array(list(values), np.float64)
    if not len(found) or not np.isfinite(found).all():
        raise ValueError(f"values: need at least one, all finite, got {found.tolist()}.")
    return {"mean": float(found.mean()), "sd": float(found.std(ddof=1)) if len(found) > 1 else None,
            "n": len(found)}


def _draws(probs: np.ndarray, labels: np.ndarray,
           weights: np.ndarray) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    whole, each = metrics.figures(probs, labels, weights)
    return {**whole, **selective.figures(1 - probs.max(1), probs.argmax(1) != labels, weights)}, each


def _delong_of_class(both: list[np.ndarray], labels: np.ndarray,
                     column: int) -> dict[str, float | None] | None:
    positive = labels == column
    if min(positive.sum(), (~positive).sum()) < 2:
        return None
    return asdict(delong(both[0][:, column], both[1][:, column], positive))


def _placements(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of negatives below each positive, and of positives above each negative; ties count half."""
    ranks = rankdata(scores)
    above, below = scores[positive], scores[~positive]
    wins = (ranks[positive] - rankdata(above)) / len(below)
    losses = 1 - (ranks[~positive] - rankdata(below)) / len(above)
    return wins, losses


def _number(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
