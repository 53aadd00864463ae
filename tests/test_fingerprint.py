"""A fingerprint tells copies from others, sees colour and compression, and is computed once."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image as Pillow

from dcaf_monai.duplicates import detail, exact_pairs, near_pairs
from dcaf_monai.fingerprint import (
    SIDE,
    Fingerprint,
    fingerprint,
    fingerprints,
    grey_of,
    phash,
    quantisation,
    tint_of,
)
from dcaf_monai.image import ImageError
from dcaf_monai.phantom import film_to_dicom, phantom


def a_film(seed: int = 1, shape: tuple[int, int] = (130, 110)) -> np.ndarray:
    return (phantom(seed, lesion=False, shape=shape).pixels >> 4).astype(np.uint8)


def saved(folder: Path, name: str, pixels: np.ndarray, **options: object) -> Path:
    Pillow.fromarray(pixels).save(folder / name, **options)
    return folder / name


def test_the_hash_is_imagehashs_and_does_not_mind_the_scale_of_the_greys() -> None:
    film = a_film()
    stretched = np.rint((film - film.min()) * (255 / (int(film.max()) - film.min()))).astype(np.uint8)
    assert phash(film) == str(imagehash.phash(Pillow.fromarray(stretched)))
    assert phash(film.astype(np.float32) * 16) == phash(film)


@pytest.mark.parametrize(("channels", "name"), [((1, .9, .7), "yellow"), ((.7, .8, 1), "blue"),
                                                ((1, .7, .7), "red"), ((1, .7, 1), "purple"),
                                                ((1, 1, 1), "grey"), ((.7, 1, .75), "green")])
def test_a_tint_has_a_name(channels: tuple[float, ...], name: str) -> None:
    picture = (a_film()[:, :, None] * np.array(channels)).astype(np.uint8)
    saturation, found = tint_of(picture)
    assert found == name and (saturation > 0.05) == (name != "grey")


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_the_quantisation_of_a_jpeg_is_that_pillow_reads(quality: int) -> None:
    stream = io.BytesIO()
    Pillow.fromarray(a_film()).save(stream, "JPEG", quality=quality)
    expected = np.mean(Pillow.open(stream).quantization[0])
    assert quantisation(stream.getvalue()) == pytest.approx(expected)


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"\xff\xd8\xff", b"\xff\xd8\xff\xdb\x00\x43\x00\x01",
                                  b"\xff\xd8\xff\xe0\x00\x00", b"\xff\xd8\xff\xdb\x00"])
def test_what_is_no_whole_jpeg_has_no_quantisation(data: bytes) -> None:
    assert quantisation(data) == 0


def test_copies_in_other_formats_and_sizes_are_pairs_and_other_films_are_not(tmp_path: Path) -> None:
    shape = (260, 220)
    film = a_film(1, shape)
    small = np.asarray(Pillow.fromarray(film).resize((176, 208)))
    paths = [saved(tmp_path, "a.png", film), saved(tmp_path, "b.tif", film),
             saved(tmp_path, "c.jpg", small, quality=80),
             *(saved(tmp_path, f"{seed}.png", a_film(seed, shape)) for seed in range(2, 14))]
    marks = [fingerprint(path) for path in paths]
    assert exact_pairs(marks) == [(0, 1)]
    assert near_pairs(marks, ["oct"] * len(marks), lambda place: grey_of(paths[place])) == [(0, 2), (1, 2)]
    assert marks[0].file_sha256 != marks[1].file_sha256


def test_alike_features_need_a_related_hash_to_be_a_pair(tmp_path: Path) -> None:
    films = [a_film(seed) for seed in range(1, 11)]
    films.append(films[0][6:, 5:])
    marks = [fingerprint(saved(tmp_path, f"{place}.png", film)) for place, film in enumerate(films)]
    features = np.random.default_rng(0).normal(size=(11, 40))
    assert (0, 10) not in near_pairs(marks, ["oct"] * 11, films.__getitem__)
    features[10] = features[0] * 1.01
    features[4] = features[3]
    turned = [fingerprint(saved(tmp_path, "turned.png", films[3][::-1]))]
    assert (0, 10) in near_pairs(marks, ["oct"] * 11, films.__getitem__, features=features)
    marks[4] = turned[0]
    assert (3, 4) not in near_pairs(marks, ["oct"] * 11, films.__getitem__, features=features)


def test_what_features_call_alike_is_no_pair_without_the_same_detail(tmp_path: Path) -> None:
    films = [a_film(seed) for seed in range(1, 11)]
    marks = [fingerprint(saved(tmp_path, f"{place}.png", film)) for place, film in enumerate(films)]
    marks[1] = replace(marks[1], phash=marks[0].phash)
    features = np.random.default_rng(0).normal(size=(10, 40))
    features[1] = features[0] * 1.01
    small = [replace(mark, small=np.random.default_rng(place).integers(0, 255, mark.small.shape, np.uint8))
             for place, mark in enumerate(marks)]
    assert near_pairs(small, ["oct"] * 10, films.__getitem__, features=features) == []
    films[1] = films[0][3:-2, 4:]
    assert near_pairs(small, ["oct"] * 10, films.__getitem__, features=features) == [(0, 1)]


def test_detail_is_that_of_a_crop_and_not_of_another_film() -> None:
    film = a_film(1, (320, 280))
    rows, columns = film.shape
    crop = film[round(.07 * rows):, round(.03 * columns):round(.96 * columns)]
    smaller = np.asarray(Pillow.fromarray(crop).resize((columns // 2, rows // 2)))
    others = max(detail(film, a_film(seed, (320, 280))) for seed in range(2, 8))    # their ribs are alike
    assert detail(film, film) > 0.95 and detail(crop, film) == detail(film, crop) > others + 0.1
    assert detail(film, smaller) > others and detail(film, film[::-1]) < others


def test_a_network_that_sees_all_pictures_alike_makes_no_pairs(tmp_path: Path) -> None:
    marks = [fingerprint(saved(tmp_path, f"{seed}.png", a_film(seed))) for seed in range(1, 13)]
    rng = np.random.default_rng(0)
    brightness = np.outer(rng.normal(size=12), rng.normal(size=40)) + rng.normal(0, 0.01, (12, 40))
    centred = brightness - brightness.mean(0)
    assert np.sort(np.corrcoef(centred)[0])[-2] > 0.985
    assert near_pairs(marks, ["oct"] * 12, lambda place: a_film(place + 1), features=brightness) == []


def test_a_dicom_film_tells_its_header_and_its_patient_only_as_a_digest(tmp_path: Path) -> None:
    film_to_dicom(phantom(1, lesion=False, shape=(120, 100)), name="x", patient="someone").save_as(
        tmp_path / "film.dcm", enforce_file_format=True)
    mark = fingerprint(tmp_path / "film.dcm")
    assert mark.kind.startswith("dicom 1 x") and mark.shape == (120, 100)
    assert len(mark.header["patient"]) == 16 and "someone" not in repr(mark)


def test_a_fingerprint_is_read_back_from_the_cache_as_it_was(tmp_path: Path) -> None:
    film = a_film()
    film[40:60, 20:60] = 255
    path = saved(tmp_path, "film.jpg", film, quality=95)
    (first,) = fingerprints([(path, None)], tmp_path / "cache/marks.jsonl")
    (second,) = fingerprints([(path, None)], tmp_path / "cache/marks.jsonl")
    assert isinstance(first, Fingerprint) and isinstance(second, Fingerprint)
    assert (second.small == first.small).all() and second.small.shape == (SIDE, SIDE)
    for name in ("file_sha256", "phash", "tones", "shape", "kind", "quantisation", "artefacts", "header"):
        assert getattr(second, name) == getattr(first, name)
    assert len((tmp_path / "cache/marks.jsonl").read_text().splitlines()) == 1


def test_a_torn_line_of_the_cache_is_looked_at_again(tmp_path: Path) -> None:
    path, cache = saved(tmp_path, "film.png", a_film()), tmp_path / "marks.jsonl"
    fingerprints([(path, None)], cache)
    whole = cache.read_text()
    cache.write_text(whole[:len(whole) // 2] + "\n")
    (found,) = fingerprints([(path, None)], cache)
    assert isinstance(found, Fingerprint) and cache.read_text().endswith(whole)


def test_bad_files_are_errors_in_their_places(tmp_path: Path) -> None:
    (tmp_path / "flat.png").write_bytes(saved(tmp_path, "x.png", np.full((70, 80), 9, np.uint8)).read_bytes())
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    good = saved(tmp_path, "good.png", a_film())
    found = fingerprints([(tmp_path / "flat.png", None), (good, None), (tmp_path / "torn.jpg", None),
                          (tmp_path / "gone.png", None)], tmp_path / "marks.jsonl")
    assert [type(one) for one in found] == [ImageError, Fingerprint, ImageError, ImageError]
    assert found[0].code == "constant" and found[3].code == "unreadable"
    with pytest.raises(ImageError, match="readable file"):
        fingerprint(tmp_path / "gone.png")
