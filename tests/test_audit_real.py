"""On the real images beside the project the audit finds the known faults by itself."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dcaf_monai.audit import Audit, audit_cohort
from dcaf_monai.duplicates import near_pairs
from dcaf_monai.fingerprint import fingerprint, grey_of

TWICE = {("153", "158"), ("383", "389"), ("387", "392"), ("44", "47")}
"""Tuberculosis films that are there twice, redacted or printed otherwise, seen by eye; no table says so."""
EACH = 60
"""Images of a label; enough to find the faults in seconds."""


@pytest.fixture(scope="module")
def found(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("audit")
    taken: Counter[tuple[str, str]] = Counter()
    with (shared_data / "index.csv").open(encoding="utf-8", newline="") as stream, \
            (folder / "some.csv").open("w", encoding="utf-8", newline="") as out:
        reader = csv.DictReader(stream)
        writer = csv.DictWriter(out, reader.fieldnames or [])
        writer.writeheader()
        # every third row, as neighbours in the table are alike
        for number, row in enumerate(reader):
            kind = row["task"], row["label"]
            if row["task"] in ("tuberculosis", "covid19") and number % 3 == 0 and taken[kind] < EACH:
                taken[kind] += 1
                writer.writerow({**row, "file": str(shared_data / row["file"])})
    assert len(taken) == 5 and min(taken.values()) == EACH
    return audit_cohort(folder / "some.csv", cache=folder / "cache")


def verdict(audit: Audit, task: str, name: str) -> str:
    return next(item.verdict for item in audit.items if (item.task, item.name) == (task, name))


def test_redaction_boxes_of_the_tuberculosis_positives_are_an_alarm(found: Audit) -> None:
    boxes = next(item for item in found.items if (item.task, item.name) == ("tuberculosis", "boxes"))
    shares = boxes.figures["shares"]
    assert boxes.verdict == "alarm"
    assert shares["tuberculosis"]["yes"] > 0.25 and shares["normal"].get("yes", 0) < 0.03


def test_photographs_of_film_among_the_tuberculosis_positives_are_an_alarm(found: Audit) -> None:
    # the files are grey: what is left of the tint is its grey scale
    assert verdict(found, "tuberculosis", "colour") == "pass"
    assert verdict(found, "tuberculosis", "properties") == "alarm"
    assert verdict(found, "tuberculosis", "grey_ends") in ("look", "alarm")


def test_tuberculosis_is_told_without_the_lungs(found: Audit) -> None:
    assert verdict(found, "tuberculosis", "border") == verdict(found, "tuberculosis", "blackout") == "alarm"


def test_source_and_label_coincide_in_covid19(found: Audit) -> None:
    source = next(item for item in found.items if (item.task, item.name) == ("covid19", "source"))
    assert source.verdict == "alarm" and source.figures["effect"] > 0.99
    assert source.figures["shares"]["covid"] == {"hannover": 1.0}
    assert verdict(found, "tuberculosis", "source") == "pass"


def test_films_that_are_there_twice_are_found_and_retinas_that_look_alike_are_not(shared_data: Path) -> None:
    films = shared_data / "images/tuberculosis/tuberculosis"
    paths = sorted(films.glob("tb-train__*.jpg"))[:200:2]
    paths = sorted({*paths, *(films / f"tb-train__image{number}.jpg" for pair in TWICE for number in pair)})
    found = near_pairs([fingerprint(path) for path in paths], ["film"] * len(paths),
                       lambda place: grey_of(paths[place]))
    numbers = [path.stem.removeprefix("tb-train__image") for path in paths]
    assert {tuple(sorted((numbers[a], numbers[b]), key=int)) for a, b in found} == TWICE
    retinas = sorted((shared_data / "images/oct/normal").glob("*.jpg"))[:120]
    marks = [fingerprint(path) for path in retinas]
    features = np.random.default_rng(0).normal(size=(120, 40))
    features[1::2] = features[::2] * 1.01       # to such a network every second one is the one before
    assert near_pairs(marks, ["oct"] * 120, lambda place: grey_of(retinas[place]), features=features) == []
