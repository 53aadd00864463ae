"""Whether a map depends on what the network learned: cascading randomisation (Adebayo et al. 2018).

The network is made untrained from the answer down to the picture, stage by stage, each on top of those
before: head, fused level 2, fused level 1, second trunk, first trunk. A stage gets the values it would
have had at the start of training. Running statistics of its batch norms are estimated anew on the checked
inputs: those of the old weights would blow the new ones' values up, and a map could change for that
reason alone.

A map that stays the same does not tell of the network; it may be an edge detector, or a habit of padding.
A map that is the same for all images does not tell of the image. Both similarities are measured here, in
the same two ways, on the map's own grid: rank correlation (Spearman) and structural similarity (Wang et
al. 2004) of maps scaled to their own range.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from scipy.stats import rankdata
from torch import nn

from dcaf_monai.explainer import BATCH, Explainer
from dcaf_monai.network import DualCrossAttentionFusion

STAGES = ("head", "level_2", "level_1", "second", "first")
"""From the answer down to the picture."""
WINDOW = 7
"""Side of the square in which two maps are compared, cells; smaller on a map that is smaller."""
_OTHERS = 5


@dataclass(frozen=True)
class Similarity:
    """How much one kind's maps resemble what they should not.

    Args:
        rank: ``(stages, cases)``, size of the rank correlation with the map after each stage of `STAGES`,
            0 to 1, mean over draws. A map turned upside down by chance still shows the same thing, so the
            sign does not count.
        signed_rank: The same with its sign, -1 to 1.
        ssim: ``(stages, cases)``, structural similarity, -1 to 1.
        rank_between: ``(cases,)``, rank correlation, with sign, with the trained network's maps of other
            images, mean over up to five; NaN where there is no image of another group.
        ssim_between: ``(cases,)``, structural similarity with them.
    """

    rank: np.ndarray
    signed_rank: np.ndarray
    ssim: np.ndarray
    rank_between: np.ndarray
    ssim_between: np.ndarray


def similarities(network: DualCrossAttentionFusion, inputs: torch.Tensor, *, classes: Sequence[int],
                 explainer: Explainer, groups: Sequence[str], draws: int = 3, seed: int = 0,
                 batch_size: int = BATCH, progress: Callable[[int, int], None] | None = None,
                 ) -> dict[str, Similarity]:
    """The similarities of every kind the explainer gives.

    Args:
        network: Trained; it stays as it is.
        inputs: ``(cases, 1, size, size)`` in [0, 1].
        classes: Class explained, one an input.
        explainer: Gives the maps.
        groups: Patient of each case; images of one patient are not other images.
        draws: Untrained networks; one may resemble by luck.
        seed: Of the first; the next counts on.
        batch_size: Inputs that go through the network at once.
        progress: Told ``(stages done, stages)``.

    Raises:
        ValueError: When ``draws`` is not positive.
    """
    if draws < 1:
        raise ValueError(f"draws: need at least 1, got {draws}.")
    before = explainer(network, inputs, classes)
    ranks: dict[str, list[np.ndarray]] = {kind: [] for kind in before}
    structures: dict[str, list[np.ndarray]] = {kind: [] for kind in before}
    for draw in range(draws):
        stages = cascade(network, inputs, seed=seed + draw, batch_size=batch_size)
        for step, (_, untrained) in enumerate(stages):
            after = explainer(untrained, inputs, classes)
            for kind in before:
                ranks[kind].append(rank_correlation(before[kind], after[kind]))
                structures[kind].append(structural_similarity(before[kind], after[kind]))
            if progress:
                progress(draw * len(STAGES) + step + 1, draws * len(STAGES))
    shape = (draws, len(STAGES), len(inputs))

    def similarity(kind: str) -> Similarity:
        rank, structure = np.reshape(ranks[kind], shape), np.reshape(structures[kind], shape)
        return Similarity(np.abs(rank).mean(0), rank.mean(0), structure.mean(0),
                          between(before[kind], groups, rank_correlation),
                          between(before[kind], groups, structural_similarity))

    return {kind: similarity(kind) for kind in before}


def cascade(network: DualCrossAttentionFusion, inputs: torch.Tensor, *, seed: int,
            batch_size: int = BATCH) -> Iterator[tuple[str, DualCrossAttentionFusion]]:
    """The network with more and more of it untrained, with the name of the stage that went last.

    Yields:
        One and the same copy each time, changed further: use it before asking for the next.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = network.config.model_dump(exclude={"classes", "backbones"})
        fresh = DualCrossAttentionFusion(network.config.classes, backbones=network.config.backbones, **shape)
    twin = copy.deepcopy(network).eval()
    for count, stage in enumerate(STAGES, start=1):
        setattr(twin, stage, getattr(fresh, stage).eval().to(inputs.device))
        _estimate_norms(twin, STAGES[:count], inputs, batch_size)
        yield stage, twin


def _estimate_norms(network: DualCrossAttentionFusion, stages: Sequence[str], inputs: torch.Tensor,
                    batch_size: int) -> None:
    """Running statistics of the batch norms of some stages, as means over the batches of the inputs."""
    norms = [module for stage in stages for module in getattr(network, stage).modules()
             if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain mean over batches
        norm.train()
    with torch.no_grad():
        for start in range(0, len(inputs), batch_size):
            network.fuse(network.trunks(inputs[start:start + batch_size]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def rank_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's correlation of maps ``(cases, rows, columns)``, ``(cases,)``; equal values share their rank.

    A blank map (all values equal) is like another blank one (1) and like nothing else (0).
    """
    first, second = (_centred(rankdata(maps.reshape(len(maps), -1), axis=1)) for maps in (one, other))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    both_blank = ~first.any(1) & ~second.any(1)
    return np.where(both_blank, 1.0, (first * second).sum(1) / np.where(lengths > 0, lengths, 1))


def structural_similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Structural similarity of maps ``(cases, rows, columns)``, each scaled to its own range, ``(cases,)``.

    Mean over all squares of `WINDOW` cells that lie wholly inside; constants 0.01 and 0.03 of the range.
    """
    first, second = _scaled(one), _scaled(other)
    side = min(WINDOW, *one.shape[1:])
    inside = [slice(side // 2, length - (side - 1) // 2) for length in one.shape[1:]]

    def local(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, (0, side, side))[:, inside[0], inside[1]]

    mean_1, mean_2 = local(first), local(second)
    var_1, var_2 = local(first**2) - mean_1**2, local(second**2) - mean_2**2
    covariance = local(first * second) - mean_1 * mean_2
    light, contrast = 0.01**2, 0.03**2
    found = ((2 * mean_1 * mean_2 + light) * (2 * covariance + contrast)
             / ((mean_1**2 + mean_2**2 + light) * (var_1 + var_2 + contrast)))
    return found.mean((1, 2))


def between(maps: np.ndarray, groups: Sequence[str],
            alike: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Mean similarity of each map with those of up to five other groups' images, ``(cases,)``."""
    names = np.asarray(groups)
    found = np.full((min(_OTHERS, len(maps) - 1), len(maps)), np.nan)
    for shift in range(len(found)):
        other = np.roll(np.arange(len(maps)), -(shift + 1))
        apart = names != names[other]
        if apart.any():
            found[shift, apart] = alike(maps[apart], maps[other[apart]])
    counted = np.isfinite(found).sum(0)
    return np.where(counted, np.nansum(found, axis=0) / np.maximum(counted, 1), np.nan)


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(1, keepdims=True)


def _scaled(maps: np.ndarray) -> np.ndarray:
    values = np.asarray(maps, np.float64)
    low, high = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
    return (values - low) / np.where(high > low, high - low, 1)
