"""`DualCrossAttentionFusion`: two trunks, fused by gated cross-attention at two scales.

An independent implementation of the idea of Borah and Singh (DCAT, arXiv 2503.11851). Known from
the paper: the two trunks and their taps, bidirectional cross-attention with a gate, per-level
concatenation, channel then spatial attention, dropout for uncertainty. Widths, norms, the form of
the gate and the head are our choices.

Inside, maps travel as tokens ``(batch, cells, channels)``: every 1x1 convolution is then one
matrix product, which a CPU does three times faster than the convolution. Levels are numbered 1
(stride 8) and 2 (stride 16).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from dcaf_monai.blocks import CrossAttention, Project, Refine, map_size, map_to_tokens, tokens_to_map
from dcaf_monai.trunks import Trunk
from dcaf_monai.weights import load_trunk_weights

KEY_POOLING = (2, 1)
"""Keys and values are averaged over squares of this side, at levels 1 and 2."""


class NetworkConfig(BaseModel):
    """Everything that decides the network's shape.

    Args:
        classes: Number of classes.
        backbones: Two timm model names.
        width: Channels of the cross-attention, a multiple of ``heads``.
        heads: Attention heads.
        fused: Channels of a fused level; the pooled vector has twice as many.
        hidden: Units between the head's two linear layers.
        dropout: Probability of both dropouts of the head; 0 gives a network without uncertainty.
        pool: Trunk maps are averaged over squares of this side before they are fused. 2 makes fusion five
            times cheaper and its maps half as fine.
        branches: ``first`` or ``second`` leaves one trunk out of the fusion, for ablations.
        attention: False joins the raw maps only: no cross-attention, no gate.
        gate: False lets everything in that cross-attention brings.
        refine: False leaves channel and spatial attention out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    classes: int = Field(ge=2)
    backbones: tuple[str, str] = ("efficientnet_b4", "resnet34")
    width: int = Field(default=128, ge=1)
    heads: int = Field(default=4, ge=1)
    fused: int = Field(default=256, ge=1)
    hidden: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    pool: int = Field(default=1, ge=1, le=8)
    branches: Literal["both", "first", "second"] = "both"
    attention: bool = True
    gate: bool = True
    refine: bool = True

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> NetworkConfig:
        if self.width % self.heads:
            raise ValueError(f"width: need a multiple of heads ({self.heads}), got {self.width}.")
        return self

    @property
    def attends(self) -> bool:
        """Whether two branches ask each other."""
        return self.attention and self.branches == "both"


@dataclass(frozen=True)
class Features:
    """What the trunks see: four maps ``(batch, channels, rows, columns)``.

    Args:
        first_8, second_8: First and second trunk at stride 8, equal rows and columns.
        first_16, second_16: The same at stride 16.
    """

    first_8: torch.Tensor
    first_16: torch.Tensor
    second_8: torch.Tensor
    second_16: torch.Tensor

    @property
    def maps(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The four maps, in the order of the arguments."""
        return self.first_8, self.first_16, self.second_8, self.second_16

    def averaged(self) -> torch.Tensor:
        """Each map's mean over its cells, joined: ``(batch, channels of all four)``."""
        return torch.cat([maps.mean((2, 3)) for maps in self.maps], dim=1)


@dataclass(frozen=True)
class Fused:
    """What fusion makes of `Features`.

    Args:
        maps: Level 1 and level 2, each ``(batch, fused, rows, columns)``.
        pooled: ``(batch, 2 * fused)``: mean over the cells of level 1, then of level 2.
    """

    maps: tuple[torch.Tensor, torch.Tensor]
    pooled: torch.Tensor


@dataclass(frozen=True)
class LevelExplanation:
    """One fused level and how it came about.

    Args:
        map: ``(batch, fused, rows, columns)``.
        key_grid: ``(rows, columns)`` of the keys.
        attention: First asks second, second asks first; each ``(batch, heads, queries, keys)``,
            rows sum to one. Queries are the cells of the level, keys those of the key grid, both
            row by row. None in a network without cross-attention.
        gates: Second into first, first into second; each ``(batch, width, rows, columns)`` in
            (0, 1). None in a network without gates.
        spatial: ``(batch, 1, rows, columns)`` in (0, 1). None in a network that does not refine.
    """

    map: torch.Tensor
    key_grid: tuple[int, int]
    attention: tuple[torch.Tensor, torch.Tensor] | None = None
    gates: tuple[torch.Tensor, torch.Tensor] | None = None
    spatial: torch.Tensor | None = None


@dataclass(frozen=True)
class Explanation(Fused):
    """`Fused`, with level 1 and level 2 explained."""

    levels: tuple[LevelExplanation, LevelExplanation]


class FusionLevel(nn.Module):
    """One scale: project both maps, let them ask each other, join them with the raw maps, refine."""

    def __init__(self, channels: Sequence[int], config: NetworkConfig, key_pooling: int) -> None:
        super().__init__()
        first, second = channels
        width = config.width
        self.key_pooling, self.branches, self.attends = key_pooling, config.branches, config.attends
        raw = {"both": [first, second], "first": [first], "second": [second]}[config.branches]
        if config.attends:
            self.project_first, self.project_second = Project([first], width), Project([second], width)
            self.first_asks = CrossAttention(width, config.heads, gated=config.gate)
            self.second_asks = CrossAttention(width, config.heads, gated=config.gate)
            raw = [width, width, *raw]
        self.join = Project(raw, config.fused)
        self.refine = Refine(config.fused) if config.refine else None

    def forward(self, first: torch.Tensor, second: torch.Tensor,
                mask: torch.Tensor | None = None) -> torch.Tensor:
        """Two maps ``(batch, channels, rows, columns)`` to one ``(batch, fused, rows, columns)``.

        ``mask`` ``(fused,)`` multiplies the channels of the joined map before they are refined.
        """
        size = map_size(first)
        first, second = map_to_tokens(first), map_to_tokens(second)
        parts = self._raw(first, second)
        if self.attends:
            a, b = self.project_first(first), self.project_second(second)
            asked_a = self.first_asks(a, self._keys(b, size))
            asked_b = self.second_asks(b, self._keys(a, size))
            parts = [asked_a, asked_b, *parts]
        return tokens_to_map(self._joined(parts, size, mask)[0], size)

    def explain(self, first: torch.Tensor, second: torch.Tensor) -> LevelExplanation:
        """The same, with every value on the way."""
        size = map_size(first)
        first, second = map_to_tokens(first), map_to_tokens(second)
        parts, attention, gates = self._raw(first, second), None, None
        if self.attends:
            a, b = self.project_first(first), self.project_second(second)
            asked_a, attention_a, gate_a = self.first_asks.explain(a, self._keys(b, size))
            asked_b, attention_b, gate_b = self.second_asks.explain(b, self._keys(a, size))
            parts, attention = [asked_a, asked_b, *parts], (attention_a, attention_b)
            if gate_a is not None and gate_b is not None:
                gates = (tokens_to_map(gate_a, size), tokens_to_map(gate_b, size))
        tokens, spatial = self._joined(parts, size)
        return LevelExplanation(
            map=tokens_to_map(tokens, size), attention=attention, gates=gates,
            key_grid=(-(-size[0] // self.key_pooling), -(-size[1] // self.key_pooling)),
            spatial=None if spatial is None else tokens_to_map(spatial, size))

    def _raw(self, first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
        return {"both": [first, second], "first": [first], "second": [second]}[self.branches]

    def _joined(self, parts: list[torch.Tensor], size: tuple[int, int],
                mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens = F.gelu(self.join(*parts))
        if mask is not None:
            tokens = tokens * mask
        return (tokens, None) if self.refine is None else self.refine(tokens, size)

    def _keys(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if self.key_pooling == 1:
            return tokens
        pooled = F.avg_pool2d(tokens_to_map(tokens, size), self.key_pooling, ceil_mode=True)
        return map_to_tokens(pooled)


class DualCrossAttentionFusion(nn.Module):
    """Classifier of grey images by two trunks that ask each other.

    Args:
        classes: Number of classes, at least 2.
        backbones: Two timm model names whose stride-8 and stride-16 maps agree in size.
        weights: Of the trunks: ``"none"`` (random), ``"pretrained"`` (timm's, from its cache or by
            download) or two paths of local files.
        shape: The other fields of `NetworkConfig`.

    Raises:
        ValueError: When a field of the configuration or a backbone does not fit.
        WeightsError: When the trunk weights cannot be had or are of another network.
    """

    def __init__(self, classes: int, *, backbones: tuple[str, str] = ("efficientnet_b4", "resnet34"),
                 weights: str | tuple[str | Path, str | Path] = "none", **shape: float) -> None:
        super().__init__()
        self.config = config = NetworkConfig.model_validate(
            {"classes": classes, "backbones": backbones, **shape})
        self.first, self.second = Trunk(config.backbones[0]), Trunk(config.backbones[1])
        load_trunk_weights(self.first, self.second, weights=weights)
        eighth, sixteenth = zip(self.first.channels, self.second.channels, strict=True)
        self.level_1 = FusionLevel(eighth, config, KEY_POOLING[0])
        self.level_2 = FusionLevel(sixteenth, config, KEY_POOLING[1])
        pooled = 2 * config.fused
        self.head = nn.Sequential(
            nn.LayerNorm(pooled), nn.Dropout(config.dropout), nn.Linear(pooled, config.hidden), nn.GELU(),
            nn.Dropout(config.dropout), nn.Linear(config.hidden, classes))
        self.trunks_frozen = False

    def trunks(self, x: torch.Tensor) -> Features:
        """Features of both trunks.

        Args:
            x: ``(batch, 1 or 3, rows, columns)`` in [0, 1]; each trunk normalises for itself.

        Raises:
            ValueError: When ``x`` has another shape, or the two trunks' maps differ in size.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"input: need (batch, 1 or 3, rows, columns), got {tuple(x.shape)}.")
        features = Features(*(self._pooled(maps) for maps in (*self.first(x), *self.second(x))))
        for first, second in ((features.first_8, features.second_8), (features.first_16, features.second_16)):
            if map_size(first) != map_size(second):
                raise ValueError(f"backbones: need maps of equal size, got {map_size(first)} and "
                                 f"{map_size(second)}. Choose another pair or another input size.")
        return features

    def _pooled(self, maps: torch.Tensor) -> torch.Tensor:
        pool = self.config.pool
        if pool == 1:
            return maps
        rows, columns = map_size(maps)
        return F.adaptive_avg_pool2d(maps, (-(-rows // pool), -(-columns // pool)))

    def fuse(self, features: Features, masks: Sequence[torch.Tensor | None] = (None, None)) -> Fused:
        """Fused maps and the pooled vector.

        Args:
            features: From `trunks`.
            masks: Channel masks ``(fused,)`` of level 1 and level 2, for dropout within the fusion.
        """
        one = self.level_1(features.first_8, features.second_8, masks[0])
        two = self.level_2(features.first_16, features.second_16, masks[1])
        return Fused((one, two), _pool(one, two))

    def explain(self, features: Features) -> Explanation:
        """The same computation as `fuse`, with attention, gates and spatial maps as values."""
        one = self.level_1.explain(features.first_8, features.second_8)
        two = self.level_2.explain(features.first_16, features.second_16)
        return Explanation((one.map, two.map), _pool(one.map, two.map), (one, two))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, 1 or 3, rows, columns)`` in [0, 1]."""
        return self.head(self.fuse(self.trunks(x)).pooled)

    def freeze_trunks(self) -> None:
        """Fix the trunks: no gradients, and their batch norms stay in eval whatever `train` says."""
        self.trunks_frozen = True
        for trunk in (self.first, self.second):
            trunk.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DualCrossAttentionFusion:
        """As of every module, but frozen trunks stay in eval."""
        super().train(mode)
        if self.trunks_frozen:
            self.first.eval()
            self.second.eval()
        return self


def _pool(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    return torch.cat((one.mean((2, 3)), two.mean((2, 3))), dim=1)


def optimised(network: DualCrossAttentionFusion) -> DualCrossAttentionFusion:
    """A copy for inference with the same methods and answers (to 1e-4), and less work.

    Batch norms are folded into the layers before them and the trunks work channels last. The copy
    is in eval mode and must not be trained or saved.
    """
    memo = {id(trunk): trunk.folded() for trunk in (network.first, network.second)}
    twin = copy.deepcopy(network, memo)  # the memo puts the folded trunks in place of copies
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, Project):
                module.fold()
    return twin.eval().requires_grad_(False)
