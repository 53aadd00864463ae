"""The state of a training between two epochs, in one file that is whole or not there.

Everything random in training is a function of (seed, epoch, iteration), so no generator's state
needs keeping: weights, their running average, the best so far, the optimiser's moments and a small
JSON document are all a continued run needs to end exactly where an uninterrupted one would.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from dcaf_monai.model import write_atomically


class TrainError(Exception):
    """A training that cannot begin, go on or end; one sentence says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """State after a whole epoch.

    Args:
        tensors: By name.
        document: Plain JSON values; ``epoch`` is the number of epochs done.
    """

    tensors: Mapping[str, torch.Tensor]
    document: Mapping[str, Any]


def save_checkpoint(checkpoint: Checkpoint, path: Path, *, run: str) -> None:
    """Write a checkpoint of the run with this fingerprint, in place of the one before.

    Raises:
        ModelError: When the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    text = json.dumps({"run": run, **checkpoint.document})
    write_atomically(path, save(tensors, metadata={"dcaf_training": text}))


def load_checkpoint(path: Path, *, run: str) -> Checkpoint | None:
    """The checkpoint of this run; None when there is none yet, or only that of another run.

    Raises:
        TrainError: When the file is damaged.
    """
    if not path.exists():
        return None
    data = path.read_bytes()
    try:
        length = int.from_bytes(data[:8], "little")
        document = json.loads(json.loads(data[8:8 + length])["__metadata__"]["dcaf_training"])
        tensors = load(data)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TrainError(f"{path.name}: need the checkpoint of a training, got a damaged file. "
                         "Delete it to begin anew.") from error
    return Checkpoint(tensors, document) if document.pop("run", None) == run else None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's moments by name ``optimizer.<parameter number>.<moment>``."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{number}.{key}": value for number, moments in state.items()
            for key, value in moments.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put `optimizer_tensors` back."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def named(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors with a prefix before their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def unnamed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under a prefix, without it."""
    return {name[len(prefix) + 1:]: tensor for name, tensor in tensors.items()
            if name.startswith(f"{prefix}.")}
