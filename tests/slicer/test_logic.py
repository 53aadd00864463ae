"""The drawing on the real MRML scene: where pictures and heats land, how they look, what is left behind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import slicer
from DCAFReviewLib.layout import CURVE, IMAGE, LAYOUTS, OVERLAY, VIEW_GROUP
from DCAFReviewLib.logic import COLOURS, ReviewLogic
from drawn import (
    PLANES,
    coloured,
    drawn,
    grid,
    interpolated,
    on_screen,
    place,
    settle,
    size_views,
    slice_logic,
)

PIXELS = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7  # 5x7, every pixel another value
WHOLE = {"window": "127.5 255"}  # a window in which a grey level is its own value
MAIN_PYTHON = Path(__file__).resolve().parents[2] / ".venv/bin/python"


@pytest.fixture
def logic(application):
    logic = ReviewLogic(slicer.mrmlScene)
    logic.arrange()
    settle()
    yield logic
    logic.clear()
    logic.restore()


def heat_of(logic, values, ijk_to_lps=None, *, scale=1.0):
    logic.show_heat(grid(np.asarray(values, np.float32), ijk_to_lps), scale=scale, unit="share",
                    title="Attention")


# -- place -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handed", [1, -1])
@pytest.mark.parametrize("plane", PLANES)
def test_a_picture_fills_both_views_as_stored_in_any_plane(logic, plane, handed):
    logic.show_picture(grid(PIXELS, place(plane, origin=(11.0, -7.0, 40.0), handed=handed), **WHOLE), "case")
    for view in (IMAGE, OVERLAY):  # 5.6 x 2.5 mm on 560 x 250: a pixel is 80 wide and 50 high
        centres = drawn(view)[25::50, 40::80]
        assert centres.shape == (5, 7, 3)
        assert np.abs(centres - PIXELS[:, :, None]).max() <= 1


def test_a_view_of_another_shape_keeps_the_aspect_and_the_middle(logic):
    size_views(560, 500)
    logic.show_picture(grid(PIXELS + 1, **WHOLE), "case")
    inside = drawn(IMAGE).max(-1) > 0
    assert not inside[:124].any() and not inside[376:].any()
    assert inside[126:374, 2:-2].all()


@pytest.mark.parametrize("plane", PLANES)
def test_a_heat_lands_where_its_own_grid_says(logic, plane):
    origin = np.array([11.0, -7.0, 40.0])
    film = place(plane, origin=origin)
    right, down = (np.array(direction, float) for direction in PLANES[plane])
    # Cells of 1.4 x 1.25 mm, so 2 x 4 cover the film; the middle of the first lies 0.3 and 0.375 mm
    # further in than the middle of the film's first pixel.
    coarse = place(plane, spacing=(1.25, 1.4), origin=origin + 0.3 * right + 0.375 * down)
    values = np.zeros((2, 4))
    values[1, 2] = 1.0
    logic.show_picture(grid(PIXELS, film, **WHOLE), "case")
    logic.look(1.0, 0.5)
    heat_of(logic, values, coarse)
    seen = np.argwhere(coloured())
    # Half of the peak is reached half a cell away: columns 280 to 420 around 350, rows 125 down to the edge.
    assert np.allclose([seen.min(0), seen.max(0)], [(125, 280), (249, 420)], atol=1)
    assert np.allclose(on_screen(OVERLAY, coarse[:3] @ [2, 1, 0, 1]), (187.5, 350), atol=1)


def test_a_heat_smaller_than_the_picture_leaves_the_rest_untouched(logic):
    logic.show_picture(grid(PIXELS, **WHOLE), "case")
    logic.look(1.0, 0.0)
    heat_of(logic, [[0.5, 0.9]], place(origin=(1.6, 1.0, 0.0)))  # pixels (2, 2) and (2, 3)
    seen = np.argwhere(coloured())
    assert np.allclose([seen.min(0), seen.max(0)], [(100, 160), (149, 319)], atol=1)


@pytest.mark.parametrize("handed", [1, -1])
@pytest.mark.parametrize("plane", PLANES)
def test_a_heat_that_sticks_out_of_the_picture_is_cut_at_its_edge(logic, plane, handed):
    # A square of 7 x 7 pixels' size around the 5 x 7 film, as a letter-boxed network sees it: a row and a
    # column of its 3 x 3 cells lie partly beyond.
    film = place(plane, spacing=(0.5, 0.5), origin=(11.0, -7.0, 40.0), handed=handed)
    coarse = film.copy()
    coarse[:3, :2] *= 7 / 3
    coarse[:3, 3] = (film @ [2 / 3, -1 + 2 / 3, 0, 1])[:3]
    values = np.arange(1.0, 10.0).reshape(3, 3) / 10
    size_views(700, 700)    # 100 pixels for each of the film's, and 100 dark rows above and below it
    logic.show_picture(grid(np.zeros((5, 7), np.uint8), film, **WHOLE), "case")
    logic.look(1.0, 0.0)
    heat_of(logic, values, coarse)
    seen = np.argwhere(coloured())
    assert np.allclose([seen.min(0), seen.max(0)], [(100, 0), (599, 699)], atol=1)
    expected = COLOURS["Amber"][np.rint(interpolated(values, (700, 700)) * 255).astype(int)]
    inside = np.s_[102:598, 2:698]
    assert np.abs(drawn(OVERLAY)[inside] - expected[inside]).max() <= 10  # two entries of the table


def test_a_heat_that_lies_beside_the_picture_breaks_nothing(logic):
    logic.show_picture(grid(PIXELS, **WHOLE), "case")
    heat_of(logic, np.ones((2, 2)), place(origin=(50.0, 50.0, 0.0)))
    assert not coloured().any()


def test_the_same_heat_again_is_left_as_it_is_unless_it_is_gone(logic):
    logic.show_picture(grid(PIXELS, **WHOLE), "case")
    heat = grid(np.ones((5, 7), np.float32))
    before = None
    for title, made in (("Gate", True), ("Gate", False), ("Spatial", True)):
        logic.show_heat(heat, scale=1.0, unit="share", title=title)
        volume = slicer.util.getNode(title)
        assert (volume is not before) == made and coloured().all()
        before = volume
    for lose in (lambda: slicer.mrmlScene.RemoveNode(slicer.util.getNode("Spatial")), logic.hide_heat,
                 lambda: logic.show_picture(grid(PIXELS, **WHOLE), "next")):
        lose()
        assert not coloured().any()
        logic.show_heat(heat, scale=1.0, unit="share", title="Spatial")
        assert coloured().all()


def test_patient_right_is_screen_left_on_a_plain_film(logic):
    logic.show_picture(grid(PIXELS), "case")  # columns run to +x: patient left (Patient Orientation L\F)
    row, right_side = on_screen(IMAGE, (0.0, 1.0, 0.0))
    _, left_side = on_screen(IMAGE, (4.8, 1.0, 0.0))
    assert right_side < 280 < left_side
    assert abs(row - 125) <= 1


def test_feet_are_down_on_an_upright_coronal_picture(logic):
    logic.show_picture(grid(PIXELS, place("coronal", origin=(0, 0, 50.0))), "case")
    head, _ = on_screen(IMAGE, (0, 0, 50.0))
    feet, _ = on_screen(IMAGE, (0, 0, 48.0))
    assert head < 125 < feet


# -- look ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.6, 1.0])
def test_exactly_the_pixels_that_reach_the_threshold_are_coloured(logic, threshold):
    values = np.random.default_rng(3).random((3, 4)) * 4
    logic.show_picture(grid(PIXELS, **WHOLE), "case")
    logic.look(0.7, threshold)
    heat_of(logic, values, place(spacing=(2.5 / 3, 1.4), origin=(0.3, 2.5 / 6 - 0.25, 0.0)), scale=4.0)
    expected = interpolated(values, (250, 560)) >= threshold * 4
    assert 0 <= expected.sum() <= 140_000 and (threshold in (0, 1) or 5_000 < expected.sum() < 135_000)
    assert coloured().sum() == expected.sum()
    assert np.array_equal(coloured(), expected)


def test_colour_and_picture_are_mixed_by_the_opacity(logic):
    values = np.linspace(0.2, 0.9, 35).reshape(5, 7)
    logic.show_picture(grid(PIXELS, **WHOLE), "case")
    for opacity in (0.25, 0.6, 1.0):
        logic.look(opacity, 0.1)
        heat_of(logic, values)
        entry = np.rint(interpolated(values, (250, 560)) * 255).astype(int)
        colours = np.stack([COLOURS["Amber"][entry + step] for step in (-1, 0, 1)])  # as the lookup rounds
        mixed = interpolated(PIXELS, (250, 560))[..., None] * (1 - opacity) + colours * opacity
        assert (drawn(OVERLAY) >= mixed.min(0) - 1.5).all() and (drawn(OVERLAY) <= mixed.max(0) + 1.5).all()


def test_opacity_nought_is_the_picture_alone(logic):
    logic.show_picture(grid(PIXELS, **WHOLE), "case")
    alone = drawn(IMAGE)
    logic.look(0.6, 0.0)
    heat_of(logic, np.ones((5, 7)))
    assert coloured().all()
    logic.look(0.0, 0.0)
    assert np.array_equal(drawn(OVERLAY), alone)


def test_the_image_view_never_shows_the_heat(logic):
    logic.show_picture(grid(PIXELS, **WHOLE), "case")
    heat_of(logic, np.ones((5, 7)))
    assert coloured(OVERLAY).all() and not coloured(IMAGE).any()


def test_hiding_the_heat_leaves_the_picture_and_showing_it_brings_it_back(logic):
    logic.show_picture(grid(PIXELS, **WHOLE), "case")
    heat_of(logic, np.ones((5, 7)))
    logic.hide_heat()
    assert not coloured().any()
    heat_of(logic, np.ones((5, 7)))
    assert coloured().all()


def test_colours_follow_the_scale_and_not_the_values(logic):
    logic.show_picture(grid(np.zeros((5, 7), np.uint8), **WHOLE), "case")
    logic.look(1.0, 0.0)
    heat_of(logic, np.full((5, 7), 0.5), scale=2.0)
    assert np.abs(drawn(OVERLAY)[125, 280] - COLOURS["Amber"][64]).max() <= 3


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_table_starts_and_ends_as_it_should(logic, colour):
    logic.show_picture(grid(np.zeros((5, 7), np.uint8), **WHOLE), "case")
    logic.look(1.0, 0.0, colour)
    for value, entry in ((0.0, 0), (1.0, 255)):
        heat_of(logic, np.full((5, 7), value))
        assert drawn(OVERLAY)[125, 280].tolist() == COLOURS[colour][entry].tolist()


def test_amber_is_the_amber_of_the_printed_overlay():
    if not MAIN_PYTHON.exists():
        pytest.skip("the environment of the library (.venv) is not there")
    command = "import json; from dcaf_monai.overlay import COLOURS; print(json.dumps(COLOURS.tolist()))"
    printed = subprocess.run([MAIN_PYTHON, "-c", command], capture_output=True, text=True, check=True).stdout
    assert np.array_equal(COLOURS["Amber"], json.loads(printed))


def test_every_colour_table_gets_lighter_all_the_way():
    for name, table in COLOURS.items():
        luminance = table @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(luminance) > -0.5).all(), name
        assert luminance[-1] - luminance[0] > 100, name


@pytest.mark.parametrize("look", [(-0.1, 0.1, "Amber"), (0.5, 1.2, "Amber"), (0.5, 0.1, "Rainbow")])
def test_a_look_out_of_range_is_refused(logic, look):
    with pytest.raises(ValueError, match="need"):
        logic.look(*look)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_scale_is_refused(logic, scale):
    logic.show_picture(grid(PIXELS), "case")
    with pytest.raises(ValueError, match="scale"):
        heat_of(logic, np.ones((5, 7)), scale=scale)


def test_the_legend_states_title_unit_and_scale_and_can_be_hidden(logic):
    logic.show_picture(grid(PIXELS, **WHOLE), "case")
    logic.show_heat(grid(np.ones((5, 7), np.float32)), scale=4.0, title="Attention",
                    unit="times the share of an even spread over it")
    legend = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLColorLegendDisplayNode")
    assert legend.GetTitleText() == "Attention\ntimes the share of an even\nspread over it"
    assert legend.GetDisplayableNode().GetDisplayNode().GetWindowLevelMax() == 4.0
    assert legend.GetVisibility()
    logic.legend(False)
    assert not legend.GetVisibility()
    heat_of(logic, np.zeros((5, 7)))
    assert not slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLColorLegendDisplayNode").GetVisibility()


def test_the_window_comes_from_the_server_and_is_common_to_both_views(logic):
    volume = logic.show_picture(grid(PIXELS.astype(np.uint16) * 100, window="12000.5 4000"), "case")
    display = volume.GetDisplayNode()
    assert (display.GetLevel(), display.GetWindow(), display.GetAutoWindowLevel()) == (12000.5, 4000.0, 0)
    display.SetWindowLevel(500, 3000)
    assert np.array_equal(drawn(IMAGE), drawn(OVERLAY))
    assert drawn(IMAGE).max() == 255 and drawn(IMAGE).min() == 0


@pytest.mark.parametrize("window", ["", "wide", "40 0", "nan 5", "1 2 3"])
def test_a_window_that_is_none_leaves_the_choice_to_slicer(logic, window):
    volume = logic.show_picture(grid(PIXELS, window=window), "case")
    assert volume.GetDisplayNode().GetAutoWindowLevel()


# -- views -----------------------------------------------------------------------------------------------


def test_the_layout_logic_makes_our_views_and_restore_brings_the_old_ones(application):
    node = slicer.app.layoutManager().layoutLogic().GetLayoutNode()
    before, logic = node.GetViewArrangement(), ReviewLogic(slicer.mrmlScene)
    for curve, names in ((False, {IMAGE, OVERLAY}), (True, {IMAGE, OVERLAY, CURVE})):
        logic.arrange(curve=curve)
        views = slicer.app.layoutManager().layoutLogic().GetViewNodes()
        assert {views.GetItemAsObject(i).GetLayoutName() for i in range(views.GetNumberOfItems())} == names
    logic.restore()
    assert node.GetViewArrangement() == before


def test_restore_leaves_a_layout_that_the_person_chose_meanwhile(logic):
    node = slicer.app.layoutManager().layoutLogic().GetLayoutNode()
    node.SetViewArrangement(node.SlicerLayoutOneUpRedSliceView)
    logic.restore()
    assert node.GetViewArrangement() == node.SlicerLayoutOneUpRedSliceView not in LAYOUTS


def test_zoom_and_pan_in_one_view_move_the_other_and_no_third(logic):
    logic.show_picture(grid(PIXELS), "case")
    first, second = slice_logic(IMAGE).GetSliceNode(), slice_logic(OVERLAY).GetSliceNode()
    red = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceNode")
    of_red = red and (red.GetFieldOfView(), red.GetXYZOrigin())
    slice_logic(IMAGE).StartSliceNodeInteraction(first.FieldOfViewFlag | first.XYZOriginFlag)
    first.SetFieldOfView(2.8, 1.25, 1.0)
    first.SetXYZOrigin(0.5, -0.25, 0.0)
    assert np.allclose(second.GetFieldOfView()[:2], (2.8, 1.25))  # already while the mouse moves
    slice_logic(IMAGE).EndSliceNodeInteraction()
    assert second.GetXYZOrigin() == (0.5, -0.25, 0.0)
    assert first.GetViewGroup() == second.GetViewGroup() == VIEW_GROUP
    if red:
        assert (red.GetFieldOfView(), red.GetXYZOrigin()) == of_red and red.GetViewGroup() != VIEW_GROUP


def test_a_fitted_picture_stays_fitted_when_its_view_is_resized_and_a_zoomed_one_does_not(logic):
    logic.show_picture(grid(PIXELS), "case")
    node = slice_logic(IMAGE).GetSliceNode()
    size_views(1120, 700)
    assert np.allclose(node.GetFieldOfView()[:2], (5.6, 3.5))
    node.SetFieldOfView(2.8, 1.75, 1.0)
    size_views(560, 350)
    assert np.allclose(node.GetFieldOfView()[:2], (2.8, 1.75))  # Slicer's own way
    logic.fit()
    assert np.allclose(node.GetFieldOfView()[:2], (5.6, 3.5))


def test_a_picture_shown_before_the_layout_is_there_when_it_comes(application):
    logic = ReviewLogic(slicer.mrmlScene)
    logic.show_picture(grid(PIXELS, **WHOLE), "case")
    logic.arrange()
    settle()
    size_views()
    assert np.abs(drawn(OVERLAY)[25::50, 40::80] - PIXELS[:, :, None]).max() <= 1
    logic.clear()


def test_a_volume_that_another_module_shows_does_not_land_in_our_views(logic):
    logic.show_picture(grid(PIXELS), "case")
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "other")
    slicer.util.updateVolumeFromArray(other, PIXELS[None])
    selection = slicer.app.applicationLogic().GetSelectionNode()
    selection.SetActiveVolumeID(other.GetID())
    slicer.app.applicationLogic().PropagateVolumeSelection()
    assert slice_logic(IMAGE).GetSliceCompositeNode().GetBackgroundVolumeID() != other.GetID()
