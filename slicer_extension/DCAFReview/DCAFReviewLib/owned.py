"""The nodes that are ours: marked, not saved with the scene, taken away together or by what they are for."""

from __future__ import annotations

import slicer

MARK = "DCAFReview"


class OwnedNodes:
    """Our nodes in a scene, by role (``picture``, ``heat``, ...).

    A node that the scene has lost meanwhile (scene closed, deleted by the person) is simply no longer there.

    Args:
        scene: The MRML scene.
    """

    def __init__(self, scene) -> None:
        self._scene = scene
        self._nodes: dict[str, list] = {}

    def add(self, role: str, kind: str, name: str, *, hidden: bool = True):
        """A new node of a MRML class, marked before anyone can see it in the scene."""
        node = getattr(slicer, kind)()
        node.SetName(name)
        self._mark(node, hidden)
        self._scene.AddNode(node)
        return self.take(role, node, hidden=hidden)

    def take(self, role: str, node, *, hidden: bool = True):
        """A node that somebody else has just put into the scene for us, with what belongs to it."""
        self._mark(node, hidden)
        self._nodes.setdefault(role, []).append(node)
        return node

    def take_attached(self, role: str, volume) -> None:
        """The display and storage nodes of a node of ours."""
        for place in range(volume.GetNumberOfDisplayNodes()):
            self.take(role, volume.GetNthDisplayNode(place))
        if volume.GetStorageNode() is not None:
            self.take(role, volume.GetStorageNode())

    def find(self, role: str):
        """The first node of a role, or None."""
        return next((node for node in self._nodes.get(role, ()) if self._scene.IsNodePresent(node)), None)

    def drop(self, *roles: str) -> None:
        """Takes the nodes of these roles out of the scene, or all when none is named."""
        for role in roles or tuple(reversed(self._nodes)):  # what others use, such as colours, last
            for node in self._nodes.pop(role, []):
                if self._scene.IsNodePresent(node):
                    self._scene.RemoveNode(node)

    @staticmethod
    def _mark(node, hidden: bool) -> None:
        node.SetAttribute(MARK, "1")
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(hidden)
        node.SetUndoEnabled(False)
