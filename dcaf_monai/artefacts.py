"""Things in a picture that are not the patient: blanked-out boxes, burned-in text, too few grey levels.

All detectors look at one grey picture, scaled to [0, 1] by its own extremes, and are built to miss rather
than to invent: what they find goes to a person as evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

FLAT = 0.02
"""A box is blank: within this share of the picture's range of its extreme (JPEG rings by about 1 %)."""
BOX_AREA = 0.003
"""Smallest box, as a share of the picture: smaller blank patches occur beside markers and in text."""
BOX_SIDE = 0.03
"""Shortest side of a box, as a share of the picture's; thinner strips are margins of the film."""
FILLED_WHITE, FILLED_BLACK = 0.65, 0.9
"""Share of the rectangle around a patch that it fills. White boxes often overlap and make an L; wedges left
by turning a picture fill a half. Air beside a body is black as well, so black must be a whole rectangle."""
STEP, STEPPED = 0.06, 0.7
"""A box ends in a step of this share of the range along this share of its outline; over- and underexposed
parts of a film run out smoothly."""
STROKE = 0.30
"""Contrast of a pen stroke against what lies beside it, as a share of the range; ribs stay below 0.2."""
GLYPHS = 3
"""So many strokes in a row make a text; a single L or R is a side marker, which films should have."""
SPECKLE = 250
"""More strokes than this are noise: written-on films have about 10 to 100, a noisy OCT scan a thousand."""
FEW_LEVELS = 24
"""Effective number of grey levels below which a picture counts as posterised; films have 60 and more."""
NEARLY_BINARY = 0.95
"""Share of pixels at the two extremes from which a picture counts as black and white."""
MOST_SIDE = 768
"""Larger pictures are looked at in means of blocks: boxes and letters that matter are still there."""
MARGIN = 0.04
"""A row or column belongs to an empty margin when nearly all of it is within this share of one extreme."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Artefacts:
    """What was found in one picture; boxes are ``(row0, column0, row1, column1)``, half-open, in pixels.

    Args:
        boxes: Blank white or black patches with straight edges.
        texts: Lines of at least `GLYPHS` strokes near the edge of the picture.
        levels: Effective number of grey levels, extremes left out: 2 to the entropy of the histogram.
        extremes: Share of the pixels that are at the darkest or brightest value.
        margins: Share of the picture that is an empty black, and an empty white, strip along its sides.
    """

    boxes: tuple[Box, ...]
    texts: tuple[Box, ...]
    levels: float
    extremes: float
    margins: tuple[float, float]

    @property
    def posterised(self) -> bool:
        """Whether most of the grey scale is missing."""
        return self.levels < FEW_LEVELS or self.extremes > NEARLY_BINARY


def find_artefacts(pixels: np.ndarray) -> Artefacts:
    """Artefacts of a grey picture ``(rows, columns)``, any scale, larger is brighter."""
    low, high = float(pixels.min()), float(pixels.max())
    grey = (pixels.astype(np.float32) - low) / (high - low or 1.0)
    levels, extremes = _levels(grey)
    block = -(-max(grey.shape) // MOST_SIDE)
    coarse = _means(grey, block) if block > 1 else grey
    boxes, texts = (tuple((a * block, b * block, c * block, d * block) for a, b, c, d in find(coarse))
                    for find in (_boxes, _texts))
    margins = _margin(coarse <= MARGIN), _margin(coarse >= 1 - MARGIN)
    return Artefacts(boxes, texts, levels, extremes, margins)


def _means(grey: np.ndarray, block: int) -> np.ndarray:
    rows, columns = grey.shape[0] // block, grey.shape[1] // block
    whole = grey[:rows * block, :columns * block]
    return whole.reshape(rows, block, columns, block).mean((1, 3), dtype=np.float32)


def _margin(empty: np.ndarray) -> float:
    """Share of the picture in whole rows and columns, from the outside inwards, that are empty."""
    kept = 1.0
    for axis in (0, 1):
        full = empty.mean(1 - axis) >= 0.98
        inside = np.flatnonzero(~full)
        kept *= (inside[-1] + 1 - inside[0]) / len(full) if len(inside) else 0.0
    return 1.0 - float(kept)


def _levels(grey: np.ndarray) -> tuple[float, float]:
    counts = np.bincount(np.rint(grey * 255).astype(int).ravel(), minlength=256).astype(float)
    extremes = float(counts[[0, 255]].sum() / counts.sum())
    middle = counts[1:-1][counts[1:-1] > 0]
    share = middle / middle.sum() if middle.size else np.ones(1)
    return float(2 ** -(share * np.log2(share)).sum()), extremes


def _boxes(grey: np.ndarray) -> list[Box]:
    """White patches may touch the edge of the picture, black ones not: a collimator makes those."""
    found = []
    side = max(4, round(min(grey.shape) * BOX_SIDE)) | 1
    for blank, filled, at_edge in ((grey >= 1 - FLAT, FILLED_WHITE, True),
                                   (grey <= FLAT, FILLED_BLACK, False)):
        # an opening by a square, as two separable filters; a square must lie inside the picture
        eroded = ndimage.minimum_filter(blank.view(np.uint8), side, mode="constant", cval=0)
        parts, count = ndimage.label(ndimage.maximum_filter(eroded, side, mode="constant", cval=0))
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            if sizes[number] < max(BOX_AREA * grey.size, filled * height * width):
                continue
            gaps = (rows.start, columns.start, grey.shape[0] - rows.stop, grey.shape[1] - columns.stop)
            # a strip along a whole side, or a frame, is the margin of the film
            margin = gaps.count(0) > 2 or height > 0.95 * grey.shape[0] or width > 0.95 * grey.shape[1]
            if margin or (min(gaps) < side and not at_edge):
                continue
            if _ends_in_a_step(grey, parts, number, rows, columns):
                found.append((rows.start, columns.start, rows.stop, columns.stop))
    return sorted(found)


def _ends_in_a_step(grey: np.ndarray, parts: np.ndarray, number: int, rows: slice, columns: slice) -> bool:
    """Whether the picture differs by `STEP` three pixels outside most of a patch's outline."""
    around = (slice(max(0, rows.start - 5), rows.stop + 5),
              slice(max(0, columns.start - 5), columns.stop + 5))
    patch, values = parts[around] == number, grey[around]
    wide, narrow = (ndimage.maximum_filter(patch.view(np.uint8), size, mode="constant") for size in (7, 5))
    ring = wide > narrow
    if not ring.any():
        return False
    return float((np.abs(values[ring] - np.median(values[patch])) >= STEP).mean()) >= STEPPED


def _texts(grey: np.ndarray) -> list[Box]:
    short = min(grey.shape)
    width = max(5, round(short * 0.025)) | 1  # wider than a stroke, narrower than a bone
    found: list[Box] = []
    for thin in (ndimage.white_tophat(grey, (width, width)), ndimage.black_tophat(grey, (width, width))):
        parts, count = ndimage.label(thin > STROKE, np.ones((3, 3)))
        if count > SPECKLE:
            continue
        glyphs = [box for number, place in enumerate(ndimage.find_objects(parts), start=1)
                  if (box := _glyph(parts[place] == number, place, grey.shape))]
        found += _lines(glyphs)
    return _united(found)


def _united(boxes: list[Box]) -> list[Box]:
    """Boxes with those that overlap made one: a line of letters is both bright strokes and dark gaps."""
    found: list[Box] = []
    for box in sorted(boxes):
        for place, other in enumerate(found):
            if box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]:
                found[place] = (min(box[0], other[0]), min(box[1], other[1]), max(box[2], other[2]),
                                max(box[3], other[3]))
                break
        else:
            found.append(box)
    return found


def _glyph(patch: np.ndarray, place: tuple[slice, slice], shape: tuple[int, ...]) -> Box | None:
    """The box of a letter-like patch in the outer quarter of a picture; None for anything else."""
    height, width = patch.shape
    short = min(shape)
    rows, columns = place
    middle = ((rows.start + rows.stop) / 2 / shape[0], (columns.start + columns.stop) / 2 / shape[1])
    outside = min(*middle, 1 - middle[0], 1 - middle[1]) < 0.25
    touches = rows.start == 0 or columns.start == 0 or rows.stop == shape[0] or columns.stop == shape[1]
    sized = max(5, 0.015 * short) <= height <= 0.08 * short and 2 <= width <= 1.5 * height
    if not outside or touches or not sized or not 0.15 <= patch.mean() <= 0.95:
        return None
    return rows.start, columns.start, rows.stop, columns.stop


def _lines(glyphs: list[Box]) -> list[Box]:
    """Boxes around rows of at least `GLYPHS` glyphs of like height, each close to the next."""
    lines: list[list[Box]] = []
    for glyph in sorted(glyphs, key=lambda box: box[1]):
        for line in lines:
            last = line[-1]
            height = last[2] - last[0]
            like = 0.6 <= (glyph[2] - glyph[0]) / height <= 1.67
            level = abs((glyph[0] + glyph[2]) - (last[0] + last[2])) <= 0.6 * height
            if like and level and glyph[1] - last[3] <= 1.2 * height:
                line.append(glyph)
                break
        else:
            lines.append([glyph])
    return [(min(b[0] for b in line), line[0][1], max(b[2] for b in line), line[-1][3])
            for line in lines if len(line) >= GLYPHS]
