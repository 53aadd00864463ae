"""MedMNIST+ files as cohorts: PneumoniaMNIST and OCTMNIST with their official splits.

A file of the collection (Yang et al., Sci Data 10:41, 2023; CC BY 4.0) is an ``.npz`` with
``train_images``, ``train_labels`` and the same for ``val`` and ``test``: uint8 ``(images, side, side)``
and integer ``(images, 1)``, sides 28, 64, 128 or 224. Images of 28 pixels are written three times as large,
pixel by pixel, because smaller ones than 64 are not read. A file holds no patient: images of one patient
may lie in two splits, and of OCTMNIST it is known that they do. The cohort says so wherever it goes.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from PIL import Image as Pillow

from dcaf_monai.cohort import SPLITS, Case, Cohort
from dcaf_monai.decode import MIN_SIDE
from dcaf_monai.image import Notice, file_sha256
from dcaf_monai.tasks import TASKS, Task

SIZES = (28, 64, 128, 224)
CITATION = ("MedMNIST v2, Yang et al., Sci Data 10:41 (2023); MedMNIST+ files, doi 10.5281/zenodo.10519652, "
            "CC BY 4.0. Not for clinical use.")


@dataclass(frozen=True)
class Collection:
    """One data set of MedMNIST.

    Args:
        name: Its file's name, without size and ending.
        python_class: The class of the ``medmnist`` package.
        task: The question of ours it answers.
        classes: Our class of each of its labels 0, 1, ...
        images: Official number per split.
        leak: What is known of patients across its splits.
    """

    name: str
    python_class: str
    task: str
    classes: tuple[str, ...]
    images: Mapping[str, int]
    leak: str


COLLECTIONS: Mapping[str, Collection] = {collection.name: collection for collection in (
    Collection("pneumoniamnist", "PneumoniaMNIST", "pneumonia", ("normal", "pneumonia"),
               {"train": 4708, "val": 524, "test": 624},
               "PneumoniaMNIST: children of one hospital; training and validation were drawn from one folder "
               "without regard to patients, so validation looks better than test."),
    Collection("octmnist", "OCTMNIST", "oct", ("cnv", "dme", "drusen", "normal"),
               {"train": 97477, "val": 10832, "test": 1000},
               "OCTMNIST leaks: scans of test patients are known to be in its training split, so its test "
               "figures are too good. Use them to compare with others who have the same leak, for nothing "
               "else."))}


def cohort_from_npz(path: Path, task: Task, *, folder: Path) -> Cohort:
    """A cohort with the official splits; the images are written as PNG files once.

    Args:
        path: A MedMNIST ``.npz`` of grey images.
        task: ``pneumonia`` or ``oct``.
        folder: Where the PNG files go, in a folder named after the file's content.

    Raises:
        ValueError: For another task, a file that is no such ``.npz``, labels beyond the task's, or a
            folder that cannot be written.
    """
    path = Path(path)
    collection = next((found for found in COLLECTIONS.values()
                       if found.task == task.name and set(found.classes) == set(task.classes)), None)
    if collection is None:
        raise ValueError(f"task: need one of {', '.join(found.task for found in COLLECTIONS.values())}, got "
                         f"{task.name}.")
    if not path.is_file():
        raise ValueError(f"{path.name}: need a MedMNIST .npz file, got none. Download it first.")
    place = Path(folder) / f"{path.stem}-{file_sha256(path)[:16]}"
    cases: list[Case] = []
    try:
        with zipfile.ZipFile(path) as archive:
            for split in SPLITS:
                labels = _labels(archive, split, path, collection)
                cases += [Case(f"{split}/{number:06d}.png", place / split / f"{number:06d}.png",
                               collection.classes[label], split, f"{split}-{number:06d}")
                          for number, label in enumerate(labels)]
            copies = _written(archive, place, path, {split: sum(case.split == split for case in cases)
                                                     for split in SPLITS})
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise ValueError(f"{path.name}: need a MedMNIST file with images and labels of {', '.join(SPLITS)}, "
                         "got another or a part of one. Download it again.") from error
    return Cohort(task, tuple(cases), _notices(collection, cases, copies))


def fetch_npz(name: str, *, size: int, folder: Path) -> Path:
    """The file of a collection, by the ``medmnist`` package, which checks its digest; kept in a folder.

    Args:
        name: ``pneumoniamnist`` or ``octmnist``.
        size: One of `SIZES`, pixels.
        folder: Where it is, or will be.

    Raises:
        ValueError: For another name or size, without the package, or when the file cannot be had.
    """
    collection = collection_named(name)
    if size not in SIZES:
        raise ValueError(f"size: need one of {', '.join(map(str, SIZES))}, got {size}.")
    file = Path(folder) / f"{name}{'' if size == 28 else f'_{size}'}.npz"
    if file.is_file():
        return file
    try:
        import medmnist  # on request only: it brings pandas, scikit-image and fire
    except ModuleNotFoundError as error:
        raise ValueError(f"medmnist: need the package {error.name}, which is not installed. Say pip install "
                         "'dcaf-monai[medmnist]', or download the file elsewhere and give it with "
                         "--npz.") from error
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        getattr(medmnist, collection.python_class)(split="test", download=True, root=str(folder), size=size)
    except (OSError, RuntimeError, ValueError) as error:  # offline, or a file of another digest
        raise ValueError(f"{file.name}: need to download it, got no whole file. Connect this machine, or "
                         "download it elsewhere and give it with --npz.") from error
    return file


def collection_named(name: str) -> Collection:
    """A collection by name.

    Raises:
        ValueError: When there is none.
    """
    if name not in COLLECTIONS:
        raise ValueError(f"collection: need one of {', '.join(COLLECTIONS)}, got {name[:40]!r}.")
    return COLLECTIONS[name]


def task_of(collection: Collection) -> Task:
    """The task of ours that a collection answers."""
    return TASKS[collection.task]


def _labels(archive: zipfile.ZipFile, split: str, path: Path, collection: Collection) -> list[int]:
    """Labels of a split, checked."""
    with archive.open(f"{split}_labels.npy") as file:
        shape, kind = _header(file, path)
        if kind.kind not in "iu" or shape not in ((shape[:1]), (*shape[:1], 1)):
            raise ValueError(f"{path.name}: need one whole-number label an image, got {kind} {shape}.")
        data = file.read()
    if len(data) != shape[0] * kind.itemsize:
        raise EOFError
    labels = np.frombuffer(data, kind)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(collection.classes):
        raise ValueError(f"{path.name}: need labels 0 to {len(collection.classes) - 1}, got {labels.min()} "
                         f"to {labels.max()}. Is this the file of {collection.name}?")
    return labels.tolist()


def _images(archive: zipfile.ZipFile, split: str, path: Path) -> Iterator[np.ndarray]:
    """Images of a split one by one: the largest file holds 5 GB of them."""
    with archive.open(f"{split}_images.npy") as file:
        shape, kind = _header(file, path)
        if kind != np.uint8 or len(shape) != 3 or shape[1] not in SIZES or shape[2] != shape[1]:
            raise ValueError(f"{path.name}: need grey uint8 images (images, side, side) with a side of "
                             f"{', '.join(map(str, SIZES))}, got {kind} {shape} in {split}.")
        for _ in range(shape[0]):
            data = file.read(shape[1] * shape[2])
            if len(data) < shape[1] * shape[2]:
                raise EOFError
            yield np.frombuffer(data, np.uint8).reshape(shape[1:])


def _header(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an ``.npy`` file, which is then read on from its first number."""
    try:
        major, _ = read_magic(file)
        shape, fortran, kind = (read_array_header_1_0 if major == 1 else read_array_header_2_0)(file)
    except ValueError as error:
        raise ValueError(f"{path.name}: need .npy arrays inside, got others. Download it again.") from error
    if fortran or kind.hasobject or not shape:
        raise ValueError(f"{path.name}: need plain arrays in C order, got others. Download it again.")
    return shape, kind


def _written(archive: zipfile.ZipFile, place: Path, path: Path, counts: Mapping[str, int]) -> dict[str, int]:
    """Writes the images, unless they were written whole; how many are copies of training images."""
    whole = place / "whole.json"
    if whole.exists():
        return json.loads(whole.read_text(encoding="ascii"))
    digests: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    try:
        for split in SPLITS:
            (place / split).mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(_images(archive, split, path)):
                times = -(-MIN_SIDE // len(image))  # a whole number: every pixel stays what it was
                enlarged = Pillow.fromarray(image.repeat(times, 0).repeat(times, 1))
                enlarged.save(place / split / f"{number:06d}.png", compress_level=1)
                digests[split].append(hashlib.sha256(image.tobytes()).digest())
            if len(digests[split]) != counts[split]:
                raise ValueError(f"{path.name}: need one label an image, got {counts[split]} labels of "
                                 f"{len(digests[split])} images in {split}.")
        learnt = set(digests["train"])
        copies = {split: sum(digest in learnt for digest in digests[split]) for split in ("val", "test")}
        whole.write_text(json.dumps(copies), encoding="ascii")
    except OSError as error:
        raise ValueError(f"folder: cannot write the images: {error.strerror}. Check its free "
                         "space.") from error
    return copies


def _notices(collection: Collection, cases: Sequence[Case], copies: Mapping[str, int]) -> tuple[Notice, ...]:
    found = [Notice("patient_unknown", "A MedMNIST file names no patient: each image counts as a patient of "
                    "its own, images of one patient may be in two splits, and intervals are too narrow."),
             Notice("known_leak", collection.leak)]
    if any(copies.values()):
        found.append(Notice("copies", f"Exact copies of training images: {copies['val']} in validation, "
                            f"{copies['test']} in test."))
    counts = [sum(case.split == split for case in cases) for split in SPLITS]
    official = [collection.images[split] for split in SPLITS]
    if counts != official:
        found.append(Notice("not_official", "Images in train, validation and test: the official file has "
                            f"{', '.join(map(str, official))}, this one {', '.join(map(str, counts))}. "
                            "Published results do not compare."))
    return tuple(found)
