"""The ablation on tiny networks and synthetic films: whole, resumable, and its figures recomputed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from dcaf_monai import metrics
from dcaf_monai.ablate import (
    AVERAGE,
    SHOWN,
    WAYS,
    Split,
    _holm,
    _spreads,
    _Table,
    _two_sided,
    ablate,
)
from dcaf_monai.ablation_tables import NAMES, _mean_sd, ablation_table, write_ablation
from dcaf_monai.cohort import read_cohort
from dcaf_monai.model import load_model
from dcaf_monai.phantom import write_films
from dcaf_monai.predict import Predictor
from dcaf_monai.tasks import TASKS
from dcaf_monai.train import TrainError
from dcaf_monai.transforms import Preprocessing

SETTINGS = {"backbones": ("test_efficientnet", "test_resnet"), "weights": "none", "epochs": 2,
            "batch_size": 8, "shape": {"width": 8, "heads": 2, "fused": 12, "hidden": 8},
            "preprocessing": Preprocessing(size=64)}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    write_films(folder, 60, seed=4)
    return read_cohort(folder / "labels.csv", TASKS["pneumonia"])


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ablation")


@pytest.fixture(scope="module")
def document(cohort, work):
    return ablate(cohort, folder=work, cache=work / "cache", seeds=(0, 1), resamples=50,
                  variants=("dcaf", "first_only", "second_only"), **SETTINGS)


def test_every_variant_way_and_difference_is_there_and_plain_json(document):
    assert set(document["variants"]) == {"dcaf", "first_only", "second_only", AVERAGE}
    assert set(document["differences"]) == {"first_only", "second_only", AVERAGE}
    assert set(document["ways"]) == set(WAYS)
    assert document["variants"]["dcaf"]["figures"]["nll"]["n"] == 2
    assert document["ways"]["softmax"]["failure_auroc_mutual_information"] is None
    json.dumps(document, allow_nan=False)


def test_the_test_figures_are_those_of_the_models_through_the_predictor(document, cohort, work):
    cases = cohort.split("test")
    labels = np.array([TASKS["pneumonia"].class_index(case.label) for case in cases])
    nll, brier = [], []
    for seed in (0, 1):
        predictor = Predictor(load_model(work / f"pneumonia-dcaf-{seed}.safetensors"))
        answers = predictor.predict_files([(case.uid, case.path, case.frame) for case in cases])
        probs = np.array([answer.probs for _, answer in answers])
        nll.append(log_loss(labels, probs, labels=[0, 1]))
        brier.append(((probs - np.eye(2)[labels]) ** 2).sum(1).mean())
    figures = document["variants"]["dcaf"]["figures"]
    # features are cached in half precision
    assert figures["nll"]["mean"] == pytest.approx(np.mean(nll), abs=2e-3)
    assert figures["brier"]["mean"] == pytest.approx(np.mean(brier), abs=2e-3)


def test_differences_are_differences_of_the_means(document):
    variants = document["variants"]
    for kind in ("auroc", "nll"):
        expected = variants["dcaf"]["figures"][kind]["mean"] - variants[AVERAGE]["figures"][kind]["mean"]
        paired = document["differences"][AVERAGE][kind]
        assert paired["value"] == pytest.approx(expected, abs=1e-9)
        assert paired["low"] <= paired["value"] <= paired["high"]


def test_the_interval_of_a_difference_knows_the_seeds():
    """Two trainings that differ from each other more than patients do: the interval must reach both."""
    labels = np.arange(40) % 2
    split = Split(np.arange(40), labels, tuple(map(str, range(40))))
    weights = metrics.group_weights(split.groups, resamples=400, seed=0)
    table = _Table(split, split, split, None, ("a", "b"), weights)

    def answers(right: float) -> dict[str, np.ndarray]:
        return table.draws(np.where(np.eye(2)[labels] > 0, right, 1 - right))

    both = table.difference([answers(.9), answers(.6)], [answers(.7), answers(.7)])["nll"]
    nll = [-np.log(right) + np.log(.7) for right in (.9, .6)]
    assert both["value"] == pytest.approx(np.mean(nll))
    assert both["low"] == pytest.approx(min(nll)) and both["high"] == pytest.approx(max(nll))


def test_holm_leaves_the_least_p_the_most_to_prove():
    figures = {"a": .01, "b": .04, "c": .03, "d": None}
    told = _holm({name: {kind: {"p": p} for kind in SHOWN} for name, p in figures.items()})
    assert {name: each["nll"]["p_holm"] for name, each in told.items()} == {
        "a": pytest.approx(.03), "c": pytest.approx(.06), "b": pytest.approx(.06), "d": None}
    assert _two_sided(np.array([-1., 1, 2, 3])) == pytest.approx(.8)
    assert _two_sided(np.array([1.] * 199)) == pytest.approx(.01) and _two_sided(np.array([np.nan])) is None


def test_runs_that_stand_are_not_repeated_and_others_settings_are_refused(document, cohort, work):
    stands = {path: path.stat().st_mtime_ns for path in work.glob("*.safetensors")}
    settings = {**SETTINGS, "backbones": ("test_efficientnet", "test_resnet")}
    again = ablate(cohort, folder=work, cache=work / "cache", seeds=(0, 1), resamples=50,
                   variants=("dcaf", "first_only", "second_only"), **settings)
    assert {path: path.stat().st_mtime_ns for path in work.glob("*.safetensors")} == stands
    assert again["variants"] == document["variants"] and again["ways"] == document["ways"]
    for named, changed in {"recipe": {"epochs": 3},
                           "preprocessing": {"preprocessing": Preprocessing(size=48)},
                           "network": {"shape": {**SETTINGS["shape"], "dropout": 0.2}},
                           "weights": {"weights": "pretrained"}}.items():
        with pytest.raises(TrainError, match=f"these data and settings, got one of other {named}"):
            ablate(cohort, folder=work, cache=work / "cache", seeds=(0,), variants=("dcaf",),
                   **{**SETTINGS, **changed})


def test_the_single_branches_are_what_they_say(document, work):
    first = load_model(work / "pneumonia-first_only-0.safetensors").network
    assert first.config.branches == "first" and not hasattr(first.level_1, "first_asks")
    assert torch.isfinite(first.head[-1].weight).all()


def test_tables_show_every_variant_and_way_and_are_written(document, tmp_path):
    text = ablation_table(document)
    first, second = SETTINGS["backbones"]
    assert all(f"| {NAMES[name].format(first=first, second=second)} |" in text
               for name in (*document["variants"], *WAYS))
    assert f"Trunks {first} and {second}, frozen, of none. 2 seeds, 2 epochs, 12 test images." in text
    assert "| normal (2) | pneumonia (2) |" in text   # calibration cases
    assert "is an alarm" not in text
    perfect = json.loads(json.dumps(document))
    perfect["variants"]["dcaf"]["figures"]["auroc"]["mean"] = .999
    assert "An AUROC above 0.995 is an alarm" in ablation_table(perfect)
    write_ablation(document, tmp_path)
    assert json.loads((tmp_path / "ablation-pneumonia.json").read_text()) == document
    assert (tmp_path / "ablation-pneumonia.md").read_text() == text


def test_an_unknown_variant_is_refused(cohort, tmp_path):
    with pytest.raises(ValueError, match="variants: need dcaf and others of .* got dcaf, magic"):
        ablate(cohort, folder=tmp_path, cache=tmp_path, variants=("dcaf", "magic"), **SETTINGS)


def test_a_figure_that_some_seed_does_not_have_is_none_and_shown_as_a_dash():
    found = _spreads([{"nll": 1.0, "failure_auroc": 0.5}, {"nll": 3.0, "failure_auroc": float("nan")}])
    assert found["failure_auroc"] is None and found["nll"]["mean"] == 2.0
    assert _mean_sd(found["failure_auroc"]) == "–"
