"""The panel's smaller parts, each by its own button or key, against a real server."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import fixture
import pytest
from DCAFReviewLib import bars
from DCAFReviewLib.reading import Bar
from reviewing import ask, connect, loaded, open_next, press, wait_scored
from served import Served, Trouble

fixture.start()  # what follows is there only inside Slicer

import qt  # noqa: E402


@pytest.fixture(scope="module")
def server():
    with Served({"films": 8, "model": True, "tokens": True, "score": True}) as served:
        wait_scored(served)
        yield served


def shown(widget) -> list[str]:
    """The cases in the table."""
    table = widget.ui.worklistTable
    return [table.item(row, 0).toolTip() for row in range(table.rowCount)]


def settled(widget) -> None:
    fixture.wait(lambda: not widget.session.page.busy)


def test_connecting_can_be_called_off(opened, server) -> None:
    with Trouble(server.port, delay_s=20.0) as slow:
        opened.ui.urlEdit.text, opened.ui.tokenEdit.text = slow.url, server.tokens["ada"]
        opened.ui.connectButton.click()
        assert "Connecting" in opened.ui.statusLabel.text and not opened.ui.connectButton.enabled
        fixture.wait(lambda: slow.seen)
        opened.ui.disconnectButton.click()
        assert "Not connected" in opened.ui.statusLabel.text and opened.ui.connectButton.enabled
        assert slow.hung_up.wait(5)
    connect(opened, server)


def test_pages_are_turned_forth_and_back(opened, server) -> None:
    connect(opened, server)
    ui, session = opened.ui, opened.session
    everything = shown(opened)
    session.page.limit = 4
    session.show_page()
    settled(opened)
    assert shown(opened) == everything[:4] and ui.pageLabel.text == f"1 to 4 of {len(everything)}"
    assert not ui.previousButton.enabled and ui.followingButton.enabled
    ui.followingButton.click()
    settled(opened)
    assert shown(opened) == everything[4:8] and ui.previousButton.enabled
    ui.followingButton.click()
    settled(opened)
    assert shown(opened) == everything[8:] and not ui.followingButton.enabled
    ui.previousButton.click()
    settled(opened)
    assert shown(opened) == everything[4:8]


def test_the_list_is_filtered_by_the_models_answer(opened, server) -> None:
    connect(opened, server)
    box, everything = opened.ui.labelBox, opened.session.page.items
    for label in ("pneumonia", "normal"):
        box.setCurrentIndex(box.findData(label))
        settled(opened)
        assert shown(opened) == [item["uid"] for item in everything if item["label"] == label]


def test_a_case_double_clicked_again_keeps_what_was_answered(opened, server) -> None:
    connect(opened, server)
    case = open_next(opened)
    press(opened, "2")
    opened.session.remark(comment="half way")
    row = shown(opened).index(case.uid)
    opened.ui.worklistTable.cellDoubleClicked.emit(row, 0)
    fixture.process(0.3)
    assert opened.session.case is case and (case.choice, case.comment) == ("pneumonia", "half way")
    assert opened.ui.submitButton.enabled and opened.ui.commentEdit.text == "half way"


def test_what_is_typed_into_the_comment_is_no_key_of_the_module(opened, server) -> None:
    from PySide6 import QtTest

    connect(opened, server)
    case, edit = open_next(opened), opened.ui.commentEdit
    press(opened, "1")
    edit.setFocus()
    fixture.wait(lambda: edit.hasFocus(), 5)
    QtTest.QTest.keyClicks(edit, "2 um no")
    QtTest.QTest.keyClick(edit, qt.Qt.Key_Backspace)
    assert (case.choice, case.comment) == ("normal", "2 um n")
    assert case.map_kind == "class_activation" and opened.ui.overlayCheck.checked


def test_keys_do_nothing_while_another_module_is_shown(opened, server) -> None:
    connect(opened, server)
    case = open_next(opened)
    opened.exit()
    press(opened, "1")
    assert case.choice is None
    opened.enter()
    press(opened, "1")
    assert case.choice == "normal"


def test_the_case_is_saved_as_text(opened, server, tmp_path: Path) -> None:
    connect(opened, server)
    open_next(opened)
    press(opened, "2")
    target = tmp_path / "case.txt"
    with fixture.answering(str(target)):
        opened.ui.saveButton.click()
    text = target.read_text(encoding="utf-8")
    assert "Predictive entropy" in text and "Reader ada: Pneumonia" in text and "not a medical device" in text


def test_a_skip_is_stored_with_its_reason(opened, server) -> None:
    connect(opened, server)
    case = open_next(opened)
    opened.ui.skipEdit.text = "lateral view"
    opened.ui.skipButton.click()
    loaded(opened, other_than=case.uid)
    file = server.folder / "studies/.dcaf/dcaf.sqlite3"     # no route tells reasons
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        assert database.execute("SELECT uid, reader, reason FROM skips").fetchall() == [
            (case.uid, "ada", "lateral view")]


def test_how_far_readers_agree_is_told(opened, server) -> None:
    both = ask(server, "/dcaf/worklist?order=case")["items"][:3]
    for reader, labels in {"ada": ("normal", "normal", "pneumonia"),
                           "bob": ("normal", "pneumonia", "pneumonia")}.items():
        connect(opened, server, reader)
        for item, label in zip(both, labels, strict=True):
            opened.session.open_case(item["uid"])
            loaded(opened)
            opened.session.choose(label)
            opened.ui.submitButton.click()
            fixture.wait(lambda: opened.session.waiting == 0)
        opened.ui.disconnectButton.click()
        assert not opened.ui.agreementButton.enabled
    connect(opened, server)
    opened.ui.agreementButton.click()
    fixture.wait(lambda: opened.ui.agreementLabel.text)
    told = opened.ui.agreementLabel.text
    assert "3 of 3 images have two readers or more." in told
    # seen alike 2 of 3; by chance 2/3 * 1/3 + 1/3 * 2/3 = 4/9: (2/3 - 4/9) / (1 - 4/9) = 0.4
    assert "ada and bob: 2 of 3 alike, Cohen's kappa 0.40." in told
    opened.ui.disconnectButton.click()
    assert opened.ui.agreementLabel.text == ""


class Training:
    """Lets the server tell that training stands otherwise than it does."""

    def __init__(self) -> None:
        self.told: dict = {}

    def __call__(self, path: str, told: dict) -> None:
        if path.startswith("/dcaf/session") and self.told:
            told["training"] = {"state": "idle", **self.told}
        if path.startswith("/dcaf/training"):
            told.update(self.told)


def test_the_state_line_tells_how_far_training_is_and_then_why_nothing_was_published(opened, server) -> None:
    training = Training()
    training.told = {"state": "running", "stage": "fit", "done": 3, "total": 12, "message": "Epoch 3."}
    with Trouble(server.port, adds=training) as line:
        connect(opened, server, "chief", url=line.url)
        fixture.wait(lambda: "Training is running 25 %." in opened.ui.statusLabel.text)
        assert opened.ui.trainingBar.value == 3 and opened.ui.trainingBar.maximum == 12
        assert opened.ui.stopButton.enabled and not opened.ui.trainButton.enabled
        training.told = {"state": "refused", "message": "The candidate is worse.", "candidate_nll": 0.7,
                         "published_nll": 0.6}
        fixture.wait(lambda: "Not published" in opened.ui.trainingLabel.text)
        told = opened.ui.trainingLabel.text
        assert "The candidate is worse." in told and "0.700" in told and "0.600" in told
        assert told.count("Not published") == 1
        training.told["message"] = "Not published: validation NLL 0.700 against 0.600."
        fixture.wait(lambda: "against" in opened.ui.trainingLabel.text)
        assert opened.ui.trainingLabel.text.splitlines()[0] == training.told["message"]
        training.told["message"] = "The candidate is worse."
        fixture.wait(lambda: "worse" in opened.ui.trainingLabel.text)
        assert "Training is running" not in opened.ui.statusLabel.text and opened.ui.trainButton.enabled
        assert opened.ui.noticeLabel.text == "The candidate is worse."


def test_nothing_of_the_archive_is_there_yet(opened) -> None:
    texts = [button.text.lower() for button in opened.ui.DCAFReview.findChildren(qt.QPushButton)]
    assert texts and not [text for text in texts if "archive" in text or "send" in text]


@pytest.mark.parametrize("cutoff", [0.2, 0.8])
def test_the_cut_off_is_a_tick_on_the_bar(application, cutoff: float) -> None:
    def row(where: float | None):
        bar = Bar("a", "A", 0.5, 0.01, where, None, None)
        picture = bars.paint([bar], 200, qt.QApplication.palette()).toImage()
        return [picture.pixel(x, 17 + 2) for x in range(200)]

    plain, ticked = row(None), row(cutoff)
    changed = [x for x in range(200) if plain[x] != ticked[x]]
    assert changed and abs(sum(changed) / len(changed) - (4 + 192 * cutoff)) <= 1.5
