"""A database of an earlier schema is brought up to today's; `schemas/` holds the tables as they were made."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, inspect, text
from stores import TASK, prediction, read

from dcaf_monai.server import database, migrate
from dcaf_monai.server.scores import Evidence
from dcaf_monai.server.store import Store

pytest_plugins = ("postgres",)

SAID = [("a.png", "covid", "ana", "read"), ("a.png", "normal", "bo", "read"),       # in dispute
        ("d.nii.gz", "covid", "ana", "read"), ("d.nii.gz", "normal", "bo", "read"),
        ("d.nii.gz", "normal", "cy", "adjudication"),                               # settled
        ("e.tiff", "covid", "ana", "read"), ("e.tiff", "normal", "ana", "read")]    # a change of mind
PREDICTED = [("a.png", prediction("v1", entropy=0.9)),
             ("a.png", prediction("v2", entropy=0.4, probabilities=(0.2, 0.2, 0.6))),
             ("d.nii.gz", prediction("v1", entropy=0.3, probabilities=(0.1, 0.85, 0.05)))]
VERSIONS = {"a.png": "v2", "d.nii.gz": "v1"}


def of_schema_1(address: str) -> None:
    """Makes the old tables and fills them as the first DCAF would have."""
    engine = create_engine(address)
    script = (Path(__file__).parent / "schemas" / f"schema_1.{engine.dialect.name}.sql").read_text("utf-8")
    with engine.begin() as connection:
        for statement in script.split("\n--\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)

        def add(table: str, **row: Any) -> None:
            names = ", ".join(row)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES (:{', :'.join(row)})"), row)

        add("meta", name="schema", value="1")
        documents = {(uid, document["model"]["version"]): document for uid, document in PREDICTED}
        for place, uid in enumerate(("a.png", "d.nii.gz", "e.tiff", "ward/b.PNG", "ward/deep/c.jpeg")):
            best = documents.get((uid, VERSIONS.get(uid, "")), {}).get("uncertainty", {})
            add("images", uid=uid, path=uid, state="present", added=1.0, info="{}", shuffle=place / 7,
                readings=sum(said[0] == uid for said in SAID), ranked_by=VERSIONS.get(uid),
                entropy=best.get("predictive_entropy"), mutual_information=best.get("mutual_information"))
        for (uid, version), document in documents.items():
            add("predictions", uid=uid, model_version=version, model_sha256="00ff", created=1.0,
                label=document["prediction"][0]["label"],
                entropy=document["uncertainty"]["predictive_entropy"], document=json.dumps(document))
        for uid, label, reader, role in SAID:
            said = read(label, reader, role=role, key=uuid.uuid4())
            add("annotations", key=str(said.key), uid=uid, reader=reader, label=label, role=role, blind=False,
                created=1.0, document=said.model_dump_json())
    engine.dispose()


def shape(store: Store) -> dict[str, Any]:
    """Columns and indexes of every table."""
    found = inspect(store.database.engine)
    return {table: ({(column["name"], str(column["type"]), column["nullable"])
                     for column in found.get_columns(table)},
                    {(index["name"], tuple(index["column_names"])) for index in found.get_indexes(table)})
            for table in found.get_table_names()}


@pytest.mark.parametrize("batch", [1, 1000])
def test_an_old_database_opens_as_if_it_had_been_new(
        studies: Path, new_database: Callable[[], str], batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "BATCH", batch)
    address = new_database()
    of_schema_1(address)
    old, new = Store(studies, TASK, address), Store(studies, TASK, new_database())
    new.refresh()
    new.save_predictions(PREDICTED)
    for uid, label, reader, role in SAID:
        new.annotate(uid, read(label, reader, role=role))
    assert shape(old) == shape(new)
    shown = ("uid", "label", "score", "normalized_entropy", "predictive_entropy", "model_version", "readers",
             "read_by", "status")
    pages = [[tuple(item[name] for name in shown) for item in store.worklist("case", reader="ana").items]
             for store in (old, new)]
    assert pages[0] == pages[1] and len(pages[0]) == 5
    assert pages[0][0][1:4] == ("viral_pneumonia", 0.6, pytest.approx(0.4 / 1.0986122886681098))
    assert old.disagreements() == new.disagreements() and old.current_labels() == new.current_labels()
    assert old.rank_by("v1") == new.rank_by("v1") == 1
    assert old.worklist("score").items[0]["score"] == new.worklist("score").items[0]["score"] == 0.7
    for store in (old, new):
        store.close()
    again = Store(studies, TASK, address)
    assert again.disagreements()[0]["uid"] == "a.png" and database.SCHEMA == 4
    again.close()


def test_a_migration_that_fails_leaves_the_old_database_as_it_was(
        studies: Path, new_database: Callable[[], str]) -> None:
    address = new_database()
    of_schema_1(address)
    engine = create_engine(address)
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX images_by_margin"))     # the step counts on it
    with pytest.raises(database.StoreError):
        Store(studies, TASK, address)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT value FROM meta")).scalar_one() == "1"
        assert "disputed" not in {column["name"] for column in inspect(connection).get_columns("images")}
        connection.execute(text("CREATE INDEX images_by_margin ON images (state, margin)"))
    engine.dispose()
    store = Store(studies, TASK, address)
    assert store.worklist().total == 5
    store.close()


def test_a_database_of_the_second_schema_gets_what_batch_strategies_need(
        studies: Path, new_database: Callable[[], str]) -> None:
    address = new_database()
    engine = create_engine(address)
    script = (Path(__file__).parent / "schemas" / f"schema_2.{engine.dialect.name}.sql").read_text("utf-8")
    with engine.begin() as connection:
        for statement in script.split("\n--\n"):
            connection.exec_driver_sql(statement)
        connection.execute(text("INSERT INTO meta (name, value) VALUES ('schema', '2')"))
        connection.execute(text(
            "INSERT INTO images (uid, path, state, added, info, shuffle, disputed) "
            "VALUES ('a.png', 'a.png', 'present', 1.0, '{}', 0.5, false)"))
    engine.dispose()
    old, new = Store(studies, TASK, address), Store(studies, TASK, new_database())
    assert shape(old) == shape(new) and {"evidence", "ranks", "monitored", "contents"} <= set(shape(old))
    assert old.list_images() == ["a.png"]
    old.refresh()
    old.save_prediction("a.png", prediction(), Evidence(np.ones(3), np.zeros((2, 3))))
    assert old.rank_pool("v1") == 1
    for store in (old, new):
        store.close()
