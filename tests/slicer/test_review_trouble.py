"""The whole module when the server is slow, dies, comes back, or says no: nothing lost, nothing doubled."""

from __future__ import annotations

from urllib.parse import quote_plus

import fixture
import pytest
from ownclock import own_s
from reviewing import ask, connect, loaded, open_next
from served import Served, Trouble

fixture.start()  # what follows is there only inside Slicer

import qt  # noqa: E402


@pytest.fixture(scope="module")
def running():
    with Served({"films": 8, "model": True, "tokens": True}) as served:
        yield served


@pytest.fixture
def server(running):
    """The server, up again for each test."""
    if running.process.poll() is not None:
        running.start()
    return running


class Gaps:
    """The longest time the window did not answer: a timer asks to be called every 5 ms."""

    def __init__(self) -> None:
        self.longest_s, self._last = 0.0, own_s()
        self._timer = qt.QTimer()
        self._timer.setInterval(5)
        self._timer.connect("timeout()", self._beat)
        self._timer.start()

    def _beat(self) -> None:
        now = own_s()
        self.longest_s, self._last = max(self.longest_s, now - self._last), now

    def stop(self) -> float:
        self._timer.stop()
        return self.longest_s


def free_cases(widget) -> list:
    return [item["uid"] for item in widget.session.page.items if not item["leased_by_other"]]


def of_reader(server: Served, uid: str, reader: str) -> list:
    return [entry for entry in ask(server, f"/dcaf/history?image={uid}") if entry["reader"] == reader]


def test_while_a_slow_server_thinks_the_window_answers_at_once(opened, server) -> None:
    with Trouble(server.port) as slow:
        connect(opened, server, url=slow.url)
        slow.delay_s = 5.0
        opened.ui.nextButton.click()
        gaps = Gaps()
        fixture.process(4.5)
        longest_s = gaps.stop()
        assert opened.session.case is None
        slow.delay_s = 0.0
        loaded(opened)
    assert longest_s < 0.1, f"{longest_s:.3f} s"


def test_no_late_answer_lands_on_another_case(opened, server) -> None:
    with Trouble(server.port) as slow:
        connect(opened, server, url=slow.url)
        first, second = free_cases(opened)[:2]
        slow.delay_s, slow.only = 2.0, f"/dcaf/image?image={quote_plus(first)}"
        opened.session.open_case(first)
        fixture.process(0.5)
        assert any(slow.only in line for line in slow.seen)     # it is under way
        opened.session.open_case(second)
        case = loaded(opened)
        picture = case.picture
        fixture.process(2.5)
        assert opened.session.case is case and case.uid == second and case.picture is picture


def test_an_answer_given_while_the_server_is_down_is_sent_once_when_it_is_back(opened, server) -> None:
    connect(opened, server)
    case = open_next(opened)
    server.kill()
    opened.session.choose("normal")
    opened.ui.submitButton.click()
    fixture.wait(lambda: opened.session.connection.state == "lost")
    assert opened.session.waiting == 1 and "1 answers wait" in opened.ui.journalLabel.text
    assert "lost" in opened.ui.statusLabel.text
    server.start()
    fixture.wait(lambda: opened.session.connection.state == "on" and opened.session.waiting == 0, 60)
    assert len(of_reader(server, case.uid, "ada")) == 1
    assert opened.ui.journalLabel.text == ""


def test_an_answer_survives_the_application_as_well(application, server) -> None:
    from conftest import MODULE
    first = fixture.open_module(MODULE)
    connect(first, server, "bob")
    case = open_next(first)
    server.kill()
    first.session.choose("pneumonia")
    first.ui.submitButton.click()
    fixture.wait(lambda: first.session.connection.state == "lost")
    fixture.close_module(first)
    server.start()
    again = fixture.open_module(MODULE)
    connect(again, server, "bob")
    fixture.wait(lambda: again.session.waiting == 0)
    assert [entry["label"] for entry in of_reader(server, case.uid, "bob")] == ["pneumonia"]
    fixture.close_module(again)


@pytest.mark.parametrize("cut", ["request", "lost", "answer"])
def test_an_answer_whose_acknowledgement_is_lost_is_stored_once(opened, server, cut) -> None:
    with Trouble(server.port) as line:
        connect(opened, server, "chief", url=line.url)
        case = open_next(opened)
        line.cut, line.only = cut, "/datastore/label"
        opened.session.choose("normal")
        opened.ui.submitButton.click()
        fixture.process(1.0)
        assert opened.session.waiting == 1
        line.cut = ""
        fixture.wait(lambda: opened.session.waiting == 0)
    assert len(of_reader(server, case.uid, "chief")) == 1


STEPS = {"picture": "/dcaf/image", "map": "/infer/dcaf", "skip": "/dcaf/skip"}
"""A step of a reader and the request under way when the server dies; the others are in test_review_loop."""


@pytest.mark.parametrize("step", STEPS)
def test_a_server_that_dies_in_the_middle_of_a_step_is_waited_for(opened, server, step) -> None:
    session, ui = opened.session, opened.ui
    with Trouble(server.port) as line:
        connect(opened, server, "chief", url=line.url)
        case = None if step == "picture" else open_next(opened)
        if case is not None:
            session.choose("normal")
        act = {"picture": lambda: session.open_case(free_cases(opened)[0]), "skip": ui.skipButton.click,
               "map": lambda: ui.mapBox.setCurrentIndex(2)}[step]
        ui.skipEdit.text = "cut off"
        before = len(line.seen)
        line.delay_s, line.only = 1.0, STEPS[step]
        act()
        fixture.wait(lambda: any(STEPS[step] in seen for seen in line.seen[before:]))
        server.kill()
        line.delay_s = 0.0
        fixture.wait(lambda: session.connection.state == "lost")
        assert "lost" in ui.statusLabel.text
        server.start()
        fixture.wait(lambda: session.connection.state == "on")
        if step == "skip":
            fixture.wait(lambda: case.uid in skipped(server))
        if step == "map":
            fixture.wait(lambda: case.heat is not None and not session.page.busy)
            assert session.case is case and case.choice == "normal"     # what was chosen is not lost
            assert case.heat.fields["kind"] == case.map_kind == "attention_second"
        else:
            assert loaded(opened).heat is not None
        fixture.wait(lambda: not session.page.busy)
        assert session.page.total and session.waiting == 0 and not session.refused
        assert case is None or not of_reader(server, case.uid, "chief")


def skipped(server: Served) -> list:
    return [item["uid"] for item in ask(server, "/dcaf/worklist?status=skipped&reader=chief")["items"]]


def test_a_refused_answer_is_kept_and_its_reason_told(opened, server) -> None:
    connect(opened, server, "bob")
    case = open_next(opened)
    opened.session.choose("normal")
    opened.session.remark(comment="bell \x07")
    opened.ui.submitButton.click()
    fixture.wait(lambda: opened.session.refused)
    assert "1 answers were refused" in opened.ui.journalLabel.text and opened.session.waiting == 0
    assert "refused" in opened.ui.noticeLabel.text
    assert not [entry for entry in of_reader(server, case.uid, "bob") if "bell" in entry["comment"]]
    assert "refused" in opened.session.csv()
