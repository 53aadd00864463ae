"""Temperature and operating points: what turns a trained network's logits into answers.

The temperature divides every sampled logit before the mean over dropout samples is taken. It minimises
the negative log-likelihood of that mean (Guo et al. 2017, applied to the mean over samples) under a weak
prior around 1: cases that are all separated would otherwise ask for the smallest temperature there is,
and one wrong answer at it costs tens of nats. It never changes which logit is largest within a sample.

An operating point is a cut-off on one class's probability, one class against the rest: a case is
*positive* when its probability is at least the cut-off. Cut-offs belong to the model version they
were fitted on: another version's probabilities mean something else.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.optimize import minimize_scalar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Criterion = Literal["sensitivity", "specificity"]
TEMPERATURE_RANGE = (0.05, 20.0)
"""Where a temperature is looked for. A fit that ends at an edge says the network is broken, not hot."""
TEMPERATURE_PRIOR = math.log(2)
"""Standard deviation of the normal prior of log temperature: two in three between one half and two. It weighs
about as much as one case, so a hundred cases with a few errors among them hardly feel it."""


class OperatingPoint(BaseModel):
    """A cut-off for one class against the rest; positive means probability >= ``cutoff``.

    Args:
        cutoff: Probability in [0, 1].
        criterion: What was asked for: ``sensitivity`` or ``specificity``.
        target: The share asked for, in (0, 1].
        achieved: The share reached on the cases it was fitted on; at least ``target``.
        n: How many cases the share is a share of: positives for sensitivity, negatives for specificity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    cutoff: float = Field(ge=0, le=1)
    criterion: Criterion
    target: float = Field(gt=0, le=1)
    achieved: float = Field(ge=0, le=1)
    n: int = Field(ge=1)


class Overrides(BaseModel):
    """A site's own cut-offs for one model version, as they stand in a JSON or TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model_version: str = Field(min_length=1)
    cutoffs: Mapping[str, float]


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Temperature of the largest posterior: likelihood of the mean over dropout samples, prior around 1.

    Args:
        logits: ``(samples, cases, classes)``, finite.
        labels: ``(cases,)`` class indices.

    Raises:
        ValueError: For other shapes, no case, labels that are no class index, or logits that are
            not finite.
    """
    if logits.ndim != 3 or labels.shape != logits.shape[1:2] or not labels.numel():
        raise ValueError("logits, labels: need (samples, cases, classes) and (cases,) with at least one "
                         f"case, got {tuple(logits.shape)} and {tuple(labels.shape)}.")
    if labels.min() < 0 or labels.max() >= logits.shape[2]:
        raise ValueError(f"labels: need class indices 0 to {logits.shape[2] - 1}, got {int(labels.min())} "
                         f"to {int(labels.max())}.")
    if not torch.isfinite(logits).all():
        raise ValueError("logits: need finite numbers, got some that are not. Train again.")
    logits, labels = logits.detach().double().cpu(), labels.long().cpu()
    index = labels[None, :, None].expand(len(logits), -1, 1)

    def loss(log_temperature: float) -> float:
        log_probs = torch.log_softmax(logits / math.exp(log_temperature), dim=2)
        log_mean = torch.logsumexp(log_probs.gather(2, index)[..., 0], dim=0) - math.log(len(logits))
        return (log_temperature / TEMPERATURE_PRIOR) ** 2 / 2 - float(log_mean.sum())

    low, high = (math.log(edge) for edge in TEMPERATURE_RANGE)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


def fit_operating_points(probs: np.ndarray, labels: np.ndarray, classes: Sequence[str], *,
                         criterion: Criterion = "sensitivity",
                         target: float = 0.95) -> dict[str, OperatingPoint]:
    """One cut-off per class, one against the rest, that just reaches ``target`` on these cases.

    For a sensitivity the cut-off is as high as it may be, for a specificity as low as it may be, and
    it lies in the middle of the gap to the next case, so that no rounding can move a case across.
    A class whose target no cut-off reaches (no positive case, no negative case) is left out: no
    cut-off is more honest than a made-up one.

    Args:
        probs: ``(cases, classes)`` probabilities, rows summing to one.
        labels: ``(cases,)`` class indices.
        classes: Class names in the order of the columns.
        criterion: ``sensitivity`` or ``specificity``.
        target: The share to reach, in (0, 1].

    Raises:
        ValueError: For shapes that do not fit, or a target or criterion out of range.
    """
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    if probs.shape != (len(labels), len(classes)):
        raise ValueError(f"probs: need (cases, classes) = ({len(labels)}, {len(classes)}), "
                         f"got {probs.shape}.")
    if not 0 < target <= 1:
        raise ValueError(f"target: need a share above 0 and at most 1, got {target}.")
    if criterion not in ("sensitivity", "specificity"):
        raise ValueError(f"criterion: need sensitivity or specificity, got {criterion!r}.")
    points = {}
    for column, name in enumerate(classes):
        positive = labels == column
        cutoff = _cutoff(probs[:, column], positive, criterion, target)
        if cutoff is None:
            continue
        counted = positive if criterion == "sensitivity" else ~positive
        right = (probs[:, column] >= cutoff) == positive
        points[name] = OperatingPoint(cutoff=cutoff, criterion=criterion, target=target,
                                      achieved=float(right[counted].mean()), n=int(counted.sum()))
    return points


def _cutoff(scores: np.ndarray, positive: np.ndarray, criterion: Criterion, target: float) -> float | None:
    """Middle of the gap beside the case at which ``target`` is just reached, or None."""
    counted = np.sort(scores[positive] if criterion == "sensitivity" else scores[~positive])
    if not len(counted):
        return None
    need = math.ceil(target * len(counted) - 1e-9)  # 0.95 * 20 is 19, not 19.000000000000004
    if criterion == "sensitivity":
        last = counted[-need]
        return float((last + max(scores[scores < last], default=0.0)) / 2)
    last = counted[need - 1]
    if last >= 1:
        return None
    return float((last + min(scores[scores > last], default=1.0)) / 2)


def load_overrides(path: Path, model_version: str, classes: Sequence[str]) -> dict[str, float]:
    """A site's own cut-offs, from a ``.json`` or ``.toml`` file, for exactly this model version.

    The file holds ``model_version`` and ``cutoffs``, a table of class name to probability.

    Args:
        path: The file.
        model_version: Version of the model the cut-offs are to be used with.
        classes: The model's class names.

    Raises:
        ValueError: When the file cannot be read, was fitted on another version, names a class the
            model does not have, or holds a cut-off that is not a probability.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        found = Overrides.model_validate(tomllib.loads(text) if path.suffix == ".toml" else json.loads(text))
    except OSError as error:
        raise ValueError(f"cut-offs: cannot read {path.name}: {error.strerror}.") from error
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"cut-offs: {path.name} is neither JSON nor TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"cut-offs: {path.name}: {place or 'file'}: {first['msg']}.") from error
    if found.model_version != model_version:
        raise ValueError(f"cut-offs: need some fitted on model version {model_version}, got version "
                         f"{found.model_version}. Fit them again on this model.")
    for name, cutoff in found.cutoffs.items():
        if name not in classes:
            raise ValueError(f"cut-offs: need classes among {', '.join(classes)}, got {name!r}.")
        if not 0 <= cutoff <= 1:
            raise ValueError(f"cut-offs: need a probability for {name}, got {cutoff}.")
    return dict(found.cutoffs)
