"""What turns the tables of an earlier DCAF into today's, in the transaction that opens the database.

Written in SQL and not in today's tables: a step describes what was, and is never changed afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import log
from typing import Any

from sqlalchemy import Connection, text

from dcaf_monai.server.annotation import finite

BATCH = 1000
"""Prediction documents read at once."""

_COLUMNS = (
    "predictions ADD COLUMN score {double}", "predictions ADD COLUMN normalized_entropy {double}",
    "images ADD COLUMN label TEXT", "images ADD COLUMN score {double}",
    "images ADD COLUMN normalized_entropy {double}",
    "images ADD COLUMN disputed BOOLEAN NOT NULL DEFAULT false")
_OLD_INDEXES = ("images_by_shuffle", "images_by_entropy", "images_by_mutual_information", "images_by_margin")
_DISPUTED = """
    UPDATE images SET disputed = true WHERE uid IN (
        SELECT uid FROM annotations
        WHERE number IN (SELECT max(number) FROM annotations WHERE role = 'read' GROUP BY uid, reader)
          AND uid NOT IN (SELECT uid FROM annotations WHERE role = 'adjudication')
        GROUP BY uid HAVING count(DISTINCT label) > 1)"""
_RANKED = "SELECT {0} FROM predictions WHERE predictions.uid = images.uid AND model_version = ranked_by"


def to_2(connection: Connection) -> None:
    """Schema 1 to 2: answer, its probability and the normalized entropy beside the other scores; disputes.

    The indexes whose columns change are dropped; whoever calls makes today's.
    """
    double = "DOUBLE" if connection.dialect.name == "sqlite" else "DOUBLE PRECISION"
    for column in _COLUMNS:
        connection.execute(text("ALTER TABLE " + column.format(double=double)))
    for index in _OLD_INDEXES:
        connection.execute(text(f"DROP INDEX {index}"))
    fill = text("UPDATE predictions SET score = :score, normalized_entropy = :normalized_entropy "
                "WHERE uid = :uid AND model_version = :version")
    for batch in _scores(connection):
        connection.execute(fill, batch)
    connection.execute(text("UPDATE images SET " + ", ".join(
        f"{name} = ({_RANKED.format(name)})" for name in ("label", "score", "normalized_entropy"))
        + " WHERE ranked_by IS NOT NULL"))
    connection.execute(text(_DISPUTED))


def _scores(connection: Connection) -> Iterator[list[dict[str, Any]]]:
    """What the prediction documents say, some rows at a time, in the order of the primary key."""
    after = ("", "")
    while rows := connection.execute(text(
            "SELECT uid, model_version, CAST(document AS TEXT) FROM predictions "
            "WHERE (uid, model_version) > (:uid, :version) ORDER BY uid, model_version LIMIT :batch"),
            {"uid": after[0], "version": after[1], "batch": BATCH}).all():
        yield [{"uid": uid, "version": version, **_told(json.loads(document))}
               for uid, version, document in rows]
        after = (rows[-1][0], rows[-1][1])


def _told(document: dict[str, Any]) -> dict[str, float | None]:
    scores = [float(answer["score"]) for answer in document["prediction"]]
    entropy = finite((document.get("uncertainty") or {}).get("predictive_entropy"))
    if entropy is not None and len(scores) > 1:
        return {"score": max(scores), "normalized_entropy": entropy / log(len(scores))}
    return {"score": max(scores), "normalized_entropy": None}
