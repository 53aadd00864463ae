"""Every property that an audit holds against the label: planted in one label, it is found by name."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from audit_films import Film, changed, clean_films, with_pixels, write
from PIL import Image as Pillow
from PIL import ImageFilter
from test_audit import alarms, item

from dcaf_monai.audit import audit_cohort
from dcaf_monai.model import load_model
from dcaf_monai.phantom import write_films


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def reshaped(height: float, width: float) -> Callable[[Film], Film]:
    def change(film: Film) -> Film:
        rows, columns = film.pixels.shape
        size = round(columns * width), round(rows * height)
        return with_pixels(film, np.asarray(Pillow.fromarray(film.pixels).resize(size)))
    return change


def mapped(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Film], Film]:
    """The pixels ``(rows, columns)``, 0 to 255, through a function."""
    return lambda film: with_pixels(
        film, np.clip(function(film.pixels.astype(float)), 0, 255).astype(np.uint8))


def white_frame(pixels: np.ndarray) -> np.ndarray:
    framed = pixels.copy()
    framed[:, :8] = framed[:, -8:] = 255
    return framed


def smooth(film: Film) -> Film:
    return with_pixels(film, np.asarray(Pillow.fromarray(film.pixels).filter(ImageFilter.GaussianBlur(1.5))))


def sixteen_bits(film: Film) -> Film:
    return with_pixels(film, film.pixels.astype(np.uint16) * 257)


@pytest.mark.parametrize(("names", "plant"), [
    (["format"], sixteen_bits),
    (["size", "area", "aspect"], reshaped(1.0, 1.3)),
    (["white_margin"], mapped(white_frame)),
    (["brightness", "properties"], mapped(lambda pixels: 255 * (pixels / 255) ** 0.5)),
    (["contrast"], mapped(lambda pixels: 128 + 0.6 * (pixels - 128))),
    (["saturated"], mapped(lambda pixels: np.where(pixels > np.quantile(pixels, 0.8), 255, pixels))),
    (["sharpness", "bytes"], smooth),
    (["grey_levels"], mapped(lambda pixels: pixels // 3 * 3)),
    (["thumbnail"], mapped(lambda pixels: pixels + np.linspace(0, 50, pixels.shape[1]))),
])
def test_a_property_of_the_picture_that_goes_with_one_label_is_found(
        tmp_path: Path, cache: Path, names: list[str], plant: Callable[[Film], Film]) -> None:
    audit = audit_cohort(write(changed(clean_films(), plant), tmp_path), cache=cache)
    for name in names:
        found = item(audit, name)
        assert found.verdict in ("alarm", "look"), found.sentence
        assert found.figures["effect"] > 0.5, found.figures


@pytest.mark.parametrize(("name", "keyword", "values"), [
    ("age", "PatientAge", ("004Y", "067Y")),
    ("sex", "PatientSex", ("F", "M")),
    ("projection", "ViewPosition", ("PA", "AP")),
    ("scanner", "Manufacturer", ("Works A", "Works B")),
])
def test_what_headers_tell_that_goes_with_one_label_is_found(
        tmp_path: Path, cache: Path, name: str, keyword: str, values: tuple[str, str]) -> None:
    write_films(tmp_path, 80, seed=3, shapes=((128, 112), (112, 124)))
    with (tmp_path / "labels.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    for row in rows:
        film = pydicom.dcmread(tmp_path / row["file"])
        setattr(film, keyword, values[row["label"] == "pneumonia"])
        film.save_as(tmp_path / row["file"])
    audit = audit_cohort(tmp_path / "labels.csv", cache=cache)
    found = item(audit, name)
    assert found.verdict == "alarm" and found.figures["effect"] > 0.9 and alarms(audit) == {name}
    assert {len(shares) for shares in found.figures["shares"].values()} == {1}


def test_a_split_that_its_pictures_tell_is_found(tmp_path: Path, cache: Path) -> None:
    lighter = mapped(lambda pixels: 255 * (pixels / 255) ** 0.5)
    films = [film if film.split == "train" else lighter(film) for film in clean_films()]
    found = item(audit_cohort(write(films, tmp_path), cache=cache), "splits")
    assert found.verdict == "alarm" and found.figures["effect"] > 0.9, found.sentence


def test_a_mark_at_the_border_is_found_through_a_models_eyes(tmp_path: Path, cache: Path,
                                                            tiny_model: Path) -> None:
    films = changed(clean_films(), mapped(lambda pixels: np.pad(pixels[6:-6, 6:-6], 6, constant_values=255)))
    audit = audit_cohort(write(films, tmp_path), cache=cache, model=load_model(tiny_model))
    assert item(audit, "border_model").verdict == item(audit, "blackout_model").verdict == "alarm"


def test_splits_without_any_word_of_patients_are_looked_at(tmp_path: Path, cache: Path) -> None:
    films = [replace(film, group="") for film in clean_films()]
    found = item(audit_cohort(write(films, tmp_path), cache=cache), "patients")
    assert found.verdict == "look" and found.figures["files_without_patient"] == len(films)
