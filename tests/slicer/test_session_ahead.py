"""The case that comes next is fetched while the reader looks at this one: only help, never harm."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from served import Served, Trouble
from sessions import (
    FIRST,
    ahead_of,
    likely,
    next_of,
    opened,
    peer,
    reading,
    status_of,
    tick,
    until,
)


@pytest.fixture(scope="module")
def films():
    """A server with tokens and a random model, for readers ada and bob and the admin chief."""
    with Served({"films": 12, "model": True, "tokens": True}) as server:
        yield server


def test_the_case_that_comes_next_is_fetched_while_this_one_is_read(films: Served, tmp_path: Path) -> None:
    with reading(films, tmp_path, "bob") as session:
        first, heard = next_of(session), len(session.topics)
        ahead = ahead_of(session)
        tick(session, 0.2)
        assert not {"case", "picture", "heat"} & frozenset().union(*session.topics[heard:])
        assert ahead.uid != first.uid and ahead.picture is not None and ahead.heat is not None
        assert not status_of(peer(films, "ada"), ahead.uid)["leased_by_other"]
        peer(films, "ada").annotate(ahead.uid, {"label": FIRST, "reader": "ada", "comment": ""})
        session.choose(FIRST)
        session.submit()
        until(session, lambda: session.case is not None)
        assert session.case is ahead and session.case.picture is not None and session.case.seconds < 1
        assert session.case.heat is not None and status_of(peer(films, "ada"), ahead.uid)["leased_by_other"]
        assert [entry["reader"] for entry in opened(session).history] == ["ada"]   # as it is now


def test_what_was_fetched_ahead_stays_unseen_in_a_blind_first_read(films: Served, tmp_path: Path) -> None:
    with reading(films, tmp_path) as session:
        session.read_first = True
        next_of(session)
        ahead = ahead_of(session)
        session.skip("the next one, please")
        until(session, lambda: session.case is not None)
        case = session.case
        assert case is ahead and case.kept_document is not None and case.kept_heats
        assert case.document is None and case.heat is None and "Model" not in session.text()
        session.reveal()
        assert case.document is not None and case.heat is not None


def test_a_map_chosen_meanwhile_is_the_one_that_the_next_case_shows(films: Served, tmp_path: Path) -> None:
    with reading(films, tmp_path, "chief") as session:
        next_of(session)
        ahead = ahead_of(session)
        session.ask_map("gate")
        opened(session)
        session.skip("the next one, please")
        assert opened(session) is ahead and ahead.heat.fields["kind"] == "gate"


def test_another_case_than_the_one_ahead_calls_it_off(films: Served, tmp_path: Path) -> None:
    with Trouble(films.port) as slow, reading(films, tmp_path, "bob", url=slow.url) as session:
        first, second, third = likely(session)[:3]
        slow.delay_s, slow.only = 1.5, quote_plus(second)
        assert next_of(session).uid == first
        until(session, lambda: session.ahead is not None)
        late = session.ahead
        tick(session, 0.3)      # the requests are under way
        assert late.uid == second and late.awaited
        session.open_case(third)
        assert session.ahead is not late
        assert slow.hung_up.wait(20)
        tick(session, 2.0)
        assert late.picture is None and late.kept_document is None
        case = opened(session)
        assert case.uid == third and case.document["image"]["id"] == third
        ahead_of(session)
        session.close_case()
        assert session.ahead is None


@pytest.mark.parametrize("cut", ["request", "answer"])
def test_what_fails_ahead_is_not_told_and_asked_for_again_when_it_is_opened(films: Served, tmp_path: Path,
                                                                            cut: str) -> None:
    with Trouble(films.port) as line, reading(films, tmp_path, url=line.url) as session:
        first, second = likely(session)[:2]
        line.cut, line.only = cut, quote_plus(second)
        assert next_of(session).uid == first
        ahead = ahead_of(session)
        before = len(line.seen)
        tick(session, 0.5)      # and not tried over and over
        assert not any(quote_plus(second) in seen for seen in line.seen[before:])
        assert ahead.uid == second and ahead.picture is None and not ahead.map_note
        assert session.connection.state == "on" and session.notice.text == ""
        line.cut = ""
        session.open_case(second)
        case = opened(session)
        assert case is ahead and case.picture is not None and case.document and case.heat is not None


def test_a_connection_that_is_lost_or_left_takes_what_is_ahead_with_it(films: Served, tmp_path: Path) -> None:
    with Trouble(films.port) as line, reading(films, tmp_path, url=line.url) as session:
        next_of(session)
        ahead = ahead_of(session)
        line.cut = "request"
        session.show_page()
        until(session, lambda: session.connection.state == "lost")
        assert session.ahead is None
        line.cut = ""
        assert ahead_of(session) is not ahead
        session.disconnect()
        assert session.ahead is None


class Renamed:
    """Lets the server seem to have another model than it has, or to have stored answers of an earlier one."""

    def __init__(self) -> None:
        self.model = self.stored = ""

    def __call__(self, path: str, told: dict) -> None:
        if self.model and path.startswith("/dcaf/session"):
            told["model"]["version"] = self.model
        if self.model and path.startswith("/dcaf/training"):
            told.update(state="published", version=self.model)
        given = told if path.startswith("/dcaf/prediction") else told.get("prediction")
        if self.stored and isinstance(given, dict) and "model" in given:
            given["model"]["version"] = self.stored


def test_a_new_model_takes_what_is_ahead_with_it(films: Served, tmp_path: Path) -> None:
    renamed, later = Renamed(), [0.0]
    clock = {"clock": lambda: time.monotonic() + later[0]}
    with Trouble(films.port, adds=renamed) as line, \
            reading(films, tmp_path, "bob", line.url, **clock) as session:
        next_of(session)
        ahead = ahead_of(session)
        renamed.model = "another"
        later[0] = 20.0     # it is time to ask how training stands
        until(session, lambda: session.connection.model["version"] == "another")
        assert session.ahead is not ahead
        assert ahead_of(session) is not ahead


@pytest.mark.parametrize("looked_ahead", [True, False])
def test_a_stored_answer_of_another_model_is_not_taken_for_this_ones(films: Served, tmp_path: Path,
                                                                     looked_ahead: bool) -> None:
    renamed = Renamed()
    with Trouble(films.port, adds=renamed) as line, reading(films, tmp_path, "bob", url=line.url) as session:
        version = session.connection.model["version"]
        seen = set()
        session.listen(lambda _: seen.add(session.case and session.case.document
                                          and session.case.document["model"]["version"]))
        if looked_ahead:
            next_of(session)
            ahead_of(session)
        renamed.stored = "an earlier one"
        before = len(line.seen)
        if looked_ahead:
            session.skip("the next one, please")
        else:
            session.next_case()
        case = opened(session)
        assert case.document["model"]["version"] == version and case.heat is not None
        assert seen <= {None, version}
        assert any("/infer/dcaf" in asked and quote_plus(case.uid) in asked for asked in line.seen[before:])
