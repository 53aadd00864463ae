"""The whole module with what is already on this machine, and without a model."""

from __future__ import annotations

from pathlib import Path

import fixture
import numpy as np
import pydicom
import pytest
from reviewing import ask, coloured, connect, loaded, open_next
from served import Served

fixture.start()  # what follows is there only inside Slicer

import qt  # noqa: E402
import slicer  # noqa: E402


@pytest.fixture(scope="module")
def server():
    with Served({"films": 4, "model": True}) as served:
        yield served


def stack(count: int = 3):
    """A volume of the scene whose slices differ, not square, loaded by somebody."""
    rng = np.random.default_rng(3)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "loaded")
    slicer.util.updateVolumeFromArray(node, rng.integers(0, 4000, (count, 90, 70)).astype(np.int16))
    node.SetSpacing(0.7, 0.9, 3.0)
    node.CreateDefaultDisplayNodes()
    return node


def test_a_loaded_volume_is_classified_after_asking_once(opened, server) -> None:
    connect(opened, server)
    node, ui = stack(), opened.ui
    before = ask(server, "/dcaf/worklist")["total"]
    ui.volumeSelector.setCurrentNode(node)
    assert ui.sliceSpin.maximum == 3 and ui.classifyButton.enabled
    with fixture.answering(qt.QMessageBox.No):
        ui.classifyButton.click()
    assert opened.session.case is None
    with fixture.answering(qt.QMessageBox.Yes):
        ui.sliceSpin.value = 3
        ui.classifyButton.click()
    fixture.wait(lambda: opened.session.case is not None and opened.session.case.heat is not None)
    fixture.process(0.1)
    assert "not in the server's store" in ui.caseLabel.text and ui.verdictLabel.visible
    assert coloured("DCAFOverlay") > 0 and not ui.choicesLayout.itemAt(0).widget().enabled
    ui.sliceSpin.value = 1
    ui.classifyButton.click()      # not asked again
    fixture.wait(lambda: opened.session.case.heat is not None)
    assert ask(server, "/dcaf/worklist")["total"] == before
    opened.session.close_case()
    assert slicer.mrmlScene.IsNodePresent(node)


def test_a_film_of_the_local_database_is_not_fetched_and_keeps_its_window(opened, server) -> None:
    films = sorted((server.folder / "studies").rglob("*.dcm"))
    uids = {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID: path for path in films}
    for path in films:
        slicer.dicomDatabase.insert(str(path))
    connect(opened, server)
    uid = next(item["uid"] for item in opened.session.page.items if item["uid"] in uids)
    opened.session.open_case(uid)
    fixture.wait(lambda: opened.session.case.heat is not None)
    fixture.process(0.1)
    assert opened.session.case.local and opened.session.case.picture is None
    volume = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    header = pydicom.dcmread(uids[uid], stop_before_pixels=True)
    assert volume.GetDisplayNode().GetWindow() == pytest.approx(float(header.WindowWidth))
    assert volume.GetDisplayNode().GetLevel() == pytest.approx(float(header.WindowCenter))
    assert coloured("DCAFOverlay") > 0


def test_the_local_film_and_the_servers_show_the_same_overlay_at_the_same_place(opened, server) -> None:
    connect(opened, server)
    opened.ui.legendCheck.checked = False
    films = sorted((server.folder / "studies").rglob("*.dcm"))
    uid = pydicom.dcmread(films[0], stop_before_pixels=True).SOPInstanceUID
    opened.session.open_case(uid)
    loaded(opened)
    fetched = fixture.grab_view("DCAFOverlay").astype(int)
    opened.session.close_case()
    slicer.dicomDatabase.insert(str(films[0]))
    opened.session.open_case(uid)
    fixture.wait(lambda: opened.session.case.heat is not None)
    fixture.process(0.1)
    assert opened.session.case.local
    assert np.abs(fixture.grab_view("DCAFOverlay").astype(int) - fetched).max() <= 3


def test_the_case_can_be_copied_saved_and_the_answers_exported(opened, server, tmp_path: Path) -> None:
    connect(opened, server)
    ui = opened.ui
    case = open_next(opened)
    ui.copyButton.click()
    copied = slicer.app.clipboard().text()
    assert "Predictive entropy" in copied or "Entropy" in copied
    opened.session.choose("uncertain")
    ui.submitButton.click()
    fixture.wait(lambda: opened.session.waiting == 0)
    target = tmp_path / "mine.csv"
    with fixture.answering(str(target)):
        ui.exportButton.click()
    lines = target.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and case.uid in lines[1] and "uncertain" in lines[1] and ",sent," in lines[1]
    with fixture.answering(str(tmp_path / "none" / "mine.csv")):
        ui.exportButton.click()
    assert "need a place to write" in ui.noticeLabel.text


def test_without_a_model_there_are_worklist_pictures_answers_and_disagreements(opened) -> None:
    with Served({"films": 4}) as plain:
        connect(opened, plain, "ada")
        assert "No model yet" in opened.ui.statusLabel.text and not opened.ui.trainButton.toolTip
        case = open_next(opened, heat=False)
        assert coloured("DCAFOverlay") == 0 and fixture.grab_view("DCAFOverlay").max() > 100
        opened.session.choose("normal")
        opened.ui.submitButton.click()
        fixture.wait(lambda: opened.session.waiting == 0)
        opened.ui.disconnectButton.click()
        connect(opened, plain, "bob")
        opened.session.open_case(case.uid)
        loaded(opened, heat=False)
        opened.session.choose("pneumonia")
        opened.ui.submitButton.click()
        fixture.wait(lambda: opened.session.waiting == 0)
        opened.ui.disconnectButton.click()
        connect(opened, plain, "chief")
        opened.ui.statusBox.setCurrentIndex(opened.ui.statusBox.findData("disagreement"))
        fixture.wait(lambda: not opened.session.page.busy and opened.session.page.status == "disagreement")
        assert [item["uid"] for item in opened.session.page.items] == [case.uid]
        opened.session.open_case(case.uid)
        loaded(opened, heat=False)
        fixture.wait(lambda: opened.ui.settleCheck.visible)
        assert "ada says normal" in opened.ui.othersLabel.text
        opened.ui.settleCheck.click()
        opened.session.choose("normal")
        opened.ui.submitButton.click()
        fixture.wait(lambda: opened.session.waiting == 0)
        assert ask(plain, "/dcaf/disagreements") == []
        assert ask(plain, f"/dcaf/history?image={case.uid}")[-1]["role"] == "adjudication"


def test_a_local_file_that_slicer_cannot_read_comes_from_the_server(opened, server, tmp_path: Path) -> None:
    film = sorted((server.folder / "studies").rglob("*.dcm"))[1]
    broken = tmp_path / "broken.dcm"
    header = pydicom.dcmread(film)
    header.PixelData = header.PixelData[:100]
    header.PhotometricInterpretation = "MONOCHROME2"
    header.save_as(broken)
    broken.write_bytes(broken.read_bytes()[:900])
    slicer.dicomDatabase.insert(str(broken))
    connect(opened, server)
    opened.session.open_case(header.SOPInstanceUID)
    loaded(opened)
    assert not opened.session.case.local and fixture.grab_view("DCAFImage").max() > 100


def test_a_point_is_there_again_when_the_module_is(opened, server) -> None:
    connect(opened, server)
    case = open_next(opened)
    opened.session.remark(point=(10.0, 20.0))
    opened.review._logic.justify("point", (10.0, 20.0))
    fixture.process(0.1)
    opened.exit()
    fixture.process(1.2)
    assert case.point == (10.0, 20.0)
    opened.enter()
    fixture.process(0.1)
    assert np.allclose(opened.review._logic.justification()[0], (10.0, 20.0), atol=0.1)
