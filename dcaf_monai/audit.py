"""`audit_cohort`: what in a data set could make a model look better than it is.

Every check gives a verdict. ``pass``: nothing found, which is no proof of absence. ``look``: a person should.
``alarm``: figures from this data cannot be taken at their face value. Associations with the label count only
when they are more than chance after Holm's correction for all checks of the task at `ALPHA`, so that of a
hundred clean data sets one is wrongly suspected, and when they are strong enough to matter.

What a probe of the border finds may be the disease itself (a large effusion reaches the edge), so such
evidence must be strong; a tint, a box or a source never is the disease, and a moderate association is enough.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dcaf_monai import audit_checks as checks
from dcaf_monai import audit_probes as probes
from dcaf_monai.association import Design, holm
from dcaf_monai.audit_checks import (
    ALARM,
    ARTEFACT,
    CONTENT,
    CONTEXT,
    LOOK,
    PASS,
    PICTURE,
    Evidence,
    Finding,
    Suspicion,
)
from dcaf_monai.audit_model import Eyes
from dcaf_monai.audit_rows import Row, data_sha256, identified, read_rows
from dcaf_monai.audit_words import advice
from dcaf_monai.duplicates import Pair, exact_pairs, near_pairs
from dcaf_monai.fingerprint import Fingerprint, fingerprints, grey_of
from dcaf_monai.model import Model
from dcaf_monai.tasks import Task, task_named

SCHEMA = "dcaf-audit/1"
ALPHA = 0.01
VERDICTS = (PASS, LOOK, ALARM)


@dataclass(frozen=True)
class Thresholds:
    """From where an association, more than chance, wants a look (by its size) or an alarm (by its lower
    bound).

    Args:
        table: Cramér's V of an artefact: 0.1 is small, 0.3 moderate (Cohen 1988); of two labels, 0.3 is about
            30 points of difference.
        artefact: AUROC of a property that cannot be the disease; 0.71 is a large effect (Cohen's d of 0.8).
        content: AUROC of a property that could be the disease in part, of all properties, and of which split
            or source a picture is from.
        context: AUROC of the picture without its middle. 0.85 is what published models of tuberculosis reach
            inside their own data with the whole picture.
        picture: AUROC of a thumbnail, in which a gross disease may well be seen.
    """

    table: tuple[float, float] = (0.10, 0.30)
    artefact: tuple[float, float] = (0.60, 0.71)
    content: tuple[float, float] = (0.70, 0.85)
    context: tuple[float, float] = (0.70, 0.85)
    picture: tuple[float, float] = (0.90, 0.97)


THRESHOLDS = Thresholds()
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Item:
    """One check of one task.

    Args:
        name: Stable word for the check.
        task: Empty for a check across tasks.
        verdict: ``pass``, ``look`` or ``alarm``.
        sentence: What was found, why it matters and what to do, for a person.
        figures: Plain values for JSON.
        evidence: What the page shows.
    """

    name: str
    task: str
    verdict: str
    sentence: str
    figures: Mapping[str, object]
    evidence: Evidence = field(default=Evidence(), repr=False)


@dataclass(frozen=True)
class Audit:
    """The outcome.

    Args:
        rows, marks: What was looked at: readable pictures, and their fingerprints.
        items: All checks, in a fixed order.
        sha256: By task, the digest of its rows: `Cohort.sha256` of the same data.
    """

    rows: tuple[Row, ...]
    marks: tuple[Fingerprint, ...]
    items: tuple[Item, ...]
    sha256: Mapping[str, str]

    @property
    def worst(self) -> str:
        """The worst verdict."""
        return worst(item.verdict for item in self.items)

    def document(self) -> dict[str, Any]:
        """The content of ``audit.json``: plain values, names of files relative to the data."""
        return {"schema": SCHEMA, "verdict": self.worst, "images": len(self.rows),
                "thresholds": {"alpha": ALPHA,
                               **{name: list(pair) for name, pair in asdict(THRESHOLDS).items()}},
                "tasks": {task: {"verdict": worst(item.verdict for item in self.items if item.task == task),
                                 "data_sha256": digest} for task, digest in self.sha256.items()},
                "items": [{"task": item.task, "name": item.name, "verdict": item.verdict,
                           "sentence": item.sentence, "figures": dict(item.figures),
                           "examples": [self.rows[place].name for place in examples(item.evidence)]
                           if item.verdict != PASS else []}
                          for item in self.items]}


def worst(verdicts: Iterable[str]) -> str:
    """The worst of verdicts; ``pass`` of none."""
    return max(verdicts, key=VERDICTS.index, default=PASS)


def examples(evidence: Evidence, most: int = 20) -> list[int]:
    """Places of the rows a piece of evidence shows, each once."""
    places = [*(place for pair in evidence.pairs for place in pair), *evidence.cases]
    return list(dict.fromkeys(places))[:most]


def read_audit(path: Path) -> dict[str, Any]:
    """A document written from `Audit.document`; ``tasks[name]["data_sha256"]`` says which data it is about.

    Raises:
        ValueError: When there is no such file or it is not an audit.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"audit: need a JSON file written by dcaf audit, got {Path(path).name!r}, which "
                         "cannot be read as one.") from error
    tasks = document.get("tasks") if isinstance(document, dict) else None
    if not isinstance(tasks, dict) or document.get("schema") != SCHEMA or not all(
            isinstance(task, dict) and task.get("verdict") in VERDICTS
            and isinstance(task.get("data_sha256"), str) for task in tasks.values()):
        raise ValueError(f"audit: need a document of schema {SCHEMA}, got another. Run dcaf audit again.")
    return document


def audit_cohort(data: Path, tasks: Sequence[str | Task] | None = None, *, cache: Path,
                 model: Model | None = None, device: str = "cpu", seed: int = 0,
                 progress: Progress | None = None) -> Audit:
    """Audit a folder of class folders or a CSV table.

    It can be stopped at any moment; what was measured of a file's content is kept and not measured again.

    Args:
        data: Folder or table; columns ``file``, ``label`` and, where there are, ``task``, ``split``,
            ``group``, ``patient``, ``source``, ``age``, ``sex``, ``view``, ``original_width``,
            ``original_height``.
        tasks: Names, or tasks of one's own; None for all the table names.
        cache: Folder for measurements, which hold small copies of the pictures.
        model: Looks at the pictures too: near duplicates, masked pictures, the source.
        device: Where the model runs.
        seed: Of permutations, bootstrap and folds.
        progress: Called with (stage, done, total).

    Raises:
        ValueError: When the data cannot be used at all; one sentence names the first fault.
        CacheError: When the disk is full.
    """
    known = {task.name: task for task in tasks or () if isinstance(task, Task)}
    named = [task.name if isinstance(task, Task) else task for task in tasks] if tasks else None
    rows = read_rows(Path(data), named)

    def tell(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(stage, done, total) if progress else None

    marks = fingerprints([(row.path, row.frame) for row in rows], Path(cache) / "fingerprints.jsonl",
                         progress=tell("look"))
    everyone = identified(rows, marks)
    digests = {}
    for name in sorted({row.task for row in rows}):
        own = [row for row in everyone if row.task == name]
        digests[name] = data_sha256(Path(data), own, known.get(name) or _task(name))
    read = [(row, mark) for row, mark in zip(everyone, marks, strict=True) if isinstance(mark, Fingerprint)]
    if not read:
        raise ValueError(f"data: need at least one readable image, got {len(rows)} that are not.")
    kept, measured = [row for row, _ in read], [mark for _, mark in read]
    eyes = Eyes(model, Path(cache), device=device) if model else None
    whole = eyes.look(kept, [mark.file_sha256 for mark in measured], progress=tell("model")) if eyes else None
    items = tuple(_items(kept, measured, seed, eyes, whole, len(rows) - len(read), tell))
    return Audit(tuple(kept), tuple(measured), items, digests)


def _task(name: str) -> Task | None:
    try:
        return task_named(name)
    except ValueError:
        return None  # a task nobody defined can be audited, but not trained on


def _items(rows: Sequence[Row], marks: Sequence[Fingerprint], seed: int, eyes: Eyes | None,
           whole: np.ndarray | None, unreadable: int,
           tell: Callable[[str], Callable[[int, int], None]]) -> Iterator[Item]:
    exact = exact_pairs(marks)
    near = near_pairs(marks, [row.task for row in rows],
                      lambda place: grey_of(rows[place].path, frame=rows[place].frame),
                      features=whole[:, :eyes.trunk_numbers] if eyes and whole is not None else None)
    tasks = sorted({row.task for row in rows})
    for task in tasks:
        places = [place for place, row in enumerate(rows) if row.task == task]
        own, own_marks = [rows[place] for place in places], [marks[place] for place in places]
        facts = [checks.patients(own),
                 checks.duplicates("exact_duplicates", own, _within(exact, places)),
                 checks.duplicates("near_duplicates", own, _within(near, places))]
        features = whole[places] if whole is not None else None
        for fact in [*facts, *_associations(own, own_marks, seed, eyes, features, tell(f"check {task}"
                                                                                       "".strip()))]:
            yield _item(fact, task, replace(
                fact.evidence, pairs=tuple((places[a], places[b]) for a, b in fact.evidence.pairs),
                cases=tuple(places[case] for case in fact.evidence.cases)))
    if len(tasks) > 1:
        crossing = [(a, b) for a, b in sorted({*exact, *near}) if rows[a].task != rows[b].task]
        for fact in (checks.patients_across_tasks(rows), checks.duplicates_across_tasks(rows, crossing)):
            yield _item(fact, "", fact.evidence)
    if unreadable:
        yield _item(Finding("unreadable", LOOK, f"{unreadable} files could not be read and were not audited.",
                            {"files": unreadable}), "", Evidence())


def _item(fact: Finding, task: str, evidence: Evidence) -> Item:
    more = advice(fact.name, fact.verdict) if fact.verdict != PASS else ""
    return Item(fact.name, task, fact.verdict, f"{fact.sentence} {more}".strip(), fact.figures, evidence)


def _associations(rows: Sequence[Row], marks: Sequence[Fingerprint], seed: int, eyes: Eyes | None,
                  features: np.ndarray | None, progress: Callable[[int, int], None]) -> list[Finding]:
    try:
        design = Design([row.label for row in rows], [row.group for row in rows], seed=seed)
    except ValueError as error:
        return [Finding("associations", LOOK, f"What goes with the label cannot be told. {error}")]

    def look(places: np.ndarray, mask: str) -> np.ndarray:
        assert eyes is not None
        seen = eyes.look([rows[place] for place in places], [marks[place].file_sha256 for place in places],
                         mask)
        return seen[:, :eyes.trunk_numbers]

    parts: list[Iterable[Suspicion]] = [
        checks.categories(rows, marks, design), checks.artefacts(rows, marks, design),
        probes.alone(rows, marks, design), probes.glimpses(rows, marks, design),
        _splits(rows, marks, seed)]
    if eyes and features is not None:
        parts += [probes.glimpses_of_model(rows, design, look), probes.sources_seen(rows, features, seed)]
    suspicions: list[Suspicion] = []
    about = 28 + 3 * bool(eyes)
    for part in parts:
        for suspicion in part:
            suspicions.append(suspicion)
            progress(min(len(suspicions), about - 1), about)
    progress(about, about)
    return judge(suspicions)


def _splits(rows: Sequence[Row], marks: Sequence[Fingerprint], seed: int) -> Iterator[Suspicion]:
    kept = [place for place, row in enumerate(rows) if row.split]
    try:
        design = Design([rows[place].split for place in kept], [rows[place].group for place in kept],
                        seed=seed)
    except ValueError:
        return  # no splits, or too few cases in one: nothing to compare
    yield probes.splits([rows[place] for place in kept], [marks[place] for place in kept], design)


def judge(suspicions: Sequence[Suspicion]) -> list[Finding]:
    """Verdicts on associations, all of them weighed together."""
    tested = [place for place, one in enumerate(suspicions) if one.association]
    adjusted = dict(zip(tested, holm([found.p for one in suspicions if (found := one.association)]),
                        strict=True))
    return [_judged(one, adjusted.get(place, 1.0)) for place, one in enumerate(suspicions)]


def _judged(one: Suspicion, p: float) -> Finding:
    found = one.association
    if found is None:
        verdict = LOOK if one.seen else PASS
        return Finding(one.name, verdict, f"{one.sentence}.", one.figures, one.evidence)
    table = found.measure == "cramers_v"
    look, alarm = THRESHOLDS.table if table else {
        ARTEFACT: THRESHOLDS.artefact, CONTENT: THRESHOLDS.content, CONTEXT: THRESHOLDS.context,
        PICTURE: THRESHOLDS.picture}[one.kind]
    sure = p < ALPHA
    verdict = ALARM if sure and found.low >= alarm else \
        LOOK if (sure and found.effect >= look) or one.seen else PASS
    interval = f"{found.effect:.2f} ({found.low:.2f} to {found.high:.2f}"
    strength = f"; Cramér's V {interval})" if table else \
        f", {found.best} is told from the rest with AUROC {interval}; chance is 0.5)"
    chance = "more than chance" if sure else "no more than chance explains"
    plain = one.figures.get("trained_on_train")
    if isinstance(plain, dict):
        chance += f"; learned on the training split it reaches {plain['auroc']:.2f} ({plain['low']:.2f} to " \
            f"{plain['high']:.2f}) on the {plain['cases']} other images"
    figures = {**found.figures, "p_adjusted": round(p, 5), "look_from": look, "alarm_from": alarm,
               **one.figures}
    return Finding(one.name, verdict, f"{one.sentence}{strength}, {chance}.", figures, one.evidence)


def _within(pairs: Sequence[Pair], places: Sequence[int]) -> list[Pair]:
    at = {place: index for index, place in enumerate(places)}
    return [(at[a], at[b]) for a, b in pairs if a in at and b in at]
