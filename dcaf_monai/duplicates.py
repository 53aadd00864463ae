"""Pictures that are there more than once: the same pixels, or the same picture resized and compressed again.

Near duplicates must agree twice: in the perceptual hash, and in the small copy after the mean picture of the
data is taken off, for all chest films look alike until then. On public data, copies correlate above 0.99 and
other films of one patient stay below 0.97. Turned, mirrored and cropped copies are not found this way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from dcaf_monai.fingerprint import Fingerprint

ALIKE = 0.97
"""Least correlation of the small copies, mean picture taken off."""
BITS_APART = 8
"""Most bits of 64 in which the hashes may differ; unrelated chest films differ in about 30."""
FEATURES_ALIKE, FEATURES_BITS_APART = 0.985, 22
"""The same of a network's features: stricter, as they forget detail; their hashes need only be related."""
CLOSER = 0.1
"""Features of copies are also at most this part as far apart (one minus cosine) as a picture usually is from
the one most like it: trunks that see little see all pictures alike."""
_BLOCK = 512

Pair = tuple[int, int]


def exact_pairs(marks: Sequence[Fingerprint]) -> list[Pair]:
    """Pairs ``(earlier, later)`` of the same pixels; of n copies the n - 1 pairs with the first."""
    places = defaultdict(list)
    for place, mark in enumerate(marks):
        places[mark.pixel_sha256].append(place)
    return sorted((same[0], other) for same in places.values() for other in same[1:])


def near_pairs(marks: Sequence[Fingerprint], kinds: Sequence[str], *,
               features: np.ndarray | None = None) -> list[Pair]:
    """Pairs of near duplicates that are not exact ones, each as ``(earlier, later)``.

    Args:
        marks: The pictures.
        kinds: What each is a picture of (its task): the mean taken off is that of its kind, or of both kinds.
        features: Trunk features ``(pictures, numbers)``. With them, pairs that are alike to the network after
            the same centring count too (`FEATURES_ALIKE`, `CLOSER`): copies a little cropped or moved.
    """
    small = np.stack([mark.small for mark in marks]).reshape(len(marks), -1).astype(np.float32)
    bits = np.unpackbits(np.array([list(bytes.fromhex(mark.phash)) for mark in marks], np.uint8), axis=1)
    groups = {kind: np.flatnonzero(np.asarray(kinds) == kind) for kind in sorted(set(kinds))}
    found: set[Pair] = set()
    for first in groups:
        for second in groups:
            if first > second:
                continue
            one, two = groups[first], groups[second]
            looks = [(small, ALIKE, BITS_APART)]
            if features is not None:
                seen = features.astype(np.float32)
                usual = min(_usual_distance(seen[one]), _usual_distance(seen[two]))
                looks.append((seen, max(FEATURES_ALIKE, 1 - CLOSER * usual), FEATURES_BITS_APART))
            for values, alike, apart in looks:
                found.update((a, b) for a, b in _alike(values, one, two, alike)
                             if np.count_nonzero(bits[a] != bits[b]) <= apart)
    return sorted(pair for pair in found if marks[pair[0]].pixel_sha256 != marks[pair[1]].pixel_sha256)


def _alike(values: np.ndarray, one: np.ndarray, two: np.ndarray, alike: float) -> list[Pair]:
    mean = (values[one].mean(0) + values[two].mean(0)) / 2
    left, right = _unit(values[one] - mean), _unit(values[two] - mean)
    pairs = set()
    for start in range(0, len(one), _BLOCK):
        rows, columns = np.nonzero(left[start:start + _BLOCK] @ right.T >= alike)
        for row, column in zip(rows, columns, strict=True):
            a, b = int(one[start + row]), int(two[column])
            if a != b:
                pairs.add((min(a, b), max(a, b)))
    return sorted(pairs)


def _usual_distance(values: np.ndarray, most: int = 1000) -> float:
    """Median over pictures of one minus the cosine with the picture most like it; 0 for a single one."""
    if len(values) < 2:
        return 0.0
    units = _unit(values - values.mean(0))
    asked = np.linspace(0, len(values) - 1, min(most, len(values))).astype(int)
    likeness = units[asked] @ units.T
    likeness[np.arange(len(asked)), asked] = -1
    return float(np.median(1 - likeness.max(1)))


def _unit(values: np.ndarray) -> np.ndarray:
    values = values - values.mean(1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
