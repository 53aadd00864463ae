"""`Trunk`: the first part of a timm network, cut behind its stride-16 features.

DCAT taps EfficientNet-B4 at Block 3 and Block 4 and ResNet-34 at layer 2 and layer 3
(arXiv 2503.11851). Counted from 1 these are the only pairs of equal size, at strides 8 and 16, so
nothing behind them is kept: 9.5 of 39 million parameters remain.
"""

from __future__ import annotations

import copy
from typing import Any

import timm
import torch
from timm.layers import DropPath
from timm.models.efficientnet import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

STRIDES = (8, 16)
_PROBE = 64  # side of the empty image that measures strides and channels


class Trunk(nn.Module):
    """A timm network up to its stride-16 features, with its own input normalisation.

    Without dropout and stochastic depth: uncertainty comes from the head alone, and a functional
    dropout inside a foreign network could not be seen from outside.

    Args:
        name: timm model name. Of an EfficientNet Block 3 and Block 4 are taken, of every other
            network the features timm lists at reductions 8 and 16.

    Attributes:
        body: The cut timm network, with timm's parameter names.
        channels: Channels at stride 8 and at stride 16.
        mean, std: Buffers ``(1, 3, 1, 1)``, from timm's configuration of the pretrained weights;
            saved with the weights, because other weights may need others.

    Raises:
        ValueError: When timm has no such model, or it has no features at strides 8 and 16.
    """

    body: Any
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f"backbone: need the name of a timm model, got {name!r}. "
                             "`timm.list_models()` prints them all.")
        self.name = name
        self.body = timm.create_model(name, drop_rate=0.0)
        self._indices, self._options = _taps(self.body, name)
        self.body.prune_intermediate_layers(list(self._indices), **self._options)
        for module in self.body.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
        for key in ("mean", "std"):
            numbers = torch.tensor(self.body.pretrained_cfg[key], dtype=torch.float32)
            self.register_buffer(key, numbers.view(1, 3, 1, 1))
        self.channels = self._measure()

    def _measure(self) -> tuple[int, int]:
        self.body.eval()
        with torch.no_grad():
            maps = self(torch.zeros(1, 1, _PROBE, _PROBE))
        self.body.train()
        sizes = [tuple(found.shape[-2:]) for found in maps]
        if sizes != [(_PROBE // stride,) * 2 for stride in STRIDES]:
            raise ValueError(f"backbone {self.name}: need features at strides 8 and 16, got maps of {sizes} "
                             f"at {_PROBE} pixels. Choose another timm model.")
        return maps[0].shape[1], maps[1].shape[1]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features at stride 8 and stride 16.

        Args:
            x: ``(batch, 1 or 3, rows, columns)`` in [0, 1]; grey stands for three equal channels.

        Returns:
            ``(batch, channels[0], rows / 8, columns / 8)`` and
            ``(batch, channels[1], rows / 16, columns / 16)``, sizes rounded up.
        """
        x = (x - self.mean) / self.std
        eighth, sixteenth = self.body.forward_intermediates(
            x, indices=list(self._indices), stop_early=True, intermediates_only=True, **self._options)
        return eighth, sixteenth

    def folded(self) -> Trunk:
        """A copy for inference: batch norms folded into their convolutions, channels last."""
        twin = copy.deepcopy(self).eval()
        fold_batch_norms(twin, torch.zeros(1, 1, _PROBE, _PROBE, device=self.mean.device))
        return twin.to(memory_format=torch.channels_last)


def _taps(body: Any, name: str) -> tuple[tuple[int, int], dict[str, bool]]:
    """Indices of the two maps for timm's ``forward_intermediates``, and its options."""
    if not hasattr(body, "forward_intermediates") or not hasattr(body, "prune_intermediate_layers"):
        raise ValueError(f"backbone {name}: need a network timm can cut, got one it cannot. "
                         "Choose another timm model.")
    if isinstance(body, EfficientNet):
        return (3, 4), {"extra_blocks": True}  # 0 is the stem, so these are blocks[2] and blocks[3]
    reductions = [info["reduction"] for info in body.feature_info]
    if any(reductions.count(stride) != 1 for stride in STRIDES):
        raise ValueError(f"backbone {name}: need features at strides 8 and 16, got {reductions}. "
                         "Choose another timm model.")
    return (reductions.index(8), reductions.index(16)), {}


def fold_batch_norms(network: nn.Module, example: torch.Tensor) -> None:
    """Fold, in place, every batch norm that directly follows a convolution.

    Which one follows which is seen in one pass of an example through the network, so it holds for
    any timm network; a batch norm whose input came from elsewhere stays as it is.

    Args:
        network: In eval mode; afterwards only fit for inference.
        example: An input of the network, ``(1, channels, rows, columns)``.
    """
    names = {module: name for name, module in network.named_modules()}
    source: dict[int, nn.Conv2d] = {}  # identity of a convolution's output -> the convolution
    alive: list[torch.Tensor] = []  # keeps the outputs, so that no identity is used twice
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def note_convolution(module: Any, _inputs: tuple, output: torch.Tensor) -> None:
        source[id(output)] = module
        alive.append(output)

    def note_norm(module: Any, inputs: tuple) -> None:
        if id(inputs[0]) in source:
            pairs.append((source[id(inputs[0])], module))

    handles = [module.register_forward_hook(note_convolution)
               for module in names if isinstance(module, nn.Conv2d)]
    handles += [module.register_forward_pre_hook(note_norm)
                for module in names if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        network(example)
    for handle in handles:
        handle.remove()
    for convolution, norm in pairs:
        network.set_submodule(names[convolution], fuse_conv_bn_eval(convolution, norm))
        # timm's batch norm may carry the activation behind it
        network.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))
