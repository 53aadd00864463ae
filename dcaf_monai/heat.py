"""Heat maps: where the network looked and what spoke for a class, in the image's own geometry.

A class-activation map comes from the exact gradient of the head alone: pooling is a mean, so
``d logit / d map`` is ``d logit / d pooled`` over the number of cells, and no backward pass through
the trunks is needed (Selvaraju et al. 2017, the same map at the same layer). Attention is not
attribution: it shows where a branch looked, not what spoke for the class.

A cell is taken to cover its even share of the network's input. Receptive fields are larger, and
their centres lie up to half a cell away, by the padding of the trunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dcaf_monai.image import Geometry, Placement
from dcaf_monai.network import Explanation, Fused, LevelExplanation, NetworkConfig

KINDS = ("class_activation", "attention_first", "attention_second", "gate", "spatial")

SCALES: Mapping[str, float] = {
    "class_activation": 0.01, "attention_first": 4.0, "attention_second": 4.0, "gate": 1.0, "spatial": 1.0}
"""Top of the colour bar by kind, when the model file brings no better ones (see `fit_scales`)."""

UNITS: Mapping[str, str] = {
    "class_activation": "Contribution of a cell to the logit of the class; what speaks against it is 0.",
    "attention_first": "Attention the first trunk pays to a place of the second; 1 is even attention.",
    "attention_second": "Attention the second trunk pays to a place of the first; 1 is even attention.",
    "gate": "Share of the second trunk in what the two let in from each other; 0.5 is balance.",
    "spatial": "Weight of a place in the spatial attention, 0 to 1."}


def kinds_of(config: NetworkConfig) -> tuple[str, ...]:
    """The kinds of map that a network of this shape can give; an ablated one lacks some."""
    has = {"class_activation": True, "attention_first": config.attends, "attention_second": config.attends,
           "gate": config.attends and config.gate, "spatial": config.refine}
    return tuple(kind for kind in KINDS if has[kind])


@dataclass(frozen=True)
class Heat:
    """One map over one image.

    Args:
        kind: One of `KINDS`.
        level: 1 (stride 8), 2 (stride 16), or 0 for both on the finer grid: class activations
            added, others averaged.
        values: float32 ``(rows, columns)``, not negative.
        geometry: Where the grid lies; it may reach beyond the image (letter-box).
        scale: Top of the colour bar. Fixed for a model, never fitted to the image.
        unit: What a value means, as a sentence.
    """

    kind: str
    level: int
    values: np.ndarray
    geometry: Geometry
    scale: float
    unit: str

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype != np.float32 or not (self.values >= 0).all():
            raise ValueError(f"values: need float32 (rows, columns) not below 0, got {self.values.dtype} "
                             f"{self.values.shape}.")
        if self.values.shape != self.geometry.shape:
            raise ValueError(f"geometry: need shape {self.values.shape}, got {self.geometry.shape}.")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale: need a positive number, got {self.scale}.")


def heats(head: nn.Sequential, fused: Fused, *, classes: Sequence[int],
          places: Sequence[tuple[Placement, Geometry]], kinds: Sequence[str] = ("class_activation",),
          level: int = 0, scales: Mapping[str, float] | None = None) -> list[dict[str, Heat]]:
    """The maps of a batch, one dictionary by kind for each image.

    Args:
        head: The network's head.
        fused: Of the batch; an `Explanation` for every kind but the class activation.
        classes: Index of the class to explain, one an image; used by the class activation.
        places: For each image how the network's input covers it, and its geometry.
        kinds: Which maps.
        level: 1, 2 or 0, as in `Heat`.
        scales: Top of the colour bar by kind; `SCALES` where it says nothing.

    Raises:
        ValueError: For an unknown kind or level, a kind that needs an explanation, a class the head
            does not have, or a number of classes or places that is not the batch.
    """
    batch = fused.pooled.shape[0]
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or level not in (0, 1, 2):
        raise ValueError(f"kinds, level: need some of {', '.join(KINDS)} and 0, 1 or 2, "
                         f"got {', '.join(kinds)} and {level}.")
    if len(classes) != batch or len(places) != batch:
        raise ValueError(f"classes, places: need one an image ({batch}), "
                         f"got {len(classes)} and {len(places)}.")
    top = {**SCALES, **(scales or {})}
    values = {kind: _values(kind, level, head, fused, classes) for kind in kinds}

    def heat(kind: str, index: int) -> Heat:
        placement, source = places[index]
        rows, columns = values[kind].shape[1:]
        return Heat(kind, level, values[kind][index], placement.grid((rows, columns), source), top[kind],
                    UNITS[kind])

    return [{kind: heat(kind, index) for kind in kinds} for index in range(batch)]


def class_gradients(head: nn.Sequential, pooled: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    """Exact gradient of each image's class logit by the pooled vector, dropout off.

    Args:
        head: Layers in a row; its mode does not matter.
        pooled: ``(batch, units)``.
        classes: One index an image.

    Returns:
        ``(batch, units)``.

    Raises:
        ValueError: For a class the head does not have.
    """
    with torch.inference_mode(False), torch.enable_grad():
        start = pooled.detach().clone().requires_grad_()
        logits = start
        for layer in head:
            if not isinstance(layer, nn.Dropout):
                logits = layer(logits)
        if not all(0 <= index < logits.shape[1] for index in classes):
            raise ValueError(f"classes: need indices below {logits.shape[1]}, got {list(classes)}.")
        chosen = logits[torch.arange(len(classes)), torch.as_tensor(classes)]
        return torch.autograd.grad(chosen.sum(), start)[0]


def class_activations(head: nn.Sequential, fused: Fused,
                      classes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Contributions of the cells of level 1 and level 2 to each image's class logit, with sign.

    ``sum over channels of gradient * map / cells``; all cells of both levels together give
    ``gradient . pooled``.

    Returns:
        Two tensors ``(batch, rows, columns)``.
    """
    gradients = class_gradients(head, fused.pooled, classes)
    parts = gradients.split([level.shape[1] for level in fused.maps], dim=1)
    one, two = (torch.einsum("bc,bcij->bij", part, level) / (level.shape[2] * level.shape[3])
                for part, level in zip(parts, fused.maps, strict=True))
    return one, two


def received_attention(attention: torch.Tensor, key_grid: tuple[int, int]) -> torch.Tensor:
    """How much attention each key gets: mean over queries and heads, 1 when it is even.

    Args:
        attention: ``(batch, heads, queries, keys)``, rows sum to one.
        key_grid: ``(rows, columns)`` of the keys.

    Returns:
        ``(batch, rows, columns)``; the mean over an image's cells is 1.
    """
    return (attention.mean((1, 2)) * attention.shape[3]).unflatten(1, key_grid)


def gate_share(gates: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Openness of the second trunk's way into the first, over that of both ways.

    Args:
        gates: Second into first, first into second; each ``(batch, width, rows, columns)``.

    Returns:
        ``(batch, rows, columns)`` in (0, 1).
    """
    into_first, into_second = gates[0].mean(1), gates[1].mean(1)
    return into_first / (into_first + into_second)


def fit_scales(found: Sequence[Mapping[str, Heat]]) -> dict[str, float]:
    """Top of the colour bar by kind, from the maps of many images: the 99th percentile of their peaks.

    Kinds with a natural top (gate, spatial: 1) keep it.

    Raises:
        ValueError: When there is no map.
    """
    if not found:
        raise ValueError("heats: need the maps of at least one image, got none.")
    fitted = {}
    for kind in found[0]:
        peak = float(np.percentile([each[kind].values.max() for each in found], 99))
        fitted[kind] = peak if kind not in ("gate", "spatial") and peak > 0 else SCALES[kind]
    return fitted


def _values(kind: str, level: int, head: nn.Sequential, fused: Fused, classes: Sequence[int]) -> np.ndarray:
    """float32 ``(batch, rows, columns)`` of one kind."""
    if kind == "class_activation":
        maps = class_activations(head, fused, classes)
    else:
        if not isinstance(fused, Explanation):
            raise ValueError(f"{kind}: need an explanation, got fused maps only. Call network.explain.")
        maps = _looks(kind, *fused.levels)
    fine, coarse = (each.detach().cpu().numpy().astype(np.float64) for each in maps)
    if level:
        chosen = (fine, coarse)[level - 1]
    elif kind == "class_activation":
        chosen = fine + _on_grid(coarse, fine.shape[1:], extensive=True)
    else:
        chosen = (fine + _on_grid(coarse, fine.shape[1:], extensive=False)) / 2
    return np.maximum(chosen, 0).astype(np.float32)


def _looks(kind: str, one: LevelExplanation, two: LevelExplanation) -> tuple[torch.Tensor, torch.Tensor]:
    """``(batch, rows, columns)`` of level 1 and level 2, of any kind but the class activation."""
    if kind == "gate" and one.gates and two.gates:
        return gate_share(one.gates), gate_share(two.gates)
    if kind == "spatial" and one.spatial is not None and two.spatial is not None:
        return one.spatial[:, 0], two.spatial[:, 0]
    if kind.startswith("attention") and one.attention and two.attention:
        side = 0 if kind == "attention_first" else 1
        return (received_attention(one.attention[side], one.key_grid),
                received_attention(two.attention[side], two.key_grid))
    raise ValueError(f"{kind}: need a network that has this part, got one without. "
                     "Ask for another kind of map.")


def _on_grid(values: np.ndarray, shape: tuple[int, ...], *, extensive: bool) -> np.ndarray:
    """``(batch, rows, columns)`` on a grid of another shape over the same area.

    Extensive values are shared out by area, so that their sum stays; others are averaged by area.
    """
    down, right = _overlap(shape[0], values.shape[1]), _overlap(shape[1], values.shape[2])
    if not extensive:
        down, right = (each / each.sum(1, keepdims=True) for each in (down, right))
    return down @ values @ right.T


def _overlap(new: int, old: int) -> np.ndarray:
    """``(new, old)``: the part of each old interval that lies in each new one."""
    new_edges, old_edges = np.linspace(0, 1, new + 1), np.linspace(0, 1, old + 1)
    shared = (np.minimum(new_edges[1:, None], old_edges[None, 1:])
              - np.maximum(new_edges[:-1, None], old_edges[None, :-1]))
    return np.maximum(shared, 0) * old
