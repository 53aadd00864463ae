"""The gate between training and the clinic, and the shelf of earlier models.

Beside the published file ``model.safetensors`` stands the folder ``model.models`` with every version
that was ever published, each under ``<version>.safetensors``. The published file is a byte-for-byte
copy of one of them; which one, it says itself. Publishing is one atomic rename: whoever reads the
file at that moment gets the old model or the new one, whole. ``published.txt`` on the shelf lists the
versions in the order in which they were put in place, the standing one last; going back takes it off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dcaf_monai.model import (
    VERSION,
    Model,
    ModelError,
    describe_model,
    load_model,
    save_model,
    write_atomically,
)

try:
    import fcntl
except ImportError:  # Windows: one publisher is up to the operator
    fcntl = None  # type: ignore[assignment]

RECORD = "published.txt"


@dataclass(frozen=True)
class Verdict:
    """What the gate decided.

    Args:
        published: Whether the candidate stands in the published place now.
        reason: One sentence a person can read.
        candidate_nll: Negative log-likelihood of the candidate on the frozen validation split, nats.
        published_nll: The same for the model that stood there before; None when there was none.
    """

    published: bool
    reason: str
    candidate_nll: float
    published_nll: float | None = None


@dataclass(frozen=True)
class Entry:
    """One model on the shelf; ``validation_nll`` is NaN when its file does not say."""

    version: str
    path: Path
    published: bool
    task: str
    sha256: str
    created: str
    mode: str
    validation_nll: float


def publish(candidate: Model, path: Path, *, candidate_nll: float,
            published_nll: Callable[[Model], float] | None = None) -> Verdict:
    """Publish a candidate if it is better than the model in its place, or if the place is empty.

    Better means a smaller negative log-likelihood on the same frozen validation split; equal is not
    better. A candidate that does not pass is not written.

    Args:
        candidate: With a version, see `model.new_version`.
        path: The published file.
        candidate_nll: Of the candidate on the validation split.
        published_nll: Gives the same figure, on the same split, for the model standing at ``path``;
            needed when there is one.

    Raises:
        ModelError: When the model at ``path`` cannot be read, answers another question, or a file
            cannot be written.
        ValueError: For a candidate without a version, or without ``published_nll`` when it is needed.
    """
    path = Path(path)
    if not VERSION.fullmatch(candidate.version):
        raise ValueError(f"candidate: need a version from new_version, got {candidate.version!r}.")
    with _alone(path):  # another candidate must be compared with this one, not with what stood before
        if not path.exists():
            _place(candidate, path)
            return Verdict(True, f"Published: the first model at {path.name}, validation NLL "
                           f"{candidate_nll:.4f}.", candidate_nll)
        standing = load_model(path)
        require_same_question(standing, candidate, path)
        if published_nll is None:
            raise ValueError(f"published_nll: need it, because a model stands at {path.name} already.")
        standing_nll = published_nll(standing)
        figures = f"validation NLL {candidate_nll:.4f} against {standing_nll:.4f}"
        if not candidate_nll < standing_nll:
            return Verdict(False, f"Not published: {figures} of version {standing.version} on the same "
                           f"images; that one stays.", candidate_nll, standing_nll)
        _keep(path)
        _place(candidate, path)
        return Verdict(True, f"Published: {figures} of version {standing.version} on the same images.",
                       candidate_nll, standing_nll)


def require_same_question(standing: Model, candidate: Model, path: Path) -> None:
    """Refuse to put a model where one with other classes stands.

    Raises:
        ModelError: When task or classes differ.
    """
    if (standing.task.name, standing.task.classes) != (candidate.task.name, candidate.task.classes):
        raise ModelError(f"{path.name}: need a model of task {candidate.task.name} to compare with, got one "
                         f"of task {standing.task.name}. Choose another file.")


def history(path: Path) -> list[Entry]:
    """Every model on the shelf of a published file, newest first.

    Raises:
        ModelError: When one of them cannot be read.
    """
    path = Path(path)
    standing = describe_model(path)["version"] if path.exists() else None
    entries = []
    for file in sorted(shelf(path).glob("*.safetensors"), reverse=True):
        if not VERSION.fullmatch(file.stem):
            continue
        document = describe_model(file)
        provenance = document["provenance"]
        nll = provenance["validation_nll"]
        entries.append(Entry(document["version"], file, document["version"] == standing,
                             document["task"]["name"], document["sha256"], provenance["created"],
                             provenance["mode"], math.nan if nll is None else nll))
    return entries


def publish_version(path: Path, version: str) -> str:
    """Put a version from the shelf into the published place, without the gate: a person decided.

    Returns:
        The version that stands there now.

    Raises:
        ValueError: When the shelf has no such version.
        ModelError: When it cannot be read whole, or the published file not be written.
    """
    path = Path(path)
    with _alone(path):
        order = _order(path)
        _put_back(path, version)
        _record(path, [*order, version] if order[-1:] != [version] else order)
    return version


def rollback(path: Path) -> str:
    """Put the version published before the present one back into its place.

    Returns:
        The version that stands there now.

    Raises:
        ValueError: When there is no earlier version.
        ModelError: As `publish_version`.
    """
    path = Path(path)
    with _alone(path):
        order = _order(path)
        if len(order) < 2:
            raise ValueError(f"{path.name}: need an earlier version to go back to, got none.")
        _put_back(path, order[-2])
        _record(path, order[:-1])
    return order[-2]


def shelf(path: Path) -> Path:
    """Folder of all versions that belong to a published file."""
    return Path(path).parent / f"{Path(path).stem}.models"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One publisher at a time; a second one waits for the first to end, however it ends."""
    folder = shelf(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ModelError(f"{folder.name}: cannot write there: {error.strerror}. Check the folder.") from error
    with lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _order(path: Path) -> list[str]:
    """Versions in the order they were put in place; by birth on a shelf without a record."""
    standing = describe_model(path)["version"] if path.exists() else ""
    known = [entry.version for entry in reversed(history(path))]
    try:
        told = (shelf(path) / RECORD).read_text(encoding="utf-8").split()
        order = [version for version in told if version in known]
    except FileNotFoundError:
        order = [version for version in known if version < standing]
    return order if not standing or order[-1:] == [standing] else [*order, standing]  # copied in by hand


def _record(path: Path, order: Sequence[str]) -> None:
    write_atomically(shelf(path) / RECORD, "".join(f"{version}\n" for version in order).encode())


def _put_back(path: Path, version: str) -> None:
    """A version from the shelf into the published place."""
    known = {entry.version: entry for entry in history(path)}
    if version not in known:
        raise ValueError(f"version: need one of {', '.join(known) or 'none yet'}, got {version[:64]!r}.")
    load_model(known[version].path)  # the last moment to find a damaged file
    if path.exists():
        _keep(path)
    write_atomically(path, known[version].path.read_bytes())


def _place(candidate: Model, path: Path) -> None:
    """Shelf first, published place second: a crash in between loses nothing."""
    order, kept = _order(path), shelf(path) / f"{candidate.version}.safetensors"
    save_model(candidate, kept)
    write_atomically(path, kept.read_bytes())
    _record(path, [*order, candidate.version])


def _keep(path: Path) -> None:
    """Put the published model on the shelf if it is not there, as one copied in by hand would be."""
    version = describe_model(path)["version"]
    if not VERSION.fullmatch(version):
        raise ModelError(f"{path.name}: need a version to keep it under, got {version[:64]!r}. "
                         "Move the file away first.")
    kept = shelf(path) / f"{version}.safetensors"
    if not kept.exists():
        write_atomically(kept, path.read_bytes())
