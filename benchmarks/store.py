"""The store at 50,000 images: saving an annotation, the next case; MONAI Label's index beside it."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcaf_monai.server import compat  # noqa: F401  (before monailabel.datastore)

# isort: split
from monailabel.datastore.local import LocalDatastore

from dcaf_monai.server.annotation import Annotation
from dcaf_monai.server.database import files, images
from dcaf_monai.server.pool import shuffle_place
from dcaf_monai.server.store import Store

MANY, FEW = 50_000, 500


def rows(*, turns: int = 60) -> list[dict[str, Any]]:
    """One dictionary per figure: what, ours_ms, peer, peer_ms, ratio (ours over peer), goal."""
    with tempfile.TemporaryDirectory() as folder:
        few, many = _filled(Path(folder) / "few", FEW), _filled(Path(folder) / "many", MANY)
        # In turn, so that both meet the same disk at the same time.
        few_ms, many_ms = _medians([_saver(few), _saver(many)], turns)
        scored_ms, = _medians([_asker(many, "entropy")], turns)
        random_ms, = _medians([_asker(many, "random")], turns)
        empty = _filled(Path(folder) / "unread", MANY, scored=False)
        unscored_ms, = _medians([_asker(empty, "entropy")], turns)
        upstream_ms, = _medians([_upstream(Path(folder) / "upstream", MANY)], 3)
        for store in (few, many, empty):
            store.close()

    def next_case(what: str, ours_ms: float) -> dict[str, Any]:
        return {"what": f"next case of {MANY} unread, {what}", "ours_ms": ours_ms, "peer": "limit",
                "peer_ms": 100.0, "ratio": ours_ms / 100, "goal": "<= 1"}

    return [
        {"what": f"save an annotation among {MANY} images", "ours_ms": many_ms, "peer": f"among {FEW}",
         "peer_ms": few_ms, "ratio": many_ms / few_ms, "goal": "<= 1.5"},
        {"what": f"save an annotation among {MANY} images", "ours_ms": many_ms,
         "peer": "MONAI Label's index rewritten", "peer_ms": upstream_ms, "ratio": many_ms / upstream_ms,
         "goal": "< 1"},
        next_case("by entropy", scored_ms), next_case("random", random_ms),
        next_case("none scored", unscored_ms)]


def _filled(folder: Path, count: int, *, scored: bool = True) -> Store:
    """A store with rows for ``count`` images; their files need not exist for what is timed."""
    folder.mkdir()
    store = Store(folder, None)
    uids = [f"1.2.826.0.1.{number}" for number in range(count)]
    nothing = {"ranked_by": None, "entropy": None, "mutual_information": None, "margin": None}
    with store.database.write() as connection:
        connection.execute(files.insert(), [{"path": f"{uid}.dcm", "size": 1, "mtime_ns": 1} for uid in uids])
        connection.execute(images.insert(), [{
            "uid": uid, "path": f"{uid}.dcm", "frame": None, "state": "present", "added": 0.0, "info": {},
            "shuffle": shuffle_place(uid), **(nothing if not scored else {
                "ranked_by": "1", "entropy": shuffle_place(uid + "e"),
                "mutual_information": shuffle_place(uid + "m"),
                "margin": shuffle_place(uid + "d")})} for uid in uids])
    return store


def _saver(store: Store) -> Callable[[int], object]:
    uids = store.list_images()
    return lambda turn: store.annotate(uids[turn * 7 % len(uids)], Annotation(label="covid", reader="ana"))


def _asker(store: Store, order: str) -> Callable[[int], object]:
    """Each turn another reader asks, so every case already leased is stepped over."""
    return lambda turn: store.next_case(f"{order}.{turn}", order)


def _upstream(folder: Path, count: int) -> Callable[[int], object]:
    """Upstream's `save_label` on an index of the same size."""
    (folder / "labels/final").mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").touch()
    datastore = LocalDatastore(str(folder), extensions=("*.png",))
    label = folder.parent / "label.json"
    label.write_text(json.dumps({"label": "covid"}))
    return lambda turn: datastore.save_label(str(turn), str(label), "final", {})


def _medians(calls: list[Callable[[int], object]], turns: int) -> list[float]:
    """Median milliseconds of each call, one warm-up before, calls taking turns."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(turns + 1):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call(turn)
            taken.append((time.perf_counter() - start) * 1000)
    return [statistics.median(taken[1:]) for taken in times]


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row))
