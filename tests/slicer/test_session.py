"""The session against a real server: the whole loop of reading and training."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path

import pytest
from DCAFReviewLib.client import ServerError
from DCAFReviewLib.journal import Journal
from DCAFReviewLib.session import Session
from served import Served, Trouble, wait
from sessions import FIRST, NEVER, SECOND, answer, labels, next_of, opened, peer, reading, status_of, until


@pytest.fixture(scope="module")
def films():
    """A server with tokens and a random model, for readers ada and bob and the admin chief."""
    with Served({"films": 16, "model": True, "tokens": True, "data": True, "cutoffs": NEVER}) as server:
        yield server


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
        asked = [line.split()[1] for line in counting.seen[before:] if case.uid in line]   # not those ahead
        assert [path.split("?")[0] for path in asked] == ["/infer/dcaf"] * 2
        session.ask_map("class_activation", FIRST)   # known already
        assert case.heat.fields["kind"] == "class_activation" and not case.awaited
        session.ask_map("knees")
        until(session, lambda: not case.awaited)
        assert case.heat is None and case.map_note


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


@pytest.mark.parametrize("done", ["skipped", "answered"])
def test_a_case_that_is_done_while_the_next_is_asked_for_does_not_come_back(films: Served, tmp_path: Path,
                                                                            done: str) -> None:
    with reading(films, tmp_path, "bob") as session:
        first = next_of(session)
        session.next_case()     # this very case, as it is still the most uncertain one
        if done == "skipped":
            session.skip("twice")
        else:
            session.choose(FIRST)
            session.submit()
        assert opened(session).uid != first.uid


def test_the_map_of_a_case_is_asked_for_with_its_picture_and_once(films: Served, tmp_path: Path) -> None:
    with Trouble(films.port) as counting, reading(films, tmp_path, url=counting.url) as session:
        session.ask_map("attention_first")      # not of a class, which might lie below its cut-off
        uid = peer(films, "ada").worklist()["items"][-1]["uid"]
        for again in range(2):      # the second time the server has kept an answer
            counting.delay_s, counting.only, before = 0.5, "/dcaf/image", len(counting.seen)
            session.open_case(uid)
            until(session, lambda: session.case.heat is not None)
            assert again or session.case.picture is None      # it did not wait for the picture
            case = opened(session)
            asked = [line.split()[1].split("?")[0] for line in counting.seen[before:]]
            assert asked.count("/infer/dcaf") == asked.count("/dcaf/image") == 1
            assert case.document["image"]["id"] == uid and case.heat.fields["kind"] == "attention_first"
            session.close_case()


def test_a_map_that_the_model_does_not_have_still_leaves_its_answer(films: Served, tmp_path: Path) -> None:
    with reading(films, tmp_path) as session:
        session.ask_map("knees")
        session.open_case(peer(films, "ada").worklist()["items"][-2]["uid"])
        case = opened(session)
        assert case.document["prediction"] and case.heat is None and "overlay" in case.map_note
