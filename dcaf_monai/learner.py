"""A cheap learner on fixed vectors: the network's own head, many trained side by side.

The layers are those of `DualCrossAttentionFusion.head`, so that dropout masks, samples and entropies are
what they are in the network. Heads of several runs train as one batched multiplication; each has random
numbers of its own, so that who trains beside it changes nothing. No head ever stops early: that would need
labels beside those it learns on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """How a head is trained: the same whoever chose its labels.

    Args:
        hidden: Units between the two linear layers.
        dropout: Probability of both dropouts, above 0.
        learning_rate: Peak; rises over a tenth of the steps and falls to zero by a cosine.
        weight_decay: AdamW's.
        steps: Of the optimiser, whatever the number of labels.
        batch_size: Cases a step, drawn with replacement: the classes keep their shares.
        samples: Dropout masks when it answers.
    """

    hidden: int = 256
    dropout: float = 0.3
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    steps: int = 200
    batch_size: int = 64
    samples: int = 50


def fit_heads(vectors: np.ndarray, labels: np.ndarray, labelled: Sequence[np.ndarray], classes: int, *,
              seeds: Sequence[int], recipe: Recipe) -> list[nn.Sequential]:
    """One head for each set of labelled cases, in eval mode.

    Args:
        vectors: ``(cases, units)`` float32 of all cases.
        labels: ``(cases,)`` class indices; read for labelled cases only.
        labelled: For each head the case numbers it learns on, at least one.
        classes: How many there are; one that is not among the labels is still an output.
        seeds: Of each head.
        recipe: How.
    """
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    heads = [_head(vectors.shape[1], classes, recipe, source) for source in sources]
    stacked = [nn.Parameter(torch.stack(parts)) for parts in zip(*(head.parameters() for head in heads),
                                                                  strict=True)]
    optimiser = torch.optim.AdamW(stacked, lr=recipe.learning_rate, weight_decay=recipe.weight_decay,
                                  foreach=True)
    known, answers = torch.from_numpy(vectors), torch.from_numpy(labels)
    own = [torch.from_numpy(np.asarray(cases)) for cases in labelled]
    for step in range(recipe.steps):
        optimiser.param_groups[0]["lr"] = recipe.learning_rate * _share_of_peak(step, recipe.steps)
        drawn = torch.stack([cases[torch.randint(len(cases), (recipe.batch_size,), generator=source)]
                             for cases, source in zip(own, sources, strict=True)])
        logits = _logits(stacked, known[drawn], recipe.dropout, sources)
        # each head's mean loss; the sum keeps their gradients apart
        loss = F.cross_entropy(logits.flatten(0, 1), answers[drawn].flatten()) * len(heads)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        for number, head in enumerate(heads):
            for parameter, values in zip(head.parameters(), stacked, strict=True):
                parameter.copy_(values[number])
    return [head.eval().requires_grad_(False) for head in heads]


def _head(units: int, classes: int, recipe: Recipe, source: torch.Generator) -> nn.Sequential:
    head = nn.Sequential(nn.LayerNorm(units), nn.Dropout(recipe.dropout), nn.Linear(units, recipe.hidden),
                         nn.GELU(), nn.Dropout(recipe.dropout), nn.Linear(recipe.hidden, classes))
    with torch.no_grad():
        for layer in head:
            if isinstance(layer, nn.Linear):  # PyTorch's own law, from a generator of our own
                bound = 1 / math.sqrt(layer.in_features)
                layer.weight.uniform_(-bound, bound, generator=source)
                layer.bias.uniform_(-bound, bound, generator=source)
    return head


def _logits(stacked: list[nn.Parameter], x: torch.Tensor, dropout: float,
            sources: list[torch.Generator]) -> torch.Tensor:
    """The heads in training, ``(heads, cases, units)`` to ``(heads, cases, classes)``."""
    scale, shift, first, first_bias, last, last_bias = stacked
    x = F.layer_norm(x, x.shape[-1:]) * scale[:, None] + shift[:, None]
    x = torch.baddbmm(first_bias[:, None], _dropped(x, dropout, sources), first.transpose(1, 2))
    return torch.baddbmm(last_bias[:, None], _dropped(F.gelu(x), dropout, sources), last.transpose(1, 2))


def _dropped(x: torch.Tensor, dropout: float, sources: list[torch.Generator]) -> torch.Tensor:
    kept = torch.stack([torch.rand(x.shape[1:], generator=source) for source in sources]) >= dropout
    return x * kept / (1 - dropout)


def _share_of_peak(step: int, steps: int) -> float:
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2
