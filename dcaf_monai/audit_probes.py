"""How much of the label can be told without looking at the disease: one property, the border, a thumbnail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image as Pillow

from dcaf_monai.association import Association, Design, held_out
from dcaf_monai.audit_checks import (
    ARTEFACT,
    CONTENT,
    CONTEXT,
    PICTURE,
    Evidence,
    Suspicion,
    by_label,
    picture_shapes,
)
from dcaf_monai.audit_rows import Row
from dcaf_monai.fingerprint import SIDE, TONES, Fingerprint

FRAME = SIDE // 10
"""Border test: the outer tenth of each side."""
MASK = round(SIDE * 0.15)
"""Blackout test: the middle 70 % of each side is covered, which hides lungs or retina but for their rims."""
THUMBNAIL = 16
MASKS = {"border": "From the outer tenth of the picture alone", "blackout": "With the middle of the picture "
                                                                            "covered",
         "thumbnail": f"From a thumbnail of {THUMBNAIL} x {THUMBNAIL} pixels"}
Look = Callable[[np.ndarray, str], np.ndarray]
"""Pooled trunk features ``(places, numbers)`` of the task's rows at places, masked: `audit_model.Eyes`."""


def properties(rows: Sequence[Row], marks: Sequence[Fingerprint]) -> dict[str, tuple[str, str, np.ndarray]]:
    """By name, each cheap property of the files: what it is called, its kind, its values ``(rows,)``."""
    shapes = np.array(picture_shapes(rows, marks), float)
    tones = {name: np.array([mark.tones[place] for mark in marks]) for place, name in enumerate(TONES)}
    area = np.array([mark.shape[0] * mark.shape[1] for mark in marks], float)
    return {
        "aspect": ("Width by height", ARTEFACT, shapes[:, 1] / shapes[:, 0]),
        "area": ("Size in pixels", ARTEFACT, shapes[:, 0] * shapes[:, 1]),
        "compression": ("JPEG quantisation", ARTEFACT, np.array([mark.quantisation for mark in marks])),
        "black_margin": ("Share of empty black margins", ARTEFACT,
                         np.array([mark.artefacts.margins[0] for mark in marks])),
        "white_margin": ("Share of empty white margins", ARTEFACT,
                         np.array([mark.artefacts.margins[1] for mark in marks])),
        "black_level": ("Darkest grey (0.5th percentile)", CONTENT, tones["p0_5"]),
        "white_level": ("Brightest grey (99.5th percentile)", CONTENT, tones["p99_5"]),
        "brightness": ("Mean grey", CONTENT, tones["mean"]),
        "contrast": ("Standard deviation of grey", CONTENT, tones["sd"]),
        "grey_levels": ("Entropy of the grey values (as a number of levels)", CONTENT, tones["levels"]),
        "saturated": ("Share of pixels at the darkest or brightest value", CONTENT, tones["extremes"]),
        "sharpness": ("Sharpness", CONTENT, np.array([mark.sharpness for mark in marks])),
        "bytes": ("Bytes of file a pixel", CONTENT, np.array([mark.file_bytes for mark in marks]) / area)}


def alone(rows: Sequence[Row], marks: Sequence[Fingerprint], design: Design) -> Iterator[Suspicion]:
    """Each property by itself, and all of them together."""
    found = properties(rows, marks)
    labels = [row.label for row in rows]
    for name, (title, kind, values) in found.items():
        association = design.alone(values)
        yield Suspicion(name, f"{title} alone" if association else f"{title} is the same in every picture",
                        association, kind, evidence=Evidence(
                            cases=_surest(association, labels), scores=by_label(values, labels), axis=title))
    ends = np.stack([found["black_level"][2], found["white_level"][2]], 1)
    association = design.probe(ends)
    yield Suspicion("grey_ends", "From the darkest and the brightest grey together", association, CONTENT,
                    evidence=replace(_told(association, labels), cases=_surest(association, labels)))
    numbers = np.stack([values for _, _, values in found.values()], 1)
    association = design.probe(np.concatenate([numbers, np.array([mark.tones for mark in marks])], 1))
    yield Suspicion("properties", "From size, compression and grey scale together, no picture seen",
                    association, CONTENT, evidence=_told(association, labels))


def glimpses(rows: Sequence[Row], marks: Sequence[Fingerprint], design: Design) -> Iterator[Suspicion]:
    """Border, covered middle and thumbnail, by regression on small grey copies."""
    small = np.stack([mark.small for mark in marks])
    for name, sentence in MASKS.items():
        yield _glimpse(name, sentence, seen(small, name), rows, design)


def glimpses_of_model(rows: Sequence[Row], design: Design, look: Look) -> Iterator[Suspicion]:
    """Border and covered middle once more, by what a model's trunks see of them."""
    labels = np.array([row.label for row in rows])
    for name in ("border", "blackout"):
        seen_by_model = look(design.rows, name)
        numbers = np.zeros((len(rows), seen_by_model.shape[1]), np.float32)
        numbers[design.rows] = seen_by_model
        association = design.probe(numbers)
        yield Suspicion(f"{name}_model", f"{MASKS[name]}, by the model's trunks", association, CONTEXT,
                        evidence=_told(association, labels))


def seen(small: np.ndarray, mask: str) -> np.ndarray:
    """What a probe sees of small copies ``(cases, SIDE, SIDE)``: ``(cases, pixels)`` in [0, 1]."""
    if mask == "thumbnail":
        tiny = [np.asarray(Pillow.fromarray(one).resize((THUMBNAIL, THUMBNAIL), Pillow.Resampling.BOX))
                for one in small]
        return np.stack(tiny).reshape(len(small), -1).astype(np.float32) / 255
    return small[:, visible(mask, SIDE)].astype(np.float32) / 255


def visible(mask: str, side: int) -> np.ndarray:
    """Which cells ``(side, side)`` the border or blackout test leaves to see."""
    width = round(side * (FRAME if mask == "border" else MASK) / SIDE)
    cells = np.ones((side, side), bool)
    cells[width:-width, width:-width] = False
    return cells


def splits(rows: Sequence[Row], marks: Sequence[Fingerprint], design: Design) -> Suspicion:
    """Whether the splits can be told apart; the design has splits as labels."""
    numbers = np.concatenate([np.array([mark.tones for mark in marks]),
                              np.array([[mark.sharpness, np.log(mark.file_bytes)] for mark in marks]),
                              seen(np.stack([mark.small for mark in marks]), "thumbnail")], 1)
    found = design.probe(numbers)
    return Suspicion("splits", "Which split a picture is in, from the picture alone", found, CONTENT,
                     evidence=_told(found, [row.split for row in rows]))


def sources_seen(rows: Sequence[Row], features: np.ndarray, seed: int) -> list[Suspicion]:
    """Whether a model's features ``(rows, numbers)`` tell the source among pictures of one label.

    Asked within a label, because where source and label coincide, features that tell the label tell the
    source as well.
    """
    found = []
    for label in sorted({row.label for row in rows}):
        places = [place for place, row in enumerate(rows) if row.label == label]
        sources = [rows[place].told.get("source", "") for place in places]
        try:
            design = Design(sources, [rows[place].group for place in places], seed=seed)
        except ValueError:
            continue  # one source, or too few of another: nothing to tell apart
        association = design.probe(features[places])
        words = f"Which source a picture of {label} is from, by the model's features"
        found.append(Suspicion(f"model_source_{label}", words, association, CONTENT,
                               evidence=_told(association, sources)))
    if found:
        return found
    return [Suspicion("model_source", "No label comes from two sources in sufficient number, so whether the "
                      "model's features see the source beside the label cannot be asked", None, ARTEFACT)]


def _glimpse(name: str, sentence: str, numbers: np.ndarray, rows: Sequence[Row], design: Design) -> Suspicion:
    association = design.probe(numbers)
    labels = np.array([row.label for row in rows])
    figures = {}
    if all(row.split for row in rows):
        learned = np.array([row.split == "train" for row in rows])
        plain = held_out(numbers, labels == association.best, learned, [row.group for row in rows])
        if plain:
            figures["trained_on_train"] = plain
    return Suspicion(name, sentence, association, PICTURE if name == "thumbnail" else CONTEXT, figures,
                     Evidence(scores=_told(association, labels).scores, mask=name))


def _told(found: Association, labels: Sequence[str] | np.ndarray) -> Evidence:
    own = [str(labels[place]) for place in found.rows]
    return Evidence(scores=by_label(found.scores, own), axis=f"score of {found.best}")


def _surest(found: Association | None, labels: Sequence[str]) -> tuple[int, ...]:
    """Cases of the label told best that the property gives away most surely."""
    if found is None:
        return ()
    order = found.rows[np.argsort(-found.scores, kind="stable")]
    return tuple(int(place) for place in order if labels[place] == found.best)
