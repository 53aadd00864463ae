"""What the tests of the drawing share: grids with a place, views of a chosen size and the pixels in them."""

from __future__ import annotations

import fixture
import numpy as np
import slicer
from DCAFReviewLib.layout import IMAGE, OVERLAY
from DCAFReviewLib.nrrd import Grid
from vtk.util.numpy_support import vtk_to_numpy

TURN = np.array([[0.8, 0.36, 0.48], [-0.6, 0.48, 0.64], [0.0, -0.8, 0.6]])
PLANES = {  # direction of columns, of rows: LPS
    "plain film": ((1, 0, 0), (0, 1, 0)), "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)), "oblique": (TURN[0], TURN[1]),
    "turned round": ((-1, 0, 0), (0, 0, 1))}


def place(plane="plain film", *, spacing=(0.5, 0.8), origin=(0.0, 0.0, 0.0), handed=1) -> np.ndarray:
    """``(4, 4)`` from (column, row, slice) to LPS; spacing rows, columns; ``handed`` -1 flips the normal."""
    right, down = (np.array(direction, float) for direction in PLANES[plane])
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = right * spacing[1], down * spacing[0]
    matrix[:3, 2], matrix[:3, 3] = np.cross(right, down) * handed, origin
    return matrix


def grid(values, ijk_to_lps=None, **fields) -> Grid:
    return Grid(np.asarray(values), place() if ijk_to_lps is None else ijk_to_lps, fields)


def slice_logic(name):
    return slicer.app.layoutManager().sliceWidget(name).sliceLogic()


def size_views(columns=560, rows=250):
    """Gives both views that size, as the layout would in the window."""
    for name in (IMAGE, OVERLAY):
        slice_logic(name).ResizeSliceNode(columns, rows)


def drawn(name) -> np.ndarray:
    """The blended slice that the view shows, before markups: (rows, columns, 3) int, top row first."""
    producer = slice_logic(name).GetImageDataConnection().GetProducer()
    producer.Update()
    picture = producer.GetOutputDataObject(0)
    columns, rows, _ = picture.GetDimensions()
    rgba = vtk_to_numpy(picture.GetPointData().GetScalars()).reshape(rows, columns, -1)
    return rgba[::-1, :, :3].astype(int)


def coloured(name=OVERLAY) -> np.ndarray:
    """(rows, columns) bool: where the view is not grey."""
    pixels = drawn(name)
    return pixels.max(-1) != pixels.min(-1)


def on_screen(name, lps) -> tuple[float, float]:
    """(row, column) of the view, from its top left corner, where a place in the patient is seen."""
    node = slice_logic(name).GetSliceNode()
    to_ras = np.array([[node.GetXYToRAS().GetElement(i, j) for j in range(4)] for i in range(4)])
    x, y = np.linalg.solve(to_ras, [-lps[0], -lps[1], lps[2], 1])[:2]
    return node.GetDimensions()[1] - 1 - y, x


def interpolated(values, shape) -> np.ndarray:
    """A picture at every pixel of a view it just fills: linear between pixels, level beyond their centres.

    Slicer samples at the left and lower edge of a screen pixel.
    """
    rows, columns = np.shape(values)
    right = np.clip(np.arange(shape[1]) * columns / shape[1] - 0.5, 0, columns - 1)
    down = np.clip((np.arange(shape[0]) + 1) * rows / shape[0] - 0.5, 0, rows - 1)
    wide = np.stack([np.interp(right, np.arange(columns), row) for row in np.asarray(values, float)])
    return np.stack([np.interp(down, np.arange(rows), column) for column in wide.T], axis=1)


def node_ids() -> set[str]:
    scene = slicer.mrmlScene
    return {scene.GetNthNode(place).GetID() for place in range(scene.GetNumberOfNodes())}


def settle():
    """Lets the window give the views of a new layout their size, and forgets that size."""
    fixture.process(0)
    size_views()
