"""Boxes, text, levels and margins drawn by hand are found where they are, and films have none."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageDraw
from scipy import ndimage

from dcaf_monai import artefacts
from dcaf_monai.artefacts import MOST_SIDE, find_artefacts
from dcaf_monai.phantom import phantom


def a_film(seed: int = 1, shape: tuple[int, int] = (256, 220)) -> np.ndarray:
    return (phantom(seed, lesion=True, shape=shape).pixels >> 4).astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_a_film_has_no_artefacts(seed: int) -> None:
    found = find_artefacts(a_film(seed))
    assert (found.boxes, found.texts, found.posterised, found.margins) == ((), (), False, (0, 0))


@pytest.mark.parametrize("value", [0, 255])
def test_a_blank_box_is_found_where_it_is(value: int) -> None:
    film = a_film()
    film[150:180, 60:130] = value
    (box,) = find_artefacts(film).boxes
    assert np.abs(np.subtract(box, (150, 60, 180, 130))).max() <= 1


def test_a_white_box_at_the_edge_counts_and_a_black_strip_there_does_not() -> None:
    white, black = a_film(), a_film()
    white[-24:, 40:120] = 255
    black[:, :14] = 0
    assert len(find_artefacts(white).boxes) == 1
    assert find_artefacts(black).boxes == ()


def test_a_box_survives_jpeg() -> None:
    import io

    film = a_film()
    film[150:180, 60:130] = 255
    stream = io.BytesIO()
    Pillow.fromarray(film).save(stream, "JPEG", quality=75)
    assert len(find_artefacts(np.asarray(Pillow.open(stream))).boxes) == 1


def test_a_bright_region_that_runs_out_smoothly_is_no_box() -> None:
    y, x = np.mgrid[0:400, 0:440]
    hill = np.clip(1.6 * np.exp(-((y - 200) ** 2 + (x - 220) ** 2) / 20_000), 0, 1)
    assert find_artefacts(hill * 200 + 20).boxes == ()


@pytest.mark.parametrize(("words", "found"), [("PORTABLE", 1), ("L", 0), ("", 0)])
def test_text_is_found_and_a_side_marker_is_not_text(words: str, found: int) -> None:
    film = Pillow.fromarray(a_film(2, (384, 336)))
    ImageDraw.Draw(film).text((20, 14), words, fill=255, font_size=18)
    texts = find_artefacts(np.asarray(film)).texts
    assert len(texts) == found
    for row0, column0, row1, column1 in texts:
        assert 10 <= row0 < row1 <= 40 and 15 <= column0 < column1 <= 150


def test_speckle_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    film = a_film(1, (384, 336))
    noise = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=film.shape), 1.2)
    speckled = film * 0.4 + np.where(noise > np.quantile(noise, 0.8), 140, 0)
    assert find_artefacts(speckled).texts == ()
    monkeypatch.setattr(artefacts, "SPECKLE", 10**6)
    assert find_artefacts(speckled).texts  # some specks stand in a row like letters


def test_few_grey_levels_and_black_and_white_are_posterised() -> None:
    film = a_film()
    assert find_artefacts(film // 32 * 32).posterised
    assert find_artefacts(np.where(film > 120, 255, 0)).posterised
    assert find_artefacts(film).levels > 60


def test_levels_are_the_entropy_of_the_grey_scale_without_its_ends() -> None:
    steps = np.repeat(np.array([0, 50, 100, 150, 200, 255]), 7)[:, None] * np.ones((1, 5))
    found = find_artefacts(steps)
    assert found.levels == pytest.approx(4) and found.extremes == pytest.approx(2 / 6)


def test_margins_are_shares_of_the_picture() -> None:
    film = np.full((100, 80), 120.0)
    film[::2] = 100
    film[:10] = film[-10:] = film[:, :8] = 0
    film[0, 0], film[50, 40] = 0, 255
    assert find_artefacts(film).margins == (pytest.approx(1 - 0.8 * 0.9), 0)
    assert find_artefacts(255 - film).margins == (0, pytest.approx(1 - 0.8 * 0.9))


def test_a_very_large_film_is_looked_at_in_blocks_and_boxes_come_in_its_own_pixels() -> None:
    film = np.asarray(Pillow.fromarray(a_film()).resize((1540, 1792)))
    film = film.copy()
    film[1000:1200, 400:900] = 255
    assert max(film.shape) > 2 * MOST_SIDE
    (box,) = find_artefacts(film).boxes
    assert np.abs(np.subtract(box, (1000, 400, 1200, 900))).max() <= 6


def test_a_picture_of_one_value_has_one_level() -> None:
    found = find_artefacts(np.full((80, 90), 7.0))
    assert found.boxes == found.texts == ()
