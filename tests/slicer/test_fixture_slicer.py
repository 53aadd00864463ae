"""The Slicer half of the fixture: what is real works, what Slicer refuses is refused."""

from __future__ import annotations

import enum
import textwrap
from typing import Annotated, Optional

import fixture
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset

fixture.start()  # what follows is there only inside Slicer

import qt  # noqa: E402
import slicer  # noqa: E402
from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper  # noqa: E402

UI = """<ui version="4.0"><class>Panel</class>
<widget class="qMRMLWidget" name="Panel"><layout class="QVBoxLayout" name="column">
<item><widget class="qMRMLNodeComboBox" name="selector">
<property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
<property name="noneEnabled"><bool>true</bool></property>
<property name="SlicerParameterName" stdset="0"><string>volume</string></property></widget></item>
<item><widget class="qMRMLNodeComboBox" name="forgotten">
<property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
</widget></item>
<item><widget class="qMRMLSliderWidget" name="opacitySlider">
<property name="SlicerParameterName" stdset="0"><string>opacity</string></property></widget></item>
<item><widget class="QComboBox" name="colourBox">
<property name="SlicerParameterName" stdset="0"><string>colour</string></property></widget></item>
<item><widget class="QCheckBox" name="legendCheck">
<property name="SlicerParameterName" stdset="0"><string>legend</string></property></widget></item>
<item><widget class="QLineEdit" name="readerEdit">
<property name="SlicerParameterName" stdset="0"><string>reader</string></property></widget></item>
</layout></widget>
<connections><connection><sender>Panel</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
<receiver>selector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""


@pytest.fixture(autouse=True)
def _application(application):
    return application


# The application.

def test_settings_are_temporary_and_the_same_for_everyone():
    slicer.app.settings().setValue("DCAF/Test", "kept")
    assert qt.QSettings().value("DCAF/Test") == "kept"
    assert "slicer-fixture-" in slicer.app.settings().fileName()
    fixture.reset()
    assert slicer.app.settings().value("DCAF/Test") is None


def test_the_application_answers_as_slicer_510():
    assert (slicer.app.majorVersion, slicer.app.minorVersion) == (5, 10)
    assert slicer.app.mrmlScene() is slicer.mrmlScene
    assert slicer.util.mainWindow() is fixture.main_window()
    with pytest.raises(AttributeError):
        slicer.app.majorVersion = 6
    with pytest.raises(AttributeError):
        _ = slicer.modules.segmenteditor


def test_a_question_of_slicer_util_is_put_to_the_test_and_never_answered_by_itself():
    with fixture.answering(qt.QMessageBox.Yes, qt.QMessageBox.No) as asked:
        assert slicer.util.confirmYesNoDisplay("Send pictures?") is True
        assert slicer.util.confirmYesNoDisplay("Again?") is False
    assert [question.text for question in asked] == ["Send pictures?", "Again?"]
    with pytest.raises(fixture.Unanswered):
        slicer.util.confirmYesNoDisplay("Send pictures?")


def test_the_dicom_database_gives_files_and_values_of_instances(tmp_path):
    path = tmp_path / "film.dcm"
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    film = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    film.PatientID, film.StudyInstanceUID, film.SeriesInstanceUID = "p", "1.2", "1.2.3"
    film.SOPInstanceUID, film.SOPClassUID = "1.2.3.4", "1.2.840.10008.5.1.4.1.1.1.1"
    film.WindowCenter, film.PixelSpacing = "40.50", ["0.8", "0.7"]
    film.save_as(path, enforce_file_format=True)
    database = slicer.dicomDatabase
    database.insert(path)
    assert database.patients() == ("p",)
    assert database.studiesForPatient("p") == ("1.2",) and database.seriesForStudy("1.2") == ("1.2.3",)
    assert database.instancesForSeries("1.2.3") == ("1.2.3.4",)
    assert database.fileForInstance("1.2.3.4") == str(path)
    assert database.fileForInstance("9.9") == ""
    assert database.instanceValue("1.2.3.4", "0028,1050") == "40.50"
    assert database.fileValue(str(path), "0028,0030") == "0.8\\0.7"
    assert database.instanceValue("1.2.3.4", "0028,1051") == ""


# MRML widgets.

@pytest.fixture
def panel(tmp_path):
    path = tmp_path / "Panel.ui"
    path.write_text(UI)
    loaded = slicer.util.loadUI(str(path))
    yield loaded
    loaded.delete()


def test_a_scene_reaches_exactly_the_widgets_that_the_ui_file_connects(panel):
    panel.setMRMLScene(slicer.mrmlScene)
    ui = slicer.util.childWidgetVariables(panel)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    assert ui.selector.mrmlScene() is slicer.mrmlScene and ui.selector.nodeCount() == 1
    assert ui.forgotten.mrmlScene() is None and ui.forgotten.nodeCount() == 0
    assert ui.selector.nodeFromIndex(0) is node


def test_a_node_box_follows_the_scene_and_never_picks_by_itself(panel):
    panel.setMRMLScene(slicer.mrmlScene)
    selector = panel.selector
    nodes, flags = [], []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", nodes.append)
    selector.connect("currentNodeChanged(bool)", flags.append)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    assert selector.currentNode() is None and nodes == []
    selector.setCurrentNode(node)
    assert selector.currentNodeID == node.GetID() and nodes == [node] and flags == [True]
    slicer.mrmlScene.RemoveNode(node)
    assert selector.currentNode() is None and nodes == [node, None] and flags == [True, False]


def test_a_node_box_offers_only_its_types_and_nothing_hidden(panel):
    panel.setMRMLScene(slicer.mrmlScene)
    hidden = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
    hidden.UnRegister(None)
    hidden.SetHideFromEditors(True)
    slicer.mrmlScene.AddNode(hidden)
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    shown = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "shown")
    assert panel.selector.nodes() == (shown,)


def test_closing_the_scene_empties_a_node_box(panel):
    panel.setMRMLScene(slicer.mrmlScene)
    panel.selector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode"))
    slicer.mrmlScene.Clear(0)
    assert panel.selector.currentNode() is None and panel.selector.nodeCount() == 0


# Parameter nodes.

class Mode(enum.Enum):
    FAST = 1
    FULL = 2


@parameterNodeWrapper
class Settings:
    opacity: Annotated[float, WithinRange(0.0, 1.0), Default(0.6)]
    colour: Annotated[str, Choice(["Amber", "Grey"]), Default("Grey")]
    count: int = 3
    legend: bool = True
    reader: str
    mode: Mode
    limit: Optional[int]  # noqa: UP045 (Slicer's spelling)
    volume: slicer.vtkMRMLScalarVolumeNode


@pytest.fixture
def node():
    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")


def test_parameters_have_their_defaults_and_live_in_the_node(node):
    settings = Settings(node)
    assert (settings.opacity, settings.colour, settings.count, settings.legend) == (0.6, "Grey", 3, True)
    assert (settings.reader, settings.mode, settings.limit, settings.volume) == ("", Mode.FAST, None, None)
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    settings.opacity, settings.mode, settings.limit, settings.volume = 0.25, Mode.FULL, 7, volume
    again = Settings(node)
    assert (again.opacity, again.mode, again.limit) == (0.25, Mode.FULL, 7)
    assert again.volume is volume


@pytest.mark.parametrize(("name", "value", "error"), [
    ("opacity", 1.5, ValueError), ("colour", "Rainbow", ValueError), ("count", "3", TypeError),
    ("legend", 1, TypeError), ("unknown", 1, AttributeError), ("reader", None, TypeError)])
def test_a_value_that_is_not_allowed_is_refused_and_changes_nothing(node, name, value, error):
    settings = Settings(node)
    with pytest.raises(error):
        setattr(settings, name, value)
    assert settings.opacity == 0.6 and settings.count == 3


def test_widgets_and_parameters_are_bound_both_ways_until_disconnected(panel, node):
    panel.setMRMLScene(slicer.mrmlScene)
    settings, ui = Settings(node), slicer.util.childWidgetVariables(panel)
    tag = settings.connectGui(panel)
    assert (ui.opacitySlider.value, ui.opacitySlider.maximum) == (pytest.approx(0.6), 1.0)
    assert ui.colourBox.currentText == "Grey" and ui.legendCheck.checked
    ui.opacitySlider.value = 0.3
    ui.colourBox.setCurrentIndex(0)
    ui.legendCheck.click()
    ui.readerEdit.text = "ann"
    assert (settings.opacity, settings.colour, settings.legend, settings.reader) == (
        pytest.approx(0.3), "Amber", False, "ann")
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    settings.volume, settings.reader = volume, "bob"
    assert ui.selector.currentNode() is volume and ui.readerEdit.text == "bob"
    settings.disconnectGui(tag)
    ui.readerEdit.text = "eve"
    settings.opacity = 0.9
    assert settings.reader == "bob" and ui.opacitySlider.value == pytest.approx(0.3)


def test_a_widget_that_cannot_show_a_kind_is_refused(node):
    label = qt.QLabel()
    with pytest.raises(TypeError, match="reader: need a widget for str"):
        Settings(node).connectParametersToGui({"reader": label})


def test_a_kind_that_the_fixture_does_not_know_is_refused():
    with pytest.raises(TypeError, match="places: need a kind"):
        parameterNodeWrapper(type("Odd", (), {"__annotations__": {"places": dict}}))


# Scripted modules.

def write_module(folder) -> object:
    (folder / "Resources/UI").mkdir(parents=True)
    (folder / "Resources/UI/Panel.ui").write_text(UI)
    path = folder / "FixtureDemo.py"
    path.write_text(textwrap.dedent("""
        import slicer
        from slicer.i18n import tr as _
        from slicer.ScriptedLoadableModule import *
        class FixtureDemo(ScriptedLoadableModule):
            started = 0
            def __init__(self, parent):
                ScriptedLoadableModule.__init__(self, parent)
                parent.title = _("Demo")
                parent.categories = ["Tests"]
                slicer.app.connect("startupCompleted()", self.count)
            def count(self):
                FixtureDemo.started += 1
        class FixtureDemoWidget(ScriptedLoadableModuleWidget):
            def setup(self):
                ScriptedLoadableModuleWidget.setup(self)
                self.log = ["setup"]
                panel = slicer.util.loadUI(self.resourcePath("UI/Panel.ui"))
                self.layout.addWidget(panel)
                panel.setMRMLScene(slicer.mrmlScene)
                self.logic = FixtureDemoLogic()
            def enter(self):
                self.log.append("enter")
            def exit(self):
                self.log.append("exit")
            def cleanup(self):
                self.log.append("cleanup")
        class FixtureDemoLogic(ScriptedLoadableModuleLogic):
            pass
        """))
    return path


def test_a_module_is_loaded_opened_and_closed_as_the_application_does(tmp_path):
    path = write_module(tmp_path)
    widget = fixture.open_module(path)
    assert widget.log == ["setup", "enter"]
    assert slicer.modules.fixturedemo.title == "Demo" and slicer.modules.fixturedemo.categories == ("Tests",)
    assert slicer.modules.fixturedemo.widgetRepresentation().self() is widget
    assert slicer.modules.FixtureDemoWidget is widget
    assert type(slicer.modules.FixtureDemoInstance).started == 1
    assert widget.logic.getParameterNode() is widget.logic.getParameterNode()
    fixture.close_module(widget)
    assert widget.log == ["setup", "enter", "exit", "cleanup"]
    assert not hasattr(slicer.modules, "FixtureDemoWidget")
    second = fixture.open_module(path)
    assert second is not widget and type(slicer.modules.FixtureDemoInstance).started == 1
    with pytest.raises((TypeError, ValueError, AttributeError)):
        slicer.modules.fixturedemo.categories = 3
    fixture.close_module(second)


def test_waiting_for_what_does_not_come_raises():
    with pytest.raises(TimeoutError, match="within 0.05 s"):
        fixture.wait(lambda: False, timeout_s=0.05)
