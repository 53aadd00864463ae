"""The open case: what the model says of it, how sure it is, and what speaks against believing it."""

from __future__ import annotations

from DCAFReviewLib import bars, reading
from DCAFReviewLib.panel_worklist import short


class CasePanel:
    """Shows `Session.case`; hides the answer until the reader has read, where that is wished.

    Args:
        ui: The module's widgets.
        session: The session.
    """

    def __init__(self, ui, session) -> None:
        self._ui = ui
        self._session = session
        ui.revealButton.connect("clicked()", session.reveal)

    def show_case(self) -> None:
        """Fills the panel from the case as it stands; clears it when none is open."""
        ui, case = self._ui, self._session.case
        document = case.document if case is not None and case.revealed else None
        titles = dict(self._session.connection.classes)
        ui.caseLabel.text = _title(case)
        ui.revealButton.setVisible(case is not None and not case.revealed)
        for label, text in ((ui.verdictLabel, reading.verdict(document, titles) if document else ""),
                            (ui.figuresLabel, reading.figures(document) if document else ""),
                            (ui.conformalLabel, reading.conformal(document, titles) if document else ""),
                            (ui.warningsLabel, _warnings(document) if document else "")):
            label.text = text
            label.setVisible(bool(text))
        ui.barsLabel.setVisible(document is not None)
        if document:
            width = max(ui.caseSection.width - 30, 200)
            ui.barsLabel.setPixmap(bars.paint(reading.bars(document, titles), width, ui.barsLabel.palette))

    def text(self) -> str:
        """The case as lines to copy or save."""
        return self._session.text()


def _title(case) -> str:
    if case is None:
        return "No case is open."
    state = "" if not case.loading else " \u2014 loading \u2026"
    origin = "" if case.stored else " (not in the server's store)"
    return f"Case {short(case.name)}{origin}{state}"


def _warnings(document) -> str:
    return "\n".join(f"\u26a0 {message}" for message in reading.warnings(document))
