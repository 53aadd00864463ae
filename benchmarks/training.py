"""An epoch of frozen mode on cached features beside one of full fine-tuning, on the same cases.

Real epochs of the real loop: order, augmentation, steps, running average, validation, checkpoint.
Default pair, 224 px, random weights, noise for films: neither changes what an epoch costs. Frozen mode fuses
maps averaged over squares of two (`FROZEN_POOL`); a row shows what it costs without.
Contenders take turns in one process; medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dcaf_monai.batches import FusionAndHead, OnFeatures, OnInputs
from dcaf_monai.cohort import Case
from dcaf_monai.engine import Loop, Recipe
from dcaf_monai.features import Inputs, feature_cache
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.tasks import TASKS
from dcaf_monai.train import FROZEN_POOL
from dcaf_monai.transforms import training_augmentation

SIDE, TRAINING, VALIDATION, BATCH, ROUNDS = 224, 192, 48, 32, 2
GOAL = "<= 1/50"


def rows() -> list[dict]:
    """One row a comparison: what, ours_ms, peer, peer_ms, ratio (ours over peer), goal."""
    with tempfile.TemporaryDirectory() as folder:
        epochs = _contenders(Path(folder))
        times: dict[str, list[float]] = {name: [] for name in epochs}
        epochs["cached"]()  # the first epoch also loads code and maps the cache
        for _ in range(ROUNDS):
            for name, epoch in epochs.items():
                start = time.perf_counter()
                epoch()
                times[name].append((time.perf_counter() - start) * 1000)
    ours, fine, uncached, whole = (statistics.median(times[name])
                                   for name in ("cached", "fine", "frozen", "full"))
    what = f"frozen-mode epoch, {TRAINING} + {VALIDATION} cases"
    return [{"what": what, "ours_ms": ours, "peer": "full fine-tuning", "peer_ms": whole,
             "ratio": ours / whole, "goal": GOAL},
            {"what": what, "ours_ms": ours, "peer": "frozen trunks without cache", "peer_ms": uncached,
             "ratio": ours / uncached, "goal": None},
            {"what": f"{what}, maps not averaged", "ours_ms": fine, "peer": "full fine-tuning",
             "peer_ms": whole, "ratio": fine / whole, "goal": None}]


def _contenders(folder: Path) -> dict[str, Callable[[], None]]:
    """One epoch each: on cached features, averaged or not, with frozen trunks on images, of everything."""
    torch.manual_seed(0)
    rng, count = np.random.default_rng(0), TRAINING + VALIDATION
    cases = tuple(Case(str(number), folder / str(number), "normal", "train", str(number))
                  for number in range(count))
    inputs = Inputs(cases, tuple(f"{number:064d}" for number in range(count)), np.arange(count),
                    rng.random((count, 1, SIDE, SIDE)).astype(np.float16))
    labels = np.arange(count) % 2
    train, held = np.arange(TRAINING), np.arange(TRAINING, count)
    augment = training_augmentation(TASKS["pneumonia"], 0)

    def epoch(name: str, network: nn.Module, data: Dataset, validation: Dataset) -> Callable[[], None]:
        batches = [(0, list(range(VALIDATION)))]

        def run() -> None:
            Loop(network, data, torch.from_numpy(labels[train]),
                 DataLoader(validation, sampler=batches, batch_size=None), 2,
                 Recipe(epochs=1, batch_size=BATCH), folder / f"{name}.safetensors", name).train(resume=False)

        return run

    whole = DualCrossAttentionFusion(2)
    still, fine = DualCrossAttentionFusion(2, pool=FROZEN_POOL), DualCrossAttentionFusion(2)
    found = {}
    for name, network in (("cached", still), ("fine", fine)):
        network.freeze_trunks()
        features = feature_cache(inputs, network, folder)
        found[name] = epoch(name, FusionAndHead(network), OnFeatures(features, labels, train),
                            OnFeatures(features, labels, held))
    images, held_images = OnInputs(inputs, labels, train, augment), OnInputs(inputs, labels, held)
    return found | {"frozen": epoch("frozen", still, images, held_images),
                    "full": epoch("full", whole, images, held_images)}
