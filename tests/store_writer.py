"""A process that writes to a store and says what it was told is stored; `test_store.py` runs it.

``store_writer.py open|annotate|score|lease STUDIES DATABASE NAME COUNT``
"""

from __future__ import annotations

import sys
from pathlib import Path

from dcaf_monai.server.annotation import Annotation
from dcaf_monai.server.store import Store
from dcaf_monai.tasks import TASKS


def main(what: str, studies: str, database: str, name: str, count: int) -> None:
    task = TASKS["covid19"]
    store = Store(Path(studies), task, database)
    if what == "open":
        print(store.refresh().total, flush=True)
        return
    uids = store.list_images()
    for turn in range(count):
        uid = uids[turn % len(uids)]
        if what == "annotate":
            label = task.classes[turn % len(task.classes)]
            print(store.annotate(uid, Annotation(label=label, reader=name)).key, flush=True)
        elif what == "score":
            version = f"{name}{turn // len(uids)}"
            store.save_prediction(uid, {
                "prediction": [{"label": "covid", "score": 0.75}, {"label": "normal", "score": 0.25}],
                "uncertainty": {"predictive_entropy": turn / count, "mutual_information": 0.0},
                "model": {"version": version, "sha256": ""}})
            print(f"{uid}|{version}", flush=True)
        else:
            reader = f"{name}.{turn}"                               # each lease is another reader's
            lease = store.next_case(reader)
            print(lease.uid if lease else "none", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
