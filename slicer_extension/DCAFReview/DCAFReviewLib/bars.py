"""The probability bars of a case, painted into a picture that a QLabel shows.

Painting into a pixmap instead of overriding ``paintEvent`` keeps the module free of Qt subclasses,
which Slicer's Python binding handles least well.
"""

from __future__ import annotations

from collections.abc import Sequence

import qt

from DCAFReviewLib.reading import Bar

ROW = 34
"""Height of a class's row, pixels."""


def paint(bars: Sequence[Bar], width: int, palette) -> object:
    """A ``qt.QPixmap`` of the bars.

    Each row: title and percentage above, below them the bar of the mean, a whisker of one standard
    deviation of the dropout samples to each side, and a tick at the class's cut-off. A class outside
    the conformal set is drawn pale.

    Args:
        bars: The classes, in the order to draw.
        width: Of the picture, pixels.
        palette: The widget's ``qt.QPalette``, so that the bars follow light and dark themes.
    """
    pixmap = qt.QPixmap(max(width, 120), ROW * len(bars) + 4)
    pixmap.fill(palette.color(qt.QPalette.Window))
    painter = qt.QPainter()
    painter.begin(pixmap)
    for number, bar in enumerate(bars):
        _row(painter, bar, ROW * number, pixmap.width(), palette)
    painter.end()
    return pixmap


def _row(painter, bar: Bar, top: int, width: int, palette) -> None:
    text, base = palette.color(qt.QPalette.WindowText), palette.color(qt.QPalette.Base)
    fill = qt.QColor(palette.color(qt.QPalette.Highlight))
    if bar.in_set is False:
        text.setAlpha(140)
        fill.setAlpha(90)
    left, right, bar_top, height = 4, width - 4, top + 17, 11
    span = right - left

    def x(share: float) -> int:
        return left + round(span * min(max(share, 0.0), 1.0))

    painter.setPen(qt.QPen(text))
    mark = "  \u2713 above cut-off" if bar.positive else ""
    painter.drawText(left, top, span, 16, int(qt.Qt.AlignLeft | qt.Qt.AlignVCenter), bar.title + mark)
    painter.drawText(left, top, span, 16, int(qt.Qt.AlignRight | qt.Qt.AlignVCenter),
                     f"{bar.probability:.1%} \u00b1 {bar.sd:.1%}")
    painter.fillRect(left, bar_top, span, height, qt.QBrush(base))
    painter.fillRect(left, bar_top, x(bar.probability) - left, height, qt.QBrush(fill))
    pen = qt.QPen(text)
    pen.setWidth(2)
    painter.setPen(pen)
    middle, low, high = bar_top + height // 2, x(bar.probability - bar.sd), x(bar.probability + bar.sd)
    painter.drawLine(low, middle, high, middle)
    for end in (low, high):
        painter.drawLine(end, middle - 3, end, middle + 3)
    if bar.cutoff is not None:
        pen.setStyle(qt.Qt.DashLine)
        painter.setPen(pen)
        painter.drawLine(x(bar.cutoff), bar_top - 2, x(bar.cutoff), bar_top + height + 2)
