"""Readings: annotations stored for good, what they agree on, and what is left to settle."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, func, select, update

from dcaf_monai.image import file_sha256
from dcaf_monai.server.agreement import agreement
from dcaf_monai.server.annotation import Annotation, checked_annotation
from dcaf_monai.server.database import (
    Database,
    UnknownImage,
    annotation_rows,
    contents,
    images,
    leases,
    predictions,
)
from dcaf_monai.server.folder import named_by_path
from dcaf_monai.tasks import NOT_A_CLASS, Task


def latest_reads(*where: ColumnElement[bool]) -> Select[Any]:
    """``number, uid, reader, label`` of each reader's last read of each image (no adjudications).

    Args:
        where: Which images, in terms of ``annotation_rows.c.uid``; all when none is given.
    """
    rows = annotation_rows.c
    last = (select(func.max(rows.number).label("number")).where(rows.role == "read", *where)
            .group_by(rows.uid, rows.reader)).subquery()
    return (select(rows.number, rows.uid, rows.reader, rows.label)
            .join(last, last.c.number == rows.number))


def latest_adjudications() -> Select[Any]:
    """``uid, label`` of the last adjudication of each image that has one."""
    last = (select(func.max(annotation_rows.c.number).label("number"))
            .where(annotation_rows.c.role == "adjudication").group_by(annotation_rows.c.uid)).subquery()
    return (select(annotation_rows.c.uid, annotation_rows.c.label)
            .join(last, last.c.number == annotation_rows.c.number))


def disagreeing(*where: ColumnElement[bool]) -> Select[Any]:
    """``uid`` of each image whose readers' last reads differ and nobody has adjudicated.

    ``images.disputed`` holds this for every image, kept true by whoever stores an annotation.

    Args:
        where: As for `latest_reads`.
    """
    reads = latest_reads(*where).subquery()
    adjudicated = select(annotation_rows.c.uid).where(annotation_rows.c.role == "adjudication", *where)
    return (select(reads.c.uid).where(reads.c.uid.not_in(adjudicated))
            .group_by(reads.c.uid).having(func.count(reads.c.label.distinct()) > 1))


class Readings:
    """The part of the store that holds what readers said."""

    database: Database
    studies: Path
    task: Task | None

    def annotate(self, uid: str, annotation: Annotation) -> Annotation:
        """Stores one annotation and ends its reader's lease on the image.

        Args:
            uid: The image.
            annotation: What the reader said; time, model and prediction are set here.

        Returns:
            The annotation as stored. One submitted before (same key) is returned as it was stored.

        Raises:
            ValueError: When the label is no answer to the task, or the key belongs to another
                annotation.
            UnknownImage: For an unknown image.
            StoreError: When the database fails; then nothing is stored.
        """
        annotation.fits(self.task)
        with self.database.write() as connection:
            require_image(connection, uid)
            stored = self._append(connection, uid, annotation.model_copy(update={
                "created": datetime.now(timezone.utc), **_prediction_now(connection, uid)}))
            connection.execute(delete(leases).where(
                leases.c.uid == uid, leases.c.reader == annotation.reader))
        return stored

    def history(self, uid: str) -> list[Annotation]:
        """All annotations of an image, oldest first.

        Raises:
            UnknownImage: For an unknown image.
        """
        with self.database.read() as connection:
            require_image(connection, uid)
            rows = connection.execute(select(annotation_rows.c.document).where(annotation_rows.c.uid == uid)
                                      .order_by(annotation_rows.c.number)).scalars().all()
        return [checked_annotation(row) for row in rows]

    def all_annotations(self) -> list[tuple[str, Annotation]]:
        """``(uid, annotation)`` of every annotation in the store, oldest first."""
        with self.database.read() as connection:
            rows = connection.execute(select(annotation_rows.c.uid, annotation_rows.c.document)
                                      .order_by(annotation_rows.c.number)).all()
        return [(uid, checked_annotation(document)) for uid, document in rows]

    def current_labels(self) -> dict[str, str]:
        """``{uid: class}`` to train on: what all readers of an image agree on, or the adjudication.

        Each reader's last read counts. Left out: images still in disagreement (see
        `disagreements`), images answered ``uncertain`` or ``not_assessable``, and images whose file
        is gone.
        """
        return {uid: label for uid, label in self._resolved().items() if label not in NOT_A_CLASS}

    def disagreements(self) -> list[dict[str, Any]]:
        """The images to adjudicate: ``[{"uid", "labels": {reader: label}}]``, by uid."""
        disputed = select(images.c.uid).where(images.c.disputed.is_(True))
        reads = latest_reads(annotation_rows.c.uid.in_(disputed)).subquery()
        with self.database.read() as connection:
            rows = connection.execute(select(reads.c.uid, reads.c.reader, reads.c.label)
                                      .order_by(reads.c.uid, reads.c.reader)).all()
        by_image: dict[str, dict[str, str]] = {}
        for uid, reader, label in rows:
            by_image.setdefault(uid, {})[reader] = label
        return [{"uid": uid, "labels": labels} for uid, labels in by_image.items()]

    def agreement(self) -> dict[str, Any]:
        """How far the readers agree, on each reader's last read of each image: see `agreement.agreement`."""
        reads = latest_reads().subquery()
        with self.database.read() as connection:
            rows = connection.execute(select(reads.c.uid, reads.c.reader, reads.c.label)
                                      .order_by(reads.c.uid, reads.c.reader)).all()
        return agreement(tuple(row) for row in rows)

    def _resolved(self) -> dict[str, str]:
        reads, settled = latest_reads().subquery(), latest_adjudications().subquery()
        agreed = (select(reads.c.uid, func.min(reads.c.label).label("label")).group_by(reads.c.uid)
                  .having(func.count(reads.c.label.distinct()) == 1)).subquery()
        label = func.coalesce(settled.c.label, agreed.c.label)
        with self.database.read() as connection:
            rows = connection.execute(
                select(images.c.uid, label).outerjoin(agreed, agreed.c.uid == images.c.uid)
                .outerjoin(settled, settled.c.uid == images.c.uid)
                .where(and_(images.c.state == "present", label.is_not(None))).order_by(images.c.uid)).all()
        return dict(rows)       # type: ignore[arg-type]

    def _append(self, connection: Connection, uid: str, annotation: Annotation) -> Annotation:
        """Stores one annotation as it is, unless its key is stored already."""
        row = require_image(connection, uid)
        key = str(annotation.key)
        number = connection.execute(self.database.insert(annotation_rows).values(
            key=key, uid=uid, reader=annotation.reader, label=annotation.label, role=annotation.role,
            blind=annotation.blind, created=annotation.created.timestamp() if annotation.created else 0.0,
            document=annotation.model_dump(mode="json")).on_conflict_do_nothing(index_elements=["key"])
            .returning(annotation_rows.c.number)).scalar()
        if number is not None:
            # The first statement holds the image's row, so that the second sees what others said of it.
            image = update(images).where(images.c.uid == uid)
            connection.execute(image.values(readings=images.c.readings + 1))
            connection.execute(image.values(disputed=disagreeing(annotation_rows.c.uid == uid).exists()))
            self._keep_content(connection, uid, row.path)
            return annotation
        row = connection.execute(select(annotation_rows.c.uid, annotation_rows.c.document)
                                 .where(annotation_rows.c.key == key)).one()
        stored = checked_annotation(row.document)
        if row.uid != uid or _said(stored) != _said(annotation):
            raise ValueError("key: need a new one for a new annotation, got one already used. "
                             "Make a fresh UUID per submission.")
        return stored

    def _keep_content(self, connection: Connection, uid: str, path: str) -> None:
        """Remembers what was answered about where only the path would tell: see `Pool.refresh`."""
        known = connection.execute(select(contents.c.uid).where(contents.c.uid == uid)).scalar()
        if known is not None or not named_by_path(path):
            return
        try:
            content = file_sha256(self.studies / path)
        except OSError:     # it is gone: what returns is then taken for the same, as without an answer
            return
        connection.execute(self.database.insert(contents).values(uid=uid, sha256=content)
                           .on_conflict_do_nothing())


def require_image(connection: Connection, uid: str, *, present: bool = False) -> Any:
    """The image's row, whatever its state; with ``present`` only one whose file stands.

    Raises:
        UnknownImage: When there is none.
    """
    if not uid.isprintable():       # no image is named so (see folder.py), and PostgreSQL takes no NUL
        raise UnknownImage(uid)
    row = connection.execute(select(images).where(images.c.uid == uid)).one_or_none()
    if row is None or (present and row.state != "present"):
        raise UnknownImage(uid)
    return row


def _said(annotation: Annotation) -> dict[str, Any]:
    """What the reader said, without what the store added."""
    return annotation.model_dump(mode="json", exclude={"created", "model_version", "prediction"})


def _prediction_now(connection: Connection, uid: str) -> dict[str, Any]:
    """``model_version`` and ``prediction`` of the score the image is ranked by at this moment."""
    row = connection.execute(
        select(predictions).join(images, and_(images.c.uid == predictions.c.uid,
                                              images.c.ranked_by == predictions.c.model_version))
        .where(predictions.c.uid == uid)).one_or_none()
    if row is None:
        return {"model_version": None, "prediction": None}
    top = max(row.document["prediction"], key=lambda answer: answer["score"])
    return {"model_version": row.model_version, "prediction": {
        "label": row.label, "score": top["score"], "predictive_entropy": row.entropy}}
