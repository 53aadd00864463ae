"""Suspects: current labels that the present model finds hard to believe, for a second look.

Confident learning wants answers about labels that were never learnt from (see `dcaf_monai.suspects`).
A published model has learnt from most labels in the store, so this is a plain comparison, and every
item says whether its label can have been learnt.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Literal

from sqlalchemy import Connection, Select, and_, func, select, union_all

from dcaf_monai.model import VERSION
from dcaf_monai.server.database import Database, annotation_rows, images, predictions
from dcaf_monai.server.readings import latest_reads
from dcaf_monai.server.worklist import check_reader
from dcaf_monai.tasks import NOT_A_CLASS

Learnt = Literal["no", "perhaps", "unknown"]
BASIS = ("Current labels against the stored predictions of the present model, the least believable first. "
         "Where learnt is no, the label is younger than the model: the disagreement is out of sample. "
         "Where it is perhaps, the model may have been taught this very label; it then agrees too easily, "
         "and wrong labels are missing here. The command dcaf suspects asks a learner that saw none of the "
         "labels it judges. A disagreement is no proof that the reader is wrong.")


def suspects(database: Database, model_version: str, *, reader: str | None = None, offset: int = 0,
             limit: int = 50) -> dict[str, Any]:
    """A page of the labels that the present model disagrees with most.

    A label is current when it is the last adjudication of its image or, where there is none, a
    reader's last read; ``uncertain`` and ``not_assessable`` are no labels.

    Args:
        database: The store's.
        model_version: The present model.
        reader: Only labels of this reader; None for all.
        offset: Items to pass over.
        limit: Items to give, 1 to 500.

    Returns:
        ``basis`` (what the comparison is worth), ``model_version``, ``compared`` labels, ``total`` of
        them that the model answers otherwise, ``offset``, and ``items`` of ``{rank, uid, reader, role,
        blind, given, suggested, probability_given, probability_suggested, learnt}``.

    Raises:
        ValueError: For a bad reader, offset or limit.
    """
    if offset < 0 or not 1 <= limit <= 500:
        raise ValueError(f"page: need offset >= 0 and limit 1 to 500, got {offset}, {limit}.")
    if reader is not None:
        check_reader(reader)
    with database.read() as connection:
        compared = _compared(connection, model_version, reader)
        rows = connection.execute(_against_model(model_version, reader)).all()
    born = _born(model_version)
    found = []
    for uid, who, role, blind, given, created, suggested, document in rows:
        probability = {answer["label"]: float(answer["score"]) for answer in document["prediction"]}
        found.append({
            "uid": uid, "reader": who, "role": role, "blind": blind, "given": given, "suggested": suggested,
            "probability_given": probability.get(given, 0.0), "probability_suggested": probability[suggested],
            "learnt": _learnt(created, born)})
    found.sort(key=lambda item: (item["probability_given"], -item["probability_suggested"], item["uid"],
                                 item["reader"]))
    items = [{"rank": rank, **item} for rank, item in enumerate(found, start=1)][offset:offset + limit]
    return {"basis": BASIS, "model_version": model_version, "compared": compared, "total": len(found),
            "offset": offset, "items": items}


def _current() -> Select[Any]:
    """``number`` of every current label."""
    rows = annotation_rows.c
    settled = (select(func.max(rows.number).label("number")).where(rows.role == "adjudication")
               .group_by(rows.uid))
    adjudicated = select(rows.uid).where(rows.role == "adjudication")
    reads = latest_reads(rows.uid.not_in(adjudicated)).subquery()
    both = union_all(settled, select(reads.c.number)).subquery()
    return select(both.c.number)


def _joined(columns: Select[Any], model_version: str, reader: str | None) -> Select[Any]:
    rows = annotation_rows.c
    return (columns.select_from(annotation_rows)
            .join(predictions, and_(predictions.c.uid == rows.uid,
                                    predictions.c.model_version == model_version))
            .join(images, images.c.uid == rows.uid)
            .where(rows.number.in_(_current()), images.c.state == "present", rows.label.not_in(NOT_A_CLASS),
                   *([rows.reader == reader] if reader is not None else [])))


def _compared(connection: Connection, model_version: str, reader: str | None) -> int:
    return connection.execute(_joined(select(func.count()), model_version, reader)).scalar_one()


def _against_model(model_version: str, reader: str | None) -> Select[Any]:
    rows = annotation_rows.c
    columns = select(rows.uid, rows.reader, rows.role, rows.blind, rows.label.label("given"), rows.created,
                     predictions.c.label.label("suggested"), predictions.c.document)
    return _joined(columns, model_version, reader).where(rows.label != predictions.c.label)


def _born(model_version: str) -> float | None:
    """When a model was made, seconds since 1970; None for a version that does not say."""
    if not VERSION.fullmatch(model_version):
        return None
    made = datetime.strptime(model_version[:16], "%Y%m%dT%H%M%SZ")
    return made.replace(tzinfo=timezone.utc).timestamp()


def _learnt(created: float, born: float | None) -> Learnt:
    """A version tells its birth in whole seconds, rounded down: a label of the next second is younger."""
    if born is None:
        return "unknown"
    return "no" if created >= born + 1 else "perhaps"
