"""Heat maps of many network inputs as plain arrays: what checks of explanations look at.

An `Explainer` is any function from a network, inputs and classes to maps by kind; `heat_explainer` is that of
this library. A check that takes one can judge an explanation from elsewhere by the same measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from dcaf_monai.heat import heats, kinds_of
from dcaf_monai.image import Geometry, Placement
from dcaf_monai.network import DualCrossAttentionFusion

BATCH = 16

Explainer = Callable[[DualCrossAttentionFusion, torch.Tensor, Sequence[int]], Mapping[str, np.ndarray]]
"""Network, inputs ``(cases, 1, size, size)``, a class an input -> by kind, maps ``(cases, rows, columns)``.
Values are not negative. Each kind has a grid of its own; all grids cover the whole input evenly."""


def heat_explainer(kinds: Sequence[str], *, level: int = 0, batch_size: int = BATCH) -> Explainer:
    """The maps of `dcaf_monai.heat`, each on its own coarse grid.

    Args:
        kinds: Some of `heat.KINDS`, which the network must have.
        level: As of `heat.Heat`.
        batch_size: Inputs that go through the network at once.
    """

    def explain(network: DualCrossAttentionFusion, inputs: torch.Tensor,
                classes: Sequence[int]) -> dict[str, np.ndarray]:
        size = inputs.shape[-1]
        place = (Placement(size, (0.0, 0.0), (1.0, 1.0)), Geometry((size, size)))
        found = []
        with torch.inference_mode():
            for start in range(0, len(inputs), batch_size):
                part = slice(start, start + batch_size)
                features = network.trunks(inputs[part])
                # class activation needs no attention maps; the others do
                looked = set(kinds) - {"class_activation"}
                fused = network.explain(features) if looked else network.fuse(features)
                found += heats(network.head, fused, kinds=kinds, level=level, classes=list(classes[part]),
                               places=[place] * len(fused.pooled))
        return {kind: np.stack([each[kind].values for each in found]) for kind in kinds}

    return explain


def explainer_for(network: DualCrossAttentionFusion, kinds: Sequence[str] | None) -> Explainer:
    """The library's maps of these kinds, by default all that the network can give.

    Raises:
        ValueError: For a kind that the network does not have.
    """
    has = kinds_of(network.config)
    unknown = [kind for kind in kinds or () if kind not in has]
    if unknown:
        raise ValueError(f"kinds: need some of {', '.join(has)}, got {unknown[0]!r}.")
    return heat_explainer(has if kinds is None else tuple(kinds))


def on_input(maps: np.ndarray, size: int) -> np.ndarray:
    """Maps ``(cases, rows, columns)`` at every pixel of the input, linear between the centres of the cells.

    Returns:
        float32 ``(cases, size, size)``.
    """
    grid = torch.from_numpy(np.ascontiguousarray(maps, np.float32))[:, None]
    return F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)[:, 0].numpy()


def centre_prior(size: int) -> np.ndarray:
    """``(size, size)``: a Gaussian in the middle, a quarter of the side wide. It knows nothing of any image.

    Photographers put things in the middle, and so do most data sets: a map that does not beat this one has
    shown nothing.
    """
    bell = np.exp(-0.5 * (((np.arange(size) + 0.5) / size - 0.5) / 0.25) ** 2)
    return (bell[:, None] * bell).astype(np.float32)


def class_probabilities(network: DualCrossAttentionFusion, inputs: torch.Tensor, *, temperature: float = 1.0,
                        batch_size: int = BATCH) -> np.ndarray:
    """Probabilities ``(cases, classes)`` of inputs, dropout off: one pass, no samples."""
    with torch.inference_mode():
        logits = torch.cat([network(inputs[start:start + batch_size])
                            for start in range(0, len(inputs), batch_size)])
        return torch.softmax(logits.double() / temperature, dim=1).cpu().numpy()
