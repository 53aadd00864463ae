"""A point or a box that the reader draws on the picture to justify an answer.

Positions are ``(row, column)`` of the picture, 0 at the centre of its first pixel, rounded to a tenth and not
clipped: what lies outside the picture says so.
"""

from __future__ import annotations

import numpy as np

from DCAFReviewLib.layout import Views
from DCAFReviewLib.owned import OwnedNodes
from DCAFReviewLib.plane import array_to_matrix, ijk_to_world, matrix_to_array

KINDS = {"point": "vtkMRMLMarkupsFiducialNode", "box": "vtkMRMLMarkupsROINode"}
COLOUR = (0.34, 0.71, 0.91)  # sky blue: stands out from grey and from every colour of the heat


class Markings:
    """The reader's point and box.

    Args:
        scene: The MRML scene.
        nodes: Where they are kept.
        views: Whose picture they are drawn on.
    """

    def __init__(self, scene, nodes: OwnedNodes, views: Views) -> None:
        self._scene, self._nodes, self._views = scene, nodes, views

    def renew(self, kind: str) -> object:
        """An empty marking of that kind in place of the one before.

        Raises:
            ValueError: For another kind, or when no picture is shown.
        """
        if kind not in KINDS:
            raise ValueError(f"justification: need {' or '.join(KINDS)}, got {kind!r}.")
        plane = self._views.plane
        self.stop_placing(kind)
        self._nodes.drop(kind)
        node = self._nodes.add(kind, KINDS[kind], kind.capitalize())
        node.CreateDefaultDisplayNodes()
        self._nodes.take_attached(kind, node)
        display = node.GetDisplayNode()
        display.SetSelectedColor(COLOUR)
        display.SetColor(COLOUR)
        display.SetActiveColor(COLOUR)
        display.SetPointLabelsVisibility(False)
        display.SetPropertiesLabelVisibility(False)
        if kind == "box":
            display.SetFillOpacity(0.1)
            display.SetInteractionHandleScale(1.2)
            display.SetRotationHandleVisibility(False)
            turned = np.eye(4)  # the box's edges along rows and columns, in any plane
            turned[:3, :3] = plane[:3, :3]
            node.SetAndObserveObjectToNodeMatrix(array_to_matrix(turned))
        return node

    def put(self, kind: str, where) -> None:
        """Draws a marking: ``(row, column)``, or ``(row, column, row, column)`` of two corners.

        Raises:
            ValueError: As of `renew`.
        """
        node = self.renew(kind)
        for row, column in np.reshape(where, (-1, 2)):
            node.AddControlPointWorld(*self._to_world(row, column))

    def start_placing(self, kind: str) -> None:
        """The next clicks in a view place a new marking of that kind.

        Raises:
            ValueError: As of `renew`.
        """
        node = self.renew(kind)
        selection, interaction = self._placing()
        selection.SetReferenceActivePlaceNodeClassName(node.GetClassName())
        selection.SetActivePlaceNodeID(node.GetID())
        interaction.SetPlaceModePersistence(0)
        interaction.SetCurrentInteractionMode(interaction.Place)

    def stop_placing(self, *kinds: str) -> None:
        """Ends the placing of our markings, and of no others."""
        selection, interaction = self._placing()
        ours = [node.GetID() for node in map(self._nodes.find, kinds or KINDS) if node is not None]
        if selection is None or selection.GetActivePlaceNodeID() not in ours:
            return
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)
        selection.SetActivePlaceNodeID(None)

    def point(self) -> tuple[float, float] | None:
        """The point, or None while there is none."""
        node = self._nodes.find("point")
        if node is None or self._views.picture is None or node.GetNumberOfDefinedControlPoints() == 0:
            return None
        return tuple(self._to_pixels(np.array([node.GetNthControlPointPositionWorld(0)]))[0].tolist())

    def box(self) -> tuple[float, float, float, float] | None:
        """``(first row, first column, last row, last column)``, or None while there is none."""
        node = self._nodes.find("box")
        if node is None or self._views.picture is None or not node.GetControlPointPlacementComplete():
            return None
        half = np.array(node.GetSize()) / 2
        corners = np.array([[*half * [across, along, 0], 1] for across in (-1, 1) for along in (-1, 1)])
        world = corners @ matrix_to_array(node.GetObjectToWorldMatrix()).T
        pixels = self._to_pixels(world[:, :3])
        return (*pixels.min(axis=0).tolist(), *pixels.max(axis=0).tolist())

    def _to_world(self, row: float, column: float) -> np.ndarray:
        matrix = ijk_to_world(self._views.picture)
        index = np.linalg.solve(matrix, self._views.plane[:, 3])[2]
        return (matrix @ [column, row, index, 1])[:3]

    def _to_pixels(self, world: np.ndarray) -> np.ndarray:
        places = np.hstack([world, np.ones((len(world), 1))])
        columns, rows = np.linalg.solve(ijk_to_world(self._views.picture), places.T)[:2]
        return np.round(np.stack([rows, columns], axis=-1), 1) + 0.0  # no minus zero

    def _placing(self):
        return (self._scene.GetNodeByID("vtkMRMLSelectionNodeSingleton"),
                self._scene.GetNodeByID("vtkMRMLInteractionNodeSingleton"))
