"""The whole module, by its own buttons, against a real server: what a reader does in a day."""

from __future__ import annotations

import fixture
import numpy as np
import pytest
from conftest import MODULE
from reviewing import ask, coloured, connect, loaded, open_next, press, wait_scored
from served import Served

fixture.start()  # what follows is there only inside Slicer

import qt  # noqa: E402
import slicer  # noqa: E402


@pytest.fixture(scope="module")
def server():
    with Served({"films": 8, "model": True, "tokens": True, "score": True, "data": True}) as served:
        wait_scored(served)
        yield served


def uids(server: Served, page: str) -> list:
    return [item["uid"] for item in ask(server, f"/dcaf/worklist?{page}")["items"]]


def test_the_state_is_told_and_the_token_is_not(opened, server) -> None:
    assert "Not connected" in opened.ui.statusLabel.text and not opened.ui.nextButton.enabled
    connect(opened, server)
    told = opened.ui.statusLabel.text
    assert "Connected" in told and "ada (reader)" in told and "Pneumonia on chest X-ray" in told
    shown = [str(getattr(child, "text", "")) for child in opened.ui.DCAFReview.findChildren(qt.QWidget)
             if child.name != "tokenEdit"]
    assert not any(server.tokens["ada"] in text for text in shown)
    assert opened.ui.tokenEdit.echoMode == qt.QLineEdit.Password


def test_a_wrong_token_is_one_sentence_and_everything_can_be_tried_again(opened, server) -> None:
    ui = opened.ui
    ui.urlEdit.text, ui.tokenEdit.text = server.url, "wrong"
    ui.connectButton.click()
    fixture.wait(lambda: opened.session.connection.state == "off" and ui.noticeLabel.text)
    assert ui.noticeLabel.visible and "oken" in ui.noticeLabel.text and "wrong" not in ui.noticeLabel.text
    assert ui.connectButton.enabled
    connect(opened, server)


def test_an_address_that_is_none_is_said_at_once(opened) -> None:
    opened.ui.urlEdit.text = "ftp://somewhere"
    opened.ui.connectButton.click()
    assert "http" in opened.ui.noticeLabel.text and opened.ui.noticeLabel.visible


def test_address_and_token_are_there_again_when_the_module_is_opened_again(application, server) -> None:
    first = fixture.open_module(MODULE)
    connect(first, server)
    fixture.close_module(first)
    again = fixture.open_module(MODULE)
    assert again.ui.urlEdit.text == server.url and again.ui.tokenEdit.text == server.tokens["ada"]
    fixture.close_module(again)


def test_the_worklist_is_most_uncertain_first_and_tells_what_the_server_knows(opened, server) -> None:
    connect(opened, server)
    items = ask(server, "/dcaf/worklist?status=unread", "ada")["items"]
    entropies = [item["normalized_entropy"] for item in items]
    assert entropies == sorted(entropies, reverse=True)
    table = opened.ui.worklistTable
    assert table.rowCount == len(items)
    for row, item in enumerate(items):
        assert table.item(row, 0).toolTip() == item["uid"]
        assert table.item(row, 2).text() == f"{item['score']:.0%}"
        assert table.cellWidget(row, 3).value == round(100 * item["normalized_entropy"])


def test_no_column_of_the_worklist_is_cut_off_at_the_panels_usual_width(opened, server) -> None:
    connect(opened, server)
    open_next(opened)       # a row is chosen
    fixture.process(0.1)
    table = opened.ui.worklistTable
    header = table.horizontalHeader()
    assert table.horizontalScrollBar().maximum == 0
    for column in range(table.columnCount):
        title = table.horizontalHeaderItem(column).text()
        assert header.fontMetrics().horizontalAdvance(title) + 4 <= header.sectionSize(column), title
        assert column == 3 or table.sizeHintForColumn(column) <= table.columnWidth(column) + 1, title
    bar = table.cellWidget(0, 3)
    assert abs(bar.height - table.rowHeight(0)) <= 1        # its number stands in the middle of the row


def test_the_server_sorts_by_the_column_that_is_clicked_and_back(opened, server) -> None:
    connect(opened, server)
    header = opened.ui.worklistTable.horizontalHeader()
    for descending in (None, True):
        header.sectionClicked.emit(2)
        fixture.wait(lambda: not opened.session.page.busy)
        assert (opened.session.page.order, opened.session.page.descending) == ("score", descending)
    scores = [item["score"] for item in opened.session.page.items]
    assert scores == sorted(scores, reverse=True) and opened.ui.orderBox.currentText == "Probability"


def test_a_case_shows_picture_overlay_bars_and_words(opened, server, pictures) -> None:
    connect(opened, server)
    case = open_next(opened)
    assert coloured("DCAFOverlay") > 500 and coloured("DCAFImage") == 0
    assert fixture.grab_view("DCAFImage").max() > 150     # the film is there, in its window
    ui = opened.ui
    assert ui.verdictLabel.visible and "nats" in ui.figuresLabel.text
    assert ui.barsLabel.pixmap.height() >= 2 * 34
    assert not ui.submitButton.enabled and ui.choicesLayout.count() == 4
    fixture.screenshot(fixture.main_window(), pictures / "case.png")
    top = case.document["prediction"][0]["label"]
    assert ui.explainBox.itemData(ui.explainBox.currentIndex) == top


def test_the_overlay_can_be_taken_away_and_its_threshold_and_opacity_count(opened, server) -> None:
    connect(opened, server)
    heat = open_next(opened).heat
    ui = opened.ui
    ui.legendCheck.checked = False
    fixture.process(0.05)
    everything = coloured("DCAFOverlay")
    ui.thresholdSlider.value = round(0.7 * float(heat.values.max()) / float(heat.fields["scale"]), 2)
    fixture.process(0.05)
    less = coloured("DCAFOverlay")
    assert 0 < less < everything
    ui.opacitySlider.value = 0.0
    fixture.process(0.05)
    assert coloured("DCAFOverlay") == 0
    ui.opacitySlider.value, ui.thresholdSlider.value = 0.6, 0.1
    press(opened, "o")
    fixture.process(0.05)
    assert not ui.overlayCheck.checked and coloured("DCAFOverlay") == 0
    press(opened, "o")
    fixture.process(0.05)
    assert coloured("DCAFOverlay") == everything


def test_another_map_is_asked_for_by_key_and_kept(opened, server) -> None:
    connect(opened, server)
    case = open_next(opened)
    first = case.heat
    press(opened, "m")
    fixture.wait(lambda: case.map_kind == "attention_first" and case.heat is not None)
    assert case.heat.fields["kind"] == "attention_first" and not opened.ui.explainBox.enabled
    opened.ui.mapBox.setCurrentIndex(0)
    assert case.heat is first     # at once: it was kept


def test_each_map_has_a_threshold_of_its_own_and_starts_where_it_says_something(opened, server) -> None:
    connect(opened, server)
    ui, case = opened.ui, open_next(opened)
    assert ui.thresholdSlider.value == 0.1
    ui.thresholdSlider.value = 0.3
    ui.mapBox.setCurrentIndex(1)
    fixture.wait(lambda: case.map_kind == "attention_first" and case.heat is not None)
    fixture.process(0.05)
    even = round(1 / float(case.heat.fields["scale"]), 2)     # attention of 1 is even: it says nothing
    assert ui.thresholdSlider.value == min(even, 0.95)
    heat = case.heat.values
    assert (heat < 1).any() and 0 < coloured("DCAFOverlay") < coloured_at(ui, 0.0)
    ui.thresholdSlider.value = 0.9
    ui.mapBox.setCurrentIndex(0)
    assert ui.thresholdSlider.value == 0.3
    ui.mapBox.setCurrentIndex(1)
    assert ui.thresholdSlider.value == 0.9


def coloured_at(ui, threshold: float) -> int:
    ui.thresholdSlider.value = threshold
    fixture.process(0.05)
    return coloured("DCAFOverlay")


def test_one_key_answers_and_submit_moves_on(opened, server) -> None:
    connect(opened, server)
    case = open_next(opened)
    press(opened, "2")
    assert case.choice == "pneumonia" and opened.ui.submitButton.enabled
    opened.ui.commentEdit.text = "left lower lobe"
    opened.ui.commentEdit.textEdited.emit("left lower lobe")
    opened.ui.confidenceBox.setCurrentIndex(3)
    press(opened, qt.Qt.Key_Return)
    second = loaded(opened, other_than=case.uid)
    fixture.wait(lambda: opened.session.waiting == 0)
    stored = ask(server, f"/dcaf/history?image={case.uid}")[-1]
    assert (stored["label"], stored["reader"], stored["comment"], stored["confidence"]) == (
        "pneumonia", "ada", "left lower lobe", 0.75)
    assert stored["shown"]["prediction"] and stored["shown"]["map"] == "class_activation"
    assert stored["shown"]["opacity"] == 0.6 and not stored["blind"] and stored["seconds"] > 0
    assert opened.ui.commentEdit.text == "" and second.choice is None


def test_undo_takes_back_the_choice_and_then_the_case(opened, server) -> None:
    connect(opened, server, "bob")
    first = open_next(opened)
    press(opened, "1")
    opened.ui.undoButton.click()
    assert first.choice is None and not opened.ui.submitButton.enabled
    press(opened, "1")
    opened.ui.submitButton.click()
    loaded(opened, other_than=first.uid)
    opened.ui.undoButton.click()
    again = loaded(opened)
    assert again.uid == first.uid and again.choice == "normal"
    press(opened, "2")
    opened.ui.submitButton.click()
    fixture.wait(lambda: opened.session.waiting == 0 and opened.session.case is not None
                 and opened.session.case.uid != first.uid)
    labels = [entry["label"] for entry in ask(server, f"/dcaf/history?image={first.uid}")
              if entry["reader"] == "bob"]
    assert labels == ["normal", "pneumonia"]      # append-only: the later one counts


def test_read_before_you_see_hides_the_answer_everywhere_and_is_recorded(opened, server) -> None:
    connect(opened, server, "bob")
    opened.ui.readFirstCheck.click()
    case = open_next(opened, heat=False)
    fixture.process(0.5)
    ui = opened.ui
    assert not ui.barsLabel.visible and not ui.verdictLabel.visible and coloured("DCAFOverlay") == 0
    assert all(ui.worklistTable.isColumnHidden(column) for column in (1, 2, 3))
    assert "%" not in opened.session.text()
    press(opened, "1")
    ui.revealButton.click()
    fixture.wait(lambda: case.heat is not None)
    assert ui.barsLabel.visible and coloured("DCAFOverlay") > 0
    press(opened, "u")
    ui.submitButton.click()
    fixture.wait(lambda: opened.session.waiting == 0)
    stored = ask(server, f"/dcaf/history?image={case.uid}")[-1]
    assert stored["label"] == "uncertain" and stored["shown"]["first_choice"] == "normal"
    assert not stored["blind"] and stored["shown"]["seconds_before_reveal"] > 0


def test_a_point_on_the_picture_goes_into_the_annotation_at_its_pixel(opened, server) -> None:
    connect(opened, server)
    case = open_next(opened)
    rows, columns = fixture.grab_view("DCAFImage").shape[:2]
    opened.ui.pointButton.click()
    fixture.click_view("DCAFImage", rows // 2, columns // 2)
    fixture.wait(lambda: case.point is not None)
    height, width = case.picture.values.shape
    assert np.allclose(case.point, ((height - 1) / 2, (width - 1) / 2), atol=1.0)
    assert "row" in opened.ui.markLabel.text
    opened.ui.unmarkButton.click()
    assert case.point is None and opened.ui.markLabel.text == ""


def test_a_finished_case_is_found_among_mine_and_opened_again_with_its_box(opened, server) -> None:
    connect(opened, server, "bob")
    ui, case = opened.ui, open_next(opened)
    height, width = case.picture.values.shape
    rows, columns = fixture.grab_view("DCAFImage").shape[:2]
    ui.boxButton.click()
    fixture.click_view("DCAFImage", rows // 2, columns // 2)
    fixture.click_view("DCAFImage", rows // 2 + 40, columns // 2 + 60)
    fixture.wait(lambda: case.box is not None)
    press(opened, "1")
    ui.submitButton.click()
    loaded(opened, other_than=case.uid)
    fixture.wait(lambda: opened.session.waiting == 0)
    ui.statusBox.setCurrentIndex(ui.statusBox.findData("mine"))
    fixture.wait(lambda: case.uid in [item["uid"] for item in opened.session.page.items])
    row = [item["uid"] for item in opened.session.page.items].index(case.uid)
    ui.worklistTable.cellDoubleClicked.emit(row, 0)
    fixture.wait(lambda: opened.session.case.uid == case.uid and opened.session.case.history)
    stored = opened.session.case.history[-1]
    assert (stored["reader"], stored["label"]) == ("bob", "normal")
    top, left, bottom, right = stored["box"]
    assert abs(top - (height - 1) / 2) <= 1 and abs(left - (width - 1) / 2) <= 1
    scale = width / columns if width * rows > height * columns else height / rows  # of a view pixel
    assert abs(bottom - top - 40 * scale) <= 1 and abs(right - left - 60 * scale) <= 1


def test_skip_gives_its_reason_and_the_case_does_not_come_back(opened, server) -> None:
    connect(opened, server, "chief")
    case = open_next(opened)
    opened.ui.skipEdit.text = "lateral view"
    opened.ui.skipButton.click()
    other = loaded(opened, other_than=case.uid)
    opened.session.close_case()
    fixture.wait(lambda: case.uid in uids(server, "status=skipped&reader=chief"))
    assert other.uid != case.uid
    assert opened.ui.skipEdit.text == ""


def test_a_double_click_opens_that_case(opened, server) -> None:
    connect(opened, server)
    wanted = opened.session.page.items[-1]["uid"]
    opened.ui.worklistTable.cellDoubleClicked.emit(len(opened.session.page.items) - 1, 0)
    assert loaded(opened).uid == wanted


def test_leaving_the_module_takes_our_nodes_and_coming_back_shows_the_case_again(opened, server) -> None:
    before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode")
    connect(opened, server)
    case = open_next(opened)
    layout = slicer.app.layoutManager().layout
    opened.exit()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode") == before
    assert slicer.app.layoutManager().layout != layout
    fixture.process(0.3)
    assert opened.session.ahead is None and not case.awaited     # nothing is fetched for nobody
    opened.enter()
    fixture.process(0.1)
    assert opened.session.case is case and coloured("DCAFOverlay") > 500


def test_closing_the_scene_gives_the_case_back_and_the_next_one_loads(opened, server) -> None:
    connect(opened, server)
    case = open_next(opened)
    slicer.mrmlScene.Clear(0)
    assert opened.session.case is None and "No case" in opened.ui.caseLabel.text
    fixture.wait(lambda: case.uid not in uids(server, "status=leased"))
    opened.enter()
    open_next(opened)
    assert coloured("DCAFOverlay") > 500


def test_training_is_for_admins_shows_its_curve_and_what_changed(opened, server, pictures) -> None:
    connect(opened, server, "bob")
    assert not opened.ui.trainButton.enabled and "admin" in opened.ui.trainButton.toolTip
    opened.ui.disconnectButton.click()
    connect(opened, server, "chief")
    opened.ui.learnSection.collapsed = False
    opened.ui.curveCheck.click()
    opened.ui.trainButton.click()
    fixture.wait(lambda: opened.session.training.running)
    assert opened.ui.stopButton.enabled and not opened.ui.trainButton.enabled
    fixture.wait(lambda: not opened.session.training.running, 180)
    state = opened.session.training.state
    assert state in ("published", "refused"), opened.session.training.message
    assert len(opened.session.training.curve) > 0 and "NLL" in opened.ui.trainingLabel.text
    chart = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLPlotChartNode")
    table = chart.GetNthPlotSeriesNode(0).GetTableNode().GetTable()
    assert table.GetNumberOfRows() == len(opened.session.training.curve)
    if state == "published":
        fixture.wait(lambda: opened.session.training.changes is not None)
        assert "answers changed" in opened.ui.changesLabel.text
        version = opened.session.training.version
        fixture.wait(lambda: opened.session.page.items and all(     # the list is that of the new model
            item["model_version"] == version for item in opened.session.page.items))
    fixture.main_window().show_section(opened.ui.learnSection)
    fixture.process(0.2)
    fixture.screenshot(fixture.main_window(), pictures / "learn.png")


def test_the_test_that_runs_in_slicer_passes_here(opened) -> None:
    from DCAFReviewLib.selftest import review_one_case

    with Served({"films": 4, "model": True}) as plain:
        assert "acknowledged" in review_one_case(opened, plain.url)
