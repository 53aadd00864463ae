"""Monte-Carlo dropout on the head, with fixed masks, and what its samples say.

Trunk and fusion run once; only the head is sampled. All images share the same masks, so an answer
repeats exactly, does not depend on the batch, and sample ``t`` of two images comes from one and
the same network (what joint scores of several images need). Entropies are in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Masks:
    """Fixed dropout masks of a head.

    Args:
        places: Positions of the active dropouts in the head.
        values: For each place ``(samples, units)``, float32, 0 or ``1 / (1 - p)``.
    """

    places: tuple[int, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.values[0].shape[0]


def dropout_masks(head: nn.Sequential, samples: int = 50, seed: int = 0) -> Masks:
    """Masks for every active dropout of a head, the same for the same seed on every machine.

    Args:
        head: Layers in a row; each dropout must be followed by a linear layer, which tells its
            width.
        samples: How many masks, at least 1.
        seed: Of the generator.

    Raises:
        ValueError: When the head has no active dropout, or ``samples`` is not positive.
    """
    if samples < 1:
        raise ValueError(f"samples: need at least 1, got {samples}.")
    generator = torch.Generator().manual_seed(seed)
    layers = list(head)
    places, values = [], []
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Dropout) and layer.p > 0:
            width = next(later.in_features for later in layers[place:] if isinstance(later, nn.Linear))
            kept = torch.rand(samples, width, generator=generator) >= layer.p
            places.append(place)
            values.append(kept.float() / (1 - layer.p))
    if not places:
        raise ValueError("head: need a dropout with p > 0 to tell uncertainty, got none. Train a model with "
                         "dropout; without it every sample is the same and the uncertainty a pretended zero.")
    return Masks(tuple(places), tuple(values))


def sample_logits(head: nn.Sequential, pooled: torch.Tensor, masks: Masks) -> torch.Tensor:
    """Logits of every sampled network, ``(samples, batch, classes)``.

    Equal to passing ``pooled`` through the head once a mask, whatever mode the head is in.

    Args:
        head: The head the masks were made for.
        pooled: ``(batch, units)``.
        masks: From `dropout_masks`.

    Raises:
        ValueError: When the masks were made for another head.
    """
    active = tuple(place for place, layer in enumerate(head) if isinstance(layer, nn.Dropout) and layer.p > 0)
    if active != masks.places:
        raise ValueError(f"masks: need masks for the dropouts at {active} of this head, got {masks.places}. "
                         "Make them with dropout_masks(head).")
    mask_at = dict(zip(masks.places, masks.values, strict=True))
    x = pooled[None]  # one sample until the first mask
    for place, layer in enumerate(head):
        if place in mask_at:
            x = x * mask_at[place].to(x)[:, None]
        elif not isinstance(layer, nn.Dropout):
            x = layer(x)
    return x


@dataclass(frozen=True)
class Uncertainty:
    """What the samples say of each image; float64, entropies in nats.

    Args:
        probs: ``(batch, classes)``, mean over the samples; rows sum to one.
        std: ``(batch, classes)``, standard deviation of the probabilities over the samples.
        predictive_entropy: ``(batch,)``, entropy of ``probs``, 0 to ln(classes).
        expected_entropy: ``(batch,)``, mean entropy of the samples: doubt within each.
        mutual_information: ``(batch,)``, the difference: disagreement between them.
        normalized_entropy: ``(batch,)``, predictive entropy over ln(classes), 0 to 1.
    """

    probs: torch.Tensor
    std: torch.Tensor
    predictive_entropy: torch.Tensor
    expected_entropy: torch.Tensor
    mutual_information: torch.Tensor
    normalized_entropy: torch.Tensor


def summarize(logits: torch.Tensor, temperature: float = 1.0) -> Uncertainty:
    """Mean probabilities and the parts of their entropy.

    Args:
        logits: ``(samples, batch, classes)``, finite, at least 2 classes.
        temperature: Divides the logits before the mean is taken; positive.

    Raises:
        ValueError: For another shape, logits that are not finite, or a temperature not above 0.
    """
    if logits.ndim != 3 or logits.shape[0] < 1 or logits.shape[2] < 2:
        raise ValueError(f"logits: need (samples, batch, classes), got {tuple(logits.shape)}.")
    if not torch.isfinite(logits).all():
        raise ValueError("logits: need finite numbers, got inf or nan. Check the weights of the model.")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature: need a positive number, got {temperature}.")
    sampled = torch.softmax(logits.double() / temperature, dim=-1)
    probs = sampled.mean(0)
    predictive = torch.special.entr(probs).sum(-1)
    # the entropy of a mean is never below the mean entropy; rounding may say so by 1e-16
    expected = torch.special.entr(sampled).sum(-1).mean(0).minimum(predictive)
    return Uncertainty(
        probs=probs, std=sampled.std(0, correction=0), predictive_entropy=predictive,
        expected_entropy=expected, mutual_information=predictive - expected,
        normalized_entropy=predictive / math.log(logits.shape[2]))


def penultimate(head: nn.Sequential, vectors: torch.Tensor) -> torch.Tensor:
    """What the last layer of a head in eval mode reads of vectors ``(cases, units)``: ``(cases, hidden)``."""
    with torch.no_grad():
        return head[:-1](vectors)
