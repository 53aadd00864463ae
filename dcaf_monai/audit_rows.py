"""What an audit looks at: every labelled picture, read leniently.

`cohort.read_cohort` refuses data whose patients are in two splits; an audit is there to find them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dcaf_monai.cohort import SPLITS, SUFFIXES, patient_in_name, read_cohort, read_table
from dcaf_monai.fingerprint import Fingerprint
from dcaf_monai.image import ImageError
from dcaf_monai.tasks import Task, task_named

_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Row:
    """One labelled picture.

    Args:
        name: Path relative to the table or folder.
        path, label, frame: As of `cohort.Case`.
        task: The question; empty in a folder.
        split: ``train``, ``val``, ``test``, or empty when none was drawn yet.
        group: Patient; empty until `identified`.
        patient: What the table or the header says of the patient, when that is not the group.
        told: Other columns of the table.
    """

    name: str
    path: Path
    label: str
    task: str = ""
    split: str = ""
    group: str = ""
    patient: str = ""
    frame: int | None = None
    told: Mapping[str, str] = field(default_factory=dict)


def read_rows(data: Path, tasks: Sequence[str] | None = None) -> list[Row]:
    """Rows of a CSV table (columns ``file`` and ``label``) or of a folder of class folders.

    A folder may hold ``train``, ``val`` and ``test`` folders with class folders in them.

    Args:
        data: Table or folder.
        tasks: Only rows of these tasks; of a folder, its one name. None for all that are there.

    Raises:
        ValueError: When there is no such data, a file is missing, a task has no row, or a folder is asked
            for several tasks.
    """
    if data.is_dir():
        if tasks and len(tasks) > 1:
            raise ValueError(f"tasks: need one for a folder of class folders, got {len(tasks)}. Write a "
                             "CSV table.")
        rows = _folder_rows(data, tasks[0] if tasks else "")
    elif data.is_file():
        rows = _table_rows(data, tasks)
    else:
        raise ValueError(f"data: need a folder of class folders or a CSV table, got {data.name!r}, which is "
                         "neither.")
    empty = [task for task in tasks or () if task not in {row.task for row in rows}]
    if not rows or empty:
        raise ValueError(f"data: need labelled images{f' of task {empty[0]}' if empty else ''}, got none.")
    return rows


def identified(rows: Sequence[Row], marks: Sequence[Fingerprint | ImageError]) -> list[Row]:
    """Rows with a group each: the table's, else the header's patient, the name's, or the file's content.

    Groups are named as `cohort.read_cohort` names them.
    """
    found = []
    for row, mark in zip(rows, marks, strict=True):
        read = isinstance(mark, Fingerprint)
        header = mark.header.get("patient", "") if isinstance(mark, Fingerprint) else ""
        number = patient_in_name(row.path.stem, row.task)
        content = mark.file_sha256[:16] if isinstance(mark, Fingerprint) else row.name
        group = f"patient-{header}" if read and header else f"name-{number}" if number else f"file-{content}"
        found.append(replace(row, group=row.group or group, patient=row.patient or header or number))
    return found


def data_sha256(data: Path, rows: Sequence[Row], task: Task | None = None) -> str:
    """`Cohort.sha256` of one task's rows, so that an audit and an evaluation can be matched.

    Rows that make no cohort (patients in two splits, a task nobody defined) have a digest of their own,
    which no evaluation will ask for.

    Args:
        data: Table or folder.
        rows: Those of the task.
        task: The question; by default the one of the rows' name.
    """
    try:
        return read_cohort(data, task or task_named(rows[0].task)).sha256
    except ValueError:
        words = sorted((row.name, row.frame or 0, row.label, row.split, row.group) for row in rows)
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _folder_rows(folder: Path, task: str) -> list[Row]:
    rows = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not path.is_file() or any(part.startswith(".") for part in parts) or len(parts) < 2 \
                or not path.name.lower().endswith(SUFFIXES):
            continue
        split = _SPLIT_FOLDERS.get(parts[0].lower(), "") if len(parts) > 2 else ""
        rows.append(Row("/".join(parts), path, parts[1] if split else parts[0], task, split))
    return rows


def _table_rows(table: Path, tasks: Sequence[str] | None) -> list[Row]:
    only = tasks[0] if tasks and len(tasks) == 1 else ""  # the task of a table that names none
    _, records = read_table(table)
    rows = []
    for number, record in enumerate(records, start=2):
        values = {name: (value or "").strip() for name, value in record.items() if isinstance(value, str)}
        task = values.get("task", only)
        if tasks and task not in tasks:
            continue
        path, split, frame = table.parent / values.get("file", ""), values.get("split", ""), \
            values.get("frame", "")
        if not path.is_file():
            raise ValueError(f"{table.name}, line {number}: need a file relative to the table, got one that "
                             "is not there.")
        if split and split not in SPLITS:
            raise ValueError(f"{table.name}, line {number}: need split {', '.join(SPLITS)}, got {split!r}.")
        if not values["label"] or (frame and not (frame.isdecimal() and int(frame) > 0)):
            raise ValueError(f"{table.name}, line {number}: need a label, and a frame from 1 or none, got "
                             "another.")
        rows.append(Row(values["file"], path, values["label"], task, split,
                        values.get("group", ""), values.get("patient", ""), int(frame) if frame else None,
                        values))
    return rows
