"""The store between processes and over time: opening it, writing at once, being killed, export and import."""

from __future__ import annotations

import csv
import io
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text, update
from stores import TASK, WRITER, prediction, read

from dcaf_monai.server.database import StoreError, meta
from dcaf_monai.server.exchange import Imported
from dcaf_monai.server.store import Store

pytest_plugins = ("postgres",)

# -- opening ----------------------------------------------------------------------------------------

def test_the_default_database_lies_hidden_in_the_studies_folder_and_is_opened_again(studies: Path) -> None:
    first = Store(studies, TASK)
    first.refresh()
    first.annotate("a.png", read())
    first.close()
    assert (studies / ".dcaf/dcaf.sqlite3").is_file()
    again = Store(studies, TASK)
    assert again.current_labels() == {"a.png": "covid"} and again.refresh().added == 0


@pytest.mark.parametrize("address", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "x://", "://"])
def test_an_unfit_database_address_is_refused(studies: Path, address: str) -> None:
    with pytest.raises(ValueError, match="database: need"):
        Store(studies, TASK, address)


def test_an_unreachable_database_is_an_error_that_hides_the_password(studies: Path) -> None:
    with pytest.raises(StoreError, match="database: need an answer") as caught:
        Store(studies, TASK, "postgresql://u:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)


def test_a_missing_studies_folder_and_a_later_schema_are_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(ValueError, match="studies: need a folder"):
        Store(tmp_path / "nowhere", TASK)
    with store.database.write() as connection:
        connection.execute(update(meta).where(meta.c.name == "schema").values(value="99"))
    address = store.database.engine.url.render_as_string(hide_password=False)
    with pytest.raises(StoreError, match="Use the DCAF that made it"):
        Store(store.studies, TASK, address)


def test_an_error_of_the_database_tells_no_value_of_a_row(store: Store) -> None:
    with pytest.raises(StoreError) as caught, store.database.write() as connection:
        connection.execute(text("INSERT INTO annotations (key) VALUES (:name)"), {"name": "Jane Doe"})
    assert "Jane" not in str(caught.value)


# -- many processes ---------------------------------------------------------------------------------

def _start(store: Store, what: str, name: str, count: int) -> subprocess.Popen[str]:
    address = store.database.engine.url.render_as_string(hide_password=False)
    command = [sys.executable, str(WRITER), what, str(store.studies), address, name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_four_processes_that_start_at_once_create_one_schema(
        studies: Path, new_database: Callable[[], str]) -> None:
    address = new_database()
    started = [subprocess.Popen([sys.executable, str(WRITER), "open", str(studies), address, "x", "0"],
                                stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in started] == ["5\n"] * 4
    assert [process.returncode for process in started] == [0] * 4


def test_two_writing_processes_lose_nothing(store: Store) -> None:
    writers = [_start(store, "annotate", "ana", 200), _start(store, "score", "v", 200)]
    said = [process.communicate(timeout=120)[0].split() for process in writers]
    assert [process.returncode for process in writers] == [0, 0]
    assert [len(words) for words in said] == [200, 200]
    assert len(store.all_annotations()) == 200
    assert sum(bool(store.prediction(uid, version)) for uid, version in
               (word.split("|") for word in said[1])) == 200


def test_what_was_acknowledged_survives_a_kill_in_the_middle(store: Store) -> None:
    scorer, victim = _start(store, "score", "v", 200), _start(store, "annotate", "ana", 100_000)
    assert victim.stdout is not None
    acknowledged = [victim.stdout.readline().strip() for _ in range(40)]
    victim.send_signal(signal.SIGKILL)
    acknowledged += victim.communicate(timeout=60)[0].split()
    assert victim.returncode == -signal.SIGKILL
    scored = scorer.communicate(timeout=120)[0].split()
    assert len(scored) == 200 and scorer.returncode == 0
    keys = [str(annotation.key) for _, annotation in store.all_annotations()]
    assert set(acknowledged) <= set(keys) and len(keys) <= len(acknowledged) + 1
    assert all(store.prediction(uid, version) for uid, version in (word.split("|") for word in scored))
    store.annotate("a.png", read())                                 # and the store goes on
    if store.database.is_sqlite:
        with store.database.read() as connection:
            assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
# -- out and in -------------------------------------------------------------------------------------

@pytest.mark.parametrize("form", ["json", "csv"])
def test_what_is_exported_imports_into_an_empty_store_unchanged(
        store: Store, studies: Path, new_database: Callable[[], str], form: str) -> None:
    store.save_prediction("a.png", prediction())
    store.annotate("a.png", read(comment='=cmd|"/c calc"!A1\n"quoted", \'x', point=(1, 2.5), seconds=3.25,
                                 shown={"overlay": "gate"}, confidence=0.5))
    store.annotate("a.png", read("normal", "=bo", comment="'- kept", blind=True, box=(0, 1, 2, 5)))
    store.annotate("ward/b.PNG", read("uncertain", "@chief", comment="", role="adjudication"))
    text_out = getattr(store, f"export_{form}")()
    other = Store(studies, TASK, new_database())
    other.refresh()
    take_in = getattr(other, f"import_{form}")
    assert take_in(text_out) == Imported(added=3, known=0, unknown_images=0)
    assert take_in(text_out) == Imported(added=0, known=3, unknown_images=0)
    assert other.all_annotations() == store.all_annotations()


def test_no_csv_cell_begins_like_a_formula(store: Store) -> None:
    for start in "=+-@\t\n":
        store.annotate("a.png", read(comment=f"{start}1"))
    cells = [cell for row in csv.reader(io.StringIO(store.export_csv())) for cell in row]
    assert [cell for cell in cells if cell[:1] in tuple("=+-@\t\r\n")] == [] and len(cells) > 20


def test_a_plain_table_of_three_columns_imports(store: Store) -> None:
    done = store.import_csv("uid,label,reader\na.png,covid,ana\nnobody.png,covid,ana\n")
    assert done == Imported(added=1, known=0, unknown_images=1)
    assert store.current_labels() == {"a.png": "covid"}


@pytest.mark.parametrize("table", [
    "uid,label\na.png,covid\n", "uid,label,reader,colour\na.png,covid,ana,red\n", "",
    "uid,label,reader\na.png,covid,ana\na.png,drusen,ana\n", "uid,label,reader\na.png,covid,ana\na.png\n",
    "uid,label,reader,confidence\na.png,covid,ana,0.5\na.png,covid,ana,2\n",
    "uid,label,reader,point\na.png,covid,ana,\na.png,covid,ana,[1\n"])
def test_a_table_with_one_fault_imports_nothing(store: Store, table: str) -> None:
    with pytest.raises(ValueError, match="import: "):
        store.import_csv(table)
    assert store.all_annotations() == []


@pytest.mark.parametrize("document", [
    "", "[]", '{"annotations": [1]}', '{"annotations": [{"label": "covid"}]}',
    '{"annotations": [{"uid": "a.png", "label": "covid"}]}'])
def test_a_document_with_a_fault_imports_nothing(store: Store, document: str) -> None:
    with pytest.raises(ValueError, match="import: "):
        store.import_json(document)
