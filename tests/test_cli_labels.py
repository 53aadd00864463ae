"""``dcaf suspects``, ``progress`` and ``medmnist`` as a person meets them, on synthetic films."""

import csv
import json
import shutil

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from dcaf_monai import cli_labels
from dcaf_monai.model import describe_model, load_model
from dcaf_monai.phantom import write_films
from dcaf_monai.predict import Predictor

SMALL = ["--backbones", "test_efficientnet,test_resnet", "--weights", "none"]
app = typer.Typer(pretty_exceptions_enable=False)
for command in (cli_labels.suspects, cli_labels.progress, cli_labels.medmnist):
    app.command()(command)


def dcaf(*arguments):
    """``(exit code, what it said)``; a mistake of the caller comes out as the ValueError it is."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    write_films(folder, 30, seed=3, shapes=((70, 64),))
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained on a small file of PneumoniaMNIST's layout, and what the command said."""
    folder = tmp_path_factory.mktemp("mnist")
    rng = np.random.default_rng(0)
    content = {}
    for split, count in (("train", 12), ("val", 8), ("test", 7)):
        labels = np.arange(count) % 2
        images = rng.integers(0, 120, (count, 64, 64)) + 100 * labels[:, None, None]
        content |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None]}
    np.savez(folder / "small.npz", **content)
    code, said = dcaf("medmnist", "pneumoniamnist", "--npz", folder / "small.npz", "--size", 64, "--out",
                      folder / "model.safetensors", "--report", folder / "report.json", "--epochs", 1,
                      "--batch-size", 4, "--mode", "full", "--width", 8, "--fused", 16, *SMALL)
    assert code == 0, said
    return folder, said, content


def test_medmnist_trains_tests_and_shows_published_results_beside_it(trained):
    folder, said, content = trained
    figures = json.loads((folder / "report.json").read_text())
    model = load_model(folder / "model.safetensors")
    assert figures["model"] == model.version and figures["cases"] == 7
    assert describe_model(folder / "model.safetensors")["provenance"]["counts"]["test"] == {
        "normal": 4, "pneumonia": 3}
    files = sorted((folder / "model.training/images").rglob("test/*.png"))
    answers = Predictor(model).predict_files([(None, file, None) for file in files])
    right = [answer.probs.argmax() == label for (_, answer), label in
             zip(answers, content["test_labels"][:, 0], strict=True)]
    assert figures["accuracy"]["value"] == pytest.approx(np.mean(right))
    for word in ("this model", "Google AutoML Vision", "DenseNet-121", "Sci Data 10:41", "CC BY 4.0",
                 "names no patient", "Published results do not compare"):
        assert word in said, word


def test_suspects_writes_a_table_of_labels_for_a_second_reading(films, tmp_path):
    out = tmp_path / "suspects.csv"
    code, said = dcaf("suspects", "--data", films, "--task", "pneumonia", "--out", out, "--size", 64, *SMALL)
    assert code == 0, said
    with out.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with films.open(encoding="utf-8") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert f"{len(rows)} of {len(labels)} labels are suspect" in said and "second reading" in said
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    assert all(row["given"] != row["suggested"] and row["split"] in ("train", "val", "test") for row in rows)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "suspects.cache").rglob("records.f16")}
    dcaf("suspects", "--data", films, "--task", "pneumonia", "--out", out, "--size", 64, *SMALL)
    assert before and all(file.stat().st_mtime_ns == time for file, time in before.items())


def test_suspects_says_when_the_trunks_have_seen_labels(films, trained, tmp_path):
    folder, _, _ = trained
    code, said = dcaf("suspects", "--data", films, "--task", "pneumonia", "--out", tmp_path / "s.csv",
                      "--model", folder / "model.safetensors")
    assert code == 0 and "were trained with labels" in said


def test_progress_measures_draws_and_speaks_in_words(trained, tmp_path):
    folder, _, _ = trained
    shutil.copytree(folder, tmp_path / "copy")
    model = tmp_path / "copy" / "model.safetensors"
    code, said = dcaf("progress", model, "--figure", tmp_path / "curve.png", "--out", tmp_path / "curve.json")
    assert code == 0 and "Too early to say." in said and "never on the training labels" in said
    told = json.loads((tmp_path / "curve.json").read_text())
    assert [point["labels"] for point in told["points"]] == [12]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("arguments", "message"), [
    (["medmnist", "chestmnist", "--out", "m.safetensors"], "collection: need one of pneumoniamnist"),
    (["medmnist", "octmnist", "--out", "m.safetensors", "--mode", "half"], "--mode: need frozen or full"),
    (["suspects", "--data", "nowhere.csv", "--task", "oct", "--out", "s.csv"], r"nowhere\.csv"),
    (["suspects", "--data", "nowhere.csv", "--task", "knee", "--out", "s.csv"], "task: need one of")])
def test_a_mistake_is_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        dcaf(*arguments)


@pytest.mark.parametrize(("option", "message"), [
    (["--backbones", "one"], "--backbones: need two timm names"),
    (["--weights", "one"], "--weights: need pretrained, none, or two files")])
def test_trunks_that_are_no_pair_are_refused(option, message, films, tmp_path):
    with pytest.raises(ValueError, match=message):
        dcaf("suspects", "--data", films, "--task", "pneumonia", "--out", tmp_path / "s.csv", *SMALL, *option)
