"""What the tests of the whole module share: connecting, opening cases, counting coloured pixels."""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request

import fixture
from served import Served


def ask(served: Served, path: str, reader: str = "chief") -> object:
    """JSON of a GET, past the extension; names in the path may be written as they are."""
    headers = {"Authorization": f"Bearer {served.tokens[reader]}"} if served.tokens else {}
    request = urllib.request.Request(served.url + urllib.parse.quote(path, safe="/?&="), headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait_scored(served: Served, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while ask(served, "/dcaf/worklist?status=unscored")["total"]:
        assert time.monotonic() < deadline, served.output()
        time.sleep(0.2)


def connect(widget, served: Served, reader: str = "ada", url: str | None = None) -> None:
    """Types address and token, presses the button, and waits for the worklist."""
    ui = widget.ui
    ui.urlEdit.text = url or served.url
    ui.tokenEdit.text = served.tokens.get(reader, "")
    ui.readerEdit.text = "" if served.tokens else reader
    ui.connectButton.click()
    fixture.wait(lambda: widget.session.connection.state == "on")
    fixture.wait(lambda: not widget.session.page.busy and widget.session.page.total)


def open_next(widget, *, heat: bool = True):
    """Presses "Next most uncertain" and waits for picture, answer and overlay."""
    widget.ui.nextButton.click()
    return loaded(widget, heat=heat)


def loaded(widget, *, other_than: str = "", heat: bool = True):
    session = widget.session
    fixture.wait(lambda: session.case is not None and session.case.uid != other_than
                 and session.case.picture is not None and (session.case.heat is not None or not heat))
    fixture.process(0.05)
    return session.case


def press(widget, key) -> None:
    """Presses a key in the application's window, which other tests' windows may have pushed back."""
    from PySide6 import QtTest

    window = fixture.main_window()
    window.activateWindow()
    fixture.wait(lambda: window.isActiveWindow, 5)
    QtTest.QTest.keyClick(widget.ui.DCAFReview, key)


def coloured(view: str) -> int:
    """Pixels of a slice view that are not grey."""
    pixels = fixture.grab_view(view).astype(int)
    return int((pixels.max(-1) - pixels.min(-1) > 12).sum())
