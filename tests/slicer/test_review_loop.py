"""The whole loop in one piece, by the module's own buttons: connect, worklist, load, overlay, correct, next,
train, re-rank. Once undisturbed, and once with the server killed in the middle of every step and started
again.
"""

from __future__ import annotations

import csv
from collections.abc import Callable

import fixture
import pytest
from reviewing import ask, coloured, loaded, press, wait_scored
from served import Served, Trouble

fixture.start()  # what follows is there only inside Slicer

import slicer  # noqa: E402

KEYS = {"normal": "1", "pneumonia": "2"}


class Killer:
    """Does a step of the reader, the server dying while that step's request is under way."""

    def __init__(self, widget, server: Served, line: Trouble) -> None:
        self._widget, self._server, self._line = widget, server, line
        self.deaths = 0

    def __call__(self, act: Callable[[], object], request: str) -> None:
        line, session, before = self._line, self._widget.session, len(self._line.seen)
        line.delay_s, line.only = 1.0, request
        act()
        fixture.wait(lambda: any(request in seen for seen in line.seen[before:]))
        self._server.kill()
        self.deaths += 1
        line.delay_s = 0.0
        fixture.wait(lambda: session.connection.state in ("lost", "off"))
        self._server.start()


def undisturbed(act: Callable[[], object], request: str) -> None:
    act()


def truth(server: Served, uid: str) -> str:
    """What a film shows; the two plain pictures among them show nothing."""
    with (server.folder / "studies/labels.csv").open(newline="") as file:
        labels = {row["file"]: row["label"] for row in csv.DictReader(file)}
    return next((label for name, label in labels.items()
                 if uid.encode() in (server.folder / "studies" / name).read_bytes()), "normal")


@pytest.mark.parametrize(("disturbed", "answers"), [(False, 3), (True, 1)],
                         ids=["undisturbed", "killed at every step"])
def test_from_connecting_to_the_list_ranked_anew(opened, pictures, disturbed: bool, answers: int) -> None:
    # The model of the beginning leans to one class, so that what is trained on the answers is surely better.
    wish = {"films": 8, "model": True, "tokens": True, "score": True, "data": True, "bias": 2.0}
    with Served(wish) as server, Trouble(server.port) as line:
        wait_scored(server)
        session, ui = opened.session, opened.ui
        step = Killer(opened, server, line) if disturbed else undisturbed

        def on() -> bool:
            return session.connection.state == "on" and not session.page.busy and session.page.total > 0

        def choose_map(place: int) -> None:
            step(lambda: ui.mapBox.setCurrentIndex(place), "/infer/dcaf")
            fixture.wait(lambda: on() and session.case.heat is not None)

        # connect
        ui.urlEdit.text, ui.tokenEdit.text = line.url, server.tokens["chief"]
        step(ui.connectButton.click, "/dcaf/session")
        if disturbed:   # nobody was let in yet, so it is said, and asked again by hand
            assert "connection" in ui.noticeLabel.text and ui.connectButton.enabled
            ui.connectButton.click()
        fixture.wait(on)
        first_model = session.connection.model["version"]

        # worklist
        step(lambda: session.show_page(status="all"), "/dcaf/worklist")
        fixture.wait(on)
        assert session.page.status == "all"     # what was asked for is not forgotten
        session.show_page(status="unread")
        fixture.wait(on)
        entropies = [item["normalized_entropy"] for item in session.page.items]
        assert entropies == sorted(entropies, reverse=True) and ui.worklistTable.rowCount == len(entropies)

        # load, overlay, correct, next: a few times
        answered = {}
        step(ui.nextButton.click, "/activelearning/")
        for number in range(answers):
            case = loaded(opened, other_than=list(answered)[-1] if answered else "")
            assert coloured("DCAFOverlay") > 500 and coloured("DCAFImage") == 0
            choose_map(1 + number % 2)
            assert session.case is case and case.heat.fields["kind"] == case.map_kind
            answered[case.uid] = label = truth(server, case.uid)
            press(opened, KEYS[label])
            step(ui.submitButton.click, "/datastore/label")
            fixture.wait(lambda: on() and session.waiting == 0, 120)
        assert len(answered) == answers

        # train
        last = loaded(opened, other_than=list(answered)[-1])
        session.choose("normal")
        ui.learnSection.collapsed = False
        ui.curveCheck.click()
        step(ui.trainButton.click, "/train/")
        fixture.wait(on)
        if not session.training.running:
            ui.trainButton.click()
        fixture.wait(lambda: session.training.running)
        if disturbed:   # and once more, while it trains: at once, before anything can be published
            server.kill()
            fixture.wait(lambda: session.connection.state == "lost")
            server.start()
            fixture.wait(lambda: on() and not session.training.running)
            assert session.training.state in ("stopped", "failed"), session.training
            ui.trainButton.click()
            fixture.wait(lambda: session.training.running)
        fixture.wait(lambda: not session.training.running, 300)
        training = session.training
        assert training.state == "published", training
        assert training.candidate_nll < training.published_nll and "Published" in ui.trainingLabel.text
        chart = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLPlotChartNode")
        table = chart.GetNthPlotSeriesNode(0).GetTableNode().GetTable()
        assert table.GetNumberOfRows() == len(training.curve) > 0

        assert session.case is last and last.choice == "normal"     # chosen, through all that, and not sent

        # re-rank
        fixture.wait(lambda: session.training.changes is not None
                     and session.connection.model["version"] == training.version)
        assert training.version != first_model and "answers changed" in ui.changesLabel.text
        fixture.wait(lambda: not session.page.busy and session.page.items and all(
            item["model_version"] == training.version for item in session.page.items), 60)
        again = [item["normalized_entropy"] for item in session.page.items]
        assert again == sorted(again, reverse=True) and again != entropies
        assert not {item["uid"] for item in session.page.items} & set(answered)
        fixture.main_window().show_section(ui.learnSection)
        fixture.process(0.2)
        fixture.screenshot(fixture.main_window(), pictures / "loop.png")

        # nothing was lost, nothing doubled, and nothing was said that nobody said
        assert not session.refused and session.waiting == 0
        for uid, label in answered.items():
            assert [entry["label"] for entry in ask(server, f"/dcaf/history?image={uid}")] == [label]
        assert ask(server, f"/dcaf/history?image={last.uid}") == []
        assert [row["image"] for row in csv.DictReader(session.csv().splitlines())] == list(answered)
        assert not disturbed or step.deaths == 4 + 2 * answers
