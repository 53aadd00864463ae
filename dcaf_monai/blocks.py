"""What a fused level is built of: projection, gated cross-attention, refinement, all on tokens.

Maps travel as tokens ``(batch, cells, channels)``: every 1x1 convolution is then one matrix product, which
a CPU does three times faster than the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

GATE_BIAS = -1.0  # gates start mostly closed: fusion must earn its place


def map_size(grid: torch.Tensor) -> tuple[int, int]:
    """``(rows, columns)`` of ``(batch, channels, rows, columns)``."""
    return grid.shape[2], grid.shape[3]


def map_to_tokens(grid: torch.Tensor) -> torch.Tensor:
    """``(batch, channels, rows, columns)`` to contiguous ``(batch, rows * columns, channels)``."""
    return grid.flatten(2).transpose(1, 2).contiguous()


def tokens_to_map(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """``(batch, rows * columns, channels)`` to ``(batch, channels, rows, columns)``, a view."""
    return tokens.transpose(1, 2).unflatten(2, size)


class Project(nn.Module):
    """1x1 convolution of concatenated maps and batch norm, on tokens.

    The parts are never copied together: each meets its own columns of the weight. A part that
    needs no gradient (cached features) then costs none.
    """

    def __init__(self, channels: Sequence[int], out: int) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.linear = nn.Linear(sum(channels), out, bias=False)
        self.norm: nn.Module = nn.BatchNorm1d(out)

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        """Parts ``(batch, cells, channels[i])`` to ``(batch, cells, out)``."""
        batch, cells = parts[0].shape[:2]
        weights = self.linear.weight.split(self.channels, dim=1)
        total = F.linear(parts[0].flatten(0, 1), weights[0], self.linear.bias)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            total = torch.addmm(total, part.flatten(0, 1), weight.t())
        return self.norm(total).unflatten(0, (batch, cells))

    def fold(self) -> None:
        """Fold the batch norm into the weight, in place; for inference only."""
        norm = self.norm
        assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None \
            and norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.linear.weight = nn.Parameter(self.linear.weight * scale[:, None], requires_grad=False)
        self.linear.bias = nn.Parameter(norm.bias - norm.running_mean * scale, requires_grad=False)
        self.norm = nn.Identity()


class CrossAttention(nn.Module):
    """One direction: a branch asks the other and lets in what its gate allows.

    ``own + gate * y`` with ``y = attention(own asks other)`` and
    ``gate = sigmoid(W [own; y] + b)``, per cell and channel; without a gate everything comes in.
    """

    def __init__(self, width: int, heads: int, *, gated: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.own_norm, self.other_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.gate: nn.Linear | None = None
        if gated:
            self.gate = nn.Linear(2 * width, width)
            nn.init.constant_(self.gate.bias, GATE_BIAS)

    def forward(self, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``own`` ``(batch, queries, width)`` enriched by ``other`` ``(batch, keys, width)``."""
        query, key, value = self._query_key_value(own, other)
        return self._let_in(own, F.scaled_dot_product_attention(query, key, value))[0]

    def explain(self, own: torch.Tensor,
                other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The same, with the attention ``(batch, heads, queries, keys)`` and the gate ``(batch,
        queries, width)``, None without one."""
        query, key, value = self._query_key_value(own, other)
        attention = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, dim=-1)
        enriched, gate = self._let_in(own, attention @ value)
        return enriched, attention, gate

    def _query_key_value(self, own: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query = self.query(self.own_norm(own))
        key, value = self.key_value(self.other_norm(other)).chunk(2, dim=-1)
        return tuple(part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))

    def _let_in(self, own: torch.Tensor, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        answer = self.out(mixed.transpose(1, 2).flatten(2))
        if self.gate is None:
            return own + answer, None
        gate = torch.sigmoid(self.gate(torch.cat((own, answer), dim=-1)))
        return torch.addcmul(own, gate, answer), gate


class Refine(nn.Module):
    """Channel, then spatial attention, added to what comes in (Woo et al. 2018, with a residual)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(channels // 16, 1)
        self.channel = nn.Sequential(nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels))
        self.spatial = nn.Conv2d(2, 1, kernel_size=7, padding=3)

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Refined tokens ``(batch, cells, channels)`` and the spatial map ``(batch, cells, 1)``."""
        weight = torch.sigmoid(self.channel(tokens.mean(1)) + self.channel(tokens.amax(1)))
        weighted = tokens * weight[:, None]
        summary = torch.stack((weighted.mean(2), weighted.amax(2)), dim=1).unflatten(2, size)
        spatial = torch.sigmoid(self.spatial(summary)).flatten(2).transpose(1, 2)
        return torch.addcmul(tokens, weighted, spatial), spatial
