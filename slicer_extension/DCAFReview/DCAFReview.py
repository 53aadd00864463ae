"""DCAF Review: a worklist of radiographs and OCT images, the model's doubt, and the reader's answer."""

import os
from typing import Annotated

import slicer
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


class DCAFReview(ScriptedLoadableModule):
    """What the application shows of the module before it is opened."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("DCAF Review")
        parent.categories = ["Active Learning"]
        parent.dependencies = []
        parent.contributors = ["The DCAF engineers"]
        parent.helpText = _("Classifies chest X-rays and retinal OCT on a DCAF server, shows how unsure the "
                            "model is and where it looked, and takes the reader's correction.")
        parent.acknowledgementText = _("Research software, not a medical device. After the idea of Borah and "
                                       "Singh, arXiv 2503.11851.")
        from DCAFReviewLib.samples import register_sample_data

        slicer.app.connect("startupCompleted()", register_sample_data)


@parameterNodeWrapper
class DCAFReviewParameterNode:
    """What the reader has set, bound to the widgets of the same names."""

    overlay: bool = True
    opacity: Annotated[float, WithinRange(0.0, 1.0), Default(0.6)]
    threshold: Annotated[float, WithinRange(0.0, 0.95), Default(0.1)]
    colour: Annotated[str, Choice(["Amber", "Viridis", "Grey"]), Default("Amber")]
    legend: bool = True
    readFirst: bool = False
    volume: vtkMRMLScalarVolumeNode


class DCAFReviewWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Loads the panel and hands it to `ReviewWidget`."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self._bound = None

    def setup(self):
        from DCAFReviewLib.journal import Journal
        from DCAFReviewLib.logic import ReviewLogic
        from DCAFReviewLib.session import Session
        from DCAFReviewLib.widget import ReviewWidget, local_files

        ScriptedLoadableModuleWidget.setup(self)
        panel = slicer.util.loadUI(self.resourcePath("UI/DCAFReview.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = DCAFReviewLogic()
        self.drawing = ReviewLogic(slicer.mrmlScene)
        folder = os.path.join(os.path.dirname(slicer.app.settings().fileName()), "DCAFReview")
        self.session = Session(Journal(folder), has_local=lambda uid: bool(local_files(uid)))
        self.review = ReviewWidget(self.ui, self.session, self.drawing)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self._on_scene_closing)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, lambda *_: self._bind())
        self._bind()

    def enter(self):
        self._bind()
        self.review.enter()

    def exit(self):
        self.review.leave()

    def cleanup(self):
        self._unbind()
        self.removeObservers()
        self.review.close()

    def _on_scene_closing(self, caller, event):
        self.review.forget_scene()
        self._unbind()

    def _bind(self):
        if self._bound is None:
            self._bound = DCAFReviewParameterNode(self.logic.getParameterNode())
            self._binding = self._bound.connectGui(self.ui)

    def _unbind(self):
        if self._bound is not None:
            self._bound.disconnectGui(self._binding)
            self._bound = None


class DCAFReviewLogic(ScriptedLoadableModuleLogic):
    """Keeps the parameter node; what is drawn on the scene is `DCAFReviewLib.logic`'s business."""


class DCAFReviewTest(ScriptedLoadableModuleTest):
    """One case on a server at DCAF_TEST_SERVER, in the application itself."""

    def runTest(self):
        from DCAFReviewLib.selftest import review_one_case

        address = os.environ.get("DCAF_TEST_SERVER")
        if not address:
            return self.delayDisplay("Skipped: DCAF_TEST_SERVER names no DCAF server.")
        slicer.util.selectModule("DCAFReview")
        widget = slicer.modules.dcafreview.widgetRepresentation().self()
        self.delayDisplay(review_one_case(widget, address))
