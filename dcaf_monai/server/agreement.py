"""How far readers agree beyond chance: Cohen's kappa for two readers, Fleiss' for all.

Sources: J. Cohen, Educ. Psychol. Meas. 20 (1960) 37-46; J. L. Fleiss, Psychol. Bull. 76 (1971)
378-382. Every answer is a category, ``uncertain`` and ``not_assessable`` too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Cohen's kappa of two readers' answers to the same images, in the same order.

    Returns:
        At most 1; 0 is chance. None where it has no value: no image, or both readers gave one and
        the same answer throughout, so that chance alone explains everything.

    Raises:
        ValueError: When the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"answers: need two lists of one length, got {len(first)} and {len(second)}.")
    n = len(first)
    if n == 0:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    ours, theirs = Counter(first), Counter(second)
    agreed_by_chance = sum(ours[label] * theirs[label] for label in ours)       # times n squared: exact
    if agreed_by_chance == n * n:
        return None
    expected = agreed_by_chance / (n * n)
    return (observed - expected) / (1 - expected)


def fleiss_kappa(answers: Iterable[Sequence[str]]) -> float | None:
    """Fleiss' kappa of any readers' answers.

    Args:
        answers: For each image the labels it got; images with fewer than two are passed over. The
            number may differ between images (then categories weigh by answers given); with equal
            numbers this is Fleiss' own formula.

    Returns:
        At most 1; None where it has no value: no such image, or a single category throughout.
    """
    tables = [Counter(labels) for labels in answers if len(labels) >= 2]
    if not tables:
        return None
    totals: Counter[str] = Counter()
    observed = 0.0
    for table in tables:
        totals.update(table)
        n = table.total()
        observed += sum(count * (count - 1) for count in table.values()) / (n * (n - 1))
    if len(totals) == 1:
        return None
    expected = sum(count**2 for count in totals.values()) / totals.total() ** 2
    return (observed / len(tables) - expected) / (1 - expected)


def agreement(answers: Iterable[tuple[str, str, str]]) -> dict[str, Any]:
    """The agreement of all readers as one JSON document.

    Args:
        answers: ``(uid, reader, label)``, one per reader and image.

    Returns:
        ``{images, images_with_two_readers, readers: {reader: images}, pairs: [{readers, images,
        agreed, kappa}], fleiss_kappa}``; a kappa without value is null.
    """
    by_image: dict[str, dict[str, str]] = defaultdict(dict)
    by_reader: dict[str, dict[str, str]] = defaultdict(dict)
    for uid, reader, label in answers:
        by_image[uid][reader] = by_reader[reader][uid] = label
    pairs = []
    for first, second in combinations(sorted(by_reader), 2):
        both = sorted(by_reader[first].keys() & by_reader[second].keys())
        if both:
            ours, theirs = ([by_reader[reader][uid] for uid in both] for reader in (first, second))
            pairs.append({"readers": [first, second], "images": len(both),
                          "agreed": sum(a == b for a, b in zip(ours, theirs, strict=True)),
                          "kappa": cohen_kappa(ours, theirs)})
    return {"images": len(by_image),
            "images_with_two_readers": sum(len(labels) >= 2 for labels in by_image.values()),
            "readers": {reader: len(labels) for reader, labels in sorted(by_reader.items())},
            "pairs": pairs,
            "fleiss_kappa": fleiss_kappa(list(labels.values()) for labels in by_image.values())}
