"""`Model`: a trained network with everything needed to use it, as one safetensors file.

The file is an ordinary safetensors file (8 bytes header length, JSON header, raw tensors). One
entry of its metadata, ``dcaf``, holds a JSON document: network configuration, task, preprocessing,
calibration, provenance. Nothing in it is ever executed or unpickled, and nothing is believed before
it is checked: the document against its schema, the tensors against the network it describes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save

from dcaf_monai.calibration import OperatingPoint
from dcaf_monai.conformal import ConformalSets, Digest
from dcaf_monai.drift import Reference
from dcaf_monai.heat import KINDS
from dcaf_monai.network import DualCrossAttentionFusion, NetworkConfig
from dcaf_monai.tasks import Task
from dcaf_monai.transforms import Preprocessing

SCHEMA: Literal[1] = 1
MAX_FILE_BYTES = 2 * 1024**3
"""No two trunks we support come near this; a larger file is not one of ours."""
MAX_HEADER_BYTES = 8 * 1024**2
_DRIFT = "drift."
"""Before the names of the tensors of a `Reference`."""
VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
"""A version sorts by time of birth and ends in the first digits of its weights' digest."""


class ModelError(Exception):
    """A file that is not a model we can trust; one sentence, ``<thing>: need X, got Y. <what to do>``."""


class Provenance(BaseModel):
    """Where a model comes from. Counts and digests only: nothing that names a patient or a file.

    ``training_patients`` are `conformal.digests` of all whom it or a model it started from was trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    created: str = ""
    mode: str = ""
    seed: int = 0
    weights: str = ""
    init_from: str = ""
    cohort_sha256: str = ""
    validation_sha256: str = ""
    counts: Mapping[str, Mapping[str, int]] = Field(default_factory=dict)
    recipe: Mapping[str, Any] = Field(default_factory=dict)
    epochs: int = 0
    best_epoch: int = 0
    minutes: float = 0.0
    validation_nll: float | None = None
    validation_nll_cases: int | None = None
    validation: Mapping[str, Any] = Field(default_factory=dict)
    training_patients: tuple[Digest, ...] = ()
    versions: Mapping[str, str] = Field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A trained network and what it needs to answer.

    Args:
        network: In eval mode; its ``config.classes`` equals the number of the task's classes.
        task: The question it answers.
        preprocessing: How an image becomes its input.
        name: What people call it; letters, digits, ``_``, ``-``, ``.``.
        version: From `new_version`; empty for a model that was never named.
        samples: Number of dropout masks.
        seed: Seed of the dropout masks.
        temperature: Divides sampled logits before the softmax.
        operating_points: Cut-off per class name; a class may be missing.
        heat_scales: Fixed top of the colour bar per kind of heat.
        conformal: Thresholds of its conformal sets, if they were fitted.
        drift: What ordinary pooled features look like, if it was fitted.
        unfaithful: Kinds of heat that failed the randomisation test (see `faithful`).
        provenance: The fields of `Provenance` as plain JSON values.
        sha256: Digest of the file it was loaded from or saved to; empty before.
    """

    network: DualCrossAttentionFusion
    task: Task
    preprocessing: Preprocessing
    name: str = "dcaf"
    version: str = ""
    samples: int = 50
    seed: int = 0
    temperature: float = 1.0
    operating_points: Mapping[str, OperatingPoint] = field(default_factory=dict)
    heat_scales: Mapping[str, float] = field(default_factory=dict)
    conformal: ConformalSets | None = None
    drift: Reference | None = None
    unfaithful: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""


class _Document(BaseModel):
    """The ``dcaf`` entry of the file's metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_number: Literal[1] = Field(alias="schema")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    version: str = Field(max_length=64)
    network: NetworkConfig
    task: Task
    preprocessing: Preprocessing
    samples: int = Field(ge=2, le=10_000)
    seed: int = Field(ge=0, lt=2**63)
    temperature: float = Field(gt=0, le=1000, allow_inf_nan=False)
    operating_points: Mapping[str, OperatingPoint]
    heat_scales: Mapping[str, float]
    # Files written before these were known have none of them.
    conformal: ConformalSets | None = None
    drift: Mapping[str, Any] | None = None
    unfaithful: tuple[str, ...] = ()
    provenance: Provenance

    @model_validator(mode="after")
    def _parts_fit(self) -> _Document:
        if self.network.classes != len(self.task.classes):
            raise ValueError(f"need a head of {len(self.task.classes)} classes for task {self.task.name}, "
                             f"got {self.network.classes}")
        unknown = sorted(set(self.operating_points) - set(self.task.classes))
        if unknown:
            raise ValueError(f"need operating points of the task's classes, got {', '.join(unknown)}")
        if self.conformal and self.conformal.classes != self.task.classes:
            raise ValueError("need conformal sets of the task's classes, got "
                             f"{', '.join(self.conformal.classes)}")
        if set(self.unfaithful) - set(KINDS):
            raise ValueError(f"need kinds of heat among {', '.join(KINDS)}, got {', '.join(self.unfaithful)}")
        if not all(0 < top < float("inf") for top in self.heat_scales.values()):
            raise ValueError("need positive heat scales")
        return self


def new_version(network: torch.nn.Module) -> str:
    """A version for these weights, born now: ``20250131T235959Z-0123abcd``, sorting by time."""
    digest = weights_sha256(network.state_dict())[:8]
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{digest}"


def weights_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest of named tensors, independent of their order: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_model(model: Model, path: Path) -> Model:
    """Write a model as one file that appears whole or not at all; the model with its ``sha256``.

    Raises:
        ModelError: When the parts do not fit together, a weight is not finite, or the file cannot be
            written.
    """
    path = Path(path)
    try:
        document = _Document(
            schema=SCHEMA, name=model.name, version=model.version, network=model.network.config,
            task=model.task, preprocessing=model.preprocessing, samples=model.samples, seed=model.seed,
            temperature=model.temperature, operating_points=dict(model.operating_points),
            heat_scales=dict(model.heat_scales), conformal=model.conformal, unfaithful=model.unfaithful,
            drift=model.drift.document() if model.drift else None,
            provenance=Provenance.model_validate(model.provenance))
        text = json.dumps(document.model_dump(by_alias=True), allow_nan=False)
    except ValidationError as error:
        raise ModelError(f"model: {_first_fault(error)} Nothing was written.") from error
    except (ValueError, TypeError) as error:
        raise ModelError("model: need plain, finite JSON values in its document, got others. "
                         "Nothing was written.") from error
    state = model.network.state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if model.drift:
        tensors |= {f"{_DRIFT}{name}": tensor for name, tensor in model.drift.tensors().items()}
    _require_finite(tensors, "model")
    data = save(tensors, metadata={"dcaf": text})
    write_atomically(path, data)
    return replace(model, sha256=hashlib.sha256(data).hexdigest())


def load_model(path: Path) -> Model:
    """Read and check a model file; on the CPU, in eval mode.

    Raises:
        ModelError: When the file cannot be read, is no model of ours, or any part of it is wrong; the
            sentence names the part.
    """
    path = Path(path)
    data = _read(path)
    document, entries = _header(data, path)
    skeleton = _network(document.network, path, device="meta")
    _compare({name: entry for name, entry in entries.items() if not name.startswith(_DRIFT)},
             skeleton.state_dict(), path)
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ModelError(f"{path.name}: need a whole safetensors file, got {error}. "
                         "Copy it again.") from error
    _require_finite(tensors, path.name)
    network = _network(document.network, path, device="cpu")
    network.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith(_DRIFT)})
    return Model(network.eval(), document.task, document.preprocessing, name=document.name,
                 version=document.version, samples=document.samples, seed=document.seed,
                 temperature=document.temperature, operating_points=dict(document.operating_points),
                 heat_scales=dict(document.heat_scales), conformal=document.conformal,
                 drift=_drift(document, tensors, path), unfaithful=document.unfaithful,
                 provenance=document.provenance.model_dump(mode="json"),
                 sha256=hashlib.sha256(data).hexdigest())


def _drift(document: _Document, tensors: Mapping[str, torch.Tensor], path: Path) -> Reference | None:
    found = {name.removeprefix(_DRIFT): tensor for name, tensor in tensors.items() if name.startswith(_DRIFT)}
    if document.drift is None and not found:
        return None
    try:
        reference = Reference.from_tensors(found, document.drift or {})
    except ValueError as error:
        raise ModelError(f"{path.name}: {error} Train or copy the model again.") from error
    if len(reference.mean) != 2 * document.network.fused:
        raise ModelError(f"{path.name}: drift: need {2 * document.network.fused} features, got "
                         f"{len(reference.mean)}. Train or copy the model again.")
    return reference


def describe_model(path: Path) -> dict[str, Any]:
    """The checked document of a model file, without building its network: cheap, for lists.

    Raises:
        ModelError: When the file cannot be read or its header is wrong.
    """
    data = _read(Path(path))
    document, _ = _header(data, Path(path))
    return document.model_dump(mode="json", by_alias=True) | {"sha256": hashlib.sha256(data).hexdigest()}


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one and nothing between.

    Raises:
        ModelError: When the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp gives 0600; a server of another account must read it
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ModelError(f"{path.name}: cannot write it: {error.strerror}. "
                         "Check the folder and its free space.") from error


def _read(path: Path) -> bytes:
    """The file's bytes, read through one handle: a replacement meanwhile cannot mix two files."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not 8 < size <= MAX_FILE_BYTES:
                raise ModelError(f"{path.name}: need a model file of at most {MAX_FILE_BYTES >> 20} MiB, "
                                 f"got {size} bytes. Train or copy the model again.")
            return file.read()
    except OSError as error:
        raise ModelError(f"{path.name}: cannot read it: {error.strerror}.") from error


def _header(data: bytes, path: Path) -> tuple[_Document, dict[str, Any]]:
    """The document and the tensor entries of the header."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise ModelError(f"{path.name}: need a safetensors file, got something else or a part of one. "
                         "Train or copy the model again.")
    try:
        header = json.loads(data[8:8 + length])
        metadata = header.pop("__metadata__")["dcaf"]
        if not all(isinstance(entry, dict) for entry in header.values()):
            raise TypeError("tensor entries")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path.name}: need a safetensors file with a dcaf document, got one without. "
                         "Use a file that dcaf train wrote.") from error
    try:
        return _Document.model_validate_json(metadata), header
    except ValidationError as error:
        raise ModelError(f"{path.name}: {_first_fault(error)} Train or copy the model again.") from error


def _network(config: NetworkConfig, path: Path, *, device: str) -> DualCrossAttentionFusion:
    """An untrained network of this configuration; the caller's random numbers stay untouched."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            options = config.model_dump()
            return DualCrossAttentionFusion(options.pop("classes"), weights="none", **options)
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{path.name}: need a network this version can build, got {error}") from error


def _compare(entries: Mapping[str, Any], expected: Mapping[str, torch.Tensor], path: Path) -> None:
    """Names, shapes and types of the file's tensors against those of the network."""
    missing, extra = sorted(set(expected) - set(entries)), sorted(set(entries) - set(expected))
    if missing or extra:
        raise ModelError(f"{path.name}: need the tensors of its network, got {len(missing)} missing and "
                         f"{len(extra)} unknown (first: {(missing + extra)[0][:100]}). "
                         "Train or copy the model again.")
    for name, tensor in expected.items():
        shape, kind = entries[name].get("shape"), entries[name].get("dtype")
        need = (list(tensor.shape), {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype])
        if (shape, kind) != need:
            raise ModelError(f"{path.name}: tensor {name}: need {need[1]} {need[0]}, got {kind} {shape}. "
                             "Train or copy the model again.")


def _require_finite(tensors: Mapping[str, torch.Tensor], what: str) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{what}: tensor {name}: need finite numbers, got some that are not. "
                             "Train again.")


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place or 'document'}: {first['msg'].removeprefix('Value error, ').rstrip('.')}."
