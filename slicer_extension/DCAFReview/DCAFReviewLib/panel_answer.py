"""The reader's answer: one click or one key per class, what justifies it, submit, undo, skip."""

from __future__ import annotations

import qt

CONFIDENCES = (None, 0.25, 0.5, 0.75, 0.9, 1.0)
"""What the entries of ``confidenceBox`` stand for."""
BESIDES = {"uncertain": ("Uncertain", "U"), "not_assessable": ("Not assessable", "N")}
"""Answers that are no class: title and key."""


class AnswerPanel:
    """Shows what the reader has chosen and hands it to the session.

    Args:
        ui: The module's widgets.
        session: The session.
        logic: Where points and boxes are drawn.
    """

    def __init__(self, ui, session, logic) -> None:
        self._ui = ui
        self._session = session
        self._logic = logic
        self._buttons: dict = {}
        self._shortcuts: list = []
        self._class_shortcuts: list = []
        self._active = False
        self._showing = False
        ui.confidenceBox.connect("currentIndexChanged(int)", self._confidence)
        ui.commentEdit.connect("textEdited(QString)", lambda text: self._remark(comment=text))
        ui.settleCheck.connect("toggled(bool)", lambda on: self._remark(adjudicate=on))
        ui.pointButton.connect("clicked()", lambda: logic.start_placing("point"))
        ui.boxButton.connect("clicked()", lambda: logic.start_placing("box"))
        ui.unmarkButton.connect("clicked()", self._unmark)
        ui.submitButton.connect("clicked()", session.submit)
        ui.undoButton.connect("clicked()", session.undo)
        ui.skipButton.connect("clicked()", self._skip)
        for key, action in (("Return", self._submit_key), ("Backspace", session.undo)):
            self._shortcuts.append(self._shortcut(key, action))

    def show_connection(self) -> None:
        """Makes one button and one key for each class, and for the answers that are no class."""
        connection = self._session.connection
        answers = [(name, title, str(number))
                   for number, (name, title) in enumerate(connection.classes, start=1)]
        answers += [(name, *BESIDES.get(name, (name, ""))) for name in connection.besides]
        if [answer[0] for answer in answers] == list(self._buttons):
            return
        for old in (*self._buttons.values(), *self._class_shortcuts):
            old.setParent(None)
            old.deleteLater()
        self._buttons, self._class_shortcuts = {}, []
        for number, (name, title, key) in enumerate(answers):
            button = qt.QPushButton(f"{title} ({key})" if key else title)
            button.objectName = f"choose_{name}"
            button.checkable = True
            button.enabled = False
            button.connect("clicked()", lambda name=name: self._choose(name))
            self._ui.choicesLayout.addWidget(button, number // 2, number % 2)
            self._buttons[name] = button
            if key:
                self._class_shortcuts.append(self._shortcut(key, lambda name=name: self._choose(name)))

    def activate(self, active: bool) -> None:
        """Keys work only while the module is shown."""
        self._active = active
        for shortcut in (*self._shortcuts, *self._class_shortcuts):
            shortcut.setEnabled(active)

    def show_case(self) -> None:
        """Puts the case's answer, as far as it is given, on the buttons and fields."""
        ui, case = self._ui, self._session.case
        self._showing = True
        for name, button in self._buttons.items():
            button.enabled = case is not None and case.stored
            button.checked = case is not None and case.choice == name
        answerable = case is not None and case.stored
        for widget in (ui.commentEdit, ui.confidenceBox, ui.pointButton, ui.boxButton, ui.unmarkButton,
                       ui.skipButton, ui.skipEdit, ui.settleCheck):
            widget.enabled = answerable
        ui.submitButton.enabled = answerable and case.choice is not None
        ui.undoButton.enabled = bool(case is not None and case.choice) or bool(self._session.sent)
        comment = case.comment if case is not None else ""
        if ui.commentEdit.text != comment:
            ui.commentEdit.text = comment
        confidence = case.confidence if case is not None else None
        ui.confidenceBox.setCurrentIndex(
            CONFIDENCES.index(confidence) if confidence in CONFIDENCES else 0)
        others = case.other_labels if case is not None else {}
        ui.othersLabel.text = "Readers differ: " + ", ".join(
            f"{reader} says {label}" for reader, label in sorted(others.items()))
        ui.othersLabel.setVisible(bool(others))
        ui.settleCheck.setVisible(bool(others))
        ui.settleCheck.checked = bool(case is not None and case.adjudicate)
        self._showing = False
        self._show_mark()

    def look_at_marks(self) -> None:
        """Takes over a point or box that the reader has drawn or moved meanwhile."""
        case = self._session.case
        if case is None or not case.stored:
            return
        point, box = self._logic.justification()
        if (point, box) != (case.point, case.box):
            self._session.remark(point=point, box=box)
            self._show_mark()

    def _choose(self, name: str) -> None:
        case = self._session.case
        if case is not None and case.stored and not self._showing:
            self._session.choose(name)

    def _submit_key(self) -> None:
        case = self._session.case
        if case is not None and case.choice is not None:
            self._session.submit()

    def _confidence(self, index: int) -> None:
        self._remark(confidence=CONFIDENCES[index])

    def _remark(self, **what) -> None:
        if self._session.case is not None and not self._showing:
            self._session.remark(**what)

    def _unmark(self) -> None:
        self._logic.justify(None)
        self._remark(point=None, box=None)
        self._show_mark()

    def _show_mark(self) -> None:
        case = self._session.case
        mark = case is not None and (case.point or case.box)
        self._ui.markLabel.text = "" if not mark else \
            "at row {:.0f}, column {:.0f}".format(*mark[:2]) if len(mark) == 2 else \
            "rows {0:.0f} to {2:.0f}, columns {1:.0f} to {3:.0f}".format(*mark)

    def _skip(self) -> None:
        self._session.skip(self._ui.skipEdit.text)
        self._ui.skipEdit.clear()

    def _shortcut(self, key: str, action) -> object:
        shortcut = qt.QShortcut(qt.QKeySequence(key), self._ui.DCAFReview)
        shortcut.setContext(qt.Qt.WindowShortcut)
        shortcut.connect("activated()", action)
        shortcut.setEnabled(self._active)
        return shortcut
