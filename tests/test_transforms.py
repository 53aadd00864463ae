"""Network input: every source pixel lands where `Placement` says; values fill 0 to 1 inside the picture."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dcaf_monai.dicom import read_image
from dcaf_monai.image import Geometry, Image
from dcaf_monai.phantom import film_to_dicom, phantom
from dcaf_monai.tasks import TASKS
from dcaf_monai.transforms import Preprocessing, image_to_input, read_input, training_augmentation

Fit = Literal["letterbox", "crop", "stretch"]


def _image(pixels: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0),
           stored: tuple[int, int] | None = None) -> Image:
    shape = stored or (pixels.shape[0], pixels.shape[1])
    return Image("1.2", pixels.astype(np.float32), Geometry(shape, spacing))


def _smooth(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[0:shape[0], 0:shape[1]] / max(shape)
    return 100 * np.sin(4 * x + 1) + 70 * np.cos(5 * y) + np.random.default_rng(seed).normal(0, 1, shape)


@pytest.mark.parametrize("fit", ["letterbox", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(448, 320), (300, 500), (91, 64)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.2, 0.3), (0.3, 0.2)])
def test_a_bright_spot_lands_where_the_placement_says(fit: Fit, shape: tuple[int, int],
                                                      spacing: tuple[float, float]) -> None:
    spot = (shape[0] * 3 // 8, shape[1] * 5 // 9)  # off the middle, inside every crop
    pixels = np.zeros(shape)
    half = max(shape) // 40
    pixels[spot[0] - half:spot[0] + half + 1, spot[1] - half:spot[1] + half + 1] = 1
    tensor, placement, _ = image_to_input(_image(pixels, spacing), Preprocessing(size=224, fit=fit,
                                                                                percentiles=(0, 100)))
    weight = tensor[0].numpy().astype(float)
    rows, columns = np.mgrid[0:224, 0:224] + 0.5
    centre = (weight * rows).sum() / weight.sum(), (weight * columns).sum() / weight.sum()
    for axis in (0, 1):
        expected = (spot[axis] + 0.5 - placement.edge[axis]) / placement.scale[axis]
        assert abs(centre[axis] - expected) < 0.05


@pytest.mark.parametrize(("fit", "covered"), [("letterbox", (112, 224)), ("crop", (224, 224)),
                                              ("stretch", (224, 224))])
def test_a_wide_image_covers_what_its_fit_says(fit: Fit, covered: tuple[int, int]) -> None:
    # 100 rows of 2 mm and 200 columns of 2 mm: twice as wide as high.
    tensor, placement, _ = image_to_input(_image(_smooth((100, 200)) + 1000, (2, 2)), Preprocessing(fit=fit))
    inside = torch.nonzero(tensor[0])
    assert inside[:, 0].max() - inside[:, 0].min() + 1 == covered[0]
    assert inside[:, 1].max() - inside[:, 1].min() + 1 == covered[1]
    assert placement.edge == {"letterbox": (-50, 0), "crop": (0, 50), "stretch": (0, 0)}[fit]


def test_pixels_that_are_not_square_keep_their_physical_shape() -> None:
    # 100 x 100 pixels, twice as far apart downwards: the film is twice as high as wide.
    _, placement, _ = image_to_input(_image(_smooth((100, 100)), (2.0, 1.0)), Preprocessing(size=200))
    assert placement.scale == (0.5, 1.0) and placement.edge == (0.0, -50.0)


def test_an_image_decoded_small_has_the_placement_of_the_stored_grid() -> None:
    whole = _smooth((400, 300))
    small = whole.reshape(200, 2, 150, 2).mean(axis=(1, 3))
    preprocessing = Preprocessing(size=96)
    one, place, _ = image_to_input(_image(whole), preprocessing)
    other, same_place, _ = image_to_input(_image(small, stored=(400, 300)), preprocessing)
    assert place == same_place
    assert (one - other).abs().max() < 0.02


@pytest.mark.parametrize("fit", ["letterbox", "crop", "stretch"])
def test_values_fill_zero_to_one_and_ignore_unit_and_offset(fit: Fit) -> None:
    pixels = _smooth((90, 130))
    tensor, _, notices = image_to_input(_image(pixels), Preprocessing(fit=fit))
    assert tensor.shape == (1, 224, 224) and tensor.dtype == torch.float32 and notices == ()
    assert tensor.min() == 0 and tensor.max() == 1
    other, _, _ = image_to_input(_image(pixels * 37 + 5000), Preprocessing(fit=fit))
    assert (tensor - other).abs().max() < 1e-3


def test_padding_does_not_move_the_grey_scale() -> None:
    bright = _smooth((60, 240)) + 10_000
    tensor, _, _ = image_to_input(_image(bright), Preprocessing(size=240))
    band = tensor[0, 90:150]
    assert tensor[0, :90].abs().max() == 0 and tensor[0, 150:].abs().max() == 0
    # A share of 0.5 % is cut at each end of the picture itself.
    assert 0.003 < (band == 0).float().mean() < 0.008 and 0.003 < (band == 1).float().mean() < 0.008


@pytest.mark.parametrize(("pixels", "code"), [
    (np.kron(np.arange(8).reshape(2, 4), np.ones((40, 30))), "few_grey_levels"),
    (np.pad(np.random.default_rng(0).random((40, 25)) + 9, ((20, 140), (30, 45))), "mostly_one_grey")])
def test_a_picture_no_scanner_makes_is_noticed(pixels: np.ndarray, code: str) -> None:
    _, _, notices = image_to_input(_image(pixels), Preprocessing(percentiles=(0, 100), fit="stretch"))
    assert code in [notice.code for notice in notices]


def test_one_bright_spot_on_black_stays_finite_and_visible() -> None:
    pixels = np.zeros((300, 200))
    pixels[40, 50] = 1
    tensor, _, _ = image_to_input(_image(pixels), Preprocessing())
    assert torch.isfinite(tensor).all() and tensor.max() == 1


def test_the_short_way_from_the_file_is_the_long_one(tmp_path: Path) -> None:
    path = tmp_path / "film.dcm"
    film_to_dicom(phantom(3, lesion=True, shape=(160, 128)), name="t", patient="t").save_as(
        path, enforce_file_format=True)
    image, tensor, placement = read_input(path, Preprocessing(size=96))
    expected, where, notices = image_to_input(read_image(path), Preprocessing(size=96))
    torch.testing.assert_close(tensor, expected)
    assert placement == where and image.notices == notices == () and image.uid.startswith("2.25.")


@pytest.mark.parametrize("change", [{"size": 16}, {"size": 4000}, {"fit": "tile"}, {"percentiles": (5, 5)},
                                    {"percentiles": (-1, 99)}, {"colour": 1}])
def test_an_impossible_preprocessing_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing(**change)


def test_augmentation_repeats_with_its_seed_and_varies_without() -> None:
    tensor, _, _ = image_to_input(_image(_smooth((80, 64))), Preprocessing(size=64))
    first, second, third = (training_augmentation(TASKS["oct"], seed, size=64) for seed in (5, 5, 6))
    runs = [[step(tensor.clone()) for _ in range(3)] for step in (first, second, third)]
    for one, same in zip(runs[0], runs[1], strict=True):
        torch.testing.assert_close(one, same)
    assert not torch.equal(runs[0][0], runs[0][1]) and not torch.equal(runs[0][0], runs[2][0])
    for changed in runs[0]:
        assert type(changed) is torch.Tensor and changed.shape == (1, 64, 64)
        assert changed.dtype == torch.float32 and 0 <= changed.min() and changed.max() <= 1


@pytest.mark.parametrize(("name", "mirrored"), [("oct", True), ("pneumonia", False)])
def test_only_a_lawful_task_is_mirrored(name: str, mirrored: bool) -> None:
    marked = torch.zeros(1, 64, 64)
    marked[0, 24:40, 44:52] = 1  # a mark on the right
    change = training_augmentation(TASKS[name], 0, size=64)
    left = [bool(changed[0, :, :32].sum() > changed[0, :, 32:].sum())
            for changed in (change(marked.clone()) for _ in range(24))]
    assert any(left) == mirrored and not all(left)


def test_augmentation_moves_no_further_than_the_task_allows() -> None:
    marked = torch.zeros(1, 100, 100)
    marked[0, 48:52, 48:52] = 1
    rows = torch.arange(100) + 0.5
    for seed in range(12):
        changed = training_augmentation(TASKS["pneumonia"], seed, size=100)(marked.clone())[0]
        centre = (changed.sum(1) @ rows / changed.sum(), changed.sum(0) @ rows / changed.sum())
        assert max(abs(float(c) - 50) for c in centre) <= 5.6  # 5 % of 100 pixels, and the spot's own blur


@pytest.mark.parametrize("shape", [(448, 320), (301, 499), (90, 64)])
def test_the_resize_is_the_antialiased_one_of_torch(shape: tuple[int, int]) -> None:
    pixels = _smooth(shape)
    preprocessing = Preprocessing(size=224, fit="stretch", percentiles=(0, 100))
    tensor, _, _ = image_to_input(_image(pixels), preprocessing)
    reference = torch.nn.functional.interpolate(torch.from_numpy(pixels)[None, None], (224, 224),
                                                mode="bilinear", antialias=True)[0]
    reference = (reference - reference.min()) / (reference.max() - reference.min())
    torch.testing.assert_close(tensor, reference.float(), atol=2e-3, rtol=0)
