"""The reader's point and box: from pixels to the scene and back, in any plane, also by clicking."""

from __future__ import annotations

import fixture
import numpy as np
import pytest
import slicer
from DCAFReviewLib.layout import IMAGE, OVERLAY
from DCAFReviewLib.logic import ReviewLogic
from drawn import PLANES, grid, on_screen, place

PIXELS = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7


@pytest.fixture
def logic(application):
    logic = ReviewLogic(slicer.mrmlScene)
    logic.arrange()
    fixture.process(0)
    yield logic
    logic.clear()
    logic.restore()


def mode() -> int:
    return slicer.app.applicationLogic().GetInteractionNode().GetCurrentInteractionMode()


def click(view, row, column, film) -> None:
    """A click where that (row, column) of the picture is seen."""
    down, right = on_screen(view, (film @ [column, row, 0, 1])[:3])
    fixture.click_view(view, round(down), round(right))


@pytest.mark.parametrize("handed", [1, -1])
@pytest.mark.parametrize("plane", PLANES)
def test_point_and_box_come_back_as_they_were_put(logic, plane, handed):
    logic.show_picture(grid(PIXELS, place(plane, origin=(11.0, -7.0, 40.0), handed=handed)), "case")
    logic.justify("point", (1.3, 5.6))
    logic.justify("box", (3.5, 6.0, 0.5, 1.2))
    assert logic.justification() == ((1.3, 5.6), (0.5, 1.2, 3.5, 6.0))


@pytest.mark.parametrize("plane", PLANES)
def test_a_point_lies_where_its_pixel_lies_in_the_patient(logic, plane):
    film = place(plane, origin=(11.0, -7.0, 40.0))
    logic.show_picture(grid(PIXELS, film), "case")
    logic.justify("point", (3, 5))
    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLMarkupsFiducialNode")
    left, posterior, superior = (film @ [5, 3, 0, 1])[:3]
    assert np.allclose(node.GetNthControlPointPositionWorld(0), (-left, -posterior, superior))


def test_a_point_beyond_the_picture_says_so(logic):
    logic.show_picture(grid(PIXELS), "case")
    logic.justify("point", (-2.0, 9.04))
    assert logic.justification() == ((-2.0, 9.0), None)


def test_a_point_moved_by_hand_is_read_anew(logic):
    logic.show_picture(grid(PIXELS), "case")
    logic.justify("point", (1, 1))
    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLMarkupsFiducialNode")
    node.SetNthControlPointPositionWorld(0, -4 * 0.8, -2 * 0.5, 0)
    assert logic.justification()[0] == (2.0, 4.0)


@pytest.mark.parametrize("view", [IMAGE, OVERLAY])
@pytest.mark.parametrize("plane", ["plain film", "oblique"])
def test_one_click_places_a_point_and_two_a_box(logic, plane, view):
    film = place(plane, origin=(3.0, 2.0, 1.0))
    logic.show_picture(grid(PIXELS, film), "case")
    fixture.process(0)
    logic.start_placing("point")
    click(view, 1.0, 5.0, film)
    point, box = logic.justification()
    assert box is None and np.allclose(point, (1.0, 5.0), atol=0.11)
    logic.start_placing("box")
    click(view, 3.0, 1.0, film)
    assert logic.justification()[1] is None  # only one corner
    click(view, 1.0, 4.0, film)
    assert np.allclose(logic.justification()[1], (1.0, 1.0, 3.0, 4.0), atol=0.11)
    assert mode() == slicer.vtkMRMLInteractionNode.ViewTransform
    assert logic.justification()[0] == point


def test_placing_again_replaces_the_point(logic):
    logic.show_picture(grid(PIXELS), "case")
    logic.justify("point", (1, 1))
    logic.start_placing("point")
    assert logic.justification() == (None, None)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLMarkupsFiducialNode") == 1


def test_taking_the_markings_away_ends_the_placing(logic):
    logic.show_picture(grid(PIXELS), "case")
    logic.start_placing("box")
    assert mode() == slicer.vtkMRMLInteractionNode.Place
    logic.justify(None)
    assert mode() == slicer.vtkMRMLInteractionNode.ViewTransform
    assert logic.justification() == (None, None)


def test_placing_for_another_module_is_not_disturbed(logic):
    logic.show_picture(grid(PIXELS), "case")
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "of the person")
    slicer.app.applicationLogic().GetSelectionNode().SetActivePlaceNodeID(other.GetID())
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    interaction.SetCurrentInteractionMode(interaction.Place)
    logic.justify(None)
    logic.clear()
    assert mode() == slicer.vtkMRMLInteractionNode.Place
    interaction.SetCurrentInteractionMode(interaction.ViewTransform)


def test_the_markings_go_with_their_case(logic):
    logic.show_picture(grid(PIXELS), "case")
    logic.justify("point", (1, 1))
    logic.justify("box", (1, 1, 2, 2))
    logic.show_picture(grid(PIXELS), "next")
    assert logic.justification() == (None, None)


def test_another_kind_is_refused(logic):
    logic.show_picture(grid(PIXELS), "case")
    with pytest.raises(ValueError, match="need point or box, got 'circle'"):
        logic.justify("circle")


def test_nothing_can_be_placed_without_a_picture(logic):
    for ask in (logic.start_placing, logic.justify):
        with pytest.raises(ValueError, match="picture"):
            ask("point")
    assert logic.justification() == (None, None)
