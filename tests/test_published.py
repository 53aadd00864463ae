"""The published model as a running server sees it: replaced, unfit, and with a site's own cut-offs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import TASK, studies, tiny_model

from dcaf_monai.model import ModelError
from dcaf_monai.phantom import write_films
from dcaf_monai.server import app as application
from dcaf_monai.server.published import PublishedModel


def test_a_model_without_dropout_is_refused_and_the_one_before_it_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tiny_model(path, dropout=0.0)
    with pytest.raises(ModelError, match="head: need a dropout"):
        PublishedModel(path).predictor()
    good = tiny_model(path)
    published = PublishedModel(path)
    assert published.predictor().model.version == good.version
    tiny_model(path, seed=2, dropout=0.0)
    assert published.predictor().model.version == good.version


def test_an_answer_says_when_the_sites_cut_offs_do_not_fit_the_model(tmp_path: Path) -> None:
    film = write_films(tmp_path, 2, shapes=((96, 80),))[0]
    cutoffs, path = tmp_path / "cutoffs.json", tmp_path / "model.safetensors"
    version = tiny_model(path).version
    cutoffs.write_text(json.dumps({"model_version": version, "cutoffs": {"pneumonia": 0.125}}))
    published = PublishedModel(path, cutoffs=cutoffs)

    def answer() -> tuple[dict, set[str]]:
        document = published.predictor().predict_file(film).document()
        return document["operating_points"], {warning["code"] for warning in document["warnings"]}

    points, codes = answer()
    assert points["pneumonia"]["cutoff"] == 0.125 and "site_cutoffs" not in codes
    tiny_model(path, seed=2)
    points, codes = answer()
    assert points == {} and "site_cutoffs" in codes


def test_the_watch_over_the_studies_survives_a_model_that_cannot_predict(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(application, "RESCAN_S", 0.1)
    path = tmp_path / "model.safetensors"
    films = studies(tmp_path / "studies", count=2)
    app = application.DcafApp("", str(films), {"model": str(path), "task": TASK.name, "auto_score": "false"})
    app.on_init_complete()
    try:
        before = len(app.store.list_images())
        tiny_model(path, dropout=0.0)
        _wait(lambda: "Looking for new images: head: need a dropout" in caplog.text)
        (films / "other/new.png").write_bytes((films / "other/ramp.PNG").read_bytes())
        _wait(lambda: len(app.store.list_images()) == before + 1)
    finally:
        app.close()


def _wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)
