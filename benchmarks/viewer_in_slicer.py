"""The viewer's side of `benchmarks.viewer`: runs in the extension's environment, prints JSON.

    ../.venv-slicer/bin/python viewer_in_slicer.py cases|worklist URL
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/slicer"), str(ROOT / "slicer_extension/DCAFReview")]

import fixture  # noqa: E402

fixture.start()

import qt  # noqa: E402
from DCAFReviewLib.client import Address, Server  # noqa: E402
from ownclock import own_s  # noqa: E402

MODULE = ROOT / "slicer_extension/DCAFReview/DCAFReview.py"


class Beat:
    """Milliseconds between calls of a timer that asks for one every 5 ms: what the window did not answer.

    Without the time in which other processes had the cores: they are not the module's doing.
    """

    def __init__(self) -> None:
        self.gaps_ms, self._last = [], own_s()
        self._timer = qt.QTimer()
        self._timer.setInterval(5)
        self._timer.connect("timeout()", self._beat)
        self._timer.start()

    def _beat(self) -> None:
        now = own_s()
        self.gaps_ms.append((now - self._last) * 1000)
        self._last = now


def cases(url: str, turns: int = 15) -> dict:
    """Milliseconds from the click to the drawn overlay, by stage, beside the bare requests.

    Every turn opens a case of which nothing is there yet; then as many cases are read one after the other, of
    which each was fetched while the one before was looked at.
    """
    widget = connected(url)
    session, server = widget.session, Server(Address(url))
    uids = [item["uid"] for item in session.page.items]
    kind = session.connection.maps[0]
    found: dict[str, list] = {name: [] for name in ("switch", "picture", "answer", "overlay", "bare", "gap")}
    for turn in range(turns + 2):
        uid = uids[turn % len(uids)]
        start = time.perf_counter()
        server.infer(uid, kind)
        server.picture(uid)
        bare = time.perf_counter() - start
        session.close_case()
        fixture.process(0.1)
        beat, start = Beat(), time.perf_counter()
        session.open_case(uid)
        stages = {}
        for name, there in (("picture", lambda: session.case.picture is not None),
                            ("answer", lambda: session.case.document is not None),
                            ("overlay", lambda: session.case.heat is not None)):
            fixture.wait(there, 60)
            stages[name] = time.perf_counter() - start
        fixture.process(0)      # the views are painted
        stages["switch"] = time.perf_counter() - start
        fixture.process(0.05)
        if turn >= 2:           # the first ones load the model
            for name, seconds in {**stages, "bare": bare}.items():
                found[name].append(seconds * 1000)
            found["gap"].append(max(beat.gaps_ms))
    session.close_case()
    found["next"] = _read_on(widget, turns)
    return {name: {"median": statistics.median(values), "p95": sorted(values)[int(0.95 * len(values))],
                   "max": max(values)} for name, values in found.items()}


def _read_on(widget, turns: int) -> list[float]:
    """Milliseconds from the press of "Submit" to the next case with its overlay, each fetched ahead."""
    session, found = widget.session, []
    session.show_page()     # every answer so far has changed the order
    fixture.wait(lambda: not session.page.busy, 60)
    widget.ui.nextButton.click()
    fixture.wait(lambda: session.case is not None and session.case.heat is not None, 60)
    for _ in range(turns):
        fixture.wait(lambda: session.ahead is not None and not session.ahead.awaited, 60)
        ahead = session.ahead
        session.choose(session.connection.classes[0][0])
        fixture.process(0.1)
        start = time.perf_counter()
        widget.ui.submitButton.click()
        fixture.wait(lambda: session.case is not None and session.case.picture is not None
                     and session.case.heat is not None, 60)     # the one before is gone with the press
        fixture.process(0)      # the views are painted
        found.append((time.perf_counter() - start) * 1000)
        if session.case is not ahead:
            raise RuntimeError("viewer: need the case that was fetched ahead, got another.")
    return found


def worklist(url: str, turns: int = 12) -> dict:
    """Milliseconds to the first page in the table after connecting, to a far page, and the longest gap."""
    widget = fixture.open_module(MODULE)
    beat = Beat()
    start = time.perf_counter()
    connect(widget, url)
    first = time.perf_counter() - start
    session, scrolled = widget.session, []
    for turn in range(turns):
        offset = (turn * 7919 * 100) % (session.page.total - 100)
        start = time.perf_counter()
        session.show_page(offset=offset)
        fixture.wait(lambda: not session.page.busy, 60)
        fixture.process(0)
        scrolled.append((time.perf_counter() - start) * 1000)
    return {"total": session.page.total, "first": first * 1000, "page": statistics.median(scrolled),
            "page max": max(scrolled), "gap": max(beat.gaps_ms[3:])}


def connected(url: str):
    """The opened module with a filled worklist."""
    widget = fixture.open_module(MODULE)
    connect(widget, url)
    return widget


def connect(widget, url: str) -> None:
    """Presses the button and waits until the first page stands in the table."""
    widget.ui.urlEdit.text, widget.ui.readerEdit.text = url, "bench"
    widget.ui.connectButton.click()
    fixture.wait(lambda: widget.session.page.total and not widget.session.page.busy, 60)
    fixture.process(0)


if __name__ == "__main__":
    print(json.dumps({"cases": cases, "worklist": worklist}[sys.argv[1]](sys.argv[2])))
