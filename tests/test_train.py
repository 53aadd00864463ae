"""`fit`, whole: from files to a published model, in both modes, interrupted and judged."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from dcaf_monai import overlay
from dcaf_monai.cohort import read_cohort
from dcaf_monai.conformal import digests
from dcaf_monai.engine import Recipe
from dcaf_monai.model import load_model, weights_sha256
from dcaf_monai.predict import Predictor
from dcaf_monai.publish import history
from dcaf_monai.tasks import TASKS
from dcaf_monai.train import TrainError, TrainStopped, fit, work_folder
from dcaf_monai.transforms import Preprocessing, read_input

torch.set_num_threads(1)
TASK = TASKS["pneumonia"]
SETTINGS = {"backbones": ("test_efficientnet", "test_resnet"), "weights": "none",
            "shape": {"width": 8, "heads": 2, "fused": 16, "hidden": 12},
            "preprocessing": Preprocessing(size=64), "samples": 5, "batch_size": 8,
            "recipe": Recipe(learning_rate=3e-3, trunk_learning_rate=3e-3)}


def digest(model):
    return weights_sha256(model.network.state_dict())


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """48 films of noise, a bright square on those with pneumonia; two of a patient."""
    folder = tmp_path_factory.mktemp("films")
    rng, rows = np.random.default_rng(0), []
    for number in range(48):
        pixels = rng.normal(90, 20, (72, 96)).clip(0, 255)
        if number % 2:
            pixels[20:44, 50:74] += 90
        Picture.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        split = ("train", "train", "val", "test")[number // 12]
        rows.append((f"{number}.png", "pneumonia", TASK.classes[number % 2], split, f"p{number // 2}"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "task", "label", "split", "group"), *rows])
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def frozen(table, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("frozen") / "model.safetensors"
    return out, fit(read_cohort(table, TASK), out=out, cache=cache, epochs=4, **SETTINGS)


def test_a_fitted_model_is_published_with_all_it_needs(frozen, table):
    out, result = frozen
    model, cohort = load_model(out), read_cohort(table, TASK)
    assert result.verdict.published and history(out)[0].version == model.version == result.model.version
    assert set(model.operating_points) == set(TASK.classes)
    assert set(model.heat_scales) == set(overlay.KINDS)
    provenance = model.provenance
    assert provenance["cohort_sha256"] == cohort.sha256
    assert provenance["validation_sha256"] == cohort.validation_sha256
    assert provenance["counts"]["train"] == {"normal": 12, "pneumonia": 12}
    assert provenance["validation_nll"] == result.verdict.candidate_nll
    assert (provenance["mode"], provenance["weights"], provenance["epochs"]) == ("frozen", "none", 4)
    assert "normal: its sensitivity cut-off rests on 6 cases." in provenance["remarks"]
    assert len(result.history) == 4 and result.minutes > 0 and result.peak_memory_mib > 50


def test_the_patients_who_calibrate_the_sets_chose_nothing_before(frozen, table):
    out, result = frozen
    predictor, cases = Predictor(load_model(out)), read_cohort(table, TASK).split("val")
    roles = load_model(out).conformal.roles
    chose = [case for case in cases if digests([case.group])[0] in roles["fit"]]
    assert 0 < len(chose) < len(cases)
    assert len(roles["fit"]) + len(roles["calibrate"]) == len({case.group for case in cases})
    labels = torch.tensor([TASK.class_index(case.label) for case in chose])
    answers = predictor.predict_files([(case.uid, case.path, None) for case in chose])
    probs = torch.tensor(np.array([answer.probs for _, answer in answers]))
    nll = float(torch.nn.functional.nll_loss(probs.log(), labels))
    # features are cached in half precision
    assert result.model.provenance["validation_nll"] == pytest.approx(nll, abs=2e-3)
    assert result.model.provenance["validation_nll_cases"] == len(chose)
    network = result.model.network
    inputs = [read_input(case.path, result.model.preprocessing)[1] for case in chose]
    logits = network(torch.stack(inputs))
    best = min(entry["validation_nll"] for entry in result.history)
    assert best == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=2e-3)


def test_frozen_mode_leaves_the_trunks_as_they_were(table, frozen, tmp_path):
    before = load_model(frozen[0]).network.first.state_dict()
    result = fit(read_cohort(table, TASK), out=tmp_path / "m.safetensors", epochs=1, batch_size=8,
                 init_from=load_model(frozen[0]), samples=5)
    assert weights_sha256(before) == weights_sha256(result.model.network.first.state_dict())
    assert result.model.provenance["init_from"] == load_model(frozen[0]).version


def test_full_mode_learns_to_see_the_square(table, cache, tmp_path):
    result = fit(read_cohort(table, TASK), out=tmp_path / "m.safetensors", cache=cache, mode="full",
                 epochs=12, **SETTINGS)
    assert result.model.provenance["validation"]["auroc"]["value"] > .9
    assert result.model.provenance["mode"] == "full"


def test_the_test_split_is_never_opened(table, tmp_path):
    cohort = read_cohort(table, TASK)
    away = []
    for case in cohort.split("test"):
        away.append((case.path, case.path.with_suffix(".away")))
        case.path.rename(away[-1][1])
    try:
        result = fit(cohort, out=tmp_path / "m.safetensors", epochs=1, **SETTINGS)
    finally:
        for path, hidden in away:
            hidden.rename(path)
    assert not any("could not be read" in remark for remark in result.model.provenance["remarks"])


def test_the_same_call_gives_the_same_model_and_does_not_publish_it_twice(table, cache, frozen):
    out, first = frozen
    standing = out.read_bytes()
    again = fit(read_cohort(table, TASK), out=out, cache=cache, epochs=4, **SETTINGS)
    assert digest(again.model) == digest(first.model)
    assert not again.verdict.published and again.verdict.published_nll == again.verdict.candidate_nll
    assert out.read_bytes() == standing and len(history(out)) == 1


def test_a_model_from_another_split_is_measured_on_this_one(table, cache, frozen, tmp_path):
    out = tmp_path / "m.safetensors"
    out.write_bytes(frozen[0].read_bytes())
    cohort = read_cohort(table, TASK)
    fewer = type(cohort)(TASK, tuple(case for case in cohort.cases if case.uid not in ("24.png", "25.png")))
    result = fit(fewer, out=out, cache=cache, epochs=1, **SETTINGS)
    recorded = load_model(frozen[0]).provenance["validation_nll"]
    assert result.verdict.published_nll != recorded
    assert result.verdict.published_nll == pytest.approx(recorded, abs=.5)


def test_a_stopped_training_goes_on_to_the_same_end(table, cache, frozen, tmp_path):
    out, asked = tmp_path / "m.safetensors", []
    with pytest.raises(TrainStopped):
        fit(read_cohort(table, TASK), out=out, cache=cache, epochs=4,
            stop=lambda: asked.append(0) or len(asked) == 8, **SETTINGS)
    assert (work_folder(out) / "checkpoint.safetensors").exists() and not out.exists()
    result = fit(read_cohort(table, TASK), out=out, cache=cache, epochs=4, **SETTINGS)
    assert result.history == frozen[1].history
    assert digest(result.model) == digest(frozen[1].model)
    assert not (work_folder(out) / "checkpoint.safetensors").exists()


VICTIM = """
import os, sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_train import SETTINGS, TASK, fit, read_cohort

def notify(stage, done, total, note):
    if stage == "train" and done == 2:
        os.kill(os.getpid(), 9)

fit(read_cohort(Path(sys.argv[1]), TASK), out=Path(sys.argv[2]), cache=Path(sys.argv[3]), epochs=4,
    progress=notify, **SETTINGS)
"""


def test_a_killed_process_ends_where_an_undisturbed_one_does(table, cache, frozen, tmp_path):
    out = tmp_path / "m.safetensors"
    root = Path(__file__).resolve().parents[1]
    killed = subprocess.run([sys.executable, "-c", VICTIM, str(table), str(out), str(cache)], cwd=root,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -9 and not out.exists()
    epochs = []
    result = fit(read_cohort(table, TASK), out=out, cache=cache, epochs=4, **SETTINGS,
                 progress=lambda stage, done, total, note: epochs.append(done) if stage == "train" else None)
    assert epochs == [3, 4]
    assert digest(result.model) == digest(frozen[1].model)


def test_unreadable_files_are_left_out_and_remarked(table, tmp_path):
    cohort = read_cohort(table, TASK)
    spoilt = tmp_path / "spoilt.png"
    spoilt.write_bytes(b"not a film")
    cases = tuple(replace(case, path=spoilt) if case.uid == "3.png" else case for case in cohort.cases)
    result = fit(type(cohort)(TASK, cases), out=tmp_path / "m.safetensors", epochs=1, **SETTINGS)
    assert "1 files could not be read and were left out." in result.model.provenance["remarks"]


def test_a_split_without_a_readable_image_of_a_class_is_refused(table, tmp_path):
    cohort = read_cohort(table, TASK)
    cases = []
    for number, case in enumerate(cohort.cases):
        if case.split == "val" and case.label == "normal":
            case = replace(case, path=tmp_path / f"{number}.png")
            case.path.write_bytes(b"not a film")
        cases.append(case)
    with pytest.raises(TrainError, match="validation split: need readable images .* none of normal"):
        fit(type(cohort)(TASK, tuple(cases)), out=tmp_path / "m.safetensors", epochs=1, **SETTINGS)


def test_a_place_where_another_task_s_model_stands_is_refused_before_any_work(frozen, table, tmp_path):
    cohort = read_cohort(table, TASK)
    other = type(cohort)(TASKS["tuberculosis"], tuple(
        replace(case, label=case.label.replace("pneumonia", "tuberculosis"))
        for case in cohort.cases))
    told = []
    with pytest.raises(TrainError, match="need a model of task tuberculosis .* got one of task pneu"):
        fit(other, out=frozen[0], progress=lambda *stage: told.append(stage), **SETTINGS)
    assert told == []


@pytest.mark.parametrize("change, message", [
    ({"mode": "half"}, "mode: need frozen or full"), ({"samples": 1}, "samples: need at least 2"),
    ({"epochs": 0}, "epochs")])
def test_settings_out_of_range_are_refused(table, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        fit(read_cohort(table, TASK), out=tmp_path / "m.safetensors", **{**SETTINGS, **change})


def test_two_processes_of_torchrun_train_in_full_and_publish_once(table, tmp_path):
    """Over gloo, from the command line to the shelf: what a machine with several GPUs does over NCCL."""
    out = tmp_path / "m.safetensors"
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
         "dcaf_monai.cli", "train", "--data", table, "--task", TASK.name, "--mode", "full", "--backbones",
         "test_efficientnet,test_resnet", "--weights", "none", "--size", "64", "--epochs", "2",
         "--batch-size", "4", "--out", out],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.count("Published: ") == 1 and ended.stdout.count("Decided by the first process.") == 1
    assert [entry.version for entry in history(out)] == [load_model(out).version]
    assert load_model(out).provenance["epochs"] == 2
