"""The Qt half of the fixture: questions to the user, CTK's widgets, the loader of .ui files."""

from __future__ import annotations

import fixture
import pytest
from fixture import ctk as ctk_widgets
from fixture import dialogs, pythonqt, ui
from PySide6 import QtCore

qt = pythonqt.install()
ctk = ctk_widgets.install()
Yes, No = qt.QMessageBox.Yes, qt.QMessageBox.No


@pytest.fixture(autouse=True)
def app():
    fixture.start()
    dialogs.forget()
    qt.QSettings().clear()
    yield
    dialogs.forget()
    pythonqt.raise_faults()


# Questions


def test_a_question_without_an_answer_raises_and_is_kept():
    with pytest.raises(dialogs.Unanswered, match="need an answer given beforehand"):
        qt.QMessageBox.question(None, "Upload", "Send the film?")
    assert dialogs.unanswered == [dialogs.Question("QMessageBox", "Upload", "Send the film?", ("Yes", "No"))]


def test_a_question_asked_in_a_slot_is_kept_though_qt_swallows_the_error():
    button = qt.QPushButton()
    button.clicked.connect(lambda: qt.QMessageBox.warning(None, "t", "unasked"))
    button.click()
    assert [each.text for each in dialogs.unanswered] == ["unasked"]
    with pytest.raises(AssertionError, match="Unanswered"):
        pythonqt.raise_faults()


def test_answers_are_given_in_their_order_and_the_questions_noted():
    with dialogs.answering(No, "OK", "/tmp/a.csv", "") as asked:
        assert qt.QMessageBox.question(None, "a", "first?") == No
        assert qt.QMessageBox.warning(None, "b", "second") == qt.QMessageBox.Ok
        assert qt.QFileDialog.getSaveFileName(None, "Save", "", "*.csv") == "/tmp/a.csv"
        assert qt.QFileDialog.getOpenFileName(None, "Open") == ""
    assert [each.text or each.title for each in asked] == ["first?", "second", "Save", "Open"]
    assert not dialogs.unanswered


def test_an_answer_that_is_not_offered_is_refused():
    with dialogs.answering(qt.QMessageBox.Retry, "Perhaps"):
        for _ in range(2):
            with pytest.raises(dialogs.Unanswered, match="need one of Yes, No"):
                qt.QMessageBox.question(None, "a", "b")


def test_an_answer_left_over_fails_the_test():
    with pytest.raises(AssertionError, match="got 1 left over"), dialogs.answering(Yes):
        pass


def test_an_input_tells_cancel_by_its_bool_result():
    ok = qt.BoolResult()
    with dialogs.answering("motion", None):
        text = qt.QInputDialog.getText(None, "Skip", "Reason", qt.QLineEdit.Normal, "", ok)
        assert (text, bool(ok)) == ("motion", True)
        text = qt.QInputDialog.getText(None, "Skip", "Reason", qt.QLineEdit.Normal, "", ok)
        assert (text, bool(ok)) == ("", False)


def test_a_dialog_and_a_menu_wait_for_nobody():
    dialog, menu, done = qt.QDialog(), qt.QMenu(), []
    menu.addAction("&Copy").triggered.connect(lambda: done.append("copied"))
    menu.addAction("Save").enabled = False
    with dialogs.answering(lambda it: it.windowTitle == "" and qt.QDialog.Accepted, "Copy", "Save"):
        assert dialog.exec_() == qt.QDialog.Accepted
        assert menu.exec_(qt.QPoint(5, 7)).text == "&Copy"
        with pytest.raises(dialogs.Unanswered, match="got 'Save'"):
            menu.exec_(qt.QPoint(5, 7))
    assert done == ["copied"]


def test_a_message_box_remembers_not_to_be_shown_again():
    def ask():
        box = ctk.ctkMessageBox()
        box.text, box.standardButtons, box.dontShowAgainSettingsKey = "Send?", Yes | No, "DCAF/Send"
        return box.exec_()

    def tick(box):
        box.dontShowAgain = True
        return Yes

    with dialogs.answering(No, tick) as asked:
        assert [ask(), ask(), ask()] == [No, Yes, Yes]
    assert len(asked) == 2


def test_a_button_with_a_text_of_its_own_is_the_one_clicked():
    box = qt.QMessageBox()
    send = box.addButton("Send", qt.QMessageBox.AcceptRole)
    box.addButton("Keep here", qt.QMessageBox.RejectRole)
    with dialogs.answering("Send"):
        box.exec_()
    assert box.clickedButton() is send


# CTK


def test_a_slider_widget_keeps_slider_box_and_value_together():
    slider, got = ctk.ctkSliderWidget(), []
    slider.maximum, slider.singleStep, slider.decimals = 1, 0.05, 2
    slider.connect("valueChanged(double)", got.append)
    slider.value = 0.35
    assert (slider.spinBox().value, slider.slider().value) == (0.35, 7)
    slider.slider().value = 3
    slider.spinBox().value = 5.0
    slider.value = 1
    assert got == pytest.approx([0.35, 0.15, 1.0])
    with pytest.raises(AttributeError, match="does not accept"):
        slider.value = "0.5"


def test_a_slider_widget_without_tracking_speaks_when_it_is_let_go():
    slider, moving, settled = ctk.ctkSliderWidget(), [], []
    slider.tracking = False
    slider.connect("valueIsChanging(double)", moving.append)
    slider.connect("valueChanged(double)", settled.append)
    slider.slider().setSliderDown(True)
    slider.slider().value = 5
    slider.slider().value = 7
    assert (moving, settled) == ([5, 7], [])
    slider.slider().setSliderDown(False)
    assert (settled, slider.value) == ([7], 7)


def test_a_narrower_range_moves_the_value_and_says_so():
    slider, got = ctk.ctkSliderWidget(), []
    slider.value = 50
    slider.connect("valueChanged(double)", got.append)
    slider.setRange(0, 20)
    assert (slider.value, got) == (20, [20])


@pytest.mark.parametrize("make", [ctk.ctkCollapsibleButton, ctk.ctkCollapsibleGroupBox])
def test_a_folded_widget_hides_its_children_but_not_for_good(make):
    fold, told = make("Overlay"), []
    column = qt.QVBoxLayout(fold)
    first, second = qt.QLabel("first"), qt.QLabel("second")
    column.addWidget(first)
    column.addWidget(second)
    fold.connect("contentsCollapsed(bool)", told.append)
    fold.show()
    tall = fold.height
    fold.collapsed = True
    assert (first.visible, second.visible, fold.checked) == (False, False, False)
    second.setVisible(False)  # by the module, while folded
    fold.checked = True
    assert (first.visible, second.visible, told) == (True, False, [True, False])
    assert fold.sizeHint.height() > 24 and tall > 24
    fold.close()


def test_a_folded_button_takes_the_room_of_its_header_and_a_click_unfolds_it():
    panel = qt.QWidget()
    column = qt.QVBoxLayout(panel)
    fold = ctk.ctkCollapsibleButton("Overlay")
    qt.QVBoxLayout(fold).addWidget(qt.QLabel("a\nb\nc\nd"))
    column.addWidget(fold)
    column.addStretch(1)
    panel.show()
    qt.QApplication.processEvents()
    unfolded = fold.height
    fold.click()
    qt.QApplication.processEvents()
    assert (fold.collapsed, fold.height) == (True, 24) and unfolded > 60
    fold.click()
    qt.QApplication.processEvents()
    assert fold.height == unfolded
    panel.close()


def test_a_child_added_while_folded_shows_when_unfolded():
    fold = ctk.ctkCollapsibleButton("Case")
    fold.collapsed = True
    fold.show()
    column = qt.QVBoxLayout(fold)
    late = qt.QLabel("late")
    column.addWidget(late)
    fixture.process(0.02)
    assert not late.visible
    fold.collapsed = False
    qt.QApplication.processEvents()
    assert late.visible and type(late) is qt.QLabel
    fold.close()


def test_a_path_line_browses_and_tells_its_path(tmp_path):
    line, got, valid = ctk.ctkPathLineEdit(), [], []
    line.connect("currentPathChanged(QString)", got.append)
    line.connect("validInputChanged(bool)", valid.append)
    film = tmp_path / "film.dcm"
    film.write_bytes(b"x")
    with dialogs.answering(str(film)):
        line.browse()
    line.currentPath = str(tmp_path)
    assert got == [str(film), str(tmp_path)]
    assert valid == [True, False]  # a folder is no file
    line.filters = ctk.ctkPathLineEdit.Dirs
    with dialogs.answering(str(tmp_path)) as asked:
        line.browse()
    assert asked[0].kind == "QFileDialog.getExistingDirectory"


def test_the_other_widgets_of_ctk_have_their_properties():
    combo, search, box = ctk.ctkComboBox(), ctk.ctkSearchBox(), ctk.ctkDoubleSpinBox()
    combo.defaultText, search.alwaysShowClearIcon = "choose", False
    box.maximum, box.decimals, box.suffix = 5, 1, " mm"
    got = []
    box.connect("valueChanged(double)", got.append)
    box.value = 3.25
    assert (combo.defaultText, search.isClearButtonEnabled(), got) == ("choose", False, [box.value])
    assert isinstance(ctk.ctkMenuButton("More"), qt.QPushButton)
    assert isinstance(ctk.ctkCheckBox("Show"), qt.QCheckBox)


# The loader


class qTestSceneWidget(qt.QWidget):
    """Stands for a qMRML widget: takes a scene and passes it on."""

    mrmlSceneChanged = QtCore.Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None

    def setMRMLScene(self, scene):
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self):
        return self._scene


ui.register(qTestSceneWidget)

SCENE = "<connection><sender>Form</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>" \
        "<receiver>{}</receiver><slot>{}</slot></connection>"


def load(inside="", connections="", top="qTestSceneWidget"):
    text = f"""<ui version="4.0"><class>Form</class><widget class="{top}" name="Form">
        <layout class="QVBoxLayout" name="column">{inside}</layout></widget>
        <connections>{connections}</connections></ui>"""
    buffer = qt.QBuffer()
    buffer.setData(text.encode())
    buffer.open(qt.QIODevice.ReadOnly)
    return qt.QUiLoader().load(buffer)


def item(cls, name, properties=""):
    return f'<item><widget class="{cls}" name="{name}">{properties}</widget></item>'


def prop(name, kind, value, extra=""):
    return f'<property name="{name}" {extra}><{kind}>{value}</{kind}></property>'


def test_a_ui_file_builds_its_widgets_with_their_properties():
    form = load(
        item("QLabel", "title", prop("text", "string", "Overlay"))
        + item("ctkSliderWidget", "opacity", prop("maximum", "double", 1)
               + prop("singleStep", "double", 0.05) + prop("value", "double", 0.35)
               + prop("SlicerParameterName", "string", "opacity", 'stdset="0"'))
        + item("ctkPathLineEdit", "path",
               prop("filters", "set", "ctkPathLineEdit::Dirs|ctkPathLineEdit::Readable")))
    assert (form.name, form.title.text, form.opacity.value) == ("Form", "Overlay", 0.35)
    assert form.opacity.SlicerParameterName == "opacity"
    assert form.path.filters == ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Readable


@pytest.mark.parametrize(("inside", "match"), [
    (item("ctkSlidrWidget", "a"), "widget class that is there, got 'ctkSlidrWidget'"),
    (item("QLabel", "a", prop("txet", "string", "b")), "need a property of QLabel, got 'txet'"),
    (item("ctkSliderWidget", "a", prop("steps", "double", 1)), "need a property of ctkSliderWidget"),
    (item("ctkPathLineEdit", "a", prop("filters", "set", "ctkPathLineEdit::Flies")), "need an enum value"),
])
def test_what_is_not_there_is_refused_in_a_ui_file(inside, match):
    with pytest.raises(ui.UiError, match=match):
        load(inside)


def test_what_is_no_ui_file_is_refused():
    buffer = qt.QBuffer()
    buffer.open(qt.QIODevice.ReadOnly)
    with pytest.raises(ui.UiError, match="got no XML"):
        qt.QUiLoader().load(buffer)


def test_a_scene_reaches_exactly_the_receivers_that_are_named():
    form = load(item("qTestSceneWidget", "near") + item("qTestSceneWidget", "forgotten"),
                SCENE.format("near", "setMRMLScene(vtkMRMLScene*)"))
    scene = object()
    form.setMRMLScene(scene)
    assert form.near.mrmlScene() is scene
    assert form.forgotten.mrmlScene() is None


def test_a_connection_between_qt_widgets_is_made():
    form = load(item("QCheckBox", "shown") + item("QLabel", "note"),
                "<connection><sender>shown</sender><signal>toggled(bool)</signal><receiver>note</receiver>"
                "<slot>setDisabled(bool)</slot></connection>")
    form.shown.click()
    assert not form.note.enabled


@pytest.mark.parametrize(("receiver", "slot", "match"), [
    ("far", "setMRMLScene(vtkMRMLScene*)", "need a widget of the file, got receiver 'far'"),
    ("near", "setScene(vtkMRMLScene*)", "need a slot it has"),
])
def test_a_connection_that_cannot_be_made_is_refused(receiver, slot, match):
    with pytest.raises(ui.UiError, match=match):
        load(item("qTestSceneWidget", "near"), SCENE.format(receiver, slot))


def test_a_scene_connection_of_a_widget_without_scenes_is_refused():
    scene = SCENE.format("near", "setMRMLScene(vtkMRMLScene*)")
    with pytest.raises(ui.UiError, match="need a signal it has"):
        load(item("qTestSceneWidget", "near"), scene, top="QWidget")
