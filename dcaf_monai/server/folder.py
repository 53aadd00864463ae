"""The studies folder: which files may be images, and what images they hold.

A file is known by its path relative to the folder, size and time of change. Of DICOM only the headers of
new or changed files are read; a file whose name does not say what it is, is asked by its first bytes at
every look. Hidden folders (the store's own ``.dcaf``) and symbolic links that leave the folder are passed
over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dcaf_monai.dicom import uid_and_frames

DICOM = (".dcm", ".dicom")
OTHER = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz")


@dataclass(frozen=True)
class FoundFile:
    """A file that may be an image: relative posix path, bytes, nanoseconds since 1970."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Refresh:
    """What a look at the studies folder found, in numbers of images or files.

    Args:
        added: New images.
        changed: Images whose file has other content now.
        missing: Images whose file is gone; their annotations stay.
        unreadable: Files that are no image: all that stand in the folder, not only new ones.
        duplicates: Files whose SOP Instance UID another file already has; the first is kept.
        total: Images present now.
    """

    added: int
    changed: int
    missing: int
    unreadable: int
    duplicates: int
    total: int


def found_files(root: Path) -> Iterator[FoundFile]:
    """Every possible image file below the folder, in no stated order.

    Raises:
        OSError: When the folder itself cannot be listed; a sub-folder that cannot is passed over.
    """
    top = root.resolve()
    pending, seen = [top], {top}
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            if folder == top:
                raise
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            place = Path(entry.path)
            if entry.is_symlink():
                place = place.resolve()
                if not place.is_relative_to(top):
                    continue
            if place.is_dir():
                if place.resolve() not in seen:             # a link to a parent would never end
                    seen.add(place.resolve())
                    pending.append(place)
            elif _may_be_image(place):
                path = Path(entry.path).relative_to(top).as_posix()
                try:
                    status = place.stat()
                except OSError:                             # gone since it was listed
                    continue
                if _sayable(path):
                    yield FoundFile(path, status.st_size, status.st_mtime_ns)


def images_in(root: Path, path: str) -> list[tuple[str, int | None]]:
    """``(uid, frame)`` of each image in one file; frame is 1-based, None for a single image.

    Raises:
        ImageError: When the file is DICOM and its header cannot be read.
    """
    if named_by_path(path):
        return [(path, None)]
    uid, frames = uid_and_frames(root / path)
    return [(uid, None)] if frames == 1 else [(f"{uid}:{n}", n) for n in range(1, frames + 1)]


def named_by_path(path: str) -> bool:
    """Whether a file says nothing of itself: no SOP Instance UID, so that only its path names its image."""
    return path.lower().endswith(OTHER)


def _may_be_image(place: Path) -> bool:
    """By name; a name without ending (or one ending in digits, as UIDs do) must say DICOM inside."""
    if place.name.lower().endswith(DICOM + OTHER):
        return True
    if place.suffix and not place.suffix[1:].isdigit():
        return False
    try:
        with place.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _sayable(path: str) -> bool:
    """False for a name that is not Unicode or holds control characters: no database takes it."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return path.isprintable()
