"""A clean set of synthetic films for the audit, and faults planted in it on purpose."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from dcaf_monai.phantom import phantom

COUNT, PER_PATIENT = 120, 3
SHAPES = ((128, 112), (120, 112), (112, 124))


@dataclass
class Film:
    """One film on its way into a data set: grey 8 bit ``(rows, columns)``, or RGB."""

    name: str
    pixels: np.ndarray
    label: str
    split: str
    group: str
    told: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=1)
def _bodies() -> tuple[np.ndarray, ...]:
    found = []
    for index in range(COUNT):
        shape = SHAPES[np.random.default_rng(index).integers(3)]
        film = phantom(index, lesion=index % 2 == 1, shape=shape, contrast=0.3,
                       anatomy=index // PER_PATIENT)
        found.append((film.pixels >> 4).astype(np.uint8))
    return tuple(found)


def clean_films() -> list[Film]:
    """120 films of 40 patients, both labels in every patient, three splits by patient, nothing wrong."""
    films = []
    for index, pixels in enumerate(_bodies()):
        patient = index // PER_PATIENT
        split = ("train", "train", "train", "val", "test")[patient % 5]
        label = "pneumonia" if index % 2 else "normal"
        films.append(Film(f"film_{index:03d}.png", pixels.copy(), label, split, f"patient-{patient:02d}",
                          {"source": f"site {patient % 3}"}))
    return films


def changed(films: Sequence[Film], change: Callable[[Film], Film], *, label: str = "pneumonia",
            share: float = 1.0) -> list[Film]:
    """The films, those of a label (or the first share of them) changed."""
    own = [film.name for film in films if film.label == label]
    chosen = set(own[:round(share * len(own))])
    return [change(film) if film.name in chosen else film for film in films]


def with_pixels(film: Film, pixels: np.ndarray, *, suffix: str = ".png") -> Film:
    """The film with other pixels, and perhaps another format."""
    return replace(film, pixels=pixels, name=film.name.rsplit(".", 1)[0] + suffix)


def write(films: Sequence[Film], folder: Path, *, columns: Sequence[str] = ("source",)) -> Path:
    """Files and ``labels.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "labels.csv"
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "task", "label", "split", "group", *columns))
        for film in films:
            options = {"quality": 92} if film.name.endswith(".jpg") else {}
            Pillow.fromarray(film.pixels).save(folder / film.name, **options)
            writer.writerow((film.name, "pneumonia", film.label, film.split, film.group,
                             *(film.told.get(column, "") for column in columns)))
    return table
