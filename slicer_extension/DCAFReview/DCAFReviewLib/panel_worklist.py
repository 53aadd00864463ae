"""The worklist: one page of cases in a table, filters above it, the pager below."""

from __future__ import annotations

import qt

from DCAFReviewLib.reading import SURE, UNSURE

COLUMNS = ("Case", "Model says", "Prob.", "Entropy", "Status", "Read by")
CASE, LABEL, SCORE, ENTROPY, STATUS, READERS = range(len(COLUMNS))
WIDTHS = {CASE: 80, LABEL: 74, SCORE: 40, ENTROPY: 52, STATUS: 54, READERS: 50}
"""Pixels; the last takes what is left."""
ORDER_OF_COLUMN = {CASE: "case", LABEL: "label", SCORE: "score", ENTROPY: "entropy"}
"""The server sorts, since a page is a small part of the list."""
ORDERS = {"entropy": "Most uncertain first", "mutual_information": "Samples disagree most",
          "margin": "Closest call first", "bald": "Samples disagree most (BALD)",
          "powerbald": "Samples disagree, with some chance", "batchbald": "Most to learn from a batch",
          "badge": "Doubtful and unlike each other", "coreset": "Least like what is labelled",
          "typiclust": "Typical of their kind", "entropy_density": "Uncertain and typical",
          "least_confidence": "Least confident first", "random": "Random", "case": "Case",
          "label": "Model's answer", "score": "Probability"}
STATUSES = {"unread": "Unread", "all": "All", "mine": "Read by me", "read": "Read",
            "disagreement": "Disagreements", "skipped": "Skipped", "unscored": "Not yet scored",
            "leased": "Being read"}
DRAWN = "* drawn at random, so that the model is also watched where it is sure"
COLOUR_BLIND_SAFE = {"low": "#0072B2", "middle": "#999999", "high": "#D55E00"}
"""Of the entropy bars (Okabe and Ito's palette)."""


class WorklistPanel:
    """Shows `Session.page` and asks for another one.

    Args:
        ui: The module's widgets.
        session: The session.
    """

    def __init__(self, ui, session) -> None:
        self._ui = ui
        self._session = session
        self._filling = False
        table = ui.worklistTable
        table.setColumnCount(len(COLUMNS))
        table.setHorizontalHeaderLabels(list(COLUMNS))
        table.verticalHeader().hide()
        table.setMinimumHeight(170)
        table.verticalHeader().setDefaultSectionSize(22)
        header = table.horizontalHeader()
        header.setStretchLastSection(True)
        header.setHighlightSections(False)      # bold titles would be wider than their columns
        header.setMinimumSectionSize(30)
        for column, width in WIDTHS.items():
            table.setColumnWidth(column, width)
        header.connect("sectionClicked(int)", self._sort)
        table.connect("cellDoubleClicked(int,int)", self._open)
        for box, wanted in ((ui.orderBox, "order"), (ui.statusBox, "status"), (ui.labelBox, "label")):
            box.connect("currentIndexChanged(int)",
                        lambda _=0, box=box, wanted=wanted: self._choose(box, wanted))
        ui.previousButton.connect("clicked()", lambda: self._turn(-1))
        ui.followingButton.connect("clicked()", lambda: self._turn(1))
        ui.nextButton.connect("clicked()", session.next_case)

    def show_connection(self) -> None:
        """Offers the orders, filters and classes of the server that answers."""
        connection = self._session.connection
        self._filling = True
        _fill(self._ui.orderBox, [(ORDERS.get(order, order), order)
                                  for order in connection.orders or ("entropy",)])
        _fill(self._ui.statusBox, [(text, status) for status, text in STATUSES.items()])
        classes = [(title, name) for name, title in connection.classes]
        _fill(self._ui.labelBox, [("All classes", ""), *classes])
        self._filling = False
        self._ui.nextButton.enabled = connection.state == "on"

    def show_page(self, blind: bool) -> None:
        """Fills the table.

        Args:
            blind: The reader wants to read before seeing answers: they stay out of the list too.
        """
        page, ui, table = self._session.page, self._ui, self._ui.worklistTable
        self._filling = True
        _select(ui.orderBox, page.order)
        _select(ui.statusBox, page.status)
        _select(ui.labelBox, page.label or "")
        self._filling = False
        titles = dict(self._session.connection.classes)
        table.setUpdatesEnabled(False)
        table.setRowCount(len(page.items))
        for row, item in enumerate(page.items):
            self._fill_row(row, item, titles, blind)
        table.setUpdatesEnabled(True)
        for column in (LABEL, SCORE, ENTROPY):
            table.setColumnHidden(column, blind)
        first, last = page.offset + 1, page.offset + len(page.items)
        text = f"{first:,} to {last:,} of {page.total:,}" if page.items else "Nothing here."
        drawn = any(item.get("random") for item in page.items)
        ui.pageLabel.text = "Asking \u2026" if page.busy else text + (", * drawn at random" if drawn else "")
        ui.pageLabel.toolTip = DRAWN if drawn else ""
        # by a list of names no case is handed out: then it is the most uncertain one, too
        uncertain = page.order in ("entropy", *ORDER_OF_COLUMN.values())
        ui.nextButton.text = "Next most uncertain" if uncertain else "Next of this order"
        ui.previousButton.enabled = page.offset > 0
        ui.followingButton.enabled = last < page.total

    def show_open(self, uid: str) -> None:
        """Marks the row of the case that is open, when this page has it."""
        table = self._ui.worklistTable
        rows = [row for row, item in enumerate(self._session.page.items) if item["uid"] == uid]
        if rows:
            table.selectRow(rows[0])
        else:
            table.clearSelection()

    def _fill_row(self, row: int, item: dict, titles: dict, blind: bool) -> None:
        table, scored = self._ui.worklistTable, item["label"] is not None and not blind
        status = {"leased": "being read", "disagreement": "differ"}.get(item["status"], item["status"])
        drawn = " *" if item.get("random") else ""
        texts = {CASE: short(item["uid"]) + drawn,
                 LABEL: titles.get(item["label"], item["label"]) if scored else "",
                 SCORE: f"{item['score']:.0%}" if scored else "", STATUS: status,
                 READERS: ", ".join(item["read_by"])}
        for column, text in texts.items():
            cell = qt.QTableWidgetItem(text)
            # what a narrow column may cut off
            cell.setToolTip(item["uid"] + ("\n" + DRAWN if drawn else "") if column == CASE else text)
            table.setItem(row, column, cell)
        if scored:
            table.setCellWidget(row, ENTROPY, _entropy_bar(item["normalized_entropy"]))
        else:
            table.removeCellWidget(row, ENTROPY)

    def _sort(self, column: int) -> None:
        order, page = ORDER_OF_COLUMN.get(column), self._session.page
        if order is None:
            return
        again = order == page.order
        self._session.show_page(order=order, offset=0, descending=not page.descending if again else None)

    def _choose(self, box, wanted: str) -> None:
        if not self._filling:
            self._session.show_page(offset=0, **{wanted: box.itemData(box.currentIndex) or ""},
                                    **({"descending": None} if wanted == "order" else {}))

    def _open(self, row: int, _: int) -> None:
        items = self._session.page.items
        if row < len(items):
            self._session.open_case(items[row]["uid"])

    def _turn(self, by: int) -> None:
        page = self._session.page
        self._session.show_page(offset=max(0, page.offset + by * page.limit))


def short(uid: str) -> str:
    """The end of a long name, which is where UIDs of one archive differ."""
    return uid if len(uid) <= 12 else "\u2026" + uid[-8:]


def _entropy_bar(share: float) -> object:
    """A small bar of normalised entropy, 0..1; its hue says the same as its length."""
    bar = qt.QProgressBar()
    bar.setMaximum(100)
    bar.setValue(round(100 * share))
    bar.setFormat(f"{share:.2f}")
    kind = "low" if share < SURE else "high" if share >= UNSURE else "middle"
    bar.setStyleSheet("QProgressBar { border: 0; margin: 2px; background: palette(base); "
                      "text-align: center; } "
                      f"QProgressBar::chunk {{ background: {COLOUR_BLIND_SAFE[kind]}; }}")
    return bar


def _fill(box, choices) -> None:
    held = [(box.itemText(i), box.itemData(i)) for i in range(box.count)]
    if held == list(choices):
        return
    box.clear()
    for text, value in choices:
        box.addItem(text, value)


def _select(box, value: str) -> None:
    index = box.findData(value)
    if index >= 0 and index != box.currentIndex:
        box.setCurrentIndex(index)
