"""Synthetic films: same seed, same bytes; valid files; the lesion is where its box says."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dcaf_monai.dicom import read_image
from dcaf_monai.phantom import film_to_dicom, phantom, write_films
from dcaf_monai.tasks import TASKS


def _digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_films(tmp_path / name, 4, seed=seed, shapes=((96, 80),))
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    assert not set(_digests(tmp_path / "a").values()) & set(_digests(tmp_path / "c").values())


def test_the_table_names_every_film_and_no_patient_is_in_two_splits(tmp_path: Path) -> None:
    paths = write_films(tmp_path, 20, seed=1, shapes=((96, 80),))
    with open(tmp_path / "labels.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [tmp_path / row["file"] for row in rows] == paths and all(path.is_file() for path in paths)
    assert {row["label"] for row in rows} == set(TASKS["pneumonia"].classes)
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["group"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert set(json.loads((tmp_path / "lesions.json").read_text())) == {
        row["file"] for row in rows if row["label"] == "pneumonia"}


@pytest.mark.parametrize("seed", range(6))
def test_a_lesion_changes_the_film_inside_its_box_alone(seed: int) -> None:
    with_lesion, without = (phantom(seed, lesion=True, shape=(160, 128), contrast=height)
                            for height in (0.3, 1e-9))
    difference = with_lesion.pixels.astype(int) - without.pixels
    row0, column0, row1, column1 = with_lesion.lesion_box or (0, 0, 0, 0)
    inside = difference[row0:row1, column0:column1]
    outside = difference.copy()
    outside[max(0, row0 - 6):row1 + 6, max(0, column0 - 6):column1 + 6] = 0
    assert inside.max() > 400
    # Noise is drawn before the picture is rounded, so far from the lesion nothing moves.
    assert abs(outside).max() <= 1
    assert abs((column0 + column1) / 2 - 64) > 6, "the lesion lies off the middle"


def test_a_normal_film_has_no_box() -> None:
    film = phantom(1, lesion=False, shape=(96, 80))
    assert film.lesion_box is None and film.label == "normal" and film.contrast == 0


def test_the_heart_lies_on_the_right_of_the_screen() -> None:
    mean = np.mean([phantom(seed, lesion=False, shape=(160, 128)).pixels for seed in range(6)], axis=0)
    left, right = mean[88:104, 40:58], mean[88:104, 70:88]
    assert right.mean() > left.mean() + 200


def test_an_inverted_film_reads_as_the_plain_one(tmp_path: Path) -> None:
    film = phantom(5, lesion=True, shape=(96, 80))
    for name, inverted in (("plain", False), ("inverted", True)):
        film_to_dicom(film, name="x", patient="y", inverted=inverted).save_as(
            tmp_path / f"{name}.dcm", enforce_file_format=True)
    plain, inverted_image = (read_image(tmp_path / f"{name}.dcm") for name in ("plain", "inverted"))
    # Inversion mirrors about the picture's own range, so equal up to one constant.
    assert np.unique(plain.pixels - inverted_image.pixels).size == 1
    np.testing.assert_array_equal(plain.pixels, film.pixels)


def test_a_film_says_that_it_is_synthetic_and_fits_its_task(tmp_path: Path) -> None:
    path = write_films(tmp_path, 1, seed=2)[0]
    header = pydicom.dcmread(path, stop_before_pixels=True)
    assert "SYNTHETIC" in header.SeriesDescription and "not a medical device" in header.SeriesDescription
    image = read_image(path)
    assert image.geometry.spacing_mm == (0.8, 0.8)
    assert image.notices == () and TASKS["pneumonia"].notices(image) == ()


@pytest.mark.parametrize("arguments", [
    {"shape": (63, 80)}, {"shape": (80, 63)}, {"contrast": 0.0}, {"contrast": 1.5}])
def test_an_impossible_film_is_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="need"):
        phantom(1, lesion=True, **arguments)


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": 2, "films_per_patient": 1}])
def test_an_impossible_set_is_refused(arguments: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="films: need"):
        write_films(tmp_path, **arguments)
