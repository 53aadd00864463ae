"""Annotations out and in, as plain JSON or CSV; what is exported imports again unchanged.

CSV cells that a spreadsheet would run as a formula (they begin with ``= + - @`` or a control
character) get a leading apostrophe, and so do cells that begin with one; import takes it off again.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import func, select

from dcaf_monai.server.annotation import Annotation, checked_annotation
from dcaf_monai.server.database import UnknownImage, annotation_rows, images
from dcaf_monai.server.readings import Readings

SCHEMA = "dcaf-annotations/1"
COLUMNS = ("uid", *Annotation.model_fields)
_AS_JSON = ("point", "box", "shown", "blind", "confidence", "seconds", "prediction")
_STARTS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


@dataclass(frozen=True)
class Imported:
    """What an import did: annotations added, known already (same key), and passed over because the
    store has no such image."""

    added: int
    known: int
    unknown_images: int


class Exchange(Readings):
    """The part of the store that gives annotations away and takes them in."""

    def export_json(self) -> str:
        """All annotations, oldest first: ``{schema, task, annotations: [{uid, label, ...}]}``."""
        return json.dumps({"schema": SCHEMA, "task": self.task.name if self.task else None,
                           "annotations": self._documents()}, indent=1)

    def export_csv(self) -> str:
        """All annotations, oldest first, one line each, with a header line."""
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(COLUMNS)
        for document in self._documents():
            table.writerow([_cell(name, document[name]) for name in COLUMNS])
        return text.getvalue()

    def import_json(self, text: str) -> Imported:
        """Adds the annotations of an `export_json`, all or none; those known by key are not repeated.

        Raises:
            ValueError: When the text is no such document; names the entry.
        """
        try:
            entries = json.loads(text)["annotations"]
            documents = [dict(entry) for entry in entries]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"import: need a {SCHEMA} document, got something else.") from error
        return self._take_in(documents)

    def import_csv(self, text: str) -> Imported:
        """Adds the annotations of an `export_csv`, or of any CSV with at least uid, label, reader.

        Raises:
            ValueError: When the text is no such table; names the entry.
        """
        table = csv.DictReader(io.StringIO(text), strict=True)
        names = set(table.fieldnames or ())
        if not {"uid", "label", "reader"} <= names <= set(COLUMNS):
            raise ValueError(f"import: need columns uid, label, reader of {', '.join(COLUMNS)}, got others.")
        documents = []
        try:
            for row in table:
                if None in row or None in row.values():
                    raise ValueError("cells")
                documents.append({name: _value(name, cell) for name, cell in row.items()
                                  if cell != "" or name == "comment"})
        except (csv.Error, ValueError) as error:
            raise ValueError(f"import: entry {len(documents) + 1}: need one cell per column, "
                             "JSON where the column holds it, got something else.") from error
        return self._take_in(documents)

    def _documents(self) -> list[dict[str, Any]]:
        return [{"uid": uid, **annotation.model_dump(mode="json")}
                for uid, annotation in self.all_annotations()]

    def _take_in(self, documents: list[dict[str, Any]]) -> Imported:
        entries: list[tuple[str, Annotation]] = []
        for number, document in enumerate(documents, 1):
            try:
                uid = str(document.pop("uid"))
                annotation = checked_annotation(document).fits(self.task)
            except KeyError as error:
                raise ValueError(f"import: entry {number}: need a uid, got none.") from error
            except ValueError as error:
                raise ValueError(f"import: entry {number}: {error}") from error
            entries.append((uid, annotation.model_copy(update={
                "created": annotation.created or datetime.now(timezone.utc)})))
        unknown = 0
        count = select(func.count()).select_from(annotation_rows)
        with self.database.write() as connection:
            before = connection.execute(count).scalar_one()
            for uid in sorted({uid for uid, _ in entries if uid.isprintable()}):
                # in uid order, as scoring does: two writers cannot deadlock
                connection.execute(select(images.c.uid).where(images.c.uid == uid).with_for_update())
            for number, (uid, annotation) in enumerate(entries, 1):
                try:
                    self._append(connection, uid, annotation)
                except UnknownImage:
                    unknown += 1
                except ValueError as error:
                    raise ValueError(f"import: entry {number}: {error}") from error
            added = connection.execute(count).scalar_one() - before
        return Imported(added, len(entries) - unknown - added, unknown)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    text = json.dumps(value) if name in _AS_JSON else str(value)
    return f"'{text}" if text.startswith(_STARTS_FORMULA) else text


def _value(name: str, cell: str) -> Any:
    text = cell[1:] if cell.startswith("'") and cell[1:].startswith(_STARTS_FORMULA) else cell
    return json.loads(text) if name in _AS_JSON else text
