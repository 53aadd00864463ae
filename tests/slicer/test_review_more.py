"""What a server may say besides: sets, warnings, maps that fail their test, other orders, random cases."""

from __future__ import annotations

import fixture
import pytest
from reviewing import connect, open_next, wait_scored
from served import Served, Trouble

fixture.start()  # what follows is there only inside Slicer

SET = {"alpha": 0.1, "method": "lac", "conditional": True, "set": ["pneumonia"], "warnings": [
    {"code": "few_calibration_cases", "message": "Sets: need 100 calibration cases, got normal 7."}]}
UNLIKE = {"code": "unlike_training", "message": "The image is unlike those the model was trained on."}


@pytest.fixture(scope="module")
def server():
    with Served({"films": 4, "model": True, "tokens": True, "score": True}) as served:
        wait_scored(served)
        yield served


def more(path: str, told: dict) -> None:
    """What the server adds to its answers."""
    if path.startswith("/dcaf/session"):
        told["orders"] = ["badge", "entropy", "of_another_day", "case"]
        told["unfaithful"] = [told["maps"][1]]
    elif path.startswith("/dcaf/worklist"):
        for item in told.get("items", [])[1:2]:     # a refusal has none
            item["random"] = True
    for document in (told, told.get("prediction")):
        if isinstance(document, dict) and "uncertainty" in document:
            document["conformal"] = SET
            document["warnings"].append(UNLIKE)


@pytest.fixture
def line(server):
    with Trouble(server.port, adds=more) as line:
        yield line


@pytest.fixture
def talking(opened, server, line):
    """The opened module, connected to that server."""
    connect(opened, server, url=line.url)
    yield opened
    opened.session.disconnect()


def test_the_set_is_told_in_words_with_what_speaks_against_it(talking) -> None:
    open_next(talking)
    ui, text = talking.ui, talking.session.text()
    assert ui.conformalLabel.visible and ui.conformalLabel.text.startswith("Only Pneumonia is left.")
    assert "90% of the cases of each class" in ui.conformalLabel.text and ui.conformalLabel.text in text
    for told in (SET["warnings"][0]["message"], UNLIKE["message"]):
        assert ui.warningsLabel.visible and told in ui.warningsLabel.text and f"Warning: {told}" in text


def test_a_map_that_fails_the_randomisation_test_says_so_in_the_menu_and_can_be_chosen(talking) -> None:
    box, case = talking.ui.mapBox, open_next(talking)
    assert [box.itemText(place) for place in range(3)] == [
        "Class activation", "Attention, first trunk (fails the randomisation test)",
        "Attention, second trunk"]
    box.setCurrentIndex(1)
    fixture.wait(lambda: case.heat is not None and case.map_kind == "attention_first")
    assert case.heat.fields["kind"] == "attention_first"


def test_the_orders_are_those_of_the_server_and_cases_come_by_the_chosen_one(talking, line) -> None:
    box = talking.ui.orderBox
    offered = [(box.itemText(place), box.itemData(place)) for place in range(box.count)]
    assert offered == [("Doubtful and unlike each other", "badge"), ("Most uncertain first", "entropy"),
                       ("of_another_day", "of_another_day"), ("Case", "case")]
    assert box.itemData(box.currentIndex) == talking.session.page.order == "entropy"
    for chosen, asked in ((0, "badge"), (3, "entropy")):   # a list of names is no queue
        box.setCurrentIndex(chosen)
        fixture.wait(lambda: not talking.session.page.busy)
        assert f"/dcaf/worklist?order={offered[chosen][1]}&" in line.seen[-1]
        assert talking.ui.nextButton.text == ("Next most uncertain" if chosen else "Next of this order")
        talking.ui.nextButton.click()
        fixture.wait(lambda: not talking.session.seeking)
        assert any(f"/activelearning/{asked} " in request for request in line.seen)


def test_a_case_drawn_at_random_is_marked_and_the_mark_explained(talking) -> None:
    table, label = talking.ui.worklistTable, talking.ui.pageLabel
    marked = [table.item(row, 0).text().endswith(" *") for row in range(table.rowCount)]
    assert marked == [row == 1 for row in range(table.rowCount)]
    assert "at random" in table.item(1, 0).toolTip() and "random" in label.text and "watched" in label.toolTip


def test_a_server_that_says_nothing_of_it_shows_nothing_of_it(opened, server) -> None:
    connect(opened, server)
    open_next(opened)
    ui = opened.ui
    assert not ui.conformalLabel.visible and UNLIKE["message"] not in ui.warningsLabel.text
    assert "randomisation" not in "".join(ui.mapBox.itemText(place) for place in range(ui.mapBox.count))
    assert "random" not in ui.pageLabel.text and "*" not in ui.worklistTable.item(1, 0).text()
