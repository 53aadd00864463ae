"""Cases, their labels, and which of them a model may learn from, be tuned on and be judged on.

A split never cuts through a patient, and it never moves: it is drawn once, written down, and read
again ever after. When data grow, images of a known patient join that patient's split and new
patients join the training split, so that every model of a task is judged on the same patients.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from dcaf_monai.dicom import read_header, sop_instance_uid
from dcaf_monai.image import ImageError, Notice, file_sha256, patient_digest
from dcaf_monai.splits import SPLITS, draw_split, read_split
from dcaf_monai.tasks import NOT_A_CLASS, Task

SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz")

# Public collections whose file names are documented to carry a patient number: Kermany's chest films
# (person12_bacteria_46, IM-0115-0001, NORMAL2-IM-0588-0001) and OCT scans (CNV-81630-2).
_PATIENT_IN_NAME: Mapping[str, re.Pattern[str]] = {
    "pneumonia": re.compile(r"(?:^|_)(person\d+|IM-\d+)[_-]|^NORMAL2-(IM-\d+)-"),
    "oct": re.compile(r"^(?:CNV|DME|DRUSEN|NORMAL)-(\d+)-\d+$")}


@dataclass(frozen=True)
class Case:
    """One labelled image.

    Args:
        uid: SOP Instance UID, or the relative path of a file that is not DICOM.
        path: The file.
        label: A class of the task.
        split: ``train``, ``val`` or ``test``.
        group: Images that must stay together: a patient where known.
        frame: Frame of a multi-frame file, from 1; None for a single picture.
    """

    uid: str
    path: Path
    label: str
    split: str
    group: str
    frame: int | None = None


@dataclass(frozen=True)
class Cohort:
    """All cases of one task, checked: every split is whole, no group crosses splits.

    Args:
        task: Their question.
        cases: In a fixed order.
        notices: What a person should know about how the groups and splits came about.

    Raises:
        ValueError: For an unknown label or split, a file named twice, a group in two splits, or a
            training or validation split that lacks a class.
    """

    task: Task
    cases: tuple[Case, ...]
    notices: tuple[Notice, ...] = ()

    def __post_init__(self) -> None:
        _check(self.task, self.cases)

    def split(self, name: str) -> tuple[Case, ...]:
        """Cases of one split, in the cohort's order."""
        return tuple(case for case in self.cases if case.split == name)

    def labels(self, name: str) -> np.ndarray:
        """Class indices ``(cases,)`` of one split."""
        return np.array([self.task.class_index(case.label) for case in self.split(name)], np.int64)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of cases per split and class."""
        found = Counter((case.split, case.label) for case in self.cases)
        return {split: {label: found[split, label] for label in self.task.classes} for split in SPLITS}

    @property
    def sha256(self) -> str:
        """Digest of all rows (name, label, split, group), whatever their order."""
        return cases_sha256(self.cases)

    @property
    def validation_sha256(self) -> str:
        """Digest of the validation rows: two models are comparable when theirs are equal."""
        return cases_sha256(self.split("val"))


def read_cohort(path: Path, task: Task, *, frozen: Path | None = None, seed: int = 0) -> Cohort:
    """Cases of a task from a folder of class folders or a CSV table.

    The table has the columns ``file`` (relative to the table) and ``label``, and may have ``task``
    (rows of other tasks are passed over), ``split``, ``group`` and ``frame``.

    Args:
        path: Folder or ``.csv`` file.
        task: Whose classes the labels are.
        frozen: Where the split is kept. Read when it exists, written when a split is drawn. Not used
            for a table that brings its own ``split``.
        seed: Of the draw.

    Raises:
        ValueError: When there is no such folder or table, a file is missing, or the cases do not make
            a `Cohort`; one sentence names the first fault.
    """
    path = Path(path)
    if path.is_dir():
        rows = _folder_rows(path, task)
    elif path.is_file():
        rows = _table_rows(path, task)
    else:
        raise ValueError(f"data: need a folder of class folders or a CSV table, got {path.name!r}, "
                         "which is neither.")
    return _cohort(rows, task, frozen=frozen, seed=seed)


def cohort_from_labels(labels: Iterable[tuple[str, Path, int | None, str, str | None]], task: Task, *,
                       base: Cohort | None = None, frozen: Path | None = None, seed: int = 0) -> Cohort:
    """Cases from readers' answers, split the same frozen way.

    Args:
        labels: ``(uid, path, frame, label, group)`` per image; a group of None is worked out from the
            file. Answers that are no class (``uncertain``, ``not_assessable``) are passed over.
        task: Whose classes the labels are.
        base: Cases that are there already. An answer about one of its training cases (the same file, a
            copy of it, or DICOM of the same UID) replaces the label; validation and test labels stay as
            they were, for they are the common measure.
        frozen: As in `read_cohort`; patients of ``base`` keep their split in any case.
        seed: Of the draw, when there is one.

    Raises:
        ValueError: When the cases do not make a `Cohort`.
    """
    rows = [_Row(Path(path), label, uid=uid, frame=frame, group=group)
            for uid, path, frame, label, group in labels if label not in NOT_A_CLASS]
    if base is None:
        return _cohort(rows, task, frozen=frozen, seed=seed)
    own = _own_cases(rows, base)
    answered = {case: row.label for row, case in zip(rows, own, strict=True) if case}
    kept = [replace(case, label=answered.get(case, case.label)) if case.split == "train" else case
            for case in base.cases]
    known = (read_split(frozen) if frozen else {}) | {case.group: case.split for case in base.cases}
    fresh, notices = _identified([row for row, case in zip(rows, own, strict=True) if not case], task)
    if any(row.group not in known for row in fresh):
        fresh = _under_base_groups(fresh, base)
    new = [row.case(known.get(row.group or "", "train")) for row in fresh]
    cohort = Cohort(task, (*kept, *new), (*base.notices, *notices))
    if frozen:
        write_cohort(cohort, frozen, absent=known)
    return cohort


def write_cohort(cohort: Cohort, path: Path, *, absent: Mapping[str, str] | None = None) -> None:
    """Write a cohort as a table that `read_cohort` reads back; whole or not at all.

    Args:
        cohort: The cases.
        path: The table.
        absent: Split per group. Those without a case now get a row without a file, which is no case: when
            their images come back they must not be somewhere else.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "task", "label", "split", "group", "frame"))
    for case in cohort.cases:
        file = Path(os.path.relpath(case.path.resolve(), path.parent.resolve())).as_posix()
        writer.writerow((file, cohort.task.name, case.label, case.split, case.group, case.frame or ""))
    there = {case.group for case in cohort.cases}
    writer.writerows(("", "", "", split, group, "") for group, split in (absent or {}).items()
                     if group not in there)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file_:
        file_.write(text.getvalue())
        file_.flush()
        os.fsync(file_.fileno())
    os.replace(temporary, path)


@dataclass(frozen=True)
class _Row:
    """A case on its way: what the source says, the rest still empty."""

    path: Path
    label: str
    uid: str = ""
    split: str = ""
    group: str | None = None
    frame: int | None = None

    def case(self, split: str) -> Case:
        return Case(self.uid, self.path, self.label, split, self.group or "", self.frame)


def _folder_rows(folder: Path, task: Task) -> list[_Row]:
    rows = []
    for part in sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".")):
        label = re.sub(r"[^a-z0-9]+", "_", part.name.lower()).strip("_")
        if not part.is_dir():
            continue
        if label not in task.classes:
            raise ValueError(f"data: need folders named {', '.join(task.classes)}, got {part.name!r}. "
                             "Rename or remove it, or write a CSV table.")
        rows += [_Row(file, label, uid=file.relative_to(folder).as_posix())
                 for file in sorted(part.rglob("*")) if file.is_file() and is_image(file)]
    if not rows:
        raise ValueError(f"data: need folders named {', '.join(task.classes)} with images in "
                         f"{folder.name!r}, got none.")
    return rows


def is_image(file: Path) -> bool:
    """By name; DICOM files often have no suffix at all."""
    name = file.name.lower()
    return not name.startswith(".") and (name.endswith(SUFFIXES) or _is_dicom(file))


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM"


def read_table(table: Path) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Columns and rows of a CSV table of images.

    Raises:
        ValueError: When it is no CSV in UTF-8, or lacks the columns ``file`` and ``label``.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened)
            columns, records = reader.fieldnames or [], list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table.name}: need a CSV table in UTF-8, got something else.") from error
    if not {"file", "label"} <= set(columns):
        raise ValueError(f"{table.name}: need the columns file and label, got "
                         f"{', '.join(columns) or 'none'}.")
    return columns, records


def _table_rows(table: Path, task: Task) -> list[_Row]:
    columns, records = read_table(table)
    rows = []
    for number, record in enumerate(records, start=2):
        if "task" in columns and record["task"] != task.name:
            continue
        split, frame = record.get("split") or "", record.get("frame") or ""
        if "split" in columns and split not in SPLITS:
            raise ValueError(f"{table.name}, line {number}: need split {', '.join(SPLITS)}, got {split!r}.")
        if frame and not (frame.isdecimal() and int(frame) > 0):
            raise ValueError(f"{table.name}, line {number}: need a frame number from 1, got {frame!r}.")
        path = table.parent / (record["file"] or "")
        if not path.is_file():
            raise ValueError(f"{table.name}, line {number}: need a file relative to the table, got one that "
                             "is not there.")
        rows.append(_Row(path, record["label"], uid=record["file"], split=split,
                         group=record.get("group") or None, frame=int(frame) if frame else None))
    if not rows:
        raise ValueError(f"{table.name}: need rows of task {task.name}, got none.")
    return rows


def _cohort(rows: Sequence[_Row], task: Task, *, frozen: Path | None, seed: int) -> Cohort:
    for row in rows:
        task.class_index(row.label)
    found, notices = _identified(rows, task)
    if all(row.split for row in found):
        return Cohort(task, tuple(row.case(row.split) for row in found), tuple(notices))
    known = read_split(frozen) if frozen and frozen.exists() else draw_split(
        [str(row.group) for row in found], [row.label for row in found], classes=task.classes, seed=seed)
    cohort = Cohort(task, tuple(row.case(known.get(row.group or "", "train")) for row in found),
                    tuple(notices))
    if frozen:
        write_cohort(cohort, frozen, absent=known)
    return cohort


def _identified(rows: Sequence[_Row], task: Task) -> tuple[list[_Row], list[Notice]]:
    """Rows with uid and group, and how the groups were found."""
    found, ways = [], Counter[str]()
    for row in rows:
        dicom = _is_dicom(row.path)
        if dicom:
            row = _with_uid(row)
        if row.group is None:
            row = _with_group(row, dicom, task.name, ways)
        found.append(row)
    notices = []
    if ways["name"]:
        notices.append(Notice("grouped_by_name", f"{ways['name']} files were grouped by the patient number "
                              "in their names."))
    if ways["file"]:
        notices.append(Notice("patient_unknown", f"{ways['file']} files say no patient: each counts as a "
                              "patient of its own, so images of one patient may be in two splits. Give a "
                              "CSV table with a group column if you know better."))
    return found, notices


def _with_uid(row: _Row) -> _Row:
    try:
        uid = sop_instance_uid(row.path)
    except ImageError:
        return row  # unreadable: named by its path; training reports it
    return replace(row, uid=f"{uid}:{row.frame}" if row.frame else uid)


def patient_in_name(stem: str, task_name: str) -> str:
    """The patient number in a file name of a public collection of the task; empty without one."""
    pattern = _PATIENT_IN_NAME.get(task_name)
    match = pattern.search(stem) if pattern else None
    return next(part for part in match.groups() if part) if match else ""


def _with_group(row: _Row, dicom: bool, task_name: str, ways: Counter[str]) -> _Row:
    for way, patient in (("patient", _patient(row.path) if dicom else ""),
                         ("name", patient_in_name(row.path.stem, task_name))):
        if patient:
            ways[way] += 1
            return replace(row, group=f"{way}-{patient}")
    ways["file"] += 1  # by content, so that exact copies stay together whatever their names
    return replace(row, group=f"file-{file_sha256(row.path)[:16]}")


def _own_cases(rows: Sequence[_Row], base: Cohort) -> list[Case | None]:
    """The base's own case of each row; by name last, for two folders may name other pictures alike."""
    content = cache(file_sha256)  # once a file, whatever its frames
    of_place = {(case.path.resolve(), case.frame or 1): case for case in base.cases}
    of_uid = {case.uid: case for case in base.cases}
    sizes = {row.path.stat().st_size for row in rows if (row.path.resolve(), row.frame or 1) not in of_place}
    copies = {(content(case.path), case.frame or 1): case for case in reversed(base.cases)
              if case.path.stat().st_size in sizes}  # no other can be one

    def own(row: _Row) -> Case | None:
        frame, named = row.frame or 1, of_uid.get(row.uid)
        known = of_place.get((row.path.resolve(), frame)) or copies.get((content(row.path), frame))
        return known or (named if named and _is_dicom(row.path) and _is_dicom(named.path) else None)

    return [own(row) for row in rows]


def _under_base_groups(rows: Sequence[_Row], base: Cohort) -> list[_Row]:
    """Rows whose patient or content the base knows under a name of its own get that name."""
    found, _ = _identified([_Row(case.path, case.label) for case in base.cases], base.task)
    name = {row.group: case.group for row, case in zip(found, base.cases, strict=True)}
    return [replace(row, group=name.get(row.group, row.group)) for row in rows]


def _patient(path: Path) -> str:
    """Digest of the DICOM Patient ID, empty without one: the same patient, the same word, no name."""
    try:
        return patient_digest(read_header(path, last=0x00100020))
    except ImageError:
        return ""  # unreadable: training reports it


def _check(task: Task, cases: Sequence[Case]) -> None:
    if len({(case.path.resolve(), case.frame) for case in cases}) < len(cases):
        raise ValueError("cases: need each image once, got one twice. Remove the second row.")
    split_of: dict[str, str] = {}
    for case in cases:
        task.class_index(case.label)
        if case.split not in SPLITS:
            raise ValueError(f"split: need one of {', '.join(SPLITS)}, got {case.split!r}.")
        if split_of.setdefault(case.group, case.split) != case.split:
            raise ValueError(f"group {case.group}: need all its images in one split, got some in "
                             f"{split_of[case.group]} and some in {case.split}.")
    for split in ("train", "val"):
        missing = sorted(set(task.classes) - {case.label for case in cases if case.split == split})
        if missing:
            raise ValueError(f"{split} split: need cases of every class, got none of {', '.join(missing)}. "
                             "Add images.")


def cases_sha256(cases: Sequence[Case]) -> str:
    """Digest of cases (name, label, split, group), whatever their order."""
    rows = sorted((case.uid, case.frame or 0, case.label, case.split, case.group) for case in cases)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
