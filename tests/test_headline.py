"""The one figure people quote: withheld without an audit; and the command's other refusals."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image as Picture
from small_evaluation import TASK, Taken, a_film, a_model, a_table
from typer.testing import CliRunner

from dcaf_monai import cli_evaluate
from dcaf_monai.cohort import read_cohort
from dcaf_monai.evaluate import examine
from dcaf_monai.explainer import class_probabilities, explainer_for
from dcaf_monai.headline import audit_verdict, headline, labels_of
from dcaf_monai.model import load_model, save_model
from dcaf_monai.predict import Predictor
from dcaf_monai.train import fit, work_folder
from dcaf_monai.transforms import Preprocessing, read_input

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(cli_evaluate.evaluate)
app.command()(cli_evaluate.card)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return a_table(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def cohort(table):
    return read_cohort(table, TASK)


@pytest.fixture(scope="module")
def one(cohort):
    """A model with its answers."""
    return examine(Predictor(a_model(3)), cohort, label="seed3")


def areas(value):
    return {"m": {"value": value, "low": None, "high": None}}


def test_a_headline_above_the_limit_needs_an_audit_beside_it():
    assert headline(areas(.9949), None)["auroc"] == areas(.9949)
    held = headline(areas(.9951), None)
    assert held["auroc"] is None and "m is above 0.995" in held["withheld"]
    assert "dcaf audit" in held["withheld"]
    beside = headline(areas(.9951), {"verdict": "alarm"})
    assert beside["withheld"] is None and beside["audit"] == "alarm" and beside["auroc"] == areas(.9951)
    assert headline(areas(None), None)["withheld"] is None


def an_audit(cohort, verdict="alarm", sha256=None, task="pneumonia"):
    return {"schema": "dcaf-audit/1", "verdict": verdict, "images": 88,
            "tasks": {task: {"verdict": verdict, "data_sha256": sha256 or cohort.sha256}},
            "items": [{"task": task, "name": "tint", "verdict": verdict, "sentence": "Half are tinted.",
                       "figures": {}, "examples": ["secretname4.png"]},
                      {"task": "oct", "name": "tint", "verdict": "look", "sentence": "Another task's.",
                       "figures": {}, "examples": []},
                      {"task": "", "name": "copies", "verdict": "pass", "sentence": "None.", "figures": {},
                       "examples": []}]}


def test_an_audit_of_other_data_or_another_task_is_refused(cohort):
    told = audit_verdict(an_audit(cohort), cohort)
    assert told["verdict"] == "alarm" and told["passed"] == 1
    assert told["items"] == [{"name": "tint", "verdict": "alarm", "sentence": "Half are tinted."}]
    with pytest.raises(ValueError, match="got one of others"):
        audit_verdict(an_audit(cohort, sha256="0" * 64), cohort)
    with pytest.raises(ValueError, match="task pneumonia, got one of oct"):
        audit_verdict(an_audit(cohort, task="oct"), cohort)


@pytest.fixture(scope="module")
def flattered(one, cohort, tmp_path_factory):
    """A model file and films labelled by that model's own probabilities: an AUROC of 1."""
    folder = tmp_path_factory.mktemp("flattered")
    likely = one.test.probs[:, 1] > np.median(one.test.probs[:, 1])
    said = {case.path.name: TASK.classes[int(ill)]
            for case, ill in zip(cohort.split("test"), likely, strict=True)}
    table = a_table(folder, label=lambda number: said.get(f"secretname{number}.png",
                                                          TASK.classes[number % 2]))
    save_model(one.model, folder / "m.safetensors")
    return folder / "m.safetensors", table


def call(*arguments):
    return CliRunner().invoke(app, [str(part) for part in arguments])


def test_the_command_withholds_a_perfect_auroc_until_an_audit_stands_beside_it(flattered, tmp_path):
    model, table = flattered
    quick = ("--resamples", 20, "--shifts", 0, "--no-explain")
    alone = call("evaluate", model, "--data", table, "--report", tmp_path / "r", "--no-gallery", *quick)
    assert alone.exit_code == 1 and "withheld" in alone.output and "Traceback" not in alone.output
    assert not re.search(r"auroc\W+1\.000", alone.output)
    out = tmp_path / "out.json"
    assert call("evaluate", model, "--data", table, "--out", out, *quick).exit_code == 1
    short = json.loads(out.read_text())
    assert short["auroc"]["value"] is None and short["audit"] is None and "dcaf audit" in short["withheld"]
    assert all(each["auroc"]["value"] is None for each in short["per_class"].values())
    assert short["aupr"]["value"] == 1
    document = json.loads((tmp_path / "r/evaluation.json").read_text())
    assert document["models"][0]["discrimination"]["auroc"]["value"] == 1
    assert document["headline"]["auroc"] is None
    taken = Taken((tmp_path / "r/report.html").read_text())
    words = taken.words
    assert "contains no image of the data" in words and len(taken.pictures) == 7
    assert not any("Gallery" in name for name, _ in taken.pictures)
    # in the box, and in place of the mean and of both classes
    assert "AUROC withheld" in words and "m is above 0.995" in words and words.count("withheld") == 4
    (tmp_path / "audit.json").write_text(json.dumps(an_audit(read_cohort(table, TASK))))
    beside = call("evaluate", model, "--data", table, "--audit", tmp_path / "audit.json",
                  "--out", out, *quick)
    short = json.loads(out.read_text())
    assert short["auroc"]["value"] == 1 and short["audit"] == "alarm" and short["withheld"] is None
    assert beside.exit_code == 0 and re.search(r"auroc\W+1\.000", beside.output)
    assert "audit: alarm" in beside.output and "Audit of these data: alarm." in beside.output
    (tmp_path / "audit.json").write_text(json.dumps(an_audit(None, sha256="0" * 64)))
    other = call("evaluate", model, "--data", table, "--audit", tmp_path / "audit.json", *quick)
    assert isinstance(other.exception, ValueError) and "got one of others" in str(other.exception)


def test_a_broken_image_is_named_and_its_number_left_out(one, tmp_path):
    table = a_table(tmp_path, broken=(66,))
    save_model(one.model, tmp_path / "m.safetensors")
    found = call("evaluate", tmp_path / "m.safetensors", "--data", table, "--out", tmp_path / "out.json",
                 "--resamples", 20)
    assert found.exit_code == 2 and "secretname66.png: " in found.output
    assert "1 of 24 images could not be read" in found.output
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["cases"] == 23 and figures["model"] == "v3" and figures["split"] == "test"
    assert {"auroc", "aupr", "accuracy", "nll", "ece"} <= set(figures)


def test_patients_of_the_training_are_never_tested_on(tmp_path):
    """A folder of class folders brings no split: another draw than the training's holds training patients."""
    rng, films = np.random.default_rng(1), tmp_path / "films"
    for number in range(60):
        place = films / TASK.classes[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(a_film(rng, 60 * (number % 2))).save(place)
    model = tmp_path / "m.safetensors"
    split = work_folder(model) / "data-split.csv"
    fit(read_cohort(films, TASK, frozen=split, seed=5), out=model, epochs=1, batch_size=8, samples=2,
        backbones=("test_efficientnet", "test_resnet"), weights="none", preprocessing=Preprocessing(size=64),
        shape={"width": 8, "heads": 2, "fused": 16, "hidden": 12})
    refused = call("evaluate", model, "--data", films, "--resamples", 20)
    assert isinstance(refused.exception, ValueError)
    assert re.match(r"test split: need patients whom the model was not trained on, got \d+ of \d+ whom it "
                    "was. Give the table of the training's own split: data-split.csv", str(refused.exception))
    found = call("evaluate", model, "--data", split, "--resamples", 20, "--out", tmp_path / "out.json")
    assert found.exit_code == 0 and json.loads((tmp_path / "out.json").read_text())["cases"] == \
        len(read_cohort(split, TASK).split("test"))
    report = call("evaluate", model, "--data", split, "--resamples", 20, "--report", tmp_path / "r",
                  "--no-explain", "--shifts", 0, "--no-gallery")
    assert report.exit_code == 0 and "training_patients" not in (tmp_path / "r/evaluation.json").read_text()


def test_the_share_of_heat_inside_given_masks_is_in_the_report(one, table, tmp_path, monkeypatch):
    monkeypatch.setattr("dcaf_monai.evaluation_parts.EXPLAINED", 3)
    model, masks = tmp_path / "m.safetensors", tmp_path / "masks"
    save_model(one.model, model)
    masks.mkdir()
    left = np.zeros((72, 96), np.uint8)
    left[:, :48] = 255
    marked = read_cohort(table, TASK).split("test")[5:8]   # none that would be chosen without masks
    for case in marked:
        Picture.fromarray(left).save(masks / f"{case.path.stem}.png")
    settings = ("--data", table, "--report", tmp_path / "r", "--no-gallery", "--resamples", 20, "--shifts", 0)
    found = call("evaluate", model, *settings, "--masks", masks)
    assert found.exit_code == 0, found.output
    energy = json.loads((tmp_path / "r/evaluation.json").read_text())["models"][0]["explanations"]["kinds"]
    inputs = torch.stack([read_input(case.path, one.model.preprocessing)[1] for case in marked])
    said = class_probabilities(one.model.network, inputs, temperature=2.0).argmax(1)
    heat = explainer_for(one.model.network, None)(one.model.network, inputs, said)["class_activation"]
    cells = heat[:, 1:-1, :heat.shape[2] // 2].sum((1, 2)) / heat.sum((1, 2))   # letter-boxed: 48 of 64 rows
    assert heat.shape[1:] == (8, 8)
    assert energy["class_activation"]["energy"]["area"]["value"] == pytest.approx(3 / 8)
    assert energy["class_activation"]["energy"]["inside"]["value"] == pytest.approx(cells.mean(), abs=0.05)
    words = Taken((tmp_path / "r/report.html").read_text()).words
    assert "Heat inside masks" in words
    wrong = masks / "wrong"
    wrong.mkdir()
    Picture.fromarray(left[:10]).save(wrong / "nobody.png")
    for folder, sentence in ((wrong, "got none for any"), (tmp_path / "none", "need a folder of masks")):
        refused = call("evaluate", model, *settings, "--masks", folder)
        assert isinstance(refused.exception, ValueError) and sentence in str(refused.exception)
    Picture.fromarray(left).save(wrong / f"{case.path.stem}.png")
    refused = call("evaluate", model, *settings, "--masks", masks)
    assert isinstance(refused.exception, ValueError) and "that two of them have" in str(refused.exception)


def test_prevalence_is_read_or_refused():
    assert cli_evaluate._shares("normal=0.9, pneumonia=0.1") == {"normal": .9, "pneumonia": .1}
    assert cli_evaluate._shares("") == {}
    for text in ("pneumonia", "pneumonia=2", "pneumonia=x", "a=0.1,a=0.2"):
        with pytest.raises(ValueError, match="CLASS=SHARE"):
            cli_evaluate._shares(text)


def test_a_class_the_task_does_not_have_is_refused(flattered):
    model, table = flattered
    found = call("evaluate", model, "--data", table, "--prevalence", "measles=0.1")
    assert isinstance(found.exception, ValueError) and "got 'measles'" in str(found.exception)
    found = call("evaluate", model, model, "--data", table)
    assert isinstance(found.exception, ValueError) and "got one twice" in str(found.exception)


def test_models_get_labels_that_differ(tmp_path):
    assert labels_of([Path("a/one.safetensors"), Path("a/two.safetensors")]) == ["one", "two"]
    assert labels_of([Path("a/m.safetensors"), Path("b/m.safetensors")]) == ["a/m", "b/m"]


def test_marking_writes_into_the_model_file_which_maps_failed_and_the_card_still_knows_it(
        one, table, tmp_path, monkeypatch):
    monkeypatch.setattr("dcaf_monai.evaluation_parts.EXPLAINED", 4)  # images, to be quick
    path = tmp_path / "m.safetensors"
    save_model(one.model, path)
    kept = tmp_path / "m.models" / "v3.safetensors"
    kept.parent.mkdir()
    save_model(one.model, kept)
    found = call("evaluate", path, "--data", table, "--report", tmp_path / "r", "--no-gallery",
                 "--resamples", 20, "--shifts", 0, "--mark")
    assert found.exit_code == 0, found.output
    told = json.loads((tmp_path / "r/evaluation.json").read_text())["models"][0]["explanations"]["kinds"]
    failed = tuple(kind for kind, each in told.items() if not each["passes"])
    marked = load_model(path)
    assert marked.unfaithful == failed and marked.version == one.model.version
    assert kept.read_bytes() == path.read_bytes()   # what a rollback would put there
    (tmp_path / "notes.toml").write_text('data = "Films."\nlicence = "None."\nfaults = ["Drawn."]\n')
    carded = call("card", path, "--evaluation", tmp_path / "r/evaluation.json", "--data-notes",
                  tmp_path / "notes.toml", "--out", tmp_path / "card.md")
    assert carded.exit_code == 0 and "Drawn." in (tmp_path / "card.md").read_text()


def test_marking_without_a_check_of_the_explanations_is_refused(one, table, tmp_path):
    save_model(one.model, tmp_path / "m.safetensors")
    refused = call("evaluate", tmp_path / "m.safetensors", "--data", table, "--mark")
    assert isinstance(refused.exception, ValueError) and "--mark: need --report" in str(refused.exception)
