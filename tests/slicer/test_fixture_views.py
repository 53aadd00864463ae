"""The fixture's views: what Slicer's library draws comes out, what the mouse does goes in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fixture
import numpy as np
import pytest

fixture.start()  # what follows is there only inside Slicer

import qt  # noqa: E402
import slicer  # noqa: E402
import vtk  # noqa: E402


@pytest.fixture(autouse=True)
def _application(application):
    return application


def picture(array: np.ndarray, spacing=(1.0, 1.0)):
    """A volume of one slice whose columns run to the patient's left and whose rows run to the back."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "picture")
    slicer.util.updateVolumeFromArray(node, array[None])
    node.SetSpacing(*spacing, 1.0)
    node.SetIJKToRASDirections(-1, 0, 0, 0, -1, 0, 0, 0, 1)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevelMinMax(0, 200)
    node.GetDisplayNode().SetInterpolate(False)
    return node


def show(node, name="Red"):
    logic = slicer.app.layoutManager().sliceWidget(name).sliceLogic()
    logic.GetSliceCompositeNode().SetBackgroundVolumeID(node.GetID())
    logic.FitSliceToBackground()
    return logic


def pixel_of(logic, ras) -> tuple:
    """(row, column) in the view of a place of the patient."""
    inverse = vtk.vtkMatrix4x4()
    vtk.vtkMatrix4x4.Invert(logic.GetSliceNode().GetXYToRAS(), inverse)
    x, y, _, _ = inverse.MultiplyPoint((*ras, 1.0))
    return round(logic.GetSliceNode().GetDimensions()[1] - 1 - y), round(x)


# Slice views.

def test_a_slice_view_shows_each_pixel_of_a_volume_where_its_geometry_puts_it():
    values = np.zeros((5, 7), np.float32)
    values[0, 0], values[0, 6], values[4, 0] = 200, 120, 60
    node = picture(values, spacing=(10.0, 20.0))
    logic = show(node)
    drawn = fixture.grab_view("Red")
    to_ras = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(to_ras)
    for row in range(5):
        for column in range(7):
            at = pixel_of(logic, to_ras.MultiplyPoint((column, row, 0, 1))[:3])
            expected = 255 * values[row, column] / 200
            assert np.allclose(drawn[at], expected, atol=1), (row, column)
    first, last = (pixel_of(logic, to_ras.MultiplyPoint((column, 0, 0, 1))[:3]) for column in (0, 6))
    assert first[1] < last[1]  # the patient's right is at the left of the screen


def test_a_foreground_of_another_grid_is_blended_with_its_opacity():
    show(picture(np.full((40, 30), 100, np.uint8)))
    coarse = picture(np.full((4, 3), 200, np.uint8), spacing=(10.0, 10.0))
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    composite.SetForegroundVolumeID(coarse.GetID())
    middle = tuple(size // 2 for size in fixture.grab_view("Red").shape[:2])
    seen = []
    for opacity in (0.0, 0.5, 1.0):
        composite.SetForegroundOpacity(opacity)
        seen.append(int(fixture.grab_view("Red")[middle][0]))
    assert np.allclose(seen, [127.5, 191.25, 255], atol=2)


def test_a_colour_legend_is_drawn_and_taken_away():
    node = picture(np.full((40, 30), 100, np.uint8))
    show(node)
    before = fixture.grab_view("Red")
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(node)
    legend.SetVisibility(True)
    drawn = fixture.grab_view("Red")
    rows, columns = drawn.shape[:2]
    changed = np.abs(drawn.astype(int) - before).max(-1) > 20
    assert changed[:, columns // 2:].sum() > 500
    assert not changed[:, :columns // 4].any()
    legend.SetVisibility(False)
    assert np.array_equal(fixture.grab_view("Red"), before)


def test_a_click_in_place_mode_puts_the_point_at_that_pixel_of_the_view():
    logic = show(picture(np.full((40, 30), 100, np.uint8)))
    points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    slicer.modules.markups.logic().SetActiveList(points)
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    interaction.SetCurrentInteractionMode(interaction.Place)
    fixture.click_view("Red", 120, 210)
    assert points.GetNumberOfDefinedControlPoints() == 1
    height = logic.GetSliceNode().GetDimensions()[1]
    expected = logic.GetSliceNode().GetXYToRAS().MultiplyPoint((210, height - 1 - 120, 0, 1))[:3]
    assert np.allclose(points.GetNthControlPointPosition(0), expected, atol=1e-6)
    assert interaction.GetCurrentInteractionMode() == interaction.ViewTransform


def drag(name, start, end, button):
    view = slicer.app.layoutManager().sliceWidget(name).sliceView()
    for kind, (row, column), which, held in (
            (qt.QEvent.MouseMove, start, qt.Qt.NoButton, qt.Qt.NoButton),
            (qt.QEvent.MouseButtonPress, start, button, button),
            (qt.QEvent.MouseMove, end, qt.Qt.NoButton, button),
            (qt.QEvent.MouseButtonRelease, end, button, qt.Qt.NoButton)):
        place = qt.QPointF(column, row)
        qt.QApplication.sendEvent(view, qt.QMouseEvent(kind, place, place, which, held, qt.Qt.NoModifier))


def test_dragging_with_the_right_button_zooms():
    logic = show(picture(np.full((40, 30), 100, np.uint8)))
    before = logic.GetSliceNode().GetFieldOfView()[0]
    drag("Red", (200, 200), (150, 200), qt.Qt.RightButton)
    assert logic.GetSliceNode().GetFieldOfView()[0] != pytest.approx(before)


def test_dragging_in_window_level_mode_changes_the_window():
    # Not of one value: the step is a share of the range of the picture's values.
    node = picture(np.arange(1200, dtype=np.int16).reshape(40, 30))
    show(node)
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    interaction.SetCurrentInteractionMode(interaction.AdjustWindowLevel)
    drag("Red", (200, 200), (230, 260), qt.Qt.LeftButton)
    assert node.GetDisplayNode().GetWindow() > 200 and node.GetDisplayNode().GetLevel() != 100


def test_linked_views_move_together():
    xml = two_views()
    node = picture(np.full((40, 30), 100, np.uint8))
    layouts = slicer.app.layoutManager()
    layouts.layoutLogic().GetLayoutNode().AddLayoutDescription(701, xml)
    layouts.setLayout(701)
    for name in ("Left", "Right"):
        show(node, name)
        layouts.sliceWidget(name).mrmlSliceCompositeNode().SetLinkedControl(True)
        layouts.sliceWidget(name).mrmlSliceCompositeNode().SetHotLinkedControl(True)
    fixture.process(0)
    drag("Left", (200, 200), (150, 200), qt.Qt.RightButton)
    widths = [layouts.sliceWidget(name).mrmlSliceNode().GetFieldOfView()[0] for name in ("Left", "Right")]
    assert widths[0] == pytest.approx(widths[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have OpenGL")
def test_a_machine_without_opengl_is_told_what_to_install():
    # In a process of its own, where no EGL driver is found and OSMesa, if there is one, is hidden.
    code = ("import ctypes, fixture; real = ctypes.CDLL\n"
            "def load(name, *rest):\n"
            "    if 'OSMesa' in str(name): raise OSError(name)\n"
            "    return real(name, *rest)\n"
            "ctypes.CDLL = load; fixture.start()")
    environment = {**os.environ, "__EGL_VENDOR_LIBRARY_FILENAMES": "/nonexistent",
                   "VTK_DEFAULT_OPENGL_WINDOW": "vtkEGLRenderWindow"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parent,
                           capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "need OpenGL that draws without a display" in ended.stderr and "libegl1" in ended.stderr


# Layouts.

def two_views() -> str:
    item = ('<item><view class="vtkMRMLSliceNode" singletontag="{0}">'
            '<property name="orientation" action="default">Axial</property>'
            '<property name="viewlabel" action="default">{0}</property></view></item>')
    return '<layout type="horizontal">' + item.format("Left") + item.format("Right") + "</layout>"


def test_a_layout_of_ones_own_makes_its_views_at_once_and_side_by_side():
    layouts = slicer.app.layoutManager()
    layouts.layoutLogic().GetLayoutNode().AddLayoutDescription(702, two_views())
    layouts.setLayout(702)
    assert {"Left", "Right"} <= set(layouts.sliceViewNames())
    assert layouts.layout == 702
    left, right = fixture.grab_view("Left"), fixture.grab_view("Right")
    assert left.shape == right.shape or abs(left.shape[1] - right.shape[1]) <= 1
    assert left.shape[0] > left.shape[1]  # each has half the width and the whole height
    assert not layouts.sliceWidget("Red").isVisible()


def test_the_layout_node_alone_changes_the_layout():
    seen = []
    layouts = slicer.app.layoutManager()
    layouts.connect("layoutChanged(int)", seen.append)
    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    node.SetViewArrangement(node.SlicerLayoutOneUpRedSliceView)
    layouts.disconnect("layoutChanged(int)", seen.append)
    assert seen == [node.SlicerLayoutOneUpRedSliceView]
    assert layouts.sliceWidget("Red").isVisible() and not layouts.sliceWidget("Green").isVisible()


def test_a_layout_without_a_description_is_refused():
    with pytest.raises(ValueError, match="layout 999: need one that the layout node describes"):
        slicer.app.layoutManager().setLayout(999)


def test_a_plot_view_draws_the_series_of_its_chart():
    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
    slicer.util.updateTableFromArray(table, np.array([[1.0, 0.9], [2.0, 0.4], [3.0, 0.7]]), ["epoch", "loss"])
    series = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", "loss")
    series.SetAndObserveTableNodeID(table.GetID())
    series.SetXColumnName("epoch")
    series.SetYColumnName("loss")
    series.SetColor(1.0, 0.0, 0.0)
    chart = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotChartNode")
    chart.AddAndObservePlotSeriesNodeID(series.GetID())
    layouts = slicer.app.layoutManager()
    layouts.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpPlotView)
    widget = layouts.plotWidget(0)
    widget.mrmlPlotViewNode().SetPlotChartNodeID(chart.GetID())
    (name, _, places, heights), = widget.lines()
    assert (name, places, heights) == ("loss", [1.0, 2.0, 3.0], [0.9, 0.4, 0.7])
    fixture.process(0)
    image = widget.grab().toImage()
    reds = [(x, y) for x in range(0, image.width(), 2) for y in range(0, image.height(), 2)
            if image.pixelColor(x, y).red() > 200 and image.pixelColor(x, y).green() < 80]
    assert len(reds) > 50


def test_clearing_the_scene_leaves_views_that_still_draw():
    show(picture(np.full((40, 30), 200, np.uint8)))
    assert fixture.grab_view("Red").max() == 255
    slicer.mrmlScene.Clear(0)
    assert fixture.grab_view("Red").max() == 0
    show(picture(np.full((40, 30), 200, np.uint8)))
    assert fixture.grab_view("Red").max() == 255


def test_a_screenshot_shows_the_main_window_with_its_views(pictures):
    show(picture(np.full((40, 30), 200, np.uint8)))
    path = fixture.screenshot(fixture.main_window(), pictures / "fixture.png")
    image = qt.QImage(str(path))
    assert image.width() == 1400 and image.height() == 860
    corner = fixture.main_window().mapFromGlobal(
        slicer.app.layoutManager().sliceWidget("Red").sliceView().mapToGlobal(qt.QPoint(0, 0)))
    rows, columns = fixture.grab_view("Red").shape[:2]
    assert image.pixelColor(corner.x() + columns // 2, corner.y() + rows // 2).red() == 255
