"""The two views side by side: image alone, image with overlay; below them the training curve when asked for.

View nodes belong to the application's layout: they are asked for by name whenever they are needed, and they
stay in the scene when the layout goes, as Slicer's own do.
"""

from __future__ import annotations

import weakref

import numpy as np
import vtk

from DCAFReviewLib.plane import array_to_matrix, extent_mm, slice_plane

IMAGE, OVERLAY, CURVE = "DCAFImage", "DCAFOverlay", "DCAFCurve"
TWO_UP, WITH_CURVE = 6110, 6111
VIEW_GROUP = 611
"""Links our views with each other and with no others."""

_SLICE = """<item><view class="vtkMRMLSliceNode" singletontag="{}">
 <property name="orientation" action="default">Axial</property>
 <property name="viewlabel" action="default">{}</property>
 <property name="viewcolor" action="default">{}</property>
</view></item>"""
_VIEWS = ('<layout type="horizontal" split="true">' + _SLICE.format(IMAGE, "Image", "#8a8a8a")
          + _SLICE.format(OVERLAY, "Overlay", "#e08a00") + "</layout>")
LAYOUTS = {
    TWO_UP: _VIEWS,
    WITH_CURVE: f'<layout type="vertical" split="true"><item splitSize="700">{_VIEWS}</item>'
                f'<item splitSize="300"><view class="vtkMRMLPlotViewNode" singletontag="{CURVE}">'
                '<property name="viewlabel" action="default">Training</property></view></item></layout>',
}


_CALLED: set = set()
"""Callbacks that VTK may still hold."""


class Views:
    """What our views show, also while the layout has not made them yet.

    Args:
        scene: The MRML scene.
    """

    def __init__(self, scene) -> None:
        self._scene = scene
        self._before: int | None = None
        self._picture, self._index = None, 0
        self._heat, self._opacity = None, 0.0
        self._chart = None
        self._fitted: dict[str, tuple[tuple, tuple]] = {}  # view -> pixels, field of view in mm, as fitted
        self._observed: dict[str, tuple[object, int]] = {}

    def arrange(self, curve: bool) -> None:
        """Brings our layout; the one of before is kept for `restore`.

        Raises:
            RuntimeError: When the scene has no layout.
        """
        node = self._layout()
        for number, description in LAYOUTS.items():
            if not node.IsLayoutDescription(number):
                node.AddLayoutDescription(number, description)
        if node.GetViewArrangement() not in LAYOUTS:
            self._before = node.GetViewArrangement()
        node.SetViewArrangement(WITH_CURVE if curve else TWO_UP)
        # Views that are new learn what they show, and so whose legend they draw, at the end of a batch.
        self._scene.StartState(self._scene.BatchProcessState)
        self._scene.EndState(self._scene.BatchProcessState)
        self.refresh(fit=True)

    def restore(self) -> None:
        """Brings back the layout from before, unless the person has chosen another meanwhile."""
        node = self._layout()
        if self._before is not None and node.GetViewArrangement() in LAYOUTS:
            node.SetViewArrangement(self._before)
        self._before = None

    def show(self, volume, index: int = 0) -> None:
        """One slice of a volume in both views, as stored: columns to the right, rows down.

        Raises:
            ValueError: When there is no such slice or no picture.
        """
        slice_plane(volume, index)
        self._picture, self._index, self._heat = volume, index, None
        self.refresh(fit=True)

    def overlay(self, heat, opacity: float) -> None:
        """The heat over the picture in the right view; None for none."""
        self._heat, self._opacity = heat, opacity
        self.refresh()

    def chart(self, chart) -> None:
        """The chart in the view of the training curve."""
        self._chart = chart
        self.refresh()

    @property
    def picture(self):
        """The volume shown, or None."""
        return self._alive(self._picture)

    @property
    def plane(self):
        """``(4, 4)`` of the slice shown, see `slice_plane`; of a scene without picture there is none.

        Raises:
            ValueError: When nothing is shown.
        """
        return slice_plane(self.picture, self._index)

    def release(self) -> None:
        """Lets go of the scene: nothing shown, nothing observed."""
        self._picture = self._heat = self._chart = None
        self._stop_watching()
        self.refresh()

    def refresh(self, *, fit: bool = False) -> None:
        """Tells the views that exist what to show. With ``fit`` the picture fills them."""
        picture, heat, chart = self.picture, self._alive(self._heat), self._alive(self._chart)
        for name in (IMAGE, OVERLAY):
            view, composite = self._view(name), self._singleton(name, "vtkMRMLSliceCompositeNode")
            if view is None or composite is None:
                continue
            view.SetViewGroup(VIEW_GROUP)
            over = heat if name == OVERLAY else None
            composite.SetBackgroundVolumeID(picture and picture.GetID())
            composite.SetForegroundVolumeID(over and over.GetID())
            composite.SetForegroundOpacity(self._opacity if over else 0.0)
            composite.SetLabelVolumeID(None)
            composite.SetDoPropagateVolumeSelection(False)  # a volume loaded elsewhere does not land here
            composite.SetLinkedControl(True)
            composite.SetHotLinkedControl(True)  # the other view follows while the mouse still moves
            if fit and picture is not None:
                self._watch(name, view)
                self._fit(name, view)
        plot = self._singleton(CURVE, "vtkMRMLPlotViewNode")
        if plot is not None:
            plot.SetPlotChartNodeID(chart and chart.GetID())

    # -- size ----------------------------------------------------------------------------------------

    def _fit(self, name: str, view) -> None:
        size = view.GetDimensions()[:2]
        if min(size) < 1:
            return
        width, height = extent_mm(self._picture)
        scale = max(width / size[0], height / size[1])
        field = size[0] * scale, size[1] * scale
        self._fitted[name] = size, field  # first: what follows is heard by _resized
        change = view.StartModify()
        view.GetSliceToRAS().DeepCopy(array_to_matrix(self.plane))
        view.SetXYZOrigin(0, 0, 0)
        view.SetFieldOfView(*field, max(view.GetFieldOfView()[2], 1e-3))
        view.UpdateMatrices()
        view.EndModify(change)

    def _watch(self, name: str, view) -> None:
        if self._observed.get(name, (None, 0))[0] is not view:
            # Weak, and held below: what VTK calls must be neither in a cycle with the view nor without an
            # owner in Python, whose collector would take it while the view still calls it.
            views = weakref.ref(self)

            def resized(caller, _) -> None:
                if views() is not None:
                    views()._resized(name, caller)

            tag = view.AddObserver(vtk.vtkCommand.ModifiedEvent, resized)
            self._observed[name] = (view, tag)
            _CALLED.add(resized)
            weakref.finalize(self, view.RemoveObserver, tag)

    def _stop_watching(self) -> None:
        for view, tag in self._observed.values():
            view.RemoveObserver(tag)
        self._observed.clear()
        self._fitted.clear()

    def _resized(self, name: str, view) -> None:
        """A view gets its real size only after its layout is drawn; a fitted picture stays fitted then."""
        if self.picture is None or name not in self._fitted:
            return
        size, fitted = self._fitted[name]
        now = view.GetDimensions()[:2]
        if now != size:
            self._fit(name, view)
        elif not np.allclose((*view.GetFieldOfView()[:2], *view.GetXYZOrigin()[:2]), (*fitted, 0, 0)):
            del self._fitted[name]  # the person has zoomed or moved: from here it is theirs

    # -- nodes ---------------------------------------------------------------------------------------

    def _alive(self, node):
        return node if node is not None and self._scene.IsNodePresent(node) else None

    def _singleton(self, name: str, kind: str):
        return self._scene.GetSingletonNode(name, kind)

    def _view(self, name: str):
        return self._singleton(name, "vtkMRMLSliceNode")

    def _layout(self):
        node = self._scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
        if node is None:
            raise RuntimeError("scene: need a layout node, got none. Open the module in the application.")
        return node
