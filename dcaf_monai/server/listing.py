"""Listing: the worklist as a person looks at it, page by page, in any order, through any filter."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select, union

from dcaf_monai.server.database import Database, annotation_rows, images, leases, monitored, ranks, skips
from dcaf_monai.server.worklist import BATCH_ORDERS, check_reader

ORDERS = {"entropy": True, "mutual_information": True, "margin": False, "random": False, "case": False,
          "label": False, "score": False, **dict.fromkeys(BATCH_ORDERS, False)}
"""Whether an order descends unless asked otherwise: scores go from the least certain on, names from A on."""

STATUSES = ("all", "unread", "mine", "read", "disagreement", "unscored", "skipped", "leased")

_COLUMNS = {"random": "shuffle", "case": "uid"}
_SHOWN = select(
    images.c.uid, images.c.label, images.c.score, images.c.entropy.label("predictive_entropy"),
    images.c.normalized_entropy, images.c.mutual_information, images.c.margin,
    images.c.ranked_by.label("model_version"), images.c.disputed)


@dataclass(frozen=True)
class Page:
    """Part of the worklist: ``items`` from ``offset`` on, of ``total``."""

    total: int
    offset: int
    items: list[dict[str, Any]]


class Listing:
    """The part of the store that shows the worklist."""

    database: Database

    def worklist(self, order: str = "entropy", status: str = "all", *, descending: bool | None = None,
                 label: str | None = None, reader: str | None = None, offset: int = 0,
                 limit: int = 50) -> Page:
        """One page of the worklist; by default the most uncertain first. Images without a score come last.

        Args:
            order: One of `ORDERS`. ``label`` and ``score`` are the model's most probable class and its
                probability; ``case`` is the uid. A batch strategy's order is that of its places; images
                without a place follow, the most uncertain first.
            status: ``all``; ``read``, ``skipped`` (by the reader; by anybody when none is named);
                ``unread`` (neither of these); ``mine`` (read by the reader, who must be named);
                ``leased``; ``unscored``; ``disagreement`` (waits for adjudication).
            descending: Which way; None for the order's own, see `ORDERS`.
            label: Only images for which this is the model's answer.
            reader: Whose list it is.
            offset: Items to pass over.
            limit: Items to give, 1 to 500.

        Returns:
            Items of ``{uid, label, score, predictive_entropy, normalized_entropy, mutual_information,
            margin, model_version, random, readers, read_by, read_by_me, leased_by_me, leased_by_other,
            status}``; ``random`` images were drawn for the random share of some strategy.
            The status is the first that holds of ``disagreement``, ``read``, ``skipped`` (both as
            above), ``leased`` and ``unread``.

        Raises:
            ValueError: For an unknown order or status, or a bad reader, offset or limit.
        """
        if status not in STATUSES:
            raise ValueError(f"status: need one of {', '.join(STATUSES)}, got {status[:40]!r}.")
        if status == "mine" and reader is None:
            raise ValueError("reader: need one for the status mine, got none.")
        if offset < 0 or not 1 <= limit <= 500:
            raise ValueError(f"page: need offset >= 0 and limit 1 to 500, got {offset}, {limit}.")
        if reader is not None:
            check_reader(reader)
        now = time.time()
        order_by = _order("entropy" if order in BATCH_ORDERS else order,
                          None if order in BATCH_ORDERS else descending)
        filters = _filters(status, label, reader, now, walking=True)
        with self.database.read() as connection:
            total = _total(connection, status, label, reader, now)
            placed: list[str] = []
            if order in BATCH_ORDERS:
                place = ranks.c.place.desc() if descending else ranks.c.place
                placed = list(connection.execute(
                    select(images.c.uid).join(ranks, ranks.c.uid == images.c.uid)
                    .where(ranks.c.strategy == order, *filters).order_by(place)).scalars())
                filters.append(images.c.uid.not_in(select(ranks.c.uid).where(ranks.c.strategy == order)))
            uids = placed[offset:offset + limit]
            if offset < total and len(uids) < limit:
                uids += connection.execute(
                    select(images.c.uid).where(*filters).order_by(*order_by)
                    .limit(limit - len(uids)).offset(max(0, offset - len(placed)))).scalars()
            rows = {row["uid"]: dict(row) for row in connection.execute(_SHOWN.where(images.c.uid.in_(uids)))
                    .mappings()}
            readers = _readers(connection, uids, now)
            random = set(connection.execute(union(
                select(ranks.c.uid).where(ranks.c.uid.in_(uids), ranks.c.random.is_(True)),
                select(monitored.c.uid).where(monitored.c.uid.in_(uids)))).scalars())
        return Page(total, offset, [_item({**rows[uid], "random": uid in random}, reader, *readers[uid])
                                    for uid in uids])


def _order(order: str, descending: bool | None) -> tuple[ColumnElement[Any], ...]:
    if order not in ORDERS:
        raise ValueError(f"order: need one of {', '.join(ORDERS)}, got {order[:40]!r}.")
    descending = ORDERS[order] if descending is None else descending
    key, shuffle = images.c[_COLUMNS.get(order, order)], images.c.shuffle
    if order in _COLUMNS:
        return (key.desc() if descending else key.asc(),)
    return (key.desc().nulls_last(), shuffle.desc()) if descending else \
        (key.asc().nulls_last(), shuffle.asc())


def _filters(status: str, label: str | None, reader: str | None, now: float, *,
             walking: bool = False) -> list[ColumnElement[bool]]:
    """Which images are asked for.

    Args:
        walking: The images are walked in an order, not counted. Labels are then compared through an
            expression: without statistics SQLite would prefer the index of labels to that of the
            order, and sort half the pool for one page.
    """
    answer = func.coalesce(images.c.label, "") if walking else images.c.label

    def by_reader(table: Any) -> list[ColumnElement[bool]]:
        return [table.c.reader == reader] if reader is not None else []

    def named(*tables: Any) -> ColumnElement[bool]:
        """The image is in one of the tables, under the reader's name when there is one."""
        return images.c.uid.in_(union(*(select(table.c.uid).where(*by_reader(table)) for table in tables)))

    read = named(annotation_rows) if reader is not None else images.c.readings > 0
    unread = [~exists().where(table.c.uid == images.c.uid, *by_reader(table))
              for table in (annotation_rows, skips)]
    conditions: dict[str, ColumnElement[bool]] = {
        "unread": and_(*unread), "read": read, "mine": read, "skipped": named(skips),
        "done": named(annotation_rows, skips),
        "unscored": answer == "" if walking else answer.is_(None),
        "disagreement": images.c.disputed.is_(True),
        "leased": images.c.uid.in_(select(leases.c.uid).where(leases.c.expires > now))}
    return [images.c.state == "present", *([answer == label] if label is not None else []),
            *([conditions[status]] if status != "all" else [])]


def _total(connection: Connection, status: str, label: str | None, reader: str | None, now: float) -> int:
    """How many images pass; the unread are all but those done with, counted without a look at the others."""
    def count(status: str) -> int:
        return connection.execute(select(func.count()).select_from(images).where(
            *_filters(status, label, reader, now))).scalar_one()

    return count("all") - count("done") if status == "unread" else count(status)


def _readers(connection: Connection, uids: list[str],
             now: float) -> dict[str, tuple[set[str], set[str], str | None]]:
    """Who has read, who has skipped and who holds each of some images."""
    found: dict[str, tuple[set[str], set[str], str | None]] = {uid: (set(), set(), None) for uid in uids}
    for uid, reader in connection.execute(select(annotation_rows.c.uid, annotation_rows.c.reader).distinct()
                                          .where(annotation_rows.c.uid.in_(uids))):
        found[uid][0].add(reader)
    for uid, reader in connection.execute(select(skips.c.uid, skips.c.reader).where(skips.c.uid.in_(uids))):
        found[uid][1].add(reader)
    for uid, reader in connection.execute(select(leases.c.uid, leases.c.reader).where(
            leases.c.uid.in_(uids), leases.c.expires > now)):
        found[uid] = (*found[uid][:2], reader)
    return found


def _item(row: dict[str, Any], reader: str | None, read_by: set[str], skipped_by: set[str],
          holder: str | None) -> dict[str, Any]:
    """A worklist entry; who else holds a case is not told, only that somebody does."""
    def by(names: set[str]) -> bool:
        return bool(names) if reader is None else reader in names

    holds = {"disagreement": row.pop("disputed"), "read": by(read_by), "skipped": by(skipped_by),
             "leased": holder is not None}
    return {**row, "readers": len(read_by), "read_by": sorted(read_by), "read_by_me": reader in read_by,
            "leased_by_me": holder is not None and holder == reader,
            "leased_by_other": holder is not None and holder != reader,
            "status": next((status for status, true in holds.items() if true), "unread")}
