"""The journal on a disk that is real: kills, torn files, two processes."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from DCAFReviewLib.journal import Journal
from served import wait

URL, OTHER = "http://127.0.0.1:1", "https://other.example"
WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from DCAFReviewLib.journal import Journal
journal = Journal(sys.argv[2])
for number in range(int(sys.argv[3]), 10**6):
    key = journal.add("http://127.0.0.1:1", f"1.2.{number}", {"label": "normal", "comment": "x" * 5000})
    print(key, flush=True)
"""
PACKAGE = Path(__file__).resolve().parents[2] / "slicer_extension" / "DCAFReview"


def said(label: str = "normal", **more: object) -> dict:
    return {"label": label, "reader": "ada", "comment": "caf\u00e9", **more}


def test_what_was_added_is_there_after_a_restart_in_its_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    keys = [journal.add(URL, f"1.2.{number}", said(f"l{number}")) for number in range(20)]
    again = Journal(tmp_path / "journal").pending(URL)
    assert [entry.key for entry in again] == keys == [entry.document["key"] for entry in again]
    assert [(entry.uid, entry.document["label"]) for entry in again][7] == ("1.2.7", "l7")
    assert again[0].document["comment"] == "caf\u00e9" and abs(again[0].added - time.time()) < 60


def test_the_documents_own_key_is_kept_and_one_that_is_none_is_refused(tmp_path: Path) -> None:
    key = str(uuid.uuid4())
    assert Journal(tmp_path).add(URL, "1.2", said(key=key)) == key
    with pytest.raises(ValueError):
        Journal(tmp_path).add(URL, "1.2", said(key="../../etc/passwd"))
    assert len(os.listdir(tmp_path)) == 1


def test_each_server_has_its_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(URL, "1.2", said())
    assert journal.pending(OTHER) == [] and len(journal.pending(URL)) == 1


def test_settled_is_gone_and_settling_twice_is_fine(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first, second = journal.add(URL, "1.2", said()), journal.add(URL, "1.3", said())
    journal.settle(first)
    journal.settle(first)
    assert [entry.key for entry in journal.pending(URL)] == [second]
    assert [entry.key for entry in Journal(tmp_path).pending(URL)] == [second]


def test_refused_is_kept_with_its_reason_until_it_is_dismissed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    key = journal.add(URL, "1.2", said())
    journal.dismiss(key)   # it waits: it cannot be dismissed
    assert len(journal.pending(URL)) == 1
    journal.refuse(key, "label: need another.")
    for one in (journal, Journal(tmp_path)):
        assert one.pending(URL) == []
        assert [(entry.key, entry.why, entry.uid) for entry in one.refused()] == [
            (key, "label: need another.", "1.2")]
    journal.refuse(key, "again")
    assert [entry.why for entry in journal.refused()] == ["label: need another."]
    journal.dismiss(key)
    assert journal.refused() == [] and os.listdir(tmp_path) == []


def test_a_reason_that_is_empty_still_means_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.refuse(journal.add(URL, "1.2", said()), "")
    assert journal.pending(URL) == [] and journal.refused()[0].why


def test_files_are_for_this_account_alone_and_hold_no_token(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        Journal(tmp_path / "a" / "journal").add(URL, "1.2", said())
    finally:
        os.umask(old)
    folder = tmp_path / "a" / "journal"
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "token" not in file.read_text().lower()


@pytest.mark.parametrize("keep", [0, 1, 40, -1])
def test_a_torn_file_loses_nothing_else(tmp_path: Path, keep: int) -> None:
    journal = Journal(tmp_path)
    keys = [journal.add(URL, f"1.{number}", said()) for number in range(3)]
    torn = next(path for path in tmp_path.iterdir() if keys[1] in path.name)
    torn.write_bytes(torn.read_bytes()[:keep])
    again = Journal(tmp_path)
    assert [entry.key for entry in again.pending(URL)] == [keys[0], keys[2]]
    again.add(URL, "1.9", said())
    assert len(again.pending(URL)) == 3 and torn.exists()


@pytest.mark.parametrize("text", ["[]", "{}", '{"key": 1}', "null", json.dumps(
    {"key": "k", "server_url": URL, "uid": "1", "document": [], "added": 0})])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "0-strange.json").write_text(text)
    assert Journal(tmp_path).pending(URL) == Journal(tmp_path).refused() == []
    assert (tmp_path / "0-strange.json").read_text() == text


def test_a_kill_between_the_two_steps_of_a_refusal_counts_as_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    key = journal.add(URL, "1.2", said())
    (name,) = os.listdir(tmp_path)
    before = (tmp_path / name).read_bytes()
    journal.refuse(key, "no")
    (tmp_path / name).write_bytes(before)
    again = Journal(tmp_path)
    assert again.pending(URL) == [] and [entry.why for entry in again.refused()] == ["no"]


def write(folder: Path, start: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, PACKAGE, folder, str(start)],
                            stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("after_s", [0.0, 0.003, 0.007, 0.011])
def test_a_kill_in_the_middle_of_writing_loses_nothing_that_was_acknowledged(tmp_path: Path,
                                                                             after_s: float) -> None:
    process = write(tmp_path, 0)
    told = [process.stdout.readline().strip() for _ in range(30)]
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().split()
    process.wait()
    pending = Journal(tmp_path).pending(URL)
    kept = [entry.key for entry in pending]
    assert kept[:len(told)] == told and len(kept) <= len(told) + 1
    assert all(entry.document["comment"] == "x" * 5000 for entry in pending)


def test_two_processes_share_it(tmp_path: Path) -> None:
    writers = [write(tmp_path, start) for start in (0, 500_000)]
    told: list[str] = []

    def hear(process: subprocess.Popen) -> None:
        told.extend(line.strip() for line in process.stdout)

    threads = [threading.Thread(target=hear, args=(process,)) for process in writers]
    for thread in threads:
        thread.start()
    journal, settled = Journal(tmp_path), set()

    def settle() -> None:   # a third one sends at the same time
        for entry in journal.pending(URL)[:5]:
            journal.settle(entry.key)
            settled.add(entry.key)

    wait(lambda: len(settled) > 30, 20, settle)
    for process in writers:
        process.kill()
        process.wait()
    for thread in threads:
        thread.join()
    left = {entry.key for entry in Journal(tmp_path).pending(URL)}
    assert not left & settled and set(told) <= left | settled
    assert len(left | settled) <= len(told) + 2


def test_a_disk_that_refuses_is_an_error_and_leaves_no_draft(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    (tmp_path / "journal").rmdir()
    with pytest.raises(OSError):
        journal.add(URL, "1.2", said())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        Journal(tmp_path / "file" / "journal")
