"""Knowing what it does not know: how the error falls when the least certain cases are left to a reader.

Cases are accepted from the most certain on. *Coverage* is the share accepted, *selective risk* the share of
wrong answers among the accepted, *generalised risk* the share of all cases that are accepted and wrong.

- AURC: mean selective risk over acceptance of 1, 2, ... all cases (Geifman and El-Yaniv, 2017).
- Excess AURC: AURC above that of a score that sets every wrong answer last (Geifman et al., 2019).
- AUGRC: area under generalised risk against coverage, from (0, 0), by trapezoids (Traub et al., NeurIPS
  2024): the mean share of silent failures, at most 0.5. It is
  ``(1 - failure AUROC) * accuracy * error + error ** 2 / 2``, which AURC is not a function of.

Ties. Cases of equal uncertainty are accepted in random order, and areas and the risk at a coverage are the
expectation over all such orders, by formula, not by drawing. So the order of cases changes no figure.
Coverage at a risk belongs to a cut-off, which takes a whole tie or leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import digamma

from dcaf_monai.metrics import auroc, group_weights, interval, tallies

COVERAGE = 0.8
"""At which the remaining risk is told: a fifth of the cases goes to a reader."""
RISK = 0.05
"""At which the coverage is told."""
_ROUNDING = 1e-9
"""0.8 * 35 is 28, not 28.000000000000004."""


@dataclass(frozen=True)
class RiskCoverage:
    """A risk-coverage curve with its 95 % band over patients; NaN where the band does not exist.

    Args:
        coverage: ``(points,)``, rising to 1.
        risk: ``(points,)``, selective risk at that coverage.
        low: ``(points,)``, lower edge of the band.
        high: ``(points,)``, upper edge of the band.
    """

    coverage: np.ndarray
    risk: np.ndarray
    low: np.ndarray
    high: np.ndarray


def selective(labels: np.ndarray, predicted: np.ndarray, uncertainty: Mapping[str, np.ndarray],
              groups: Sequence[str], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """``risk`` of all cases and every figure of each score, each ``{"value", "low", "high"}``; plain JSON.

    Under ``scores``, by name: ``aurc``, ``excess_aurc``, ``augrc``, ``risk_at_80_coverage``,
    ``coverage_at_5_risk`` and ``failure_auroc``. A figure that does not exist (failure AUROC of a model that
    is never wrong) is None, and so is an interval as in `metrics.report`.

    Args:
        labels: ``(cases,)`` class indices.
        predicted: ``(cases,)`` class indices answered.
        uncertainty: Name of a score to its ``(cases,)`` values, finite, larger is less certain: say
            ``softmax`` (1 - largest probability), ``entropy``, ``mutual_information``.
        groups: Patient of each case.
        resamples: Bootstrap draws.
        seed: Of the draws; the same as in `metrics.report` gives the same draws.

    Raises:
        ValueError: For no case, no score, shapes that do not fit or values that are not finite.
    """
    wrong = _wrong(labels, predicted, groups)
    if not uncertainty:
        raise ValueError("uncertainty: need at least one score, got none.")
    scores = {name: _checked(name, values, wrong) for name, values in uncertainty.items()}
    weights = group_weights(groups, resamples=resamples, seed=seed)
    patients = len(set(groups))
    return {
        "cases": len(wrong), "patients": patients, "resamples": resamples,
        "risk": interval(weights @ wrong / weights.sum(1), patients),
        "scores": {name: {kind: interval(draws, patients)
                          for kind, draws in figures(values, wrong, weights).items()}
                   for name, values in scores.items()}}


def risk_coverage(labels: np.ndarray, predicted: np.ndarray, uncertainty: np.ndarray,
                  groups: Sequence[str], *, points: int = 100, resamples: int = 1000,
                  seed: int = 0) -> RiskCoverage:
    """The risk-coverage curve of one score, at equal steps of coverage.

    Args:
        labels: ``(cases,)`` class indices.
        predicted: ``(cases,)`` class indices answered.
        uncertainty: ``(cases,)``, finite, larger is less certain.
        groups: Patient of each case.
        points: Coverages, ``1 / points`` to 1.
        resamples: Bootstrap draws of the band.
        seed: Of the draws.

    Raises:
        ValueError: For no case, no point, shapes that do not fit or values that are not finite.
    """
    wrong = _wrong(labels, predicted, groups)
    uncertainty = _checked("uncertainty", uncertainty, wrong)
    if points < 1:
        raise ValueError(f"points: need at least 1, got {points}.")
    weights = group_weights(groups, resamples=resamples, seed=seed)
    coverage = np.arange(1, points + 1) / points
    risks = risk_at(*acceptance(uncertainty, wrong, weights), coverage=coverage)
    bands = [interval(column, len(set(groups))) for column in risks.T]
    low, high = (np.array([np.nan if band[edge] is None else band[edge] for band in bands], np.float64)
                 for edge in ("low", "high"))
    return RiskCoverage(coverage, risks[0], low, high)


def figures(uncertainty: np.ndarray, wrong: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """All figures of one score in every draw, ``(draws,)`` each.

    Args:
        uncertainty: ``(cases,)``, larger is less certain.
        wrong: ``(cases,)`` bool.
        weights: ``(draws, cases)`` whole numbers, from `metrics.group_weights`.
    """
    accepted, failed = acceptance(uncertainty, wrong, weights)
    cases, errors, none = accepted[:, -1], failed[:, -1], np.zeros(len(weights))
    best = aurc(np.stack([none, cases - errors, cases], 1), np.stack([none, none, errors], 1))
    area = aurc(accepted, failed)
    return {"aurc": area, "excess_aurc": area - best, "augrc": augrc(accepted, failed),
            "risk_at_80_coverage": risk_at(accepted, failed, coverage=np.array([COVERAGE]))[:, 0],
            "coverage_at_5_risk": coverage_at(accepted, failed, risk=RISK),
            "failure_auroc": auroc(uncertainty, wrong, weights)}


def acceptance(uncertainty: np.ndarray, wrong: np.ndarray,
               weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cases accepted, and failures among them, from none to all: what the figures below are made of.

    Returns:
        Two arrays ``(draws, 1 + distinct uncertainties)``: 0, then counts after each tie.
    """
    failed, right = (np.insert(counts, 0, 0, axis=1) for counts in tallies(-uncertainty, wrong, weights))
    return failed + right, failed


def aurc(accepted: np.ndarray, failed: np.ndarray) -> np.ndarray:
    """Area under the risk-coverage curve of each draw, ties in expectation over their orders."""
    taken, errors = np.diff(accepted, axis=1), np.diff(failed, axis=1)
    share = np.divide(errors, taken, out=np.zeros_like(taken), where=taken > 0)
    # j cases into a tie the risk is (failed + j * share) / (accepted + j): summed over j, harmonic numbers
    harmonic = np.diff(digamma(accepted + 1), axis=1)
    sums = errors + (failed[:, :-1] - accepted[:, :-1] * share) * harmonic
    return sums.sum(1) / accepted[:, -1]


def augrc(accepted: np.ndarray, failed: np.ndarray) -> np.ndarray:
    """Area under the generalised risk-coverage curve of each draw, 0 to 0.5."""
    middle = (failed[:, 1:] + failed[:, :-1]) / 2
    return (np.diff(accepted, axis=1) * middle).sum(1) / accepted[:, -1] ** 2


def risk_at(accepted: np.ndarray, failed: np.ndarray, *, coverage: np.ndarray) -> np.ndarray:
    """Selective risk of the fewest cases that are at least each coverage, ``(draws, coverages)``."""
    cases = np.maximum(np.ceil(accepted[:, -1:] * coverage - _ROUNDING), 1)
    # inside a tie the expected number of failures rises in a straight line
    return np.array([np.interp(*row) for row in zip(cases, accepted, failed, strict=True)]) / cases


def coverage_at(accepted: np.ndarray, failed: np.ndarray, *, risk: float) -> np.ndarray:
    """Largest coverage of a cut-off whose selective risk is at most ``risk``, of each draw; 0 if none."""
    return np.where(failed <= risk * accepted + _ROUNDING, accepted, 0).max(1) / accepted[:, -1]


def _wrong(labels: np.ndarray, predicted: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.ndim != 1 or labels.shape != predicted.shape or len(groups) != len(labels) or not len(labels):
        raise ValueError("labels, predicted, groups: need one of each for every case and at least one case, "
                         f"got {labels.shape}, {predicted.shape} and {len(groups)}.")
    return labels != predicted


def _checked(name: str, values: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape != wrong.shape or not np.isfinite(values).all():
        raise ValueError(f"{name}: need {len(wrong)} finite numbers, one a case, got {values.shape}"
                         f"{'' if np.isfinite(values).all() else ' with some that are not finite'}.")
    return values
