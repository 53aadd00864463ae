"""Geometry: where a pixel lies in the patient."""

import numpy as np
import pytest

from dcaf_monai.image import Geometry, Image, Placement

TILTED = Geometry((5, 7), (2.0, 3.0), (10.0, 20.0, 30.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0))


def test_a_pixel_index_becomes_its_place_in_the_patient() -> None:
    # Two rows down (2 mm each, towards -z), three columns right (3 mm each, towards +y).
    np.testing.assert_allclose(TILTED.point_mm(2, 3), [10, 29, 26])


def test_the_affine_maps_columns_first() -> None:
    np.testing.assert_allclose(TILTED.affine_lps @ [3, 2, 0, 1], [10, 29, 26, 1])
    np.testing.assert_allclose(TILTED.affine_lps[:3, 2], [-1, 0, 0])


def test_a_grid_of_whole_cells_covers_the_same_ground() -> None:
    coarse = TILTED.regrid((1, 2), (0, 0), (5, 3.5))
    assert coarse.spacing_mm == (10.0, 10.5)
    # Centre of the first cell: half a cell from the outer edge, in pixels 2.5 - 0.5 and 1.75 - 0.5.
    np.testing.assert_allclose(coarse.point_mm(0, 0), TILTED.point_mm(2.0, 1.25))


def test_a_map_over_a_letterboxed_input_lies_on_the_source() -> None:
    placement = Placement(input_size=14, edge=(-1.0, 0.0), scale=(0.5, 0.5))
    cells = placement.grid((7, 7), TILTED)
    np.testing.assert_allclose(cells.point_mm(1, 0), TILTED.point_mm(0, 0))


@pytest.mark.parametrize("arguments", [
    {"shape": (0, 7)}, {"spacing_mm": (0.0, 1.0)}, {"spacing_mm": (1.0, float("nan"))},
    {"right": (1.0, 0.0, 0.0), "down": (1.0, 0.0, 0.0)}, {"right": (2.0, 0.0, 0.0)}])
def test_an_impossible_geometry_is_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="need"):
        Geometry(**{"shape": (5, 7), **arguments})


@pytest.mark.parametrize("pixels", [np.zeros((5, 7)), np.zeros((5, 7, 3), np.float32)])
def test_pixels_are_float32_in_two_dimensions(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pixels: need float32"):
        Image("1.2", pixels, Geometry((5, 7)))
