"""The Qt half of the fixture keeps PythonQt's rules: each refusal, and each form that is permitted."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import fixture
import numpy as np
import pytest
from fixture import ctk as ctk_widgets
from fixture import dialogs, pythonqt, signals

qt = pythonqt.install()
ctk = ctk_widgets.install()


@pytest.fixture(autouse=True)
def app():
    fixture.start()
    dialogs.forget()
    yield
    dialogs.forget()
    pythonqt.raise_faults()


class Panel(qt.QWidget):
    """A Python subclass, as a module would write it."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.cases = 7
        self.painted = []

    def width(self):
        return "mine"

    def paintEvent(self, event):
        painter = qt.QPainter(self)
        painter.fillRect(self.rect, qt.QColor(10, 20, 30))
        painter.end()
        self.painted.append(self.height)


# Properties


def test_a_property_is_an_attribute_and_calling_it_is_a_type_error():
    label = qt.QLabel("a film")
    assert label.text == "a film"
    with pytest.raises(TypeError, match="not callable"):
        label.text()


def test_setters_and_getters_that_are_no_property_stay_callable():
    button = qt.QPushButton("x")
    button.setText("y")
    button.enabled = False
    assert (button.text, button.isEnabled(), button.parent()) == ("y", False, None)


@pytest.mark.parametrize("name", ["width", "sizeHint", "rect"])
def test_a_read_only_property_cannot_be_written(name):
    with pytest.raises(AttributeError, match="not writable"):
        setattr(qt.QLabel(), name, 5)


@pytest.mark.parametrize(("name", "value"), [
    ("text", 5), ("text", None), ("enabled", None), ("enabled", []), ("indent", "3"), ("indent", 2.5),
    ("indent", np.int64(3)), ("alignment", "left"), ("font", "Arial"), ("minimumSize", 3),
])
@pytest.mark.parametrize("error", [AttributeError, ValueError])
def test_a_property_does_not_take_a_value_of_another_type(name, value, error):
    label = qt.QLabel("before")
    with pytest.raises(error, match="does not accept"):
        setattr(label, name, value)
    assert label.text == "before"


def test_a_property_takes_the_value_that_fits():
    box, label = qt.QDoubleSpinBox(), qt.QLabel()
    box.value, label.indent, label.enabled = 3, True, 0
    label.alignment = qt.Qt.AlignRight | qt.Qt.AlignTop
    label.minimumSize = qt.QSize(50, 7)
    assert (box.value, label.indent, label.enabled) == (3.0, 1, False)
    assert (label.minimumSize.width(), label.minimumSize.height()) == (50, 7)
    assert label.alignment == qt.Qt.AlignRight | qt.Qt.AlignTop


def test_an_enum_property_is_an_integer():
    alignment = qt.QLabel().alignment
    assert isinstance(alignment, int) and alignment + 0 == 0x81  # left, vertically centred


def test_a_list_property_comes_out_as_a_tuple():
    browser, line = qt.QTextBrowser(), ctk.ctkPathLineEdit()
    browser.searchPaths = ["a", "b"]
    line.nameFilters = ["*.pem"]
    assert (browser.searchPaths, line.nameFilters) == (("a", "b"), ("*.pem",))


def test_the_name_is_the_object_name_and_children_are_attributes():
    panel = qt.QWidget()
    button = qt.QPushButton("Go", panel)
    button.name = "goButton"
    assert (button.objectName, button.name) == ("goButton", "goButton")
    assert panel.goButton is button
    with pytest.raises(AttributeError, match="no attribute named 'stopButton'"):
        _ = panel.stopButton


def test_a_dynamic_property_reads_and_writes_as_an_attribute():
    label = qt.QLabel()
    label.setProperty("SlicerParameterName", "opacity")
    assert label.SlicerParameterName == "opacity"
    label.SlicerParameterName = "threshold"
    assert label.property("SlicerParameterName") == "threshold"


# New attributes and overwriting


@pytest.mark.parametrize("make", [qt.QLabel, qt.QTimer, qt.QVBoxLayout, lambda: ctk.ctkSliderWidget()])
def test_a_cpp_object_takes_no_new_attribute(make):
    with pytest.raises(AttributeError, match="creating new attributes on C\\+\\+ objects is not allowed"):
        make().case = 1


def test_a_python_subclass_has_attributes_of_its_own_and_its_method_wins_over_a_property():
    panel = Panel()
    panel.extra = [1]
    assert (panel.cases, panel.extra, panel.width()) == (7, [1], "mine")


@pytest.mark.parametrize("name", ["update", "setVisible", "destroyed", "connect"])
@pytest.mark.parametrize("make", [qt.QLabel, Panel])
def test_a_method_or_signal_of_qt_cannot_be_overwritten(make, name):
    with pytest.raises(AttributeError, match="can not be overwritten"):
        setattr(make(), name, print)


def test_named_arguments_of_a_constructor_are_refused():
    with pytest.raises(TypeError, match="by position"):
        qt.QPushButton(text="x")


# Signals


def test_each_form_of_connect_passes_what_the_signature_says():
    button, box, got = qt.QPushButton(), qt.QCheckBox(), []
    button.connect("clicked()", lambda *args: got.append(args))
    button.connect("clicked( bool )", lambda *args: got.append(args))
    button.clicked.connect(lambda: got.append("none"))
    button.connect("clicked()", box, "toggle()")
    button.click()
    assert got == [(), (False,), "none"]
    assert box.checked


def test_a_default_argument_is_filled_by_the_signal_as_in_slicer():
    button, got = qt.QPushButton(), []
    button.clicked.connect(lambda case=7: got.append(case))
    button.click()
    assert got == [False]


def test_a_signal_may_be_connected_to_a_signal():
    first, second, got = qt.QPushButton(), qt.QPushButton(), []
    second.connect("clicked(bool)", got.append)
    first.connect("clicked(bool)", second, "clicked(bool)")
    first.click()
    assert got == [False]


@pytest.mark.parametrize("signal", ["clickd()", "clicked(int)", "clicked", "setText(QString)"])
def test_an_unknown_signal_is_refused(signal):
    with pytest.raises(signals.Refused, match="need a signal it has"):
        qt.QPushButton().connect(signal, print)


@pytest.mark.parametrize("slot", ["toggel()", "setText(int)", "toggle"])
def test_an_unknown_slot_is_refused(slot):
    with pytest.raises(signals.Refused, match="need a slot it has"):
        qt.QPushButton().connect("clicked()", qt.QCheckBox(), slot)


def test_what_is_not_callable_is_refused():
    with pytest.raises(TypeError, match="need a callable, got NoneType"):
        qt.QPushButton().clicked.connect(None)


def test_a_connection_keeps_the_owner_of_its_method_alive():
    class Owner:
        def hear(self):
            got.append("heard")

    button, got = qt.QPushButton(), []
    button.clicked.connect(Owner().hear)
    gc.collect()
    button.click()
    assert got == ["heard"]


def test_disconnect_undoes_one_or_all_and_says_whether_there_was_one():
    button, got = qt.QPushButton(), []
    button.connect("clicked()", got.clear)
    hear = got.append
    button.connect("clicked(bool)", hear)
    assert button.disconnect("clicked(bool)", hear) and not button.disconnect("clicked(bool)", hear)
    got.append("kept")
    assert button.disconnect("clicked()")
    button.click()
    assert got == ["kept"]


def test_connections_of_a_deleted_object_are_forgotten():
    for _ in range(20):  # addresses come again
        button, got = qt.QPushButton(), []
        button.connect("clicked()", lambda got=got: got.append(1))
        button.click()
        assert got == [1]
        button.delete()
        with pytest.raises(RuntimeError, match="deleted"):
            button.click()


def test_the_class_name_is_that_of_the_cpp_class():
    assert (Panel().className(), ctk.ctkSliderWidget().className()) == ("QWidget", "ctkSliderWidget")


# The module


def test_qt_has_the_classes_and_the_flat_enums_of_qt5():
    assert qt.QMessageBox.Yes == 0x4000 and qt.Qt.AlignLeft == 1 and qt.QAbstractItemView.SelectRows == 1
    policy = qt.QSizePolicy(qt.QSizePolicy.Expanding, qt.QSizePolicy.Fixed)
    assert policy.horizontalPolicy() == qt.QSizePolicy.Expanding
    assert qt.QTableWidgetItem("a").text() == "a"  # no QObject: its getters are methods in Slicer too


@pytest.mark.parametrize("name", ["QThread", "QThreadPool", "Signal", "Slot", "Property", "QApplicaton"])
def test_qt_lacks_what_slicer_lacks_or_must_not_use(name):
    with pytest.raises(AttributeError, match=name):
        getattr(qt, name)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="None is immortal from Python 3.12 on")
def test_calls_without_a_result_leave_the_references_to_none_alone():
    # PySide6 6.12.0 gave one away at each such call; after some ten thousand Python aborted the process.
    widget, before = qt.QWidget(), sys.getrefcount(None)
    for _ in range(1000):
        widget.setToolTip("x")
        widget.setToolTip("y")
    assert sys.getrefcount(None) > before - 500


def test_pyside_imported_before_the_rules_is_refused():
    code = "import PySide6.QtCore\nimport fixture.pythonqt"
    here = Path(__file__).parent
    run = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert run.returncode == 1 and "ImportError" in run.stderr and "before PySide6" in run.stderr


def test_a_single_shot_timer_calls_a_callable():
    got = []
    qt.QTimer.singleShot(0, lambda: got.append(1))
    qt.QApplication.processEvents()
    assert got == [1]


# Python classes that Qt calls


class Cases(qt.QAbstractTableModel):
    def __init__(self, rows):
        super().__init__(None)
        self.rows = rows

    def rowCount(self, parent):
        return 0 if parent.isValid() else len(self.rows)

    def columnCount(self, parent):
        return 2

    def data(self, index, role):
        if role == qt.Qt.DisplayRole:
            return self.rows[index.row()][index.column()]
        return None


class Bar(qt.QStyledItemDelegate):
    def __init__(self, parent=None):
        super().__init__(parent)
        self.seen = set()

    def paint(self, painter, option, index):
        self.seen.add(index.data())
        painter.fillRect(option.rect, qt.QColor("#204060"))


def test_a_table_model_and_a_delegate_in_python_are_asked_by_the_view():
    model, table, bar = Cases([("a", 1), ("b", 2), ("c", 3)]), qt.QTableView(), Bar()
    table.setModel(model)
    table.setItemDelegateForColumn(1, bar)
    table.selectionBehavior = qt.QAbstractItemView.SelectRows
    table.show()
    qt.QApplication.processEvents()
    table.selectRow(1)
    assert bar.seen == {1, 2, 3}
    assert [index.data() for index in table.selectionModel().selectedIndexes] == ["b", 2]
    table.close()


def test_a_widget_painted_in_python_shows_its_colour_and_has_a_size_hint():
    panel = Panel()
    panel.resize(50, 7)
    picture = panel.grab().toImage()
    assert panel.painted == [7]
    assert (picture.width(), picture.height()) == (50, 7)
    assert picture.pixelColor(49, 6).getRgb()[:3] == (10, 20, 30)
    assert panel.sizeHint.width() == -1


def test_an_exception_where_qt_calls_python_is_kept_as_a_fault():
    button = qt.QPushButton()
    button.clicked.connect(lambda: 1 / 0)
    button.click()
    qt.QTimer.singleShot(0, lambda: {}["case"])
    qt.QApplication.processEvents()
    assert [type(each) for each in pythonqt.faults] == [ZeroDivisionError, KeyError]
    with pytest.raises(AssertionError, match="got 2: ZeroDivisionError"):
        pythonqt.raise_faults()
    assert not pythonqt.faults
