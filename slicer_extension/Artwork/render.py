"""Renders the icon: QT_QPA_PLATFORM=offscreen python Artwork/render.py (needs PySide6-Essentials)."""

from pathlib import Path

from PySide6.QtGui import QGuiApplication, QImage, QPainter
from PySide6.QtSvg import QSvgRenderer

HERE = Path(__file__).resolve().parent
SIDE = 128

application = QGuiApplication([])
image = QImage(SIDE, SIDE, QImage.Format.Format_ARGB32)
image.fill(0)
painter = QPainter(image)
QSvgRenderer(str(HERE / "DCAFReview.svg")).render(painter)
painter.end()
if not image.save(str(HERE.parent / "DCAFReview/Resources/Icons/DCAFReview.png")):
    raise SystemExit("DCAFReview.png: need a folder that can be written, got none.")
