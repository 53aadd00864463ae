"""Is this image like those the model was trained on? A distance on its pooled features.

The reference is the mean and the shared covariance of the training cases' pooled vectors: Ledoit-Wolf
shrinkage, its leading directions kept one by one, all others as one residual variance. The distance is
Mahalanobis' under that covariance, over the root of the number of features, so that training cases lie
near 1. Nothing of a single training case is kept, unlike in nearest-neighbour methods.

Chosen among Mahalanobis distances (whole, within classes, in subspaces) and nearest neighbours, on one OCT
model (frozen stand-in trunks, 420 training cases) by 60 unlabelled images of its test split, 10 of them
changed. All told chest films apart (AUROC 1.00). Mean AUROC, and share noticed, on turned, inverted and
blank B-scans and on corruptions of severity 2: this one 1.00 (100 %) and 0.95 (76 %), the whole covariance
the same at eight times the size, the 64 directions without the residual 0.99 (82 %) and 0.93 (58 %), the
tenth neighbour by cosine 0.98 (80 %) and 0.91 (50 %). Uneven gain is the hardest to see (0.70 at severity
2); a mirrored B-scan is an ordinary one (0.61).

An image beyond the 99th percentile of the distances of held-out cases is answered with a notice. That is
a question about the picture, not about the answer: pictures well inside can be answered wrongly, and a
shift that leaves the features alone is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sklearn.covariance import ledoit_wolf

from dcaf_monai.image import Notice
from dcaf_monai.metrics import auroc, group_weights, interval

DIRECTIONS = 64
"""Leading directions that are kept, at most."""
PERCENTILE = 99.0
"""Of held-out distances: the share of ordinary images that bring no notice."""
FEWEST = 20
"""With fewer training cases there is no covariance to speak of."""


class _Document(BaseModel):
    """The part of a reference that is no tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    residual: float = Field(gt=0, allow_inf_nan=False)
    threshold: float = Field(gt=0, allow_inf_nan=False)
    percentile: float = Field(gt=0, lt=100)
    cases: int = Field(ge=FEWEST)
    held_out: int = Field(ge=1)


@dataclass(frozen=True)
class Reference:
    """What ordinary features look like; float32 as in the model's file.

    Args:
        mean: ``(features,)``.
        axes: ``(directions, features)``, orthonormal rows.
        scale: ``(directions,)``, standard deviation along each; positive.
        residual: Standard deviation in every direction across all of these; positive.
        threshold: Distance above which an image is unlike the training images.
        percentile: Of held-out distances that gave it.
        cases: How many training cases.
        held_out: How many held-out cases.

    Raises:
        ValueError: For arrays that do not fit together or numbers out of range.
    """

    mean: np.ndarray
    axes: np.ndarray
    scale: np.ndarray
    residual: float
    threshold: float
    percentile: float
    cases: int
    held_out: int

    def __post_init__(self) -> None:
        mean, axes, scale = self.mean, self.axes, self.scale
        if mean.ndim != 1 or axes.shape != (len(scale), len(mean)) or not 1 <= len(scale) <= len(mean):
            raise ValueError("drift: need a mean (features,), axes (directions, features) and a scale "
                             f"(directions,), got {mean.shape}, {axes.shape} and {scale.shape}.")
        if not all(np.isfinite(part).all() for part in (mean, axes, scale)) or scale.min() <= 0:
            raise ValueError("drift: need finite numbers and a positive scale, got others.")
        if not np.allclose(axes @ axes.T, np.eye(len(axes)), atol=1e-3):
            raise ValueError("drift: need orthonormal axes, got others.")
        _checked(self.document())

    def distance(self, pooled: np.ndarray | torch.Tensor) -> np.ndarray:
        """How far images are from the training images, float64 ``(cases,)``; about 1 for those themselves.

        Args:
            pooled: ``(cases, features)``.

        Raises:
            ValueError: For another number of features, or values that are not finite.
        """
        x = _features(pooled, "pooled")
        if x.shape[1] != len(self.mean):
            raise ValueError(f"pooled: need (cases, {len(self.mean)}), got {x.shape}.")
        x = x - self.mean
        along = x @ self.axes.T.astype(np.float64)
        across = np.maximum((x**2).sum(1) - (along**2).sum(1), 0)
        squared = ((along / self.scale)**2).sum(1) + across / self.residual**2
        return np.sqrt(squared / len(self.mean))

    def notice(self, pooled: np.ndarray | torch.Tensor) -> Notice | None:
        """The notice of one image ``(features,)``, if it is unlike the training images.

        Raises:
            ValueError: As `distance`.
        """
        if self.distance(pooled[None])[0] <= self.threshold:
            return None
        return Notice("unlike_training", "Likeness: this picture is farther from the training images than "
                      f"{self.percentile:.0f} in 100 pictures of their kind. Do not trust the answer.")

    def document(self) -> dict[str, Any]:
        """The numbers that are no tensors, as plain JSON values."""
        return {"residual": self.residual, "threshold": self.threshold, "percentile": self.percentile,
                "cases": self.cases, "held_out": self.held_out}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The arrays by name, float32: ``mean``, ``axes``, ``scale``."""
        return {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name), np.float32))
                for name in ("mean", "axes", "scale")}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], document: Mapping[str, Any]) -> Reference:
        """The reference of these `tensors` and `document`.

        Raises:
            ValueError: For other names, or parts that do not fit.
        """
        if set(tensors) != {"mean", "axes", "scale"}:
            raise ValueError("drift: need the tensors mean, axes and scale, got "
                             f"{', '.join(sorted(tensors)) or 'none'}.")
        arrays = {name: tensor.detach().cpu().float().numpy() for name, tensor in tensors.items()}
        rest = _checked(document)
        return cls(arrays["mean"], arrays["axes"], arrays["scale"], rest.residual, rest.threshold,
                   rest.percentile, rest.cases, rest.held_out)


def fit_reference(pooled: np.ndarray | torch.Tensor, held_out: np.ndarray | torch.Tensor, *,
                  directions: int = DIRECTIONS, percentile: float = PERCENTILE) -> Reference:
    """What is ordinary, from training cases; where it ends, from cases the network was not trained on.

    Args:
        pooled: ``(cases, features)`` of training cases, at least `FEWEST`.
        held_out: ``(cases, features)`` of other cases of the same kind, at least one: distances of
            training cases are too short to judge others by. With ``n`` of them the threshold is the
            ``ceil((n + 1) percentile / 100)``-th shortest distance, or the longest.
        directions: Kept one by one; at most as many as features.
        percentile: Of held-out distances.

    Raises:
        ValueError: For too few cases, shapes that do not fit, values that are not finite, or settings
            out of range.
    """
    known, others = _features(pooled, "pooled"), _features(held_out, "held_out")
    if len(known) < FEWEST or not len(others) or known.shape[1] != others.shape[1]:
        raise ValueError(f"pooled, held_out: need at least {FEWEST} training cases and one held-out case of "
                         f"as many features, got {known.shape} and {others.shape}.")
    if directions < 1 or not 0 < percentile < 100:
        raise ValueError("directions, percentile: need at least 1 and a number between 0 and 100, got "
                         f"{directions} and {percentile}.")
    mean = known.mean(0)
    variances, vectors = np.linalg.eigh(ledoit_wolf(known - mean, assume_centered=True)[0])
    # Features that never vary leave no direction at zero: a hundred-thousandth of their size is no change.
    floor = max(float(np.abs(known).max()), 1e-6)**2 * 1e-10
    variances, vectors = np.maximum(variances[::-1], floor), vectors[:, ::-1]
    kept = min(directions, len(mean))
    residual = math.sqrt(variances[kept:].mean()) if kept < len(mean) else math.sqrt(variances[-1])
    # Rounded to float32 first, so that the threshold is of the very distances the file will give.
    unbounded = Reference(mean.astype(np.float32), np.ascontiguousarray(vectors[:, :kept].T, np.float32),
                          np.sqrt(variances[:kept]).astype(np.float32), residual, threshold=1.0,
                          percentile=float(percentile), cases=len(known), held_out=len(others))
    away = np.sort(unbounded.distance(others))
    place = min(len(away), math.ceil((len(away) + 1) * percentile / 100 - 1e-9))
    return replace(unbounded, threshold=max(float(away[place - 1]), 1e-6))


def ood_auroc_fpr95(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    """How well a score tells outside from inside cases: AUROC and FPR95.

    FPR95 follows the literature on out-of-distribution detection (Liang et al. 2018), where *inside* is the
    positive class: the share of outside cases still taken for inside by the lowest cut-off that takes at
    least 95 % of the inside cases for inside. 0 is best, about 0.95 is chance. Some libraries let
    *outside* be positive instead and give another number.

    Args:
        inside: Scores ``(cases,)`` of ordinary cases, such as `Reference.distance`; larger is stranger.
        outside: Scores of the others.

    Raises:
        ValueError: For no case on either side, or scores that are not a number.
    """
    found = ood_figures(inside, outside, resamples=0)
    return found["auroc"]["value"], found["fpr95"]["value"]


def ood_figures(inside: np.ndarray, outside: np.ndarray, *, inside_groups: Sequence[str] | None = None,
                outside_groups: Sequence[str] | None = None, resamples: int = 1000,
                seed: int = 0) -> dict[str, dict[str, Any]]:
    """`ood_auroc_fpr95` with 95 % intervals over patients: ``auroc`` and ``fpr95``, plain JSON values.

    Args:
        inside: As there.
        outside: As there.
        inside_groups: Patient of each inside case; each case its own by default.
        outside_groups: Patient of each outside case; one on both sides is drawn on both, as when outside
            cases are inside ones changed.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        ValueError: As there, or for groups of another number than cases.
    """
    near, far = np.asarray(inside, np.float64), np.asarray(outside, np.float64)
    scores = np.concatenate([near.ravel(), far.ravel()])
    if near.ndim != 1 or far.ndim != 1 or not len(near) or not len(far) or np.isnan(scores).any():
        raise ValueError("inside, outside: need scores (cases,) of at least one case each, none of them nan, "
                         f"got {near.shape} and {far.shape}.")
    groups = [*(inside_groups if inside_groups is not None else (f"inside {n}" for n in range(len(near)))),
              *(outside_groups if outside_groups is not None else (f"outside {n}" for n in range(len(far))))]
    if len(groups) != len(scores):
        raise ValueError(f"groups: need one for each of {len(scores)} cases, got {len(groups)}.")
    weights = group_weights(groups, resamples=resamples, seed=seed)
    is_far = np.arange(len(scores)) >= len(near)
    order = np.argsort(scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    taken = [np.cumsum(weights[:, order] * chosen[order], axis=1)[:, last_of_tie]
             for chosen in (~is_far, is_far)]
    with np.errstate(invalid="ignore", divide="ignore"):
        kept, passed = (counts / counts[:, -1:] for counts in taken)
    cut = (kept >= 0.95 - 1e-12).argmax(1)
    alarms = np.where(np.isnan(kept[:, 0]), np.nan, passed[np.arange(len(passed)), cut])
    return {"auroc": interval(auroc(scores, is_far, weights), len(set(groups))),
            "fpr95": interval(alarms, len(set(groups)))}


def _features(pooled: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    x = (pooled.detach().cpu().numpy() if isinstance(pooled, torch.Tensor) else np.asarray(pooled))
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"{name}: need finite numbers (cases, features), got {x.shape}"
                         f"{'' if x.ndim != 2 else ' with others among them'}.")
    return x.astype(np.float64)


def _checked(document: Mapping[str, Any]) -> _Document:
    try:
        return _Document.model_validate(dict(document))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"drift: {place}: {first['msg']}.") from error
