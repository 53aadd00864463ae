"""Evidence of an audit as JPEG (pictures, outlined) and PNG bytes (distributions, shares, mean pictures).

Pictures are of patients: they go into the report folder the person named, and nowhere else.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from dcaf_monai.audit_checks import Evidence
from dcaf_monai.audit_probes import visible
from dcaf_monai.audit_rows import Row
from dcaf_monai.dicom import read_image
from dcaf_monai.fingerprint import SIDE, Fingerprint
from dcaf_monai.image import ImageError

matplotlib.use("Agg")
from matplotlib.figure import Figure  # noqa: E402  (the backend must be chosen first)

SHADES = ("#0b5fa5", "#d0632c", "#3f8f5b", "#8a5aa8", "#7a8ca3", "#b3a12a")
TILE = 150
MOST_TILES, MOST_PAIRS, ACROSS = 20, 8, 10
_OUTLINE = {"boxes": "#ffb000", "texts": "#39c2ff"}


def montage(rows: Sequence[Row], marks: Sequence[Fingerprint], places: Sequence[int], *,
            outline: str = "") -> bytes:
    """Pictures in a grid, what was found in them outlined: ``boxes`` or ``texts``."""
    places = list(places)[:MOST_TILES]
    across = min(ACROSS, len(places))
    down = -(-len(places) // across)
    sheet = Pillow.new("RGB", (across * TILE, down * TILE), "white")
    for number, place in enumerate(places):
        tile = _tile(rows[place], marks[place], outline)
        sheet.paste(tile, (number % across * TILE, number // across * TILE))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=88)
    return stream.getvalue()


def pairs(rows: Sequence[Row], marks: Sequence[Fingerprint], evidence: Evidence) -> list[tuple[bytes, str]]:
    """Pairs side by side, each with which tasks, labels and splits they are in."""
    found = []
    for a, b in evidence.pairs[:MOST_PAIRS]:
        words = " | ".join(" ".join(part for part in (rows[place].task, rows[place].label, rows[place].split)
                                    if part) for place in (a, b))
        found.append((montage(rows, marks, (a, b)), words))
    return found


def distribution(evidence: Evidence) -> bytes:
    """How a score or a property is distributed in each label."""
    values = np.concatenate(list(evidence.scores.values()))
    low, high = np.percentile(values, (0.5, 99.5))
    edges = np.linspace(low, high if high > low else low + 1, 31)
    figure = Figure(figsize=(4.6, 2.1), layout="constrained")
    axes = figure.subplots()
    for shade, (label, own) in zip(SHADES, evidence.scores.items(), strict=False):
        counts = np.histogram(np.clip(own, edges[0], edges[-1]), edges)[0] / max(len(own), 1)
        axes.stairs(counts, edges, color=shade, fill=True, alpha=0.35)
        axes.stairs(counts, edges, color=shade, label=label, linewidth=1.4)
    axes.set(xlabel=evidence.axis, ylabel="share of a label")
    axes.legend(frameon=False, fontsize=8)
    return _drawn(figure)


def shares(evidence: Evidence) -> bytes:
    """Which part of each label has each value of a category, as stacked bars."""
    names = list(dict.fromkeys(name for found in evidence.shares.values() for name in found))[:12]
    labels = list(evidence.shares)
    figure = Figure(figsize=(4.6, 0.5 + 0.35 * len(labels) + 0.17 * len(names)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(labels))
    shades = matplotlib.colormaps["tab20"](np.arange(len(names)) % 20)
    for shade, name in zip(shades, names, strict=True):
        widths = np.array([evidence.shares[label].get(name, 0) for label in labels])
        axes.barh(labels, widths, left=left, color=shade, label=name or "not stated")
        left += widths
    axes.set(xlim=(0, 1), xlabel="share of a label")
    axes.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return _drawn(figure)


def mean_pictures(rows: Sequence[Row], marks: Sequence[Fingerprint], evidence: Evidence) -> bytes:
    """Mean small copy of each label, and how the first and last differ, as the probe sees them."""
    labels = sorted(evidence.scores)
    means = [np.mean([mark.small for row, mark in zip(rows, marks, strict=True) if row.label == label],
                     axis=0) / 255 for label in labels]
    shown = np.ones((SIDE, SIDE), bool) if evidence.mask == "thumbnail" else visible(evidence.mask, SIDE)
    figure = Figure(figsize=(1.5 * (len(labels) + 1), 1.8), layout="constrained")
    axes = figure.subplots(1, len(labels) + 1)
    for axis, label, mean in zip(axes, labels, means, strict=False):
        axis.imshow(np.where(shown, mean, np.nan), cmap="gray", vmin=0, vmax=1)
        axis.set_title(label, fontsize=8)
    axes[-1].imshow(np.where(shown, means[-1] - means[0], np.nan), cmap="RdBu_r", vmin=-0.4, vmax=0.4)
    axes[-1].set_title("last - first", fontsize=8)
    for axis in axes:
        axis.set_axis_off()
        axis.set_facecolor("#cccccc")
    return _drawn(figure)


def _tile(row: Row, mark: Fingerprint, outline: str) -> Pillow.Image:
    try:
        image = read_image(row.path, frame=row.frame, max_side=4 * TILE)
        pixels = image.pixels
        stored = image.geometry.shape
    except ImageError:  # gone since it was measured: its small copy stands in
        pixels, stored = mark.small.astype(np.float32), mark.shape
    low, high = float(pixels.min()), float(pixels.max())
    grey = np.rint((pixels - low) * (255 / (high - low or 1))).astype(np.uint8)
    tile = Pillow.fromarray(grey).convert("RGB").resize((TILE - 2, TILE - 2))
    draw = ImageDraw.Draw(tile)
    for a, b, c, d in getattr(mark.artefacts, outline) if outline else ():
        down, right = (TILE - 2) / stored[0], (TILE - 2) / stored[1]
        draw.rectangle((b * right - 1, a * down - 1, d * right, c * down), outline=_OUTLINE[outline], width=2)
    return tile


def _drawn(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()
