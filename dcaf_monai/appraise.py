"""What the validation split says of a trained network: sampled logits, their likelihood, heat scales."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from dcaf_monai import heat
from dcaf_monai.features import Inputs
from dcaf_monai.image import Geometry, Placement
from dcaf_monai.network import DualCrossAttentionFusion, Features
from dcaf_monai.uncertainty import dropout_masks, sample_logits

Source = Callable[[np.ndarray], Features]
"""Trunk features of case numbers ``(cases,)``."""
BATCH = 16
MOST_HEATS = 200
"""A 99th percentile needs no more images than this."""


def trunk_source(network: DualCrossAttentionFusion, inputs: Inputs, device: torch.device) -> Source:
    """Features straight from the trunks of a network in eval mode."""
    @torch.no_grad()
    def features(cases: np.ndarray) -> Features:
        return network.trunks(inputs.tensor(cases).to(device))
    return features


@torch.no_grad()
def pooled_vectors(network: DualCrossAttentionFusion, source: Source, cases: np.ndarray) -> torch.Tensor:
    """Pooled vectors ``(cases, 2 * fused)``, network in eval mode."""
    return torch.cat([network.fuse(source(cases[start:start + BATCH])).pooled
                      for start in range(0, len(cases), BATCH)])


@torch.no_grad()
def sampled_logits(network: DualCrossAttentionFusion, pooled: torch.Tensor, *, samples: int,
                   seed: int) -> torch.Tensor:
    """Logits ``(samples, cases, classes)`` on the CPU, under the masks a model of these settings has.

    Args:
        network: Whose head.
        pooled: ``(cases, 2 * fused)``, from `pooled_vectors`.
        samples: Number of masks.
        seed: Of the masks.
    """
    masks = dropout_masks(network.head, samples=samples, seed=seed)
    return torch.cat([sample_logits(network.head, part, masks) for part in pooled.split(BATCH)], dim=1).cpu()


def heat_scales(network: DualCrossAttentionFusion, source: Source, cases: np.ndarray, *,
                size: int) -> dict[str, float]:
    """Top of the colour bar of every kind of heat, of the class each case looks most like.

    Args:
        network: In eval mode.
        source: Of its features.
        cases: Case numbers; at most `MOST_HEATS` of them are looked at, evenly spaced.
        size: Side of the network input, pixels.
    """
    chosen = cases[np.unique(np.linspace(0, len(cases) - 1, min(len(cases), MOST_HEATS)).astype(int))]
    place = (Placement(size, (0.0, 0.0), (1.0, 1.0)), Geometry((size, size)))  # only values matter here
    found = []
    for start in range(0, len(chosen), BATCH):
        with torch.no_grad():
            explanation = network.explain(source(chosen[start:start + BATCH]))
            classes = network.head(explanation.pooled).argmax(1).tolist()
        found += heat.heats(network.head, explanation, classes=classes, places=[place] * len(classes),
                            kinds=heat.kinds_of(network.config))
    return heat.fit_scales(found)


def mean_probs(logits: torch.Tensor, temperature: float) -> np.ndarray:
    """Mean over samples of the softmax at a temperature, float64 ``(cases, classes)``."""
    return (logits.double() / temperature).softmax(2).mean(0).numpy()


def negative_log_likelihood(probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean over cases, nats; the gate's measure."""
    chosen = probs[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())
