"""Worklist: which case a reader gets next, and who holds what; `listing` shows all of it.

The queue gives the most uncertain case first among those this reader has not read, not skipped, and
nobody else holds. Images without a score come after all scored ones (scoring visits them first, so
they do not stay behind), in a fixed random order; with nothing scored at all that order is the whole
queue, so reading can start before the first training.

A lease is what makes it safe: one row per image, taken by one conditional statement that only one of
several simultaneous callers can win.

Batch strategies have their places worked out beforehand (`ranks`); behind the last place, and while there
are none, the most uncertain come.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, Connection, Select, delete, exists, false, or_, select

from dcaf_monai.server.annotation import Reader
from dcaf_monai.server.database import Database, annotation_rows, images, leases, monitored, ranks, skips
from dcaf_monai.server.readings import require_image

BATCH_ORDERS = ("powerbald", "badge", "coreset", "typiclust")
"""Orders in which a case's place depends on the cases before it."""
ORDERS = ("entropy", "mutual_information", "margin", "random", *BATCH_ORDERS)
"""In which cases are handed out."""
LEASE_S = 1800.0
_READER: TypeAdapter[str] = TypeAdapter(Reader)


class CaseTaken(ValueError):
    """Another reader holds the case."""


@dataclass(frozen=True)
class Lease:
    """A case held for a reader until ``expires`` (UTC); ``random`` when the random share brought it."""

    uid: str
    reader: str
    expires: datetime
    random: bool = False


class Worklist:
    """The part of the store that hands out cases."""

    database: Database

    def next_case(self, reader: str, order: str = "entropy", *, model_version: str | None = None,
                  lease_s: float = LEASE_S) -> Lease | None:
        """Leases the next case to a reader; two readers never get the same one.

        A reader who asks again without having read or skipped gets the same case again.

        Args:
            reader: Who asks.
            order: ``entropy`` or ``mutual_information`` (highest first), ``margin`` (smallest
                first), ``random`` (a fixed shuffle), or one of `BATCH_ORDERS`. Where a random share
                was asked for, it is mixed into all of them.
            model_version: Only cases ranked by this version count as scored; None for any.
            lease_s: Seconds until the case is free again.

        Returns:
            The lease; None says that nothing is left for this reader.

        Raises:
            ValueError: For an unknown order, a bad reader name or a bad lease time.
            StoreError: When the database fails.
        """
        check_reader(reader)
        _check_lease_s(lease_s)
        queues = _queues(order, model_version)
        with self.database.write() as connection:
            while True:     # a lost race means that another reader won: every turn somebody gets on
                now = time.time()
                found = next((row for queue in queues if (row := connection.execute(
                    queue.where(*_open_to(reader, now)).limit(1)).first()) is not None), None)
                if found is None:
                    return None
                lease = self._take(connection, found.uid, reader, now, lease_s)
                if lease and not found.random:
                    return lease
                if lease:   # whoever judges the model by these needs them after the next ranking, too
                    connection.execute(self.database.insert(monitored).values(
                        uid=lease.uid, model_version=found.model_version, created=now)
                        .on_conflict_do_nothing())
                    return replace(lease, random=True)

    def lease(self, uid: str, reader: str, *, lease_s: float = LEASE_S) -> Lease:
        """Leases this very case ("give me case X"), also one already read or skipped.

        Raises:
            ValueError: For a bad reader name or lease time.
            CaseTaken: When another reader holds it.
            UnknownImage: For an unknown image, or one whose file is gone.
        """
        check_reader(reader)
        _check_lease_s(lease_s)
        with self.database.write() as connection:
            require_image(connection, uid, present=True)
            taken = self._take(connection, uid, reader, time.time(), lease_s)
            if taken is None:
                raise CaseTaken("case: need a free one, got one that another reader holds. "
                                "Wait until it is read, or take another.")
        return taken

    def release(self, uid: str, reader: str) -> bool:
        """Gives a case back unread; False when this reader did not hold it."""
        check_reader(reader)
        with self.database.write() as connection:
            require_image(connection, uid)
            return connection.execute(delete(leases).where(
                leases.c.uid == uid, leases.c.reader == reader)).rowcount > 0

    def skip(self, uid: str, reader: str, reason: str = "") -> None:
        """Takes a case out of this reader's queue for good, and gives it back.

        Raises:
            ValueError: For a bad reader name or a reason over 500 characters.
            UnknownImage: For an unknown image.
        """
        check_reader(reader)
        if len(reason) > 500 or not (reason.isprintable()):
            raise ValueError("reason: need at most 500 printable characters, got something else.")
        with self.database.write() as connection:
            require_image(connection, uid)
            insert = self.database.insert(skips).values(
                uid=uid, reader=reader, reason=reason, created=time.time())
            connection.execute(insert.on_conflict_do_update(
                index_elements=["uid", "reader"],
                set_={"reason": insert.excluded.reason, "created": insert.excluded.created}))
            connection.execute(delete(leases).where(leases.c.uid == uid, leases.c.reader == reader))

    def _take(self, connection: Connection, uid: str, reader: str, now: float,
              lease_s: float) -> Lease | None:
        insert = self.database.insert(leases).values(uid=uid, reader=reader, expires=now + lease_s)
        won = connection.execute(insert.on_conflict_do_update(
            index_elements=["uid"],
            set_={"reader": insert.excluded.reader, "expires": insert.excluded.expires},
            where=or_(leases.c.expires <= now, leases.c.reader == reader)).returning(leases.c.uid)).scalar()
        if won is None:
            return None
        return Lease(uid, reader, datetime.fromtimestamp(now + lease_s, timezone.utc))


def check_reader(reader: str) -> str:
    """The name itself.

    Raises:
        ValueError: When it is no reader's name.
    """
    try:
        return _READER.validate_python(reader)
    except ValidationError as error:
        raise ValueError("reader: need 1 to 64 printable characters without outer spaces, "
                         "got something else.") from error


def _check_lease_s(lease_s: float) -> None:
    if not 0 < lease_s <= 86400:
        raise ValueError(f"lease_s: need more than 0 and at most 86400 seconds, got {lease_s}.")


def _queues(order: str, model_version: str | None) -> list[Select[Any]]:
    """The queries to ask in turn: places, then scored cases by their score, then the others.

    Each gives ``uid, random, model_version`` and walks one index.
    """
    if order not in ORDERS:
        raise ValueError(f"order: need one of {', '.join(ORDERS)}, got {order[:40]!r}.")
    present = (select(images.c.uid, false().label("random"), images.c.ranked_by.label("model_version"))
               .where(images.c.state == "present"))
    if order == "random":
        return [present.order_by(images.c.shuffle)]
    placed = (select(images.c.uid, ranks.c.random, ranks.c.model_version)
              .join(images, images.c.uid == ranks.c.uid)
              .where(ranks.c.strategy == order, images.c.state == "present").order_by(ranks.c.place))
    score, shuffle = images.c["entropy" if order in BATCH_ORDERS else order], images.c.shuffle
    best = (score.asc(), shuffle.asc()) if order == "margin" else (score.desc(), shuffle.desc())
    scored = present.where(score.is_not(None)).order_by(*best)
    rest = present.where(score.is_(None)).order_by(images.c.shuffle)
    if model_version is None:
        return [placed, scored, rest]
    other = or_(score.is_(None), images.c.ranked_by != model_version)
    return [placed.where(ranks.c.model_version == model_version, images.c.ranked_by == model_version),
            scored.where(images.c.ranked_by == model_version),
            present.where(other).order_by(images.c.shuffle)]


def _open_to(reader: str, now: float) -> tuple[ColumnElement[bool], ...]:
    """Not read by this reader, not skipped by them, not held by another."""
    return (~exists().where(annotation_rows.c.reader == reader, annotation_rows.c.uid == images.c.uid),
            ~exists().where(skips.c.uid == images.c.uid, skips.c.reader == reader),
            ~exists().where(leases.c.uid == images.c.uid, leases.c.reader != reader, leases.c.expires > now))
