"""The session when something comes between: late answers, kills, refusals, other readers, lost tokens."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import pytest
from DCAFReviewLib.journal import Journal
from DCAFReviewLib.session import Session
from ownclock import own_s
from served import Served, Trouble, free_port, wait
from sessions import FIRST, NEVER, SECOND, labels, next_of, opened, peer, reading, status_of, until


@pytest.fixture(scope="module")
def films():
    """A server with tokens and a random model, for readers ada and bob and the admin chief."""
    with Served({"films": 16, "model": True, "tokens": True, "data": True, "cutoffs": NEVER}) as server:
        yield server


def test_an_answer_that_comes_late_never_lands_on_the_next_case(films: Served, tmp_path: Path) -> None:
    ada = peer(films, "ada")
    first, second = (item["uid"] for item in ada.worklist("case", status="unread")["items"][:2])
    with Trouble(films.port) as slow, reading(films, tmp_path, url=slow.url) as session:
        slow.delay_s, slow.only = 1.5, first
        session.open_case(first)
        late = session.case
        for _ in range(10):
            session.tick()
            time.sleep(0.02)
        slow.delay_s = 0.0
        session.open_case(second)
        assert opened(session).uid == second and session.case.document["image"]["id"] == second
        assert slow.hung_up.wait(20)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            session.tick()
            time.sleep(0.02)
        assert session.case.uid == second and late.picture is None and late.kept_document is None
        assert not status_of(peer(films, "bob"), first)["leased_by_other"]
        assert status_of(peer(films, "bob"), second)["leased_by_other"]


def test_no_tick_waits_for_a_server_that_takes_seconds(films: Served, tmp_path: Path) -> None:
    longest = 0.0
    with Trouble(films.port) as slow, reading(films, tmp_path, url=slow.url) as session:
        slow.delay_s = 1.0
        session.next_case()
        session.show_page(status="all")
        end = time.monotonic() + 3
        while time.monotonic() < end:
            start = own_s()
            session.tick()
            if session.case and not session.waiting and not session.sent:
                session.choose(FIRST)
                session.submit()
            longest = max(longest, own_s() - start)
            time.sleep(0.005)
        slow.delay_s = 0.0
        until(session, lambda: not session.waiting and session.sent)
    assert longest < 0.1


def test_an_acknowledgement_that_was_lost_doubles_nothing(films: Served, tmp_path: Path) -> None:
    with Trouble(films.port) as trouble, reading(films, tmp_path, url=trouble.url) as session:
        uid = next_of(session).uid
        trouble.cut, trouble.only = "lost", "PUT"
        session.choose(FIRST)
        session.submit()
        until(session, lambda: session.connection.state == "lost")
        assert len(labels(peer(films, "ada"), uid)) == 1
        assert session.waiting == 1 and session.connection.message
        trouble.cut = ""
        assert opened(session).uid != uid and session.waiting == 0
        assert labels(peer(films, "ada"), uid) == [("ada", FIRST, "read")]
        assert sum(line.startswith("PUT") for line in trouble.seen) >= 2


def test_a_server_killed_before_its_acknowledgement_has_the_answer_once_when_it_is_back(
        films: Served, tmp_path: Path) -> None:
    with Trouble(films.port) as trouble:
        with reading(films, tmp_path, url=trouble.url) as session:
            case = next_of(session)
            trouble.delay_s, trouble.only = 30.0, "PUT"
            session.choose(SECOND)
            session.submit()
            wait(lambda: any(line.startswith("PUT") for line in trouble.seen), 10, session.tick)
            films.kill()
            session.undo()   # the case is here still, without any server
            assert session.case.uid == case.uid and session.case.picture is case.picture
            session.choose(FIRST)
            session.submit()
            trouble.delay_s = 0.0
            until(session, lambda: session.connection.state == "lost")
            assert session.waiting == 2 and session.seeking
        assert len(Journal(tmp_path / "journal").pending(trouble.url)) == 2
        films.start()
        with reading(films, tmp_path, url=trouble.url) as again:   # the application was started anew
            until(again, lambda: again.waiting == 0)
    assert labels(peer(films, "ada"), case.uid) == [("ada", SECOND, "read"), ("ada", FIRST, "read")]


def test_a_session_goes_on_by_itself_when_the_server_is_back(films: Served, tmp_path: Path) -> None:
    with Trouble(films.port) as trouble, reading(films, tmp_path, url=trouble.url) as session:
        trouble.cut = "request"
        session.next_case()
        until(session, lambda: session.connection.state == "lost")
        assert session.case is None and session.seeking
        trouble.cut = ""
        assert opened(session).picture is not None and session.connection.state == "on"


def test_a_refused_answer_is_kept_and_told(films: Served, tmp_path: Path) -> None:
    with reading(films, tmp_path) as session:
        uid = next_of(session).uid
        session.remark(comment="x" * 4001)
        session.choose(FIRST)
        session.submit()
        until(session, lambda: session.refused)
        assert session.notice.severity == "error" and "refused" in session.notice.text
        (entry,) = session.refused
        assert entry.uid == uid and entry.why and session.waiting == 0
        assert labels(peer(films, "ada"), uid) == []
        (row,) = csv.DictReader(io.StringIO(session.csv()))
        assert (row["state"], row["image"], row["label"]) == ("refused", uid, FIRST)
        session.dismiss(entry.key)
        assert session.refused == ()


def test_what_another_reader_said_is_not_sent_under_this_ones_token(films: Served, tmp_path: Path) -> None:
    uid = peer(films, "ada").worklist("case")["items"][0]["uid"]
    before = labels(peer(films, "ada"), uid)
    Journal(tmp_path / "journal").add(films.url, uid, {"label": FIRST, "reader": "bob", "comment": ""})
    with reading(films, tmp_path, "ada") as session:
        next_of(session)
        assert session.waiting == 1 and labels(peer(films, "ada"), uid) == before
    with reading(films, tmp_path, "bob") as session:
        until(session, lambda: session.waiting == 0)
    assert labels(peer(films, "ada"), uid) == [*before, ("bob", FIRST, "read")]


def test_leaving_gives_the_case_back(films: Served, tmp_path: Path) -> None:
    bob = peer(films, "bob")

    def held(uid: str) -> bool:
        return status_of(bob, uid)["leased_by_other"]

    with reading(films, tmp_path) as session:
        first = next_of(session).uid
        assert held(first)
        session.close_case()
        until(session, lambda: not held(first))
        other = next(item["uid"] for item in bob.worklist("case")["items"] if item["uid"] != first)
        session.open_case(other)
        until(session, lambda: held(other))
        last = next_of(session).uid
        wait(lambda: held(last) and (last == other or not held(other)), step=session.tick)
    assert not held(last)


def test_a_case_of_another_reader_is_not_opened(films: Served, tmp_path: Path) -> None:
    bob = peer(films, "bob")
    uid = bob.next_case("entropy")["id"]
    with reading(films, tmp_path) as session:
        session.open_case(uid)
        until(session, lambda: session.case is None)
        assert session.notice.severity == "warning" and "another reader" in session.notice.text
        session.open_case("no such image")
        until(session, lambda: session.case is None)
        assert session.notice.severity == "error"
    assert bob.release(uid)["released"]


def test_a_lease_is_renewed_before_it_ends(films: Served, tmp_path: Path) -> None:
    later = [0.0]
    with Trouble(films.port) as trouble, reading(films, tmp_path, url=trouble.url,
                                                 clock=lambda: time.monotonic() + later[0]) as session:
        next_of(session)
        assert not any("/dcaf/lease" in line for line in trouble.seen)
        later[0] = 1000.0
        until(session, lambda: any(line.startswith("POST /dcaf/lease") for line in trouble.seen))
        assert session.case.seconds > 999


def test_a_wrong_token_ends_the_connection_and_keeps_the_open_answer(films: Served, tmp_path: Path) -> None:
    with reading(films, tmp_path) as session:
        uid = next_of(session).uid
        session.choose(FIRST)
        good = films.tokens["ada"]
        session.connect(films.url, token="wrong", reader="ada")
        until(session, lambda: session.connection.state == "off")
        assert session.notice.severity == "error" and "wrong" not in session.connection.message
        session.connect(films.url, token=good, reader="ada")
        until(session, lambda: session.connection.state == "on")
        assert session.case is None   # another token: whose it is was not known
        wait(lambda: not status_of(peer(films, "bob"), uid)["leased_by_other"], step=session.tick)


def test_a_token_that_ends_leaves_the_open_answer_for_a_new_one(films: Served, tmp_path: Path) -> None:
    file = films.folder / "tokens"
    known = file.read_text()
    with reading(films, tmp_path) as session:
        uid = next_of(session).uid
        session.choose(FIRST)
        file.write_text("".join(line for line in known.splitlines(True) if not line.strip().endswith("ada")))
        try:
            session.show_page(status="all")
            until(session, lambda: session.connection.state == "off")
        finally:
            file.write_text(known)
        assert session.case.uid == uid and session.case.choice == FIRST and not session.page.busy
        session.submit()   # into the journal
        assert session.waiting == 1 and session.case is None
        session.undo()
        session.connect(films.url, token=films.tokens["ada"], reader="ada")
        until(session, lambda: session.connection.state == "on" and session.waiting == 0)
        assert session.case.uid == uid and session.case.choice == FIRST
        given = labels(peer(films, "ada"), uid)     # bob may have read it too
        assert [label for label in given if label[0] == "ada"] == [("ada", FIRST, "read")]


@pytest.mark.parametrize("url", ["ftp://x", "http://hospital.example"])
def test_an_address_that_cannot_work_changes_nothing(films: Served, tmp_path: Path, url: str) -> None:
    with reading(films, tmp_path) as session:
        with pytest.raises(ValueError, match="address"):
            session.connect(url, token="x")
        assert session.connection.state == "on"


def test_nobody_there_is_told_and_not_tried_for_ever(films: Served, tmp_path: Path) -> None:
    session = Session(Journal(tmp_path))
    session.connect(f"http://127.0.0.1:{free_port()}", reader="ada")
    assert session.connection.state == "connecting"
    until(session, lambda: session.connection.state == "off")
    assert session.notice.severity == "error" and session.connection.message
    session.next_case()
    assert "Connect" in session.notice.text
    session.close()
