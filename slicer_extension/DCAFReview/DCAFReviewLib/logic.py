"""`ReviewLogic`: everything DCAF Review draws, as nodes of the MRML scene.

Main thread only. It knows neither widgets nor server: pictures and heats come as `Grid` (numbers on a plane
of the patient, left-posterior-superior), files from the person's own DICOM database, volumes from the scene.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from DCAFReviewLib.colours import COLOURS
from DCAFReviewLib.layout import Views
from DCAFReviewLib.markings import Markings
from DCAFReviewLib.owned import OwnedNodes
from DCAFReviewLib.plane import GREY, LPS_TO_RAS, array_to_matrix, clipped, slice_plane, write_slice

__all__ = ["COLOURS", "ReviewLogic"]

CURVES = {"train_loss": ("Training loss", (0.35, 0.35, 0.35)),
          "validation_nll": ("Validation NLL", (0.84, 0.37, 0.0))}
SINGLE_FILE = 4  # vtkSlicerVolumesLogic::AddArchetypeVolume, bit 2
LEGEND_WIDTH = 26


class ReviewLogic:
    """Picture, heat, layout, justification and training curve of DCAF Review.

    All its nodes carry the attribute ``DCAFReview``, are not saved with the scene, and go with `clear`. A
    scene that is closed in between takes them along; the next call starts anew.

    Args:
        scene: The MRML scene to draw on.
    """

    def __init__(self, scene) -> None:
        self._scene = scene
        self._nodes = OwnedNodes(scene)
        self._views = Views(scene)
        self._markings = Markings(scene, self._nodes, self._views)
        self._opacity, self._threshold, self._colour = 0.6, 0.1, "Amber"
        self._scale = 1.0
        self._legend = True
        self._shown: tuple = (None, None, None, ())  # the heat's volume, and what it was made from
        self._folder: Path | None = None

    # -- the picture ---------------------------------------------------------------------------------

    def show_picture(self, grid, name: str):
        """A picture from the server in both views, in place of the last case's.

        Args:
            grid: ``values`` ``(rows, columns)``, larger is brighter; ``fields["window"]`` is "centre width".
            name: Of the volume; it is seen in the application, so nothing that names a patient.

        Returns:
            The new volume node, ours.
        """
        self._leave_case()
        window = _window(grid.fields.get("window", ""))
        volume = self._plane_to_volume("picture", grid.values, LPS_TO_RAS @ grid.ijk_to_lps, name,
                                       window=window, hidden=False)
        self._views.show(volume)
        return volume

    def load_local(self, files: Sequence[str | Path], uid: str, name: str, *,
                   window: tuple[float, float] | None = None,
                   spacing_mm: tuple[float, float] | None = None, slice_index: int = 0):
        """A picture from files on this machine in both views, in place of the last case's.

        Args:
            files: One file, or those of one volume.
            uid: SOP Instance UID, kept with the volume as the DICOM module does.
            name: As in `show_picture`.
            window: Centre and width as the header states them.
            spacing_mm: Between rows, between columns, as the server understands the header; the reader takes
                the detector's where a film states the patient's as well.
            slice_index: Slice or frame to show, from 0.

        Returns:
            The new volume node, ours.

        Raises:
            ValueError: When Slicer cannot read the files, or there is no such slice.
        """
        if not files:
            raise ValueError("picture: need at least one file, got none.")
        self._leave_case()
        volume = self._read([os.path.abspath(file) for file in files], name)  # relative ones are joined twice
        volume.SetAttribute("DICOM.instanceUIDs", uid)
        self._nodes.take("picture", volume, hidden=False)
        self._nodes.take_attached("picture", volume)
        if spacing_mm is not None:
            volume.SetSpacing(spacing_mm[1], spacing_mm[0], volume.GetSpacing()[2])
        if volume.IsA("vtkMRMLScalarVolumeNode") and not volume.IsA("vtkMRMLVectorVolumeNode"):
            _set_window(volume.GetDisplayNode(), window)
        try:
            self._views.show(volume, slice_index)
        except ValueError:
            self._nodes.drop("picture")
            raise
        return volume

    def adopt(self, volume, slice_index: int = 0) -> None:
        """A volume of the scene in both views as it is; it stays the person's, unchanged.

        Raises:
            ValueError: When there is no such slice, no picture, or a transform bends the volume.
        """
        slice_plane(volume, slice_index)
        self._leave_case(keep=volume)
        self._views.show(volume, slice_index)

    def export(self, volume, slice_index: int = 0) -> Path:
        """One slice of a volume of the scene as NIfTI-1, where only this person can read it, until `clear`.

        Raises:
            ValueError: When there is no such slice, the volume is in colour or a transform bends it.
        """
        if self._folder is None or not self._folder.is_dir():
            self._folder = Path(tempfile.mkdtemp(prefix="dcaf-review-"))  # mode 0700
        handle, name = tempfile.mkstemp(suffix=".nii", dir=self._folder)  # the last one may be on its way
        os.close(handle)
        write_slice(volume, slice_index, Path(name))
        return Path(name)

    # -- the heat ------------------------------------------------------------------------------------

    def show_heat(self, grid, *, scale: float, unit: str, title: str) -> None:
        """A heat over the picture in the right view, in place of the one before.

        Slicer interpolates linearly between the cells of the heat's own grid. Colours run from 0 to ``scale``
        whatever the values are: a faint map stays faint. Beyond the picture nothing is drawn.

        Args:
            grid: ``values`` ``(rows, columns)``, not negative, of any size, in the picture's plane.
            scale: Value at the top of the colours.
            unit: Of the values, a few words for the legend.
            title: Of the legend.

        Raises:
            ValueError: For a scale that is not positive.
        """
        if not scale > 0 or not np.isfinite(scale):
            raise ValueError(f"scale: need a positive number, got {scale}. Ask the server for another map.")
        volume, last, over, said = self._shown
        picture = self._views.picture
        if volume is not None and self._nodes.find("heat") is volume and last is grid and over is picture \
                and said == (scale, unit, title):
            return
        self.hide_heat()
        self._scale = float(scale)
        seen, placed = grid.values, LPS_TO_RAS @ grid.ijk_to_lps
        if picture is not None:
            seen, placed = clipped(seen, placed, picture)
        volume = self._plane_to_volume("heat", seen, placed, title, window=(self._scale / 2, self._scale))
        self._shown = volume, grid, picture, (scale, unit, title)
        display = volume.GetDisplayNode()
        display.SetInterpolate(True)
        display.SetAutoThreshold(False)
        display.SetApplyThreshold(True)
        self._look()  # before the legend, which is drawn as soon as it is there and needs the colours
        legend = self._nodes.take("heat", slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(volume))
        legend.SetTitleText("\n".join([title, *_lines(unit)]))
        legend.SetNumberOfLabels(3)
        legend.SetLabelFormat("%.3g")
        legend.SetSize(0.09, 0.32)  # its text grows with it
        legend.SetPosition(0.98, 0.05)
        self.legend(self._legend)

    def hide_heat(self) -> None:
        """The picture alone in both views."""
        self._nodes.drop("heat")
        self._views.overlay(None, 0.0)

    def look(self, opacity: float, threshold: float, colour: str = "Amber") -> None:
        """How this and later heats are drawn.

        Args:
            opacity: 0 (the picture alone) to 1.
            threshold: Share of the scale, 0 to 1, below which the picture stays untouched.
            colour: A name of `COLOURS`.

        Raises:
            ValueError: For a value out of range or another colour.
        """
        if not 0 <= opacity <= 1 or not 0 <= threshold <= 1:
            raise ValueError(f"opacity, threshold: need 0 to 1, got {opacity}, {threshold}.")
        if colour not in COLOURS:
            raise ValueError(f"colour: need one of {', '.join(COLOURS)}, got {colour!r}.")
        self._opacity, self._threshold, self._colour = opacity, threshold, colour
        self._look()

    def legend(self, visible: bool) -> None:
        """Shows or hides the colour legend of this and later heats."""
        self._legend = bool(visible)
        volume = self._nodes.find("heat")
        node = volume and slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(volume)
        if node:
            node.SetVisibility(self._legend)

    # -- views, justification, curve -----------------------------------------------------------------

    def arrange(self, curve: bool = False) -> None:
        """Our layout: image, image with overlay, and the training curve below them with ``curve``."""
        self._views.arrange(curve)

    def restore(self) -> None:
        """The layout from before `arrange`."""
        self._views.restore()

    def fit(self) -> None:
        """The picture fills both views again."""
        self._views.refresh(fit=True)

    def justify(self, kind: str | None, where: Sequence[float] | None = None) -> None:
        """Takes the reader's markings away (None), or renews one of them.

        Args:
            kind: ``point``, ``box`` or None for both away.
            where: Pixels to draw it at, as `justification` gives them; None for an empty one.

        Raises:
            ValueError: For another kind, or when no picture is shown.
        """
        if kind is None:
            self._markings.stop_placing()
            self._nodes.drop("point", "box")
        elif where is None:
            self._markings.renew(kind)
        else:
            self._markings.put(kind, where)

    def justification(self) -> tuple[tuple | None, tuple | None]:
        """The reader's point ``(row, column)`` and box ``(row, column, row, column)``, pixels, or None."""
        return self._markings.point(), self._markings.box()

    def start_placing(self, kind: str) -> None:
        """The next click (two for a box) in a view places a new marking.

        Raises:
            ValueError: For another kind than ``point`` or ``box``, or when no picture is shown.
        """
        self._markings.start_placing(kind)

    def plot(self, curve: Sequence[dict]):
        """The training so far in the view of the curve.

        Args:
            curve: One dictionary for each epoch: ``epoch``, ``train_loss``, ``validation_nll``; a value that
                is missing leaves a gap.

        Returns:
            The chart node, ours; the same one as long as it lives.
        """
        chart = self._nodes.find("curve")
        if chart is None:
            self._nodes.drop("curve", "curve data")
            chart = self._nodes.add("curve", "vtkMRMLPlotChartNode", "Training")
            chart.SetXAxisTitle("Epoch")
            chart.SetYAxisTitle("Loss")
            table = self._nodes.add("curve data", "vtkMRMLTableNode", "Training curve")
            for column, (title, colour) in CURVES.items():
                series = self._nodes.add("curve data", "vtkMRMLPlotSeriesNode", title)
                series.SetAndObserveTableNodeID(table.GetID())
                series.SetXColumnName("epoch")
                series.SetYColumnName(column)
                series.SetPlotType(series.PlotTypeScatter)
                series.SetMarkerStyle(series.MarkerStyleCircle)
                series.SetColor(colour)
                chart.AddAndObservePlotSeriesNodeID(series.GetID())
        self._nodes.find("curve data").SetAndObserveTable(_table(curve))
        self._views.chart(chart)
        return chart

    def clear(self) -> None:
        """Takes every node of ours, the exported files and all observers away."""
        self._markings.stop_placing()
        self._nodes.drop("heat")  # first: its legend needs the colours as long as it lives
        self._nodes.drop()
        self._views.release()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)  # the system may have emptied it before us
            self._folder = None

    # -- the trouble inside --------------------------------------------------------------------------

    def _leave_case(self, keep=None) -> None:
        self._markings.stop_placing()
        self._nodes.drop("heat", "point", "box")
        if keep is None or self._nodes.find("picture") is not keep:
            self._nodes.drop("picture")

    def _plane_to_volume(self, role: str, values, placed, name: str, *, window, hidden: bool = True):
        volume = self._nodes.add(role, "vtkMRMLScalarVolumeNode", name, hidden=hidden)
        slicer.util.updateVolumeFromArray(volume, values[None])
        volume.SetIJKToRASMatrix(array_to_matrix(placed))
        # Made by hand: CreateDefaultDisplayNodes first looks at every pixel for a window of its own.
        display = slicer.vtkMRMLScalarVolumeDisplayNode()
        if window is not None:
            _set_window(display, window)
        display.SetAndObserveColorNodeID(GREY)
        volume.SetAndObserveDisplayNodeID(self._scene.AddNode(display).GetID())
        self._nodes.take_attached(role, volume)
        return volume

    def _read(self, files: list[str], name: str):
        volumes = slicer.modules.volumes.logic()  # the application's own: it knows the colours
        listed = vtk.vtkStringArray()
        for file in files:
            listed.InsertNextValue(file)
        volume = volumes.AddArchetypeVolume(files[0], name, SINGLE_FILE if len(files) == 1 else 0, listed)
        if volume is None:
            raise ValueError("picture: need a file that Slicer can read, got another. Take the picture from "
                             "the server.")
        return volume

    def _look(self) -> None:
        heat = self._nodes.find("heat")
        if heat is None:
            return
        display = heat.GetDisplayNode()
        display.SetAndObserveColorNodeID(self._colour_table().GetID())
        display.SetThreshold(self._threshold * self._scale, vtk.VTK_FLOAT_MAX)
        self._views.overlay(heat, self._opacity)

    def _colour_table(self):
        role = f"colours {self._colour}"
        node = self._nodes.find(role)
        if node is None:
            node = self._nodes.add(role, "vtkMRMLColorTableNode", f"DCAF {self._colour}")
            node.SetTypeToUser()
            change = node.StartModify()
            node.SetNumberOfColors(256)
            for entry, colour in enumerate(COLOURS[self._colour] / 255):
                node.SetColor(entry, str(entry), *colour, 1.0)
            node.EndModify(change)
        return node


def _set_window(display, window: tuple[float, float] | None) -> None:
    """Centre and width; Slicer's own choice where the file gives none."""
    if window is not None and np.isfinite(window).all() and window[1] > 0:
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(window[1], window[0])


def _window(text: str) -> tuple[float, float] | None:
    try:
        centre, width = (float(number) for number in text.split())
    except ValueError:
        return None
    return centre, width


def _lines(text: str) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + len(word) < LEGEND_WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _table(curve: Sequence[dict]) -> vtk.vtkTable:
    table = vtk.vtkTable()
    for name in ("epoch", *CURVES):
        values = [float("nan") if epoch.get(name) is None else epoch[name] for epoch in curve]
        column = numpy_to_vtk(np.asarray(values, float), deep=True)
        column.SetName(name)
        table.AddColumn(column)
    return table
