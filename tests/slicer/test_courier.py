"""Threads that fetch: replies in the caller's own time, none after it was called off."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
from DCAFReviewLib.client import Address, Server, ServerError
from DCAFReviewLib.courier import Courier, Reply
from DCAFReviewLib.errands import Errands
from served import Trouble, shared, wait

PACKAGE = Path(__file__).resolve().parents[2] / "slicer_extension" / "DCAFReview"


@pytest.fixture
def courier():
    courier = Courier(2)
    yield courier
    courier.close()


def collected(courier: Courier, count: int) -> list[Reply]:
    replies: list[Reply] = []
    wait(lambda: len(replies) >= count, 10, lambda: replies.extend(courier.collect()))
    return replies


def test_each_reply_carries_the_ticket_of_its_question(courier: Courier) -> None:
    tickets = {courier.ask(pow, 2, number): 2**number for number in range(40)}
    assert {reply.ticket: reply.value for reply in collected(courier, 40)} == tickets
    assert courier.collect() == []


def test_an_error_comes_back_as_the_reply_and_the_thread_lives_on(courier: Courier) -> None:
    tickets = [courier.ask(int, "x") for _ in range(5)]
    replies = collected(courier, 5)
    assert sorted(reply.ticket for reply in replies) == tickets
    assert all(isinstance(reply.error, ValueError) and reply.value is None for reply in replies)
    courier.ask(len, "abc")
    assert collected(courier, 1)[0].value == 3


def test_collecting_and_asking_never_wait(courier: Courier) -> None:
    gate = threading.Event()
    start = time.monotonic()
    for _ in range(10):
        courier.ask(gate.wait, 20)
        assert courier.collect() == []
    assert time.monotonic() - start < 10
    gate.set()
    assert len(collected(courier, 10)) == 10


def test_work_runs_in_other_threads_which_keep_no_application_open() -> None:
    script = ("import sys, time; sys.path.insert(0, sys.argv[1])\n"
              "from DCAFReviewLib.courier import Courier\n"
              "Courier(3).ask(time.sleep, 60); time.sleep(0.1)")
    assert subprocess.run([sys.executable, "-c", script, PACKAGE], timeout=20, check=False).returncode == 0


def test_what_was_cancelled_never_appears_whenever_it_was(courier: Courier) -> None:
    gate = threading.Event()
    running = [courier.ask(gate.wait, 20) for _ in range(2)]
    queued, kept = courier.ask(len, "ab"), courier.ask(len, "abc")
    for ticket in (*running, queued):
        courier.cancel(ticket)
    gate.set()
    assert [reply.ticket for reply in collected(courier, 1)] == [kept]
    done = courier.ask(len, "x")
    time.sleep(0.1)   # its reply lies there already
    courier.cancel(done)
    courier.cancel(12345)
    time.sleep(0.05)
    assert courier.collect() == []


def test_cancelling_closes_the_connection_and_frees_the_thread(courier: Courier) -> None:
    with Trouble(shared().port, delay_s=30) as trouble:
        server = Server(Address(trouble.url))
        tickets = [courier.ask(server.session) for _ in range(2)]
        wait(lambda: len(trouble.seen) == 2)
        for ticket in tickets:
            courier.cancel(ticket)
        assert trouble.hung_up.wait(20)
        courier.ask(len, "free")
        assert collected(courier, 1)[0].value == 4


def test_closing_ends_the_threads_and_takes_no_more_work() -> None:
    courier = Courier(2)
    threads = list(courier._threads)
    with Trouble(shared().port, delay_s=30) as trouble:
        courier.ask(Server(Address(trouble.url)).session)
        wait(lambda: trouble.seen)
        start = time.monotonic()
        courier.close()
        assert time.monotonic() - start < 10
        assert trouble.hung_up.wait(20)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive() and thread.daemon
    with pytest.raises(RuntimeError, match="courier"):
        courier.ask(len, "")


def test_closing_gives_last_words_their_time_and_no_more() -> None:
    said: list[str] = []
    quick, slow = Courier(1), Courier(1)
    quick.ask(lambda: (time.sleep(0.1), said.append("bye")))
    quick.close(wait_s=5)
    assert said == ["bye"]
    gate = threading.Event()
    slow.ask(gate.wait, 20)
    start = time.monotonic()
    slow.close(wait_s=0.2)
    assert 0.15 < time.monotonic() - start < 10
    gate.set()


def test_an_idle_thread_keeps_nothing_alive(courier: Courier) -> None:
    class Picture:
        pass

    picture = Picture()
    known = weakref.ref(picture)
    courier.ask(lambda one: one, picture)
    collected(courier, 1)
    del picture
    gc.collect()
    assert known() is None


def test_errands_of_a_dropped_owner_change_nothing(courier: Courier) -> None:
    errands, heard, gate = Errands(courier), [], threading.Event()
    old, new = object(), object()
    errands.ask(gate.wait, 20, owner=old, then=heard.append)
    errands.ask(len, "abc", owner=old, about="heat", then=heard.append)
    errands.ask(len, "ab", owner=new, then=heard.append)
    time.sleep(0.1)   # the reply for the old one lies there
    errands.drop(old, "heat")
    assert errands.under_way(old)
    errands.drop(old)
    gate.set()
    wait(lambda: heard, step=errands.collect)
    time.sleep(0.1)
    errands.collect()
    assert heard == [2] and not errands.under_way(old) and not errands.under_way(new)


def test_what_goes_in_turn_keeps_its_order_and_is_done_without_its_owner(courier: Courier) -> None:
    errands, done, heard = Errands(courier), [], []

    def slowly(number: int) -> int:
        time.sleep(0.02 * (5 - number))
        done.append(number)
        return number

    owner = object()
    for number in range(5):
        errands.ask(slowly, number, then=heard.append, in_turn=True,
                    owner=owner if number in (0, 3) else None)
    errands.drop(owner)
    wait(lambda: len(done) == 5, step=errands.collect)
    wait(lambda: len(heard) == 3, step=errands.collect)
    assert done == [0, 1, 2, 3, 4] and heard == [1, 2, 4]


def test_a_turn_that_failed_lets_the_next_one_go(courier: Courier) -> None:
    errands, heard = Errands(courier), []

    def fail() -> None:
        raise ServerError("failed", "no")

    errands.ask(fail, failed=lambda error: heard.append(error.kind), in_turn=True)
    errands.ask(len, "abc", then=heard.append, in_turn=True)
    wait(lambda: len(heard) == 2, step=errands.collect)
    assert heard == ["failed", 3]


def test_an_error_of_ours_is_raised_and_loses_no_other_reply(courier: Courier) -> None:
    errands, heard = Errands(courier), []
    errands.ask(int, "x")
    errands.ask(len, "abc", then=heard.append)
    time.sleep(0.1)
    with pytest.raises(ValueError, match="invalid literal"):
        wait(lambda: False, 1, errands.collect)
    wait(lambda: heard == [3], 2, errands.collect)
