"""Shifts: repeatable, in range, stronger with severity, and what each name says."""

import io

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from dcaf_monai.image import Geometry, Image
from dcaf_monai.phantom import phantom
from dcaf_monai.shifts import SHIFTS, shifted
from dcaf_monai.transforms import Preprocessing, image_to_input

EVERY = [(kind, severity) for kind, shift in SHIFTS.items() for severity in shift.severities]
CORRUPTIONS = [kind for kind, shift in SHIFTS.items() if shift.family != "gross"]


@pytest.fixture(scope="module")
def film() -> torch.Tensor:
    """A synthetic chest film as a network input with black margins left and right."""
    pixels = phantom(3, lesion=True, shape=(160, 120)).pixels.astype(np.float32)
    picture, _, _ = image_to_input(Image("p", pixels, Geometry((160, 120))), Preprocessing(size=96))
    assert not picture[:, :, :12].any() and not picture[:, :, -12:].any()
    return picture


def distance(first, second):
    return float((first - second).square().mean().sqrt())


@pytest.mark.parametrize("kind, severity", EVERY)
def test_a_shift_repeats_stays_a_network_input_and_leaves_its_own_alone(film, kind, severity):
    before = film.clone()
    found = shifted(film, kind, severity=severity, seed=3, case="p")
    assert torch.equal(film, before)
    assert found.shape == film.shape and found.dtype == torch.float32 and found.is_contiguous()
    assert 0 <= found.min() and found.max() <= 1
    assert distance(found, film) > 1e-3
    assert torch.equal(found, shifted(film, kind, severity=severity, seed=3, case="p"))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_farther_from_the_original_the_higher_the_severity(film, kind):
    away = [distance(shifted(film, kind, severity=severity, seed=1), film) for severity in (1, 2, 3, 4, 5)]
    assert (np.diff(away) > 0).all(), away


@pytest.mark.parametrize("kind", ["gaussian_noise", "speckle", "quantum_noise", "impulse_noise",
                                  "motion_blur", "bias_field", "ghosting"])
def test_what_is_random_differs_between_cases_and_seeds(film, kind):
    first = shifted(film, kind, severity=3, seed=1, case="a")
    assert not torch.equal(first, shifted(film, kind, severity=3, seed=1, case="b"))
    assert not torch.equal(first, shifted(film, kind, severity=3, seed=2, case="a"))


@pytest.mark.parametrize("kind", ["inverted", *CORRUPTIONS])
def test_black_margins_stay_black(film, kind):
    found = shifted(film, kind, severity=SHIFTS[kind].severities[-1])
    assert not found[:, :, :12].any() and not found[:, :, -12:].any()


def test_gross_shifts_are_what_their_names_say(film):
    assert torch.equal(shifted(film, "rotated_90"), torch.rot90(film, 1, (1, 2)))
    assert torch.equal(shifted(film, "rotated_180"), film.flip(1, 2))
    assert torch.equal(shifted(film, "mirrored"), film.flip(2))
    assert not shifted(film, "blank").any()
    inside = film[0].any(0)
    torch.testing.assert_close(shifted(film, "inverted")[:, :, inside], 1 - film[:, :, inside])


@pytest.mark.parametrize("kind, turn", [("rotated_90", lambda pixels: np.rot90(pixels)),
                                        ("rotated_180", lambda pixels: np.rot90(pixels, 2)),
                                        ("mirrored", lambda pixels: pixels[:, ::-1]),
                                        ("inverted", lambda pixels: 4095 - pixels),
                                        ("blank", lambda pixels: np.full_like(pixels, 700))])
def test_a_gross_shift_of_the_input_is_nearly_that_of_the_file(film, kind, turn):
    pixels = turn(phantom(3, lesion=True, shape=(160, 120)).pixels.astype(np.float32))
    turned, _, _ = image_to_input(Image("p", pixels, Geometry(pixels.shape)), Preprocessing(size=96))
    assert distance(shifted(film, kind), turned) < .03


def test_an_even_grey_shows_the_strength_of_noise_and_grey_shifts():
    grey = torch.full((1, 64, 64), .5)
    noise = (shifted(grey, "gaussian_noise", severity=3) - grey).std().item()
    assert noise == pytest.approx(.13, rel=.05)
    assert (shifted(grey, "speckle", severity=2) - grey).std().item() == pytest.approx(.1, rel=.05)
    counted = shifted(grey, "quantum_noise", severity=2)
    assert counted.mean().item() == pytest.approx(.5, abs=.01)
    assert counted.std().item() == pytest.approx((.5 / 80) ** .5, rel=.05)  # Poisson: variance over photons
    dead = shifted(grey, "impulse_noise", severity=4)
    assert (dead != .5).float().mean().item() == pytest.approx(.12, abs=.02)
    assert (dead == 1).float().mean().item() == pytest.approx(.06, abs=.015)
    torch.testing.assert_close(shifted(grey, "brightness_up", severity=2), grey + .16)
    torch.testing.assert_close(shifted(grey, "gamma_dark", severity=3), grey ** 2)
    torch.testing.assert_close(shifted(grey, "contrast_down", severity=5), grey)
    for kind in ("gaussian_blur", "motion_blur", "pixelated", "ghosting"):
        torch.testing.assert_close(shifted(grey, kind, severity=5), grey, atol=1e-5, rtol=0)


def test_a_point_is_spread_by_blur_with_the_stated_width_and_along_a_line_by_motion():
    point = torch.zeros(1, 65, 65)
    point[0, 32, 32] = 1
    point[0, 0, 0] = point[0, 64, 64] = 1e-3  # else the margin rule would see a picture of one pixel
    away = np.arange(65) - 32
    blurred = shifted(point, "gaussian_blur", severity=5)[0].double().numpy()
    blurred[:12], blurred[-12:] = 0, 0
    assert (blurred.sum(0) @ away**2 / blurred.sum()) ** .5 == pytest.approx(.035 * 65, rel=.02)
    moved = shifted(point, "motion_blur", severity=5)[0].double().numpy()
    moved[:12], moved[-12:] = 0, 0
    rows, columns = np.mgrid[:65, :65] - 32
    spread = np.linalg.eigvalsh(np.cov(np.stack([rows.ravel(), columns.ravel()]), aweights=moved.ravel()))
    assert spread[1] ** .5 == pytest.approx(.16 * 65 / 12 ** .5, rel=.1)  # an even line of that length
    assert spread[0] < .5


def test_coarse_pixels_are_means_of_the_fine_ones():
    picture = torch.rand(1, 100, 100, generator=torch.Generator().manual_seed(0))
    means = torch.nn.functional.avg_pool2d(picture, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    torch.testing.assert_close(shifted(picture, "pixelated", severity=3), means)  # a quarter of the side


def test_jpeg_is_what_pillow_stores():
    whole = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0)).clamp(.01, 1)
    stream = io.BytesIO()
    Pillow.fromarray((whole[0].numpy() * 255).round().astype(np.uint8)).save(stream, "JPEG", quality=15)
    expected = np.asarray(Pillow.open(stream)) / np.float32(255)
    assert np.array_equal(shifted(whole, "jpeg", severity=3)[0].numpy(), expected)


def test_a_black_input_is_no_trouble():
    black = torch.zeros(1, 48, 48)
    for kind, severity in EVERY:
        assert torch.isfinite(shifted(black, kind, severity=severity)).all()


@pytest.mark.parametrize("picture, kind, severity, message", [
    (torch.zeros(1, 8, 8), "melted", 1, "kind: need one of rotated_90"),
    (torch.zeros(1, 8, 8), "inverted", 2, "severity: need one of 1 for inverted, got 2"),
    (torch.zeros(1, 8, 8), "speckle", 6, "severity: need one of 1, 2, 3, 4, 5 for speckle"),
    (torch.zeros(1, 8, 8), "speckle", 0, "severity"),
    (torch.zeros(1, 8, 9), "speckle", 1, r"need \(1, size, size\), got \(1, 8, 9\)"),
    (torch.zeros(3, 8, 8), "speckle", 1, r"need \(1, size, size\)"),
    (torch.full((1, 8, 8), 1.5), "speckle", 1, r"values in \[0, 1\]"),
    (torch.full((1, 8, 8), float("nan")), "speckle", 1, r"values in \[0, 1\]")])
def test_what_cannot_be_shifted_is_refused(picture, kind, severity, message):
    with pytest.raises(ValueError, match=message):
        shifted(picture, kind, severity=severity)
