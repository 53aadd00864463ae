"""What a cut-off does: sensitivity and specificity, and what its answers mean at a prevalence.

One class against the rest; positive means probability >= cut-off, as in `calibration`, which fits the
cut-offs. Sensitivity and specificity are shares of the diseased and of the others, so they do not change
with how many of each were collected. Predictive values do: they are given by Bayes' rule at a prevalence
that is said, and mean nothing without it.
"""

from __future__ import annotations

import numpy as np


def rates(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray, *,
          cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Sensitivity and specificity at a cut-off, ``(draws,)`` each; NaN without a case to be a share of.

    Args:
        scores: ``(cases,)`` probabilities of the class.
        positive: ``(cases,)`` bool, which cases are of the class.
        weights: ``(draws, cases)``, from `metrics.group_weights`.
        cutoff: Positive means score >= cut-off.
    """
    called = scores >= cutoff
    with np.errstate(invalid="ignore"):
        return (weights @ (called & positive) / (weights @ positive),
                weights @ (~called & ~positive) / (weights @ ~positive))


def ppv_npv(sensitivity: np.ndarray | float, specificity: np.ndarray | float,
            prevalence: float) -> tuple[np.ndarray, np.ndarray]:
    """Predictive values of a positive and of a negative answer at a prevalence, by Bayes' rule.

    Args:
        sensitivity: In [0, 1], a number or one per draw; NaN stays NaN.
        specificity: Likewise.
        prevalence: Share of the diseased among those examined, in [0, 1].

    Returns:
        Both in [0, 1]; NaN where no answer of that kind is ever given.

    Raises:
        ValueError: For a number outside [0, 1].
    """
    sensitivity, specificity = np.asarray(sensitivity, np.float64), np.asarray(specificity, np.float64)
    for what, share in (("sensitivity", sensitivity), ("specificity", specificity),
                        ("prevalence", np.float64(prevalence))):
        if (share < 0).any() or (share > 1).any() or (what == "prevalence" and np.isnan(share)):
            raise ValueError(f"{what}: need a share from 0 to 1, got {share}.")
    true_alarm, false_alarm = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    missed, cleared = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
    with np.errstate(invalid="ignore", divide="ignore"):
        return true_alarm / (true_alarm + false_alarm), cleared / (cleared + missed)
