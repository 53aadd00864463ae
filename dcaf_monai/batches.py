"""What a training step is fed: batches of cached features or of augmented inputs.

A batch is asked for as ``(epoch, case numbers)`` and depends on nothing else, so that a continued
training sees exactly what an uninterrupted one would, with any number of worker processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import Compose
from torch import nn
from torch.utils.data import Dataset

from dcaf_monai.features import CachedFeatures, Inputs
from dcaf_monai.network import DualCrossAttentionFusion, Features

Maps = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class FusionAndHead(nn.Module):
    """The part of a network behind its trunks, sharing its weights and their names."""

    def __init__(self, network: DualCrossAttentionFusion) -> None:
        super().__init__()
        for name, part in network.named_children():
            if part not in (network.first, network.second):
                self.add_module(name, part)

    def forward(self, maps: Maps) -> torch.Tensor:
        """Logits ``(batch, classes)`` of the four maps of `Features`."""
        fused = DualCrossAttentionFusion.fuse(self, Features(*maps))  # type: ignore[arg-type]
        return self.get_submodule("head")(fused.pooled)


@dataclass
class OnFeatures(Dataset):
    """Batches of cached trunk features; every epoch the same.

    Args:
        cached: Features of all cases.
        labels: ``(all cases,)`` class indices.
        cases: Which of them this is about.
    """

    cached: CachedFeatures
    labels: np.ndarray
    cases: np.ndarray

    def __getitem__(self, batch: tuple[int, list[int]]) -> tuple[Maps, torch.Tensor]:
        """The four maps of `Features` and labels ``(batch,)``."""
        cases = self.cases[batch[1]]
        maps = self.cached.features(cases)
        return (maps.maps,
                torch.from_numpy(self.labels[cases]))


@dataclass
class OnInputs(Dataset):
    """Batches of inputs, each changed by chance in a way that (seed, epoch, case) decides.

    Args:
        inputs: Of all cases.
        labels: ``(all cases,)`` class indices.
        cases: Which of them this is about.
        augment: The lawful changes; None leaves images as they are.
        seed: Of the changes.
    """

    inputs: Inputs
    labels: np.ndarray
    cases: np.ndarray
    augment: Compose | None = None
    seed: int = 0

    def __getitem__(self, batch: tuple[int, list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images ``(batch, 1, size, size)`` in [0, 1] and labels ``(batch,)``."""
        epoch, numbers = batch
        cases = self.cases[numbers]
        images = self.inputs.tensor(cases)
        if self.augment is not None:
            images = torch.stack([self._changed(image, epoch, case)
                                  for image, case in zip(images, cases.tolist(), strict=True)])
        return images, torch.from_numpy(self.labels[cases])

    def _changed(self, image: torch.Tensor, epoch: int, case: int) -> torch.Tensor:
        assert self.augment is not None
        chance = np.random.SeedSequence([self.seed, epoch, case]).generate_state(1)[0]
        self.augment.set_random_state(seed=int(chance))
        changed = self.augment(image)
        return getattr(changed, "as_tensor", lambda: changed)().clamp(0, 1)  # MONAI's MetaTensor to plain
