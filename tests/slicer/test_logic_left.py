"""What the drawing leaves behind: after clear, after the scene, in files, in the plot."""

from __future__ import annotations

import gc
from pathlib import Path

import fixture
import numpy as np
import pytest
import slicer
from DCAFReviewLib.layout import CURVE, IMAGE, WITH_CURVE
from DCAFReviewLib.logic import ReviewLogic
from drawn import (
    coloured,
    grid,
    node_ids,
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


def everything(logic):
    logic.arrange(curve=True)
    logic.show_picture(grid(PIXELS, **WHOLE), "case")
    heat_of(logic, np.ones((5, 7)))
    logic.look(0.5, 0.2, "Viridis")
    logic.justify("point", (1, 2))
    logic.justify("box", (1, 2, 3, 4))
    logic.plot([{"epoch": 1, "train_loss": 0.9, "validation_nll": 0.8}])


def test_clear_leaves_exactly_the_nodes_of_before_and_follows_no_view(application, capfd):
    logic = ReviewLogic(slicer.mrmlScene)
    logic.arrange(curve=True)  # the layout's own view nodes stay in the scene, as all of Slicer's do
    settle()
    before = node_ids()
    everything(logic)
    assert len(node_ids() - before) >= 12
    logic.clear()
    assert node_ids() == before
    view = slice_logic(IMAGE).GetSliceNode()
    size_views(400, 100)
    seen = view.GetFieldOfView()
    size_views(800, 200)
    assert view.GetFieldOfView() == seen  # nobody of ours fits it any more
    fixture.process(0)
    logic.restore()
    assert "ERR" not in capfd.readouterr().err


def test_a_logic_dropped_without_clear_does_no_harm(logic):
    careless = ReviewLogic(slicer.mrmlScene)
    careless.show_picture(grid(PIXELS, **WHOLE), "case")
    del careless
    gc.collect()
    size_views(280, 125)
    assert slice_logic(IMAGE).GetSliceNode().GetDimensions()[:2] == (280, 125)


def test_the_next_case_replaces_the_nodes_of_the_last(logic):
    everything(logic)
    logic.justify(None)
    count = len(node_ids())
    for _ in range(3):
        logic.show_picture(grid(PIXELS, **WHOLE), "next")
        heat_of(logic, np.ones((5, 7)))
    assert len(node_ids()) == count


def test_a_scene_closed_in_between_breaks_nothing(logic):
    everything(logic)
    slicer.mrmlScene.Clear(0)
    assert logic.justification() == (None, None)
    logic.hide_heat()
    logic.look(0.6, 0.1)
    logic.legend(True)
    logic.arrange()
    settle()
    logic.show_picture(grid(PIXELS, **WHOLE), "case")
    heat_of(logic, np.ones((5, 7)))
    assert coloured().all()
    assert slice_logic(IMAGE).GetSliceCompositeNode().GetLinkedControl()


def test_a_saved_scene_holds_no_node_of_ours(logic, tmp_path):
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", "table of the person")
    everything(logic)
    slicer.mrmlScene.SetRootDirectory(str(tmp_path))
    assert slicer.mrmlScene.Commit(str(tmp_path / "scene.mrml"))
    written = (tmp_path / "scene.mrml").read_text()
    assert mine.GetName() in written
    assert "DCAFReview:1" not in written and "Attention" not in written and "validation" not in written


def test_the_chart_holds_the_curve_and_is_the_plot_views(logic):
    logic.arrange(curve=True)
    curve = [{"epoch": 1, "train_loss": 0.9, "validation_nll": None},
             {"epoch": 2, "train_loss": 0.7, "validation_nll": 0.6}]
    chart = logic.plot(curve[:1])
    assert logic.plot(curve) is chart
    view = slicer.mrmlScene.GetSingletonNode(CURVE, "vtkMRMLPlotViewNode")
    assert view.GetPlotChartNodeID() == chart.GetID()
    seen = {}
    for number in range(chart.GetNumberOfPlotSeriesNodes()):
        series = chart.GetNthPlotSeriesNode(number)
        table = series.GetTableNode().GetTable()
        seen[series.GetName()] = [[table.GetColumnByName(column).GetValue(row) for row in range(2)]
                                  for column in (series.GetXColumnName(), series.GetYColumnName())]
    assert seen["Training loss"] == [[1, 2], [0.9, 0.7]]
    assert np.array_equal(seen["Validation NLL"], [[1, 2], [np.nan, 0.6]], equal_nan=True)


def test_a_chart_drawn_before_its_view_is_there_appears_with_it(application):
    logic = ReviewLogic(slicer.mrmlScene)
    chart = logic.plot([{"epoch": 1, "train_loss": 0.9, "validation_nll": 0.8}])
    logic.arrange(curve=True)
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode").GetViewArrangement() == WITH_CURVE
    view = slicer.mrmlScene.GetSingletonNode(CURVE, "vtkMRMLPlotViewNode")
    assert view.GetPlotChartNodeID() == chart.GetID()
    logic.clear()


def test_a_scene_without_layout_says_so():
    with pytest.raises(RuntimeError, match="layout node"):
        ReviewLogic(slicer.vtkMRMLScene()).arrange()


