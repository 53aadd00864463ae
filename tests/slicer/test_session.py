"""The session against a real server: the whole loop, and everything that can come between."""

from __future__ import annotations

import contextlib
import csv
import io
import time
from pathlib import Path

import pytest
from DCAFReviewLib.client import Address, Server, ServerError
from DCAFReviewLib.journal import Journal
from DCAFReviewLib.session import Session
from served import Served, Trouble, free_port, wait

FIRST, SECOND = "normal", "pneumonia"
NEVER = {"pneumonia": 0.99, "normal": 0.01}
"""Cut-offs: pneumonia is never reached, normal always."""


@pytest.fixture(scope="module")
def films():
    """A server with tokens and a random model, for readers ada and bob and the admin chief."""
    with Served({"films": 16, "model": True, "tokens": True, "data": True, "cutoffs": NEVER}) as server:
        yield server


def peer(server: Served, name: str) -> Server:
    return Server(Address(server.url, server.tokens[name]))


@contextlib.contextmanager
def reading(server: Served, folder: Path, name: str = "ada", url: str = "", **options: object):
    """A connected session; its ``topics`` are those heard so far."""
    session = Session(Journal(folder / "journal"), **options)
    session.topics = []
    session.listen(session.topics.append)
    session.connect(url or server.url, token=server.tokens.get(name, ""), reader=name)
    try:
        until(session, lambda: session.connection.state == "on" and not session.page.busy)
        yield session
    finally:
        session.close()


def until(session: Session, done, timeout_s: float = 30.0):
    """Ticks until something is so."""
    try:
        return wait(done, timeout_s, session.tick)
    except AssertionError as error:
        raise AssertionError(f"{error}: {session.connection}, {session.case}, {session.notice}") from error


def opened(session: Session):
    """The open case once everything of it is there."""
    until(session, lambda: session.case and not session.case.awaited and not session.seeking)
    return session.case


def next_of(session: Session):
    session.next_case()
    return opened(session)


def answer(session: Session, label: str) -> str:
    """Submits; the UID answered, once the server has it and the next case is there."""
    uid = session.case.uid
    session.choose(label)
    session.submit()
    until(session, lambda: session.waiting == 0 and not session.seeking)
    return uid


def labels(server: Server, uid: str) -> list[tuple[str, str, str]]:
    return [(entry["reader"], entry["label"], entry["role"]) for entry in server.history(uid)]


def status_of(server: Server, uid: str) -> dict:
    return next(item for item in server.worklist(limit=500)["items"] if item["uid"] == uid)


def test_the_loop_of_reading_goes_from_connect_to_the_next_case(films: Served, tmp_path: Path) -> None:
    with reading(films, tmp_path) as session:
        connection = session.connection
        assert (connection.reader, connection.role) == ("ada", "reader") and connection.model["version"]
        assert [name for name, _ in connection.classes] == list(films.classes)
        assert connection.answers == (*films.classes, "uncertain", "not_assessable")
        assert session.page.total == 18 and len(session.page.items) == 18
        case = next_of(session)
        assert case.picture.values.ndim == 2 and case.document["image"]["id"] == case.uid
        assert list(case.document["image"]["shape"]) == list(case.picture.values.shape)
        assert status_of(peer(films, "bob"), case.uid)["leased_by_other"]
        session.choose(FIRST)
        session.remark(comment="sharp", confidence=0.8, point=(3.5, 60.0), box=(1, 2, 30, 40.5))
        session.showed(map="gate", opacity=0.5, threshold=0.1)
        first = answer(session, FIRST)
        assert session.case is not None and session.case.uid != first
        stored = peer(films, "ada").history(first)
        assert len(stored) == 1 and stored[0]["key"] == session.sent[0].key
        assert stored[0]["point"] == [3.5, 60.0] and stored[0]["confidence"] == 0.8
        assert stored[0]["blind"] is False and stored[0]["seconds"] >= 0
        assert stored[0]["shown"]["prediction"] and stored[0]["shown"]["model_version"]
        until(session, lambda: session.page.total == 17)
        heard = frozenset().union(*session.topics)
        assert heard >= {"connection", "page", "case", "picture", "heat", "journal", "training"}


def test_undo_takes_back_the_choice_and_then_the_case(films: Served, tmp_path: Path) -> None:
    with reading(films, tmp_path) as session:
        session.undo()
        assert "nothing to undo" in session.notice.text
        next_of(session)
        session.choose(FIRST)
        session.undo()
        assert session.case.choice is None
        session.submit()
        assert "Choose an answer" in session.notice.text and not session.sent
        session.remark(comment="first thought")
        uid = answer(session, FIRST)
        following = session.case.uid
        session.undo()
        case = opened(session)
        assert (case.uid, case.choice, case.comment) == (uid, FIRST, "first thought")
        assert case.picture is not None and case.document is not None
        wait(lambda: not status_of(peer(films, "bob"), following)["leased_by_other"], 10, session.tick)
        answer(session, SECOND)
        assert labels(peer(films, "ada"), uid) == [("ada", FIRST, "read"), ("ada", SECOND, "read")]
        assert session.case.uid != uid


def test_skipping_goes_on_and_the_case_does_not_come_back(films: Served, tmp_path: Path) -> None:
    with reading(films, tmp_path) as session:
        uid = next_of(session).uid
        session.skip("too  dark\n")
        assert session.case is None and session.seeking
        assert opened(session).uid != uid
        session.show_page(status="skipped")
        until(session, lambda: not session.page.busy)
        assert [item["uid"] for item in session.page.items] == [uid]


def test_a_page_is_asked_for_by_order_status_and_label(films: Served, tmp_path: Path) -> None:
    with reading(films, tmp_path) as session:
        session.show_page(order="case", descending=False, status="all")
        session.show_page(offset=10)
        until(session, lambda: not session.page.busy)
        rest = [item["uid"] for item in session.page.items]
        assert len(rest) == 8 and rest == sorted(rest) and session.page.total == 18
        session.show_page(descending=True)
        until(session, lambda: not session.page.busy)
        assert session.page.offset == 0 and [item["uid"] for item in session.page.items][:8] == rest[::-1]
        with pytest.raises(ValueError, match="page: need order"):
            session.show_page(colour="red")
        session.show_page(order="knees")
        until(session, lambda: not session.page.busy)
        assert session.notice.severity == "error" and "order" in session.notice.text


def test_a_disagreement_is_shown_and_settled(films: Served, tmp_path: Path) -> None:
    ada, bob = peer(films, "ada"), peer(films, "bob")
    uid = next(item["uid"] for item in ada.worklist()["items"] if item["status"] == "unread")
    ada.annotate(uid, {"label": FIRST, "comment": ""})
    bob.annotate(uid, {"label": SECOND, "comment": ""})
    with reading(films, tmp_path, "chief") as session:
        session.show_page(status="disagreement")
        until(session, lambda: not session.page.busy)
        assert [item["uid"] for item in session.page.items] == [uid]
        session.open_case(uid)
        assert opened(session).other_labels == {"ada": FIRST, "bob": SECOND}
        session.remark(adjudicate=True)
        answer(session, SECOND)
        assert ada.disagreements() == []
        assert labels(ada, uid)[-1] == ("chief", SECOND, "adjudication")
        session.open_case(uid)
        assert opened(session).other_labels == {} and len(session.case.history) == 3


def test_what_is_read_first_is_seen_only_after_the_reveal(films: Served, tmp_path: Path) -> None:
    with reading(films, tmp_path) as session:
        session.read_first = True
        case = next_of(session)
        session.ask_map("gate")
        opened(session)
        assert case.kept_document and case.kept_heats and not case.loading
        assert (case.document, case.heat, case.revealed, case.history) == (None, None, False, ())
        assert "Model" not in session.text()
        uid = answer(session, FIRST)
        assert peer(films, "ada").history(uid)[-1]["blind"] is True
        assert peer(films, "ada").history(uid)[-1]["shown"] == {"prediction": False}
        case = opened(session)
        session.choose(FIRST)
        session.reveal()
        assert case.document and case.heat is not None and case.first_choice == FIRST
        session.showed(map="gate")
        uid = answer(session, SECOND)
        entry = peer(films, "ada").history(uid)[-1]
        assert (entry["blind"], entry["label"], entry["shown"]["first_choice"]) == (False, SECOND, FIRST)
        assert entry["shown"]["map"] == "gate" and entry["shown"]["seconds_before_reveal"] >= 0


def test_no_map_is_asked_for_a_class_below_its_cut_off(films: Served, tmp_path: Path) -> None:
    with Trouble(films.port) as counting, reading(films, tmp_path, url=counting.url) as session:
        case = next_of(session)
        session.ask_map("class_activation", SECOND)
        opened(session)
        before = len(counting.seen)
        session.ask_map("class_activation", SECOND)
        assert case.heat is None and "99%" in case.map_note and not case.awaited
        session.ask_map("class_activation", FIRST)
        opened(session)
        assert case.heat.fields["kind"] == "class_activation" and not case.map_note
        session.ask_map("attention_second")
        opened(session)
        assert case.heat.fields["kind"] == "attention_second" and case.map_target is None
        assert [line.split()[1].split("?")[0] for line in counting.seen[before:]] == ["/infer/dcaf"] * 2
        session.ask_map("class_activation", FIRST)   # known already
        assert case.heat.fields["kind"] == "class_activation" and not case.awaited
        session.ask_map("knees")
        until(session, lambda: not case.awaited)
        assert case.heat is None and case.map_note


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
        assert slow.hung_up.wait(2)
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
            start = time.monotonic()
            session.tick()
            if session.case and not session.waiting and not session.sent:
                session.choose(FIRST)
                session.submit()
            longest = max(longest, time.monotonic() - start)
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
        wait(lambda: not held(first), 5, session.tick)
        other = next(item["uid"] for item in bob.worklist("case")["items"] if item["uid"] != first)
        session.open_case(other)
        opened(session)
        assert held(other)
        last = next_of(session).uid
        wait(lambda: held(last) and (last == other or not held(other)), 5, session.tick)
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
        wait(lambda: not status_of(peer(films, "bob"), uid)["leased_by_other"], 5, session.tick)


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
        assert labels(peer(films, "ada"), uid) == [("ada", FIRST, "read")]


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


def test_a_picture_the_viewer_has_is_not_fetched_unless_it_must(films: Served, tmp_path: Path) -> None:
    with Trouble(films.port) as counting, reading(films, tmp_path, url=counting.url,
                                                  has_local=lambda uid: True) as session:
        case = next_of(session)
        assert case.local and case.picture is None and case.document
        assert not any("/dcaf/image" in line for line in counting.seen)
        session.fetch_picture()
        assert opened(session).picture is not None and not case.local


def test_a_file_is_answered_and_cannot_be_labelled(films: Served, tmp_path: Path) -> None:
    path = next((films.folder / "studies").rglob("*.dcm"))
    with reading(films, tmp_path) as session:
        session.classify(path, "volume 1")
        case = session.case
        assert not case.stored and case.local and case.name == "volume 1"
        session.ask_map("gate")
        opened(session)
        assert case.document["prediction"] and case.heat.fields["kind"] == "gate"
        session.choose(FIRST)
        session.submit()
        assert session.case is case and session.waiting == 0 and session.notice.severity == "warning"
        session.classify(tmp_path / "Doe.dcm", "gone")
        until(session, lambda: not session.case.awaited)
        assert session.notice.severity == "error" and "Doe" not in session.notice.text


def test_a_case_and_the_answers_leave_as_text_and_table(films: Served, tmp_path: Path) -> None:
    with reading(films, tmp_path) as session:
        assert session.text() == ""
        case = next_of(session)
        session.remark(comment="=1+1")
        session.choose(SECOND)
        titles = dict(session.connection.classes)
        text = session.text()
        assert f"Reader ada: {titles[SECOND]}" in text and "below the cut-off of 99.0%" in text
        assert case.uid not in text and "Mutual information" in text
        uid = answer(session, SECOND)
        (row,) = csv.DictReader(io.StringIO(session.csv()))
        assert (row["image"], row["state"], row["comment"], row["reader"]) == (uid, "sent", "'=1+1", "ada")
        with pytest.raises(ValueError, match="label"):
            session.choose("cat")


def test_a_server_without_model_and_tokens_is_enough_to_read(tmp_path: Path) -> None:
    with Served({"films": 2}) as server:
        nameless = Session(Journal(tmp_path / "other"))
        nameless.connect(server.url)
        until(nameless, lambda: nameless.connection.state == "off")
        assert "reader" in nameless.connection.message
        nameless.close()
        with reading(server, tmp_path) as session:
            assert session.connection.model is None and session.connection.reader == "ada"
            seen = []
            session.next_case()
            while not seen or session.case:
                case = opened(session)
                assert case.picture is not None and case.document is None and case.heat is None
                seen.append(answer(session, FIRST))
            assert len(set(seen)) == len(seen) == 4 and "Nothing is left" in session.notice.text


def test_training_re_ranks_the_pool_and_says_what_changed(films: Served, tmp_path: Path) -> None:
    """The last of this module: another model stands there afterwards."""
    ada, chief = peer(films, "ada"), peer(films, "chief")
    for number, item in enumerate(ada.worklist(status="all")["items"]):
        with contextlib.suppress(ServerError):
            ada.infer(item["uid"])
            ada.annotate(item["uid"], {"label": (FIRST, SECOND)[number % 2], "comment": ""})
    with reading(films, tmp_path, "ada") as session:
        session.train("frozen")
        until(session, lambda: session.notice.severity == "error")
        assert "admin" in session.notice.text and not session.training.running
    with reading(films, tmp_path, "chief") as session:
        version = session.connection.model["version"]
        session.train("frozen")
        until(session, lambda: session.training.running)
        session.train("frozen")
        until(session, lambda: session.notice.severity == "warning")
        session.stop_training()
        until(session, lambda: session.training.state == "stopped")
        assert chief.session()["model"]["version"] == version
        session.train("frozen")
        until(session, lambda: session.training.state in ("published", "refused", "failed"), 150)
        told = session.training
        assert told.state != "failed", told
        assert told.candidate_nll > 0 and told.message in session.notice.text
        assert [entry["epoch"] for entry in told.curve][:2] == [1, 2]
        if told.state == "published":
            until(session, lambda: session.connection.model["version"] == told.version)
            assert told.previous_version == version
            changes = until(session, lambda: session.training.changes)
            assert changes["compared"] >= 0 and "mean_entropy_after" in changes
