"""`ReviewWidget`: between the person, the session (what is so) and the logic (what is drawn).

The only place that shows errors and asks questions. Nothing here waits: the session's `tick` is
called by a timer, and what it reports as changed is drawn again.
"""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import qt
import slicer

from DCAFReviewLib.local import local_files, stated_spacing_mm, stated_window
from DCAFReviewLib.panel_answer import AnswerPanel
from DCAFReviewLib.panel_case import CasePanel
from DCAFReviewLib.panel_learn import RUNNING, LearnPanel
from DCAFReviewLib.panel_overlay import OverlayPanel
from DCAFReviewLib.panel_worklist import WorklistPanel, short
from DCAFReviewLib.report import agreement_text

TICK_MS = 20
"""How often replies are collected while the module is shown."""
AWAY_MS = 1000
"""The same while another module is shown: leases are renewed and the journal is sent all the same."""
STATES = {"off": ("#999999", "Not connected"), "connecting": ("#E69F00", "Connecting \u2026"),
          "on": ("#009E73", "Connected"), "lost": ("#D55E00", "Connection lost")}
SETTINGS = {"url": "DCAFReview/Address", "token": "DCAFReview/Token", "reader": "DCAFReview/Reader",
            "authority": "DCAFReview/Authority", "sends": "DCAFReview/SendsTo"}


class ReviewWidget:
    """The module's panel at work.

    Args:
        ui: The widgets of ``DCAFReview.ui`` by name.
        session: The session with the server; its `has_local` is answered by `local.local_files`.
        logic: Draws on the scene.
    """

    def __init__(self, ui, session, logic) -> None:
        self._ui = ui
        self._session = session
        self._logic = logic
        self._drawn = None
        self.longest_gap_s = 0.0
        self._last_tick = time.monotonic()
        self._worklist = WorklistPanel(ui, session)
        self._case = CasePanel(ui, session)
        self._answer = AnswerPanel(ui, session, logic)
        self._overlay = OverlayPanel(ui, session, logic)
        self._learn = LearnPanel(ui, session, logic)
        self._read_settings()
        ui.connectButton.connect("clicked()", self.connect_to_server)
        ui.disconnectButton.connect("clicked()", session.disconnect)
        ui.readFirstCheck.connect("toggled(bool)", self._read_first)
        ui.volumeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._offer_slices)
        ui.classifyButton.connect("clicked()", self._classify)
        ui.copyButton.connect("clicked()", self._copy)
        ui.saveButton.connect("clicked()", self._save)
        ui.exportButton.connect("clicked()", self._export)
        ui.agreementButton.connect("clicked()", session.ask_agreement)
        self._shortcuts = [self._shortcut("O", self._overlay.toggle),
                           self._shortcut("M", self._overlay.next_map)]
        session.listen(self._changed)
        self._timer = qt.QTimer()
        self._timer.setInterval(AWAY_MS)
        self._timer.connect("timeout()", self._tick)
        self._timer.start()
        self._changed(frozenset({"connection", "page", "case", "training", "journal", "notice"}))

    def enter(self) -> None:
        """The module is shown: keys work, the views are ours, the open case is drawn."""
        self._logic.arrange(curve=self._ui.curveCheck.checked)
        self._activate(True)
        self._timer.setInterval(TICK_MS)
        self._last_tick = time.monotonic()
        self._session.resume()
        self._changed(frozenset({"case", "picture", "heat", "training"}))

    def leave(self) -> None:
        """Another module is shown: our nodes go, what they wait for is called off, the old layout comes back.

        The case stays open with what was answered so far, to go on with when the module is shown again.
        """
        self._session.pause()
        self._activate(False)
        self._timer.setInterval(AWAY_MS)
        self._drawn = None
        self._logic.clear()
        self._logic.restore()

    def forget_scene(self) -> None:
        """The scene is closing: what we drew is gone with it, and requests for it are called off."""
        self._drawn = None
        self._session.close_case()
        self._logic.clear()

    def close(self) -> None:
        """The module goes away; what was not acknowledged stays in the journal."""
        self._timer.stop()
        self._activate(False)
        self._session.close()
        self._logic.clear()

    def connect_to_server(self) -> None:
        """Connects with what stands in the fields, and keeps it for the next time."""
        ui, settings = self._ui, slicer.app.settings()
        typed = {"url": ui.urlEdit.text.strip(), "token": ui.tokenEdit.text.strip(),
                 "reader": ui.readerEdit.text.strip(), "authority": ui.authorityEdit.currentPath.strip()}
        for key, text in typed.items():
            settings.setValue(SETTINGS[key], text)
        try:
            self._session.connect(typed["url"], token=typed["token"], ca_file=typed["authority"],
                                  reader=typed["reader"])
        except ValueError as error:
            self._tell(str(error), "error")

    # -- what changed is drawn ----------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now - self._last_tick - self._timer.interval / 1000)
        self._session.tick()
        if self._drawn is not None:     # else our markings are away with the module
            self._answer.look_at_marks()
        self._last_tick = now

    def _changed(self, topics: frozenset) -> None:
        session = self._session
        if "connection" in topics:
            self._show_connection()
        if topics & {"page", "connection"}:
            self._worklist.show_page(session.read_first)
        if "case" in topics:
            self._show_case()
        if topics & {"picture", "case"}:
            self._show_picture()
        if topics & {"heat", "case"}:
            self._overlay.show_heat(self._drawn is not None)
        if topics & {"training", "connection"}:
            self._learn.show_training()
            self._show_status()
        if topics & {"journal", "connection"}:
            self._show_journal()
        if topics & {"agreement", "connection"}:
            self._show_agreement()
        if "notice" in topics:
            self._tell(session.notice.text, session.notice.severity)

    def _show_connection(self) -> None:
        ui, connection = self._ui, self._session.connection
        on = connection.state in ("on", "lost")
        ui.connectButton.enabled = connection.state in ("off", "lost")
        ui.disconnectButton.enabled = connection.state != "off"
        ui.connectionSection.collapsed = on
        self._worklist.show_connection()
        self._answer.show_connection()
        self._overlay.show_connection()
        self._offer_classify()
        self._show_status()

    def _show_status(self) -> None:
        connection, training = self._session.connection, self._session.training
        colour, text = STATES[connection.state]
        if connection.state == "on":
            host = urlsplit(connection.url).netloc
            text = f"{text} to {host} as {connection.reader or 'reader'} ({connection.role}). "
            text += f"{connection.task_title}. " + (
                f"Model {connection.model['name']} {connection.model['version']}." if connection.model
                else "No model yet: labels and agreement only.")
            if training.state in RUNNING:
                share = f" {100 * training.done // training.total} %" if training.total else ""
                text += f" Training is running{share}."
        elif connection.message:
            text = f"{text}: {connection.message}"
        self._ui.statusLabel.text = f'<span style="color:{colour}">\u25cf</span> {_plain(text)}'

    def _show_case(self) -> None:
        ui, case = self._ui, self._session.case
        self._case.show_case()
        self._answer.show_case()
        self._overlay.show_case()
        for button in (ui.copyButton, ui.saveButton):
            button.enabled = case is not None
        ui.exportButton.enabled = bool(self._session.sent)
        if case is not None:
            self._worklist.show_open(case.uid)

    def _show_picture(self) -> None:
        case = self._session.case
        if case is None:
            if self._drawn is not None:
                self._logic.clear()
            self._drawn = None
            return
        ready = case.picture is not None or case.local
        if not ready or self._drawn == (case.uid, case.opened):
            return
        if case.picture is not None:
            self._logic.show_picture(case.picture, short(case.name))
        elif case.stored:
            try:
                self._show_local(case)
            except ValueError:      # a codec that is missing here, a file that is gone: the server has it
                return self._session.fetch_picture()
        self._drawn = (case.uid, case.opened)
        self._logic.justify(None)
        for kind, where in (("point", case.point), ("box", case.box)):
            if where:
                self._logic.justify(kind, where)

    def _show_local(self, case) -> None:
        files = local_files(case.uid)
        self._logic.load_local(files, case.uid, short(case.name), window=stated_window(files[0]),
                               spacing_mm=stated_spacing_mm(files[0]))

    def _show_journal(self) -> None:
        session, parts = self._session, []
        if session.waiting:
            parts.append(f"{session.waiting} answers wait to be sent; they are kept on this machine.")
        if session.refused:
            parts.append(f"{len(session.refused)} answers were refused: {session.refused[-1].why}")
        self._ui.journalLabel.text = "\n".join(parts)
        self._ui.exportButton.enabled = bool(session.sent)

    def _show_agreement(self) -> None:
        told = self._session.agreement
        self._ui.agreementButton.enabled = self._session.connection.state == "on"
        self._ui.agreementLabel.text = agreement_text(told) if told else ""
        self._ui.agreementLabel.setVisible(bool(told))

    def _tell(self, text: str, severity: str) -> None:
        colour = {"error": "#D55E00", "warning": "#B07000"}.get(severity, "palette(window-text)")
        self._ui.noticeLabel.setStyleSheet(f"color: {colour}")
        self._ui.noticeLabel.text = text
        self._ui.noticeLabel.setVisible(bool(text))

    # -- what the person does ------------------------------------------------------------------------

    def _read_first(self, on: bool) -> None:
        self._session.read_first = on
        self._worklist.show_page(on)

    def _offer_slices(self, node) -> None:
        extent = node.GetImageData().GetDimensions()[2] if node is not None and node.GetImageData() else 1
        self._ui.sliceSpin.maximum = extent
        self._ui.sliceSpin.value = (extent + 1) // 2
        self._offer_classify()

    def _offer_classify(self) -> None:
        connection = self._session.connection
        self._ui.classifyButton.enabled = bool(
            connection.state == "on" and connection.model and self._ui.volumeSelector.currentNode())

    def _classify(self) -> None:
        node, connection = self._ui.volumeSelector.currentNode(), self._session.connection
        if node is None or not self._may_send(connection.url):
            return
        number = self._ui.sliceSpin.value - 1
        try:
            path = self._logic.export(node, number)
        except ValueError as error:
            self._tell(str(error), "error")
            return
        self._session.classify(path, f"{node.GetName()} {number + 1}")
        self._logic.adopt(node, number)
        self._drawn = (self._session.case.uid, self._session.case.opened)

    def _may_send(self, url: str) -> bool:
        """Asks once for each server before a picture leaves this machine."""
        settings = slicer.app.settings()
        allowed = (settings.value(SETTINGS["sends"]) or "").split("\n")
        if url in allowed:
            return True
        # Not slicer.util.confirmYesNoDisplay: in the application's testing mode that says yes by itself.
        sure = qt.QMessageBox.question(
            slicer.util.mainWindow(), "DCAF Review",
            f"Send pictures from this application to {urlsplit(url).netloc}? The pixels and their geometry "
            "are sent, without the DICOM header; burned-in text goes with them. The server answers and does "
            "not keep them.", qt.QMessageBox.Yes | qt.QMessageBox.No) == qt.QMessageBox.Yes
        if sure:
            settings.setValue(SETTINGS["sends"], "\n".join([*filter(None, allowed), url]))
        return sure

    def _copy(self) -> None:
        slicer.app.clipboard().setText(self._case.text())

    def _save(self) -> None:
        self._write(self._case.text(), "case.txt", "Text (*.txt)")

    def _export(self) -> None:
        self._write(self._session.csv(), "annotations.csv", "CSV (*.csv)")

    def _write(self, text: str, name: str, kinds: str) -> None:
        path = qt.QFileDialog.getSaveFileName(self._ui.DCAFReview, "DCAF Review", name, kinds)
        path = path[0] if isinstance(path, tuple) else path
        if not path:
            return
        try:
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.write(text)
        except OSError as error:
            self._tell(f"File: need a place to write, got {error.strerror}. Choose another folder.", "error")
            return
        self._tell("Saved.", "info")

    # -- inside --------------------------------------------------------------------------------------

    def _activate(self, active: bool) -> None:
        self._answer.activate(active)
        for shortcut in self._shortcuts:
            shortcut.setEnabled(active)

    def _shortcut(self, key: str, action) -> object:
        shortcut = qt.QShortcut(qt.QKeySequence(key), self._ui.DCAFReview)
        shortcut.connect("activated()", action)
        shortcut.setEnabled(False)
        return shortcut

    def _read_settings(self) -> None:
        ui, settings = self._ui, slicer.app.settings()
        ui.urlEdit.text = settings.value(SETTINGS["url"]) or "http://127.0.0.1:8000"
        ui.tokenEdit.text = settings.value(SETTINGS["token"]) or ""
        ui.readerEdit.text = settings.value(SETTINGS["reader"]) or ""
        ui.authorityEdit.currentPath = settings.value(SETTINGS["authority"]) or ""


def _plain(text: str) -> str:
    """Text that a rich-text label shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
