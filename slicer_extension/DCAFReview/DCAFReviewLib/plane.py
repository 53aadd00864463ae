"""Where the pixels of a volume's slice lie, and that slice as a NIfTI-1 file.

Index order is the file's: ``(column, row, slice)``. Millimetres are Slicer's, right-anterior-superior, unless
a name says LPS. NIfTI-1: https://nifti.nimh.nih.gov/nifti-1 (header of 348 bytes, sform only).
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import slicer
import vtk

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
GREY = "vtkMRMLColorTableNodeGrey"

HAIR = 1e-3
"""Of a cell: what sticks out by less is rounding."""
FINER = 8
"""Cells for one where a map is cut."""

NIFTI_TYPES = {"uint8": 2, "int16": 4, "int32": 8, "float32": 16, "float64": 64, "uint16": 512}


def matrix_to_array(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    """``(4, 4)`` float64 of a VTK matrix."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def array_to_matrix(values: np.ndarray) -> vtk.vtkMatrix4x4:
    """VTK matrix of a ``(4, 4)`` array."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(values, float).ravel().tolist())
    return matrix


def ijk_to_world(volume) -> np.ndarray:
    """``(4, 4)``: index ``(column, row, slice, 1)`` to the millimetres in which the volume is seen.

    Raises:
        ValueError: When the volume stands under a transform that bends it.
    """
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    parent = volume.GetParentTransformNode()
    if parent is None:
        return matrix_to_array(matrix)
    moved = vtk.vtkMatrix4x4()
    if not parent.GetMatrixTransformToWorld(moved):
        raise ValueError("volume: need none or a linear transform, got one that bends it. Take the transform "
                         "off or harden it.")
    return matrix_to_array(moved) @ matrix_to_array(matrix)


def slice_plane(volume, index: int) -> np.ndarray:
    """``(4, 4)`` rotation and place of a slice as a reader of films wants to see it.

    Columns of the matrix: to the right along a stored row, up against the stored columns, out of the plane
    (so that it is a rotation for left-handed volumes too), and the centre of the slice.

    Raises:
        ValueError: When there is no such slice or no picture.
    """
    columns, rows, slices = checked_extent(volume, index)
    matrix = ijk_to_world(volume)
    right = matrix[:3, 0] / np.linalg.norm(matrix[:3, 0])
    down = matrix[:3, 1] - matrix[:3, 1] @ right * right  # square, should the file's axes not quite be
    up = -down / np.linalg.norm(down)
    plane = np.eye(4)
    plane[:3, 0], plane[:3, 1], plane[:3, 2] = right, up, np.cross(right, up)
    plane[:3, 3] = (matrix @ [(columns - 1) / 2, (rows - 1) / 2, index, 1])[:3]
    return plane


def extent_mm(volume) -> tuple[float, float]:
    """Width and height of a slice, outer edge to outer edge."""
    columns, rows, _ = volume.GetImageData().GetDimensions()
    matrix = ijk_to_world(volume)
    return columns * float(np.linalg.norm(matrix[:3, 0])), rows * float(np.linalg.norm(matrix[:3, 1]))


def clipped(values: np.ndarray, placed: np.ndarray, volume) -> tuple[np.ndarray, np.ndarray]:
    """A map as far as the picture reaches.

    A network's input is square, a film is not, and so the map may stick out. Along an axis that does it is
    cut at the picture's outer edge and given finer cells, at linear interpolation's values; along another it
    stays as it is.

    Args:
        values: ``(rows, columns)``.
        placed: ``(4, 4)``, index ``(column, row, slice, 1)`` of ``values`` to millimetres.
        volume: The picture, in the same plane, its rows along the map's rows.

    Returns:
        Values and their place, in the same form.
    """
    columns, rows, _ = volume.GetImageData().GetDimensions()
    to_cells = np.linalg.solve(placed, ijk_to_world(volume))
    placed = placed.copy()
    for axis, pixels in ((0, columns), (1, rows)):
        cells = values.shape[1 - axis]
        first, last = sorted(to_cells[axis, axis] * edge + to_cells[axis, 3] for edge in (-0.5, pixels - 0.5))
        first, last = max(first, -0.5), min(last, cells - 0.5)
        if last <= first or last - first > cells - HAIR:
            continue
        count = int(np.ceil((last - first) * FINER))
        step = (last - first) / count
        centres = first + step * (np.arange(count) + 0.5)
        lines = np.moveaxis(values, 1 - axis, -1)
        lines = np.stack([np.interp(centres, np.arange(cells), line) for line in lines])
        values = np.moveaxis(lines, -1, 1 - axis)
        placed[:3, 3] += placed[:3, axis] * centres[0]
        placed[:3, axis] *= step
    return values.astype(np.float32), placed


def checked_extent(volume, index: int) -> tuple[int, int, int]:
    """``(columns, rows, slices)`` of a volume that has that slice.

    Raises:
        ValueError: When there is no such slice or no picture.
    """
    picture = volume.GetImageData() if volume is not None else None
    if picture is None or picture.GetNumberOfPoints() == 0:
        raise ValueError("volume: need one with a picture, got none. Load it first.")
    extent = picture.GetDimensions()
    if not 0 <= index < extent[2]:
        raise ValueError(f"slice: need 1 to {extent[2]}, got {index + 1}. Choose another.")
    return extent


def write_slice(volume, index: int, path: Path) -> None:
    """Writes one slice as NIfTI-1 with its place; its values as they are, whatever colours show them.

    Args:
        volume: A grey volume node.
        index: Of the slice, from 0.
        path: Overwritten.

    Raises:
        ValueError: When there is no such slice, the volume is in colour or a transform bends it.
    """
    checked_extent(volume, index)
    values = slicer.util.arrayFromVolume(volume)
    if values.ndim != 3:
        raise ValueError("volume: need grey values, got colour. Convert it to a scalar volume first.")
    values = values[index]
    matrix = ijk_to_world(volume)
    matrix[:3, 3] = (matrix @ [0, 0, index, 1])[:3]
    path.write_bytes(_nifti(values, matrix))


def _nifti(values: np.ndarray, ijk_to_ras: np.ndarray) -> bytes:
    if values.dtype.name not in NIFTI_TYPES:
        values = values.astype(np.float32)
    values = values.astype(values.dtype.newbyteorder("<"))
    rows, columns = values.shape
    spacing = np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    header = bytearray(352)  # 348 and four zeros: no extension follows
    for offset, kind, content in (
            (0, "i", [348]), (40, "8h", [3, columns, rows, 1, 1, 1, 1, 1]),
            (70, "2h", [NIFTI_TYPES[values.dtype.name], values.itemsize * 8]),
            (76, "8f", [1, *spacing, 0, 0, 0, 0]), (108, "3f", [352, 1, 0]),  # data from 352, slope, offset
            (123, "b", [2]), (252, "2h", [0, 1]),  # millimetres; no qform, sform in scanner coordinates
            (280, "12f", ijk_to_ras[:3].ravel()), (344, "4s", [b"n+1\0"])):
        struct.pack_into("<" + kind, header, offset, *content)
    return bytes(header) + values.tobytes()
