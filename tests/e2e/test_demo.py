"""The whole loop in small, through real processes: what ``make demo`` runs."""

import csv
import re
from pathlib import Path

import pytest

from dcaf_monai import demo
from dcaf_monai.model import load_model
from dcaf_monai.publish import history


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("demo")
    demo.run(place, training_films=40, unread_films=14, epochs=3)
    return place


def test_the_demo_leaves_a_model_films_and_a_report(folder: Path) -> None:
    model = load_model(folder / "model.safetensors")
    assert model.task.name == "pneumonia" and model.version
    assert len(history(folder / "model.safetensors")) >= 1
    assert len(list((folder / "films").glob("*.dcm"))) == 14
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 1 + 3 * 14  # a figure; each film and its two overlays
    assert page.count('class="tag">read<') == demo.CORRECTIONS
    assert "not a medical device" in page and not re.search(r"(src|href)=\"https?:", page)


def test_every_correction_is_an_annotation_by_the_reader(folder: Path) -> None:
    from dcaf_monai.server.store import Store
    from dcaf_monai.tasks import TASKS

    with (folder / "truth.csv").open() as stream:
        truth = {row["file"]: row["label"] for row in csv.DictReader(stream)}
    store = Store(folder / "films", TASKS["pneumonia"])
    labels = store.current_labels()
    assert len(labels) == demo.CORRECTIONS
    for uid, label in labels.items():
        assert truth[store.location(uid)[0].name] == label
        assert [annotation.reader for annotation in store.history(uid)] == [demo.READER]
    store.close()


def test_a_second_run_uses_what_stands(folder: Path, capsys: pytest.CaptureFixture) -> None:
    first = {file: file.stat().st_mtime_ns for file in (folder / "films").glob("*.dcm")}
    demo.run(folder, training_films=40, unread_films=14, epochs=3)
    assert "The model of an earlier run stands" in capsys.readouterr().out
    assert first == {file: file.stat().st_mtime_ns for file in (folder / "films").glob("*.dcm")}
    assert (folder / "report.html").read_text(encoding="utf-8").count('class="tag">read<') == 2
