"""What is asked of a data set's files, one function a question; `audit` turns the answers into verdicts.

Two kinds of answer. A `Finding` is a fact (a patient in two splits) and brings its verdict. A `Suspicion` is
an association with the label; whether it is more than chance is decided when all of them are known.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dcaf_monai.association import Association, Design
from dcaf_monai.audit_rows import Row
from dcaf_monai.duplicates import Pair
from dcaf_monai.fingerprint import Fingerprint

PASS, LOOK, ALARM = "pass", "look", "alarm"
MANY_SIZES = 12
FEW = 0.01
"""Share of a label's pictures with a box or text from which a person should look in any case."""
ARTEFACT, CONTENT, CONTEXT, PICTURE = "artefact", "content", "context", "picture"


@dataclass(frozen=True)
class Evidence:
    """What the page shows beside a sentence; numbers are places in the rows.

    Args:
        pairs: Pictures side by side.
        cases: Pictures, with what was found outlined.
        scores: Numbers by label (a probe's scores, or a property), and what they are.
        axis: What ``scores`` are.
        shares: By label, the share of each value.
        mask: Mean picture of each label as the probe saw it: ``border``, ``blackout`` or ``thumbnail``.
    """

    pairs: tuple[Pair, ...] = ()
    cases: tuple[int, ...] = ()
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    axis: str = "score"
    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    mask: str = ""


@dataclass(frozen=True)
class Finding:
    """A fact with its verdict (``pass``, ``look`` or ``alarm``)."""

    name: str
    verdict: str
    sentence: str
    figures: Mapping[str, object] = field(default_factory=dict)
    evidence: Evidence = Evidence()


@dataclass(frozen=True)
class Suspicion:
    """An association with the label, not judged yet; without one (nothing varies) it passes.

    Args:
        name: Of the check.
        sentence: What was compared, as the beginning of a sentence.
        association: None when there is nothing to associate.
        kind: How severely it is judged. ``artefact`` can never be the disease (a tint, a box, a source);
            ``content`` could be in part (brightness); ``context`` is the picture without its middle;
            ``picture`` is all of it, in little.
        seen: True when the thing itself wants a person's eye, associated or not.
    """

    name: str
    sentence: str
    association: Association | None
    kind: str
    figures: Mapping[str, object] = field(default_factory=dict)
    evidence: Evidence = Evidence()
    seen: bool = False


def patients(rows: Sequence[Row]) -> Finding:
    """Whether a group or a patient is in two splits."""
    if not any(row.split for row in rows):
        return Finding("patients", PASS, "No split is given: training draws one by patient, and keeps it.")
    groups, people = _crossing(rows, "group"), _crossing(rows, "patient")
    unknown = sum(row.group.startswith("file-") for row in rows)
    figures = {"groups": len({row.group for row in rows}), "groups_across_splits": len(groups),
               "patients": len({row.patient for row in rows if row.patient}),
               "patients_across_splits": len(people), "files_without_patient": unknown}
    cases = tuple(place for found in (groups or people).values() for place in found)
    if groups:
        return Finding("patients", ALARM, f"{len(groups)} of {figures['groups']} patients or groups have "
                                          "images in more than one split.", figures, Evidence(cases=cases))
    if people:
        return Finding("patients", LOOK, f"No group crosses splits, but {len(people)} patient numbers do: "
                       "either numbers start again in each collection, or patients are in two splits.",
                       figures, Evidence(cases=cases))
    if unknown == len(rows):
        return Finding("patients", LOOK, "Nothing says which images are of one patient, so each counts as a "
                       "patient of its own.", figures)
    return Finding("patients", PASS, f"Each of {figures['groups']} patients or groups is in one split.",
                   figures)


def _crossing(rows: Sequence[Row], kind: str) -> dict[str, list[int]]:
    places = defaultdict(list)
    for place, row in enumerate(rows):
        if getattr(row, kind):
            places[getattr(row, kind)].append(place)
    return {word: found for word, found in places.items() if len({rows[place].split for place in found}) > 1}


def patients_across_tasks(rows: Sequence[Row]) -> Finding:
    """Whether a patient number or group is in two tasks."""
    tasks_of = defaultdict(set)
    for row in rows:
        for word in {row.group, row.patient} - {""}:
            tasks_of[word].add(row.task)
    shared = Counter(" and ".join(sorted(tasks)) for tasks in tasks_of.values() if len(tasks) > 1)
    figures = {"patients": sum(shared.values()), "between": dict(sorted(shared.items()))}
    if not shared:
        return Finding("patients_across_tasks", PASS, "No patient or group is in two tasks.", figures)
    return Finding("patients_across_tasks", LOOK, f"{figures['patients']} patient numbers or groups are in "
                                                  f"two tasks ({_listed(shared)}).", figures)


def duplicates(name: str, rows: Sequence[Row], pairs: Sequence[Pair]) -> Finding:
    """Copies within one task: across splits, with two labels, or simply there."""
    exact = name == "exact_duplicates"
    what = "exact duplicates (the same pixels)" if exact else \
        "near duplicates (copies resized, cropped or redacted otherwise)"
    # films of one patient may be as alike as copies; only between patients, or across splits, is it news
    loose = [(a, b) for a, b in pairs if exact or rows[a].group != rows[b].group]
    across = [(a, b) for a, b in pairs if rows[a].split != rows[b].split]
    torn = [(a, b) for a, b in loose if rows[a].label != rows[b].label]
    figures = {"pairs": len(pairs), "across_splits": len(across), "two_labels": len(torn),
               "across_groups": sum(rows[a].group != rows[b].group for a, b in pairs)}
    evidence = Evidence(pairs=tuple(dict.fromkeys((*across, *torn, *loose))))
    if across or (torn and exact):
        return Finding(name, ALARM, f"{len(pairs)} pairs of {what}: {len(across)} of them in two splits, "
                       f"{len(torn)} with two labels.", figures, evidence)
    if loose:
        return Finding(name, LOOK, f"{len(pairs)} pairs of {what}, none in two splits, {len(loose)} "
                       f"{'in all' if exact else 'between patients'}, {len(torn)} with two labels.", figures,
                       evidence)
    return Finding(name, PASS, f"No {what} across patients." if pairs else f"No {what}.", figures)


def duplicates_across_tasks(rows: Sequence[Row], pairs: Sequence[Pair]) -> Finding:
    """Copies in two tasks: harmless until a model of one is tested on the other."""
    counts = Counter(" and ".join(sorted((rows[a].task, rows[b].task))) for a, b in pairs)
    figures = {"pairs": len(pairs), "between": dict(sorted(counts.items()))}
    if not pairs:
        return Finding("duplicates_across_tasks", PASS, "No picture is in two tasks.", figures)
    return Finding("duplicates_across_tasks", LOOK, f"{len(pairs)} pairs of the same picture are in two "
                                                    f"tasks ({_listed(counts)})."
                                                    "", figures, Evidence(pairs=tuple(pairs)))


def categories(rows: Sequence[Row], marks: Sequence[Fingerprint], design: Design) -> Iterator[Suspicion]:
    """What a picture comes from and how it is stored, against its label."""
    sources = [row.told.get("source", "") for row in rows]
    if any(sources):
        yield _table("source", "Source", rows, sources, design)
    else:
        yield Suspicion("source", "The table has no column source, so what each picture comes from is not "
                                  "known; format, size and scanner stand in for it", None, ARTEFACT)
    yield _table("format", "File format and bit depth", rows, [mark.kind for mark in marks], design)
    shapes = picture_shapes(rows, marks)
    yield _table("size", "Size of the picture (columns x rows)", rows,
                 _common([f"{columns}x{height}" for height, columns in shapes]), design)
    yield _table("colour", "Colour", rows, [mark.tint for mark in marks], design,
                 values_alone=np.array([mark.saturation for mark in marks]),
                 cases=[place for place, mark in enumerate(marks) if mark.tint != "grey"])
    told = {"age": [_decade(row.told.get("age", "") or mark.header.get("age", ""))
                    for row, mark in zip(rows, marks, strict=True)],
            **{name: [row.told.get(word, "") or mark.header.get(word, "") or "not stated"
                      for row, mark in zip(rows, marks, strict=True)]
               for name, word in (("sex", "sex"), ("projection", "view"), ("scanner", "maker"))}}
    silent = [name for name, values in told.items() if set(values) == {"not stated"}]
    for name, values in told.items():
        if name not in silent:
            yield _table(name, name.capitalize(), rows, _common(values), design)
    if silent:
        yield Suspicion("not_told", f"Neither headers nor table tell {', '.join(silent)}", None, ARTEFACT,
                        {"missing": silent})


def picture_shapes(rows: Sequence[Row], marks: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """``(rows, columns)`` before the files were made, where the table tells it of all, else as stored.

    A size that only some rows state says more about the table than about the pictures.
    """
    given = [(row.told.get("original_height", ""), row.told.get("original_width", "")) for row in rows]
    if all(part.isdecimal() and int(part) > 0 for pair in given for part in pair):
        return [(int(height), int(width)) for height, width in given]
    return [mark.shape for mark in marks]


def artefacts(rows: Sequence[Row], marks: Sequence[Fingerprint], design: Design) -> Iterator[Suspicion]:
    """Boxes, burned-in text and posterised pictures, against the label."""
    size = [mark.shape[0] * mark.shape[1] for mark in marks]
    blank = [sum((c - a) * (d - b) for a, b, c, d in mark.artefacts.boxes) / area
             for mark, area in zip(marks, size, strict=True)]
    for name, title, found, numbers in (
            ("boxes", "Blank boxes inside the picture", [bool(mark.artefacts.boxes) for mark in marks],
             blank),
            ("text", "Burned-in text", [bool(mark.artefacts.texts) for mark in marks],
             [len(mark.artefacts.texts) for mark in marks]),
            ("posterised", "Posterised or nearly black and white",
             [mark.artefacts.posterised for mark in marks], [mark.artefacts.levels for mark in marks])):
        yield _table(name, title, rows, ["yes" if flag else "no" for flag in found], design, flagged=True,
                     values_alone=np.array(numbers, float),
                     cases=[place for place, flag in enumerate(found) if flag])


def by_label(numbers: np.ndarray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Numbers ``(cases,)`` sorted out by label."""
    own = np.asarray(labels)
    return {str(label): numbers[own == label] for label in np.unique(own)}


def _table(name: str, title: str, rows: Sequence[Row], values: Sequence[str], design: Design, *,
           cases: Sequence[int] = (), flagged: bool = False,
           values_alone: np.ndarray | None = None) -> Suspicion:
    labels = sorted({row.label for row in rows})
    counts = {label: Counter(value for row, value in zip(rows, values, strict=True) if row.label == label)
              for label in labels}
    shares = {label: {value: count / sum(found.values()) for value, count in found.most_common()}
              for label, found in counts.items()}
    seen = flagged and any(share.get("yes", 0) >= FEW for share in shares.values())
    words = ", ".join(f"{share.get('yes', 0):.1%} of {label}" if flagged else
                      f"{label} is {next(iter(share.values())):.0%} {next(iter(share)) or 'not stated'}"
                      for label, share in shares.items())
    figures: dict[str, object] = {"shares": {label: {value: round(part, 4) for value, part in share.items()}
                                             for label, share in shares.items()}}
    alone = design.alone(values_alone) if values_alone is not None else None
    if alone:
        figures["alone"] = {key: alone.figures[key] for key in ("measure", "effect", "low", "high", "label")}
    return Suspicion(name, f"{title}: {words}", design.table(values), ARTEFACT, figures,
                     Evidence(cases=tuple(cases), shares=shares), seen)


def _common(values: Sequence[str]) -> list[str]:
    """Values with the rare ones under one name."""
    kept = {value for value, _ in Counter(values).most_common(MANY_SIZES - 1)}
    return [value if value in kept else "another" for value in values]


def _decade(age: str) -> str:
    if not age.replace(".", "", 1).isdecimal():
        return "not stated"
    return f"{int(float(age)) // 10 * 10} to {int(float(age)) // 10 * 10 + 9}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{words}: {count}" for words, count in sorted(counts.items()))
