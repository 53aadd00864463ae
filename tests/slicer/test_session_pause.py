"""The module is left and comes back: nothing goes on for eyes that are not there, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote_plus

import pytest
from served import Served, Trouble, wait
from sessions import SECOND, ahead_of, next_of, opened, peer, reading, tick, until


@pytest.fixture(scope="module")
def films():
    """A server with tokens and a random model, for readers ada and bob and the admin chief."""
    with Served({"films": 6, "model": True, "tokens": True}) as server:
        yield server


def test_while_nobody_looks_requests_are_called_off_and_the_answer_is_kept(films: Served,
                                                                           tmp_path: Path) -> None:
    with Trouble(films.port) as slow, reading(films, tmp_path, "bob", url=slow.url) as session:
        slow.delay_s, slow.only = 1.5, "/dcaf/image"
        assert session.next_case() is None
        until(session, lambda: session.case is not None and "picture" in session.case.awaited)
        case = session.case
        session.choose(SECOND)
        tick(session, 0.3)      # the request is under way
        session.pause()
        assert slow.hung_up.wait(20) and not case.awaited and session.ahead is None
        before = len(slow.seen)
        tick(session, 2.0)
        assert session.case is case and case.choice == SECOND and case.leased and case.picture is None
        assert not [line for line in slow.seen[before:] if quote_plus(case.uid) in line]
        slow.delay_s = 0.0
        session.resume()
        assert opened(session) is case and case.picture is not None and case.heat is not None
        assert ahead_of(session).uid != case.uid


def test_the_next_case_is_not_taken_by_one_who_went_away(films: Served, tmp_path: Path) -> None:
    with Trouble(films.port) as slow, reading(films, tmp_path, "bob", url=slow.url) as session:
        slow.delay_s, slow.only = 0.7, "/activelearning/"
        session.next_case()
        until(session, lambda: any(slow.only in line for line in slow.seen))
        session.pause()
        tick(session, 1.5)
        assert session.case is None and not session.seeking
        slow.delay_s = 0.0
        wait(lambda: not any(item["leased_by_other"] for item in peer(films, "ada").worklist()["items"]), 20,
             session.tick)
        session.resume()
        assert next_of(session).picture is not None


def test_an_image_only_classified_is_left_with_the_screen(films: Served, tmp_path: Path) -> None:
    film = next((films.folder / "studies").rglob("*.dcm"))
    with reading(films, tmp_path) as session:
        session.classify(film, "a film")
        assert opened(session).document is not None
        session.pause()
        assert session.case is None
