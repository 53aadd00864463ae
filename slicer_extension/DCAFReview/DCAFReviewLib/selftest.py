"""One case, start to end, through the module's own widgets: what ``DCAFReviewTest`` runs.

It runs in the application against a server that is up (DCAF_TEST_SERVER; ``dcaf serve`` over synthetic
films), and unchanged under the project's tests.
"""

from __future__ import annotations

import time

import slicer

from DCAFReviewLib.layout import OVERLAY


def review_one_case(widget, address: str, *, timeout_s: float = 30.0) -> str:
    """Connects, opens the next case, looks at the overlay, answers and moves on.

    Args:
        widget: The opened module's ``DCAFReviewWidget``.
        address: Of a DCAF server without tokens.
        timeout_s: For each step.

    Returns:
        A sentence to show.

    Raises:
        AssertionError: When a step does not do what it should.
    """
    ui, session = widget.ui, widget.session
    ui.urlEdit.text = address
    ui.readerEdit.text = "selftest"
    ui.connectButton.click()
    _until(lambda: session.connection.state == "on", timeout_s, "the connection")
    _until(lambda: session.page.items and not session.page.busy, timeout_s, "the worklist")
    ui.nextButton.click()
    _until(lambda: session.case is not None and session.case.picture is not None, timeout_s, "the picture")
    first = session.case.uid
    if session.connection.model:
        _until(lambda: session.case.document is not None, timeout_s, "the answer")
    composite = slicer.app.layoutManager().sliceWidget(OVERLAY).sliceLogic().GetSliceCompositeNode()
    assert composite.GetBackgroundVolumeID(), "the picture is not in the overlay view"
    session.choose(session.connection.classes[0][0])
    ui.submitButton.click()
    _until(lambda: session.waiting == 0 and session.sent, timeout_s, "the answer's acknowledgement")
    _until(lambda: session.case is None or session.case.uid != first, timeout_s, "the next case")
    ui.disconnectButton.click()
    return "One case was read and acknowledged."


def _until(happened, timeout_s: float, what: str) -> None:
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end, f"waited {timeout_s:.0f} s for {what}"
        slicer.app.processEvents()
        time.sleep(0.01)
