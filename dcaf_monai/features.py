"""Caches of network inputs and trunk features: computed once per image, mapped from disk ever after.

A cache is a folder with two files: ``records.f16``, fixed-size float16 records one after the other,
and ``index.txt``, one line a record with the digest of what it was computed from. Records are
appended first and their lines after them, so a kill at any moment leaves at worst some bytes that no
line names; they are written over. What decides the content (preprocessing, trunk weights) is in the
folder's name, so that a cache can never be read for another network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dcaf_monai.cohort import Case
from dcaf_monai.image import ImageError, file_sha256
from dcaf_monai.network import DualCrossAttentionFusion, Features, optimised
from dcaf_monai.transforms import Preprocessing, read_input

try:
    import fcntl
except ImportError:  # Windows: two trainings must not fill one cache at the same time there
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
"""Raise it when reading or preprocessing changes what a record holds."""
SPARE_BYTES = 512 * 1024**2
"""What a cache leaves free on the disk."""
BLOCK = 32
"""So many images are read between two writes; a kill loses at most these."""
Progress = Callable[[int, int], None]


class CacheError(Exception):
    """A cache that cannot be filled: no room, no access, values float16 cannot hold."""


class Records:
    """Fixed-size float16 records on disk, found by key, only ever appended.

    Args:
        folder: Made when missing.
        shape: Of one record.

    Raises:
        CacheError: When the folder cannot be used.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.folder, self.shape = Path(folder), shape
        self.record_bytes = int(np.prod(shape)) * 2
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"cache: cannot make its folder: {error.strerror}.") from error
        self.refresh()

    def refresh(self) -> None:
        """Read the index again, as another process may have appended."""
        index = self.folder / "index.txt"
        text = index.read_text(encoding="ascii", errors="replace") if index.exists() else ""
        whole = text[:text.rfind("\n") + 1]  # a torn last line names nothing
        keys = whole.split()
        there = self._records.stat().st_size // self.record_bytes if self._records.exists() else 0
        self.row_of = {key: row for row, key in enumerate(keys[:there])}
        self._index_bytes = sum(len(key) + 1 for key in keys[:there])

    @property
    def _records(self) -> Path:
        return self.folder / "records.f16"

    @property
    def values(self) -> np.ndarray:
        """All records, ``(records, *shape)`` float16, mapped read-only."""
        count = len(self.row_of)
        if not count:
            return np.empty((0, *self.shape), np.float16)
        return np.memmap(self._records, np.float16, "r", shape=(count, *self.shape))

    def append(self, keys: Sequence[str], values: np.ndarray) -> None:
        """Add records ``(len(keys), *shape)`` under new keys; on the disk when this returns.

        Raises:
            CacheError: When a value is not finite in float16 or the disk refuses.
        """
        data = np.ascontiguousarray(values, np.float16)
        if data.shape != (len(keys), *self.shape):
            raise ValueError(f"values: need {(len(keys), *self.shape)}, got {data.shape}.")
        if not np.isfinite(data).all():
            raise CacheError("cache: need values that float16 can hold, got larger ones or none at all. "
                             "Check the trunk weights.")
        try:
            _write_at(self._records, len(self.row_of) * self.record_bytes, data.tobytes())
            lines = "".join(f"{key}\n" for key in keys).encode("ascii")
            _write_at(self.folder / "index.txt", self._index_bytes, lines)
        except OSError as error:
            raise CacheError(f"cache: cannot write: {error.strerror}. Check the free space.") from error
        for key in keys:
            self.row_of[key] = len(self.row_of)
        self._index_bytes += len(lines)

    def require_room(self, count: int) -> None:
        """Refuse to start what the disk cannot finish.

        Raises:
            CacheError: When ``count`` more records would not fit.
        """
        need, free = count * self.record_bytes, shutil.disk_usage(self.folder).free
        if need + SPARE_BYTES > free:
            raise CacheError(f"cache: need {(need + SPARE_BYTES) >> 20} MiB of free disk for {count} images, "
                             f"got {free >> 20}. Free some, or choose another cache folder.")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold other processes back from appending; ends with the process, however it ends."""
        with (self.folder / "lock").open("w") as lock:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX)
            self.refresh()
            yield


@dataclass(frozen=True)
class Inputs:
    """Network inputs of those cases that could be read.

    Args:
        cases: The readable cases, in the order given.
        keys: Content digest of each.
        rows: ``(cases,)`` row of each in ``values``; copies of one file share a row.
        values: ``(records, 1, size, size)`` float16 in [0, 1].
        refused: The others, each with its reason.
    """

    cases: tuple[Case, ...]
    keys: tuple[str, ...]
    rows: np.ndarray
    values: np.ndarray
    refused: tuple[tuple[Case, ImageError], ...] = ()

    def tensor(self, cases: np.ndarray) -> torch.Tensor:
        """float32 ``(cases, 1, size, size)`` of case numbers ``(cases,)``."""
        return torch.from_numpy(np.asarray(self.values[self.rows[cases]])).float()


@dataclass(frozen=True)
class CachedFeatures:
    """Trunk features of the cases of an `Inputs`.

    Args:
        rows: ``(cases,)`` row of each case in ``values``.
        values: ``(records, numbers)`` float16: the four maps of `Features`, flattened, joined.
        shapes: ``(channels, rows, columns)`` of the four maps.
    """

    rows: np.ndarray
    values: np.ndarray
    shapes: tuple[tuple[int, ...], ...]

    def features(self, cases: np.ndarray, device: torch.device | str = "cpu") -> Features:
        """float32 `Features` of case numbers ``(cases,)``."""
        joined = torch.from_numpy(np.asarray(self.values[self.rows[cases]])).to(device).float()
        parts = joined.split([int(np.prod(shape)) for shape in self.shapes], dim=1)
        return Features(*(part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)))


def input_cache(cases: Sequence[Case], preprocessing: Preprocessing, folder: Path, *,
                progress: Progress | None = None) -> Inputs:
    """Network inputs of cases, reading only files not read before; a bad file stops nothing.

    Args:
        cases: Any cases.
        preprocessing: How an image becomes an input.
        folder: Of all caches.
        progress: Called with (done, total).

    Raises:
        CacheError: When the disk is too small or refuses.
    """
    size = preprocessing.size
    name = hashlib.sha256(f"{FORMAT} {preprocessing.model_dump_json()}".encode()).hexdigest()[:16]
    records = Records(Path(folder) / f"inputs-{name}", (1, size, size))
    found: list[tuple[Case, str]] = []
    refused: list[tuple[Case, ImageError]] = []
    with records.alone():
        keys = [_content_key(case) for case in cases]
        records.require_room(len({key for key in keys if key} - set(records.row_of)))
        fresh: dict[str, np.ndarray] = {}
        for done, (case, key) in enumerate(zip(cases, keys, strict=True), start=1):
            try:
                if not key:
                    raise ImageError("missing", "file: need one that can be opened, got none. Restore it.")
                if key not in records.row_of and key not in fresh:
                    _, tensor, _ = read_input(case.path, preprocessing, uid=case.uid, frame=case.frame)
                    fresh[key] = tensor.numpy().astype(np.float16)
                found.append((case, key))
            except ImageError as error:
                refused.append((case, error))
            if fresh and (len(fresh) == BLOCK or done == len(cases)):
                records.append(list(fresh), np.stack(list(fresh.values())))
                fresh.clear()
            if progress:
                progress(done, len(cases))
    return Inputs(tuple(case for case, _ in found), tuple(key for _, key in found),
                  np.array([records.row_of[key] for _, key in found], np.int64), records.values,
                  tuple(refused))


def fill(records: Records, inputs: Inputs, compute: Callable[[torch.Tensor], torch.Tensor], *,
         device: torch.device | str = "cpu", batch_size: int = 8,
         progress: Progress | None = None) -> np.ndarray:
    """Compute the records of inputs that are not there yet; the row of every case, ``(cases,)``.

    Args:
        records: Where they are kept, by content.
        inputs: From `input_cache`.
        compute: Inputs ``(batch, 1, size, size)`` to values ``(batch, *records.shape)``, without gradients.
        device: Where it computes.
        batch_size: Images at once.
        progress: Called with (done, total) of the missing ones.

    Raises:
        CacheError: When the disk is too small or refuses, or a value does not fit float16.
    """
    with records.alone():
        first_case = {key: case for case, key in reversed(list(enumerate(inputs.keys)))}
        missing = [(key, case) for key, case in first_case.items() if key not in records.row_of]
        records.require_room(len(missing))
        for start in range(0, len(missing), batch_size):
            part = missing[start:start + batch_size]
            with torch.no_grad():
                values = compute(inputs.tensor(np.array([case for _, case in part])).to(device))
            with np.errstate(over="ignore"):  # what overflows is refused by append
                records.append([key for key, _ in part], values.cpu().numpy().astype(np.float16))
            if progress:
                progress(start + len(part), len(missing))
    return np.array([records.row_of[key] for key in inputs.keys], np.int64)


def feature_cache(inputs: Inputs, network: DualCrossAttentionFusion, folder: Path, *,
                  device: torch.device | str = "cpu", batch_size: int = 8,
                  progress: Progress | None = None) -> CachedFeatures:
    """Trunk features of inputs, computing only those not computed before.

    Args:
        inputs: From `input_cache`.
        network: Whose trunks; used in eval mode.
        folder: Of all caches.
        device: Where the trunks run.
        batch_size: Images at once.
        progress: Called with (done, total).

    Raises:
        CacheError: When the disk is too small or refuses, or a feature does not fit float16.
    """
    size = inputs.values.shape[-1]
    trunks = optimised(network).to(device)
    with torch.no_grad():
        probe = trunks.trunks(torch.zeros(1, 1, size, size, device=device))
    shapes = tuple(tuple(part.shape[1:]) for part in probe.maps)
    source = inputs.values.filename if isinstance(inputs.values, np.memmap) else ""
    name = hashlib.sha256(f"{FORMAT} {trunk_sha256(network)} {network.config.pool} "
                          f"{Path(str(source)).parent.name}".encode())
    records = Records(Path(folder) / f"features-{name.hexdigest()[:16]}",
                      (sum(int(np.prod(shape)) for shape in shapes),))
    def compute(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([maps.flatten(1) for maps in trunks.trunks(x).maps], dim=1)

    rows = fill(records, inputs, compute, device=device, batch_size=batch_size, progress=progress)
    return CachedFeatures(rows, records.values, shapes)


def trunk_sha256(network: DualCrossAttentionFusion) -> str:
    """Digest of both trunks: their names, weights and input normalisation."""
    digest = hashlib.sha256(repr(network.config.backbones).encode())
    for trunk in (network.first, network.second):
        for name, tensor in sorted(trunk.state_dict().items()):
            if name.endswith("num_batches_tracked"):
                continue
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _content_key(case: Case) -> str:
    """Digest of the file and frame; empty when the file cannot be opened."""
    try:
        digest = file_sha256(case.path)
    except OSError:
        return ""
    return f"{digest}:{case.frame}" if case.frame else digest


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Put data at an offset, drop what lay behind it, wait for the disk."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.seek(offset)
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
