"""Pictures that are there more than once: the same pixels, or the same picture resized and compressed again.

Near duplicates must agree twice: in the perceptual hash, and in the small copy after the mean picture of the
data is taken off, for all chest films look alike until then. On public data, copies correlate above 0.99 and
other films of one patient stay below 0.97. What agrees less, or only to a network's features, is proposed: a
copy that was cropped, photographed again or redacted otherwise, a second film of one patient. Whether its
detail is the same (`detail`) decides. Turned and mirrored copies are not found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement

import numpy as np
from PIL import Image as Pillow
from scipy import fft, ndimage

from dcaf_monai.fingerprint import Fingerprint

ALIKE = 0.97
"""Least correlation of the small copies, mean picture taken off."""
BITS_APART = 8
"""Most bits of 64 in which the hashes may differ; unrelated chest films differ in about 30."""
RELATED, RELATED_BITS_APART, RELATED_CLOSER = 0.85, 18, 0.5
"""The same of pairs whose detail is then compared. They are also at most so large a part as far apart (one
minus correlation) as a picture usually is from the one most like it: in some data all are alike."""
FEATURES_ALIKE, FEATURES_BITS_APART, FEATURES_CLOSER = 0.985, 22, 0.1
"""And of a network's features, whose hashes need only be related; trunks that see little see all alike."""
DETAIL_CLOSER = 0.5
"""The detail of copies is at most so large a part as far apart as that of any two pictures. On four public
collections that asks for a correlation of about 0.56: copies cropped by up to 8 % a side, compressed again
and reshaped are above 0.63, pairs of different patients that were looked at below 0.54."""
_BLOCK = 512
_SIDE, _PART = 160, 112     # px of a picture as its detail is looked at, and of the part that is looked for
_BLUR_PX = 2.0
_CROPS = (0.84, 0.88, 0.92, 0.96, 1.0)
"""Share of a side that may be left in the other picture."""

Pair = tuple[int, int]


def exact_pairs(marks: Sequence[Fingerprint]) -> list[Pair]:
    """Pairs ``(earlier, later)`` of the same pixels; of n copies the n - 1 pairs with the first."""
    places = defaultdict(list)
    for place, mark in enumerate(marks):
        places[mark.pixel_sha256].append(place)
    return sorted((same[0], other) for same in places.values() for other in same[1:])


def near_pairs(marks: Sequence[Fingerprint], kinds: Sequence[str], grey: Callable[[int], np.ndarray], *,
               features: np.ndarray | None = None) -> list[Pair]:
    """Pairs of near duplicates that are not exact ones, each as ``(earlier, later)``.

    Args:
        marks: The pictures.
        kinds: What each is a picture of (its task): the mean taken off is that of its kind, or of both kinds.
        grey: The picture at a place, ``(rows, columns)``, for those whose detail is compared.
        features: Trunk features ``(pictures, numbers)``. With them, pairs that are alike to the network after
            the same centring are compared too.
    """
    small = np.stack([mark.small for mark in marks]).reshape(len(marks), -1).astype(np.float32)
    bits = np.unpackbits(np.array([list(bytes.fromhex(mark.phash)) for mark in marks], np.uint8), axis=1)
    groups = {kind: np.flatnonzero(np.asarray(kinds) == kind) for kind in sorted(set(kinds))}
    certain: set[Pair] = set()
    proposed: set[Pair] = set()
    looks = [(certain, small, ALIKE, BITS_APART, None),
             (proposed, small, RELATED, RELATED_BITS_APART, RELATED_CLOSER)]
    if features is not None:
        looks.append((proposed, features.astype(np.float32), FEATURES_ALIKE, FEATURES_BITS_APART,
                      FEATURES_CLOSER))
    for found, values, alike, apart, closer in looks:
        usual = {kind: _usual_distance(values[places]) for kind, places in groups.items()} if closer else {}
        for first, second in combinations_with_replacement(groups, 2):
            least = max(alike, 1 - closer * min(usual[first], usual[second])) if closer else alike
            found.update((a, b) for a, b in _alike(values, groups[first], groups[second], least)
                         if np.count_nonzero(bits[a] != bits[b]) <= apart)
    if proposed - certain:
        least = 1 - DETAIL_CLOSER * (1 - _usual_detail(list(groups.values()), grey))
        certain.update((a, b) for a, b in proposed - certain if detail(grey(a), grey(b)) >= least)
    return sorted(pair for pair in certain if marks[pair[0]].pixel_sha256 != marks[pair[1]].pixel_sha256)


def detail(a: np.ndarray, b: np.ndarray) -> float:
    """Best correlation of two pictures' detail, -1 to 1, wherever one is cropped from the other.

    Detail is what a Gaussian blur takes away: grain, vessels, ribs' edges, no common shape of all chests.

    Args:
        a: ``(rows, columns)``.
        b: The same, of any shape.
    """
    return max(_best_match(a, b), _best_match(b, a))


def _usual_detail(groups: Sequence[np.ndarray], grey: Callable[[int], np.ndarray], pairs: int = 12) -> float:
    """Median detail that two different pictures of a kind share."""
    rng, found = np.random.default_rng(0), []
    sizes = np.array([len(group) * (len(group) > 1) for group in groups], float)
    for _ in range(pairs if sizes.any() else 0):
        a, b = rng.choice(groups[rng.choice(len(groups), p=sizes / sizes.sum())], 2, replace=False)
        found.append(detail(grey(int(a)), grey(int(b))))
    return float(np.median(found)) if found else 0.0


def _best_match(whole: np.ndarray, crop: np.ndarray) -> float:
    """The middle of the whole, at each share of its sides, looked for in the crop."""
    places = _SIDE - _PART + 1      # along each side; so far a cyclic correlation is a true one
    seen = _detail(Pillow.fromarray(crop.astype(np.float32)), (0, 0, crop.shape[1], crop.shape[0]), _SIDE)
    total, squares = (_windows(part) for part in (seen, seen**2))
    spread = np.sqrt(np.maximum(squares - total**2 / _PART**2, 1e-6))
    picture, (rows, columns) = Pillow.fromarray(whole.astype(np.float32)), whole.shape
    middles = []
    for high in _CROPS:
        for wide in _CROPS:
            height, width = _PART / _SIDE * high * rows, _PART / _SIDE * wide * columns
            part = _detail(picture, ((columns - width) / 2, (rows - height) / 2, (columns + width) / 2,
                                     (rows + height) / 2), _PART)
            part = part - part.mean()
            middles.append(part / max(float(np.linalg.norm(part)), 1e-6))
    spectra = fft.rfft2(np.stack(middles), (_SIDE, _SIDE))
    match = fft.irfft2(fft.rfft2(seen) * spectra.conj(), (_SIDE, _SIDE))[:, :places, :places]
    return float((match / spread).max())


def _windows(values: np.ndarray) -> np.ndarray:
    """Sum over the window of `_PART` at each place."""
    summed = np.pad(values.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return (summed[_PART:, _PART:] - summed[:-_PART, _PART:] - summed[_PART:, :-_PART]
            + summed[:-_PART, :-_PART])


def _detail(picture: Pillow.Image, box: tuple[float, float, float, float], side: int) -> np.ndarray:
    small = np.asarray(picture.resize((side, side), Pillow.Resampling.BOX, box=box))
    return small - ndimage.gaussian_filter(small, _BLUR_PX)


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
