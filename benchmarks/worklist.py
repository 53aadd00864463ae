"""The worklist at 100,000 images: every order, way, filter and answer; first page and a deep one."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import text

from dcaf_monai.server.database import annotation_rows, files, images, leases, skips
from dcaf_monai.server.listing import ORDERS, STATUSES
from dcaf_monai.server.pool import shuffle_place
from dcaf_monai.server.store import Store

MANY, DEEP, LIMIT = 100_000, 50_000, 100
SHARES = (("normal", 0.6), ("covid", 0.998), ("viral_pneumonia", 1.0))
"""Where each answer's part of the pool ends; the last one is rare."""


def rows(*, turns: int = 3) -> list[dict[str, Any]]:
    """The slowest and the median combination of each kind of page; `measured` gives them all."""
    with tempfile.TemporaryDirectory() as folder:
        store = filled(Path(folder) / "studies")
        found = measured(store, turns=turns)
        store.close()
    kinds = {"first page": [taken for taken in found if not taken["offset"]],
             f"page at {DEEP}": [taken for taken in found if taken["offset"]]}
    told = []
    for kind, goal_ms in ((list(kinds)[0], 200.0), (list(kinds)[1], 300.0)):
        ranked = sorted(kinds[kind], key=lambda taken: taken["ms"])
        for word, taken in (("median of all orders and filters", ranked[len(ranked) // 2]),
                            (f"slowest: {ranked[-1]['what']}", ranked[-1])):
            told.append({"what": f"{kind} of {MANY}, {word}", "ours_ms": taken["ms"], "peer": "limit",
                         "peer_ms": goal_ms, "ratio": taken["ms"] / goal_ms, "goal": "<= 1"})
    return told


def measured(store: Store, *, turns: int) -> list[dict[str, Any]]:
    """Best milliseconds of each combination: ``[{what, offset, total, ms}]``."""
    found = []
    for order, status, label, back in itertools.product(ORDERS, STATUSES, (None, "normal", "viral_pneumonia"),
                                                        (False, True)):
        down = ORDERS[order] != back
        for offset in (0, DEEP):
            best = min(_page(store, turns, order, status, descending=down, label=label, reader="ana",
                             offset=offset, limit=LIMIT))
            found.append({"what": f"{order} {'down' if down else 'up'}, {status}, {label or 'any answer'}",
                          "offset": offset, "ms": best})
    return found


def _page(store: Store, turns: int, *asked: Any, **more: Any) -> list[float]:
    taken = []
    for _ in range(turns):
        start = time.perf_counter()
        store.worklist(*asked, **more)
        taken.append((time.perf_counter() - start) * 1000)
    return taken


def filled(folder: Path, address: str | None = None) -> Store:
    """A pool of which a tenth has no score; ana has read 30 %, 3 % are in dispute, 1 % skipped, 1 % held."""
    folder.mkdir()
    store = Store(folder, None, address)
    uids = [f"1.2.826.0.1.{number}" for number in range(MANY)]
    place = {uid: shuffle_place(uid) for uid in uids}
    shares = {uid: shuffle_place(uid + "l") for uid in uids}
    read = [uid for uid in uids if shuffle_place(uid + "r") < 0.3]
    disputed = set(read[::10])
    with store.database.write() as connection:
        connection.execute(files.insert(), [{"path": f"{uid}.dcm", "size": 1, "mtime_ns": 1} for uid in uids])
        connection.execute(images.insert(), [{
            "uid": uid, "path": f"{uid}.dcm", "frame": None, "state": "present", "added": 0.0, "info": {},
            "shuffle": place[uid], "readings": 0, "disputed": uid in disputed, **_scores(uid, shares[uid])}
            for uid in uids])
        connection.execute(annotation_rows.insert(), [{
            "key": f"{reader}{uid}", "uid": uid, "reader": reader, "label": label, "role": "read",
            "blind": False, "created": 0.0, "document": {}}
            for reader, label, some in (("ana", "normal", read), ("bo", "covid", sorted(disputed)))
            for uid in some])
        connection.execute(text("UPDATE images SET readings = (SELECT count(*) FROM annotations "
                                "WHERE annotations.uid = images.uid)"))
        connection.execute(skips.insert(), [{"uid": uid, "reader": "ana", "reason": "", "created": 0.0}
                                            for uid in uids[::100]])
        connection.execute(leases.insert(), [{"uid": uid, "reader": "cy", "expires": time.time() + 86400}
                                             for uid in uids[1::100]])
    return store


def _scores(uid: str, share: float) -> dict[str, Any]:
    names = ("score", "entropy", "normalized_entropy", "mutual_information", "margin")
    if shuffle_place(uid + "u") < 0.1:
        return {"ranked_by": None, "label": None, **dict.fromkeys(names)}
    label = next(label for label, end in SHARES if share < end)
    return {"ranked_by": "1", "label": label, **{name: shuffle_place(uid + name) for name in names}}


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row))
