"""Metrics against scikit-learn and torchmetrics, and the bootstrap against drawing patients by hand."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from dcaf_monai import metrics

CLASSES = ("cat", "dog", "owl")


def a_cohort(cases=157, patients=41, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, cases, p=[.6, .3, .1])
    logits = rng.normal(size=(cases, 3)) + 1.2 * np.eye(3)[labels]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if ties:
        probs = np.array([[.5, .3, .2], [.2, .6, .2], [.1, .3, .6], [.4, .4, .2]])[rng.integers(0, 4, cases)]
    return probs, labels, [f"p{rng.integers(patients)}" for _ in range(cases)]


@pytest.mark.parametrize("ties", [False, True])
def test_every_figure_equals_scikit_learn_and_torchmetrics(ties):
    probs, labels, groups = a_cohort(ties=ties)
    found = metrics.report(probs, labels, groups, CLASSES, resamples=2)
    for column, name in enumerate(CLASSES):
        own, positive = found["per_class"][name], labels == column
        assert own["auroc"]["value"] == pytest.approx(roc_auc_score(positive, probs[:, column]))
        assert own["aupr"]["value"] == pytest.approx(average_precision_score(positive, probs[:, column]))
        assert own["cases"] == positive.sum()
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score(labels, probs, multi_class="ovr"))
    assert found["accuracy"]["value"] == pytest.approx(accuracy_score(labels, probs.argmax(1)))
    assert found["nll"]["value"] == pytest.approx(log_loss(labels, probs))
    ece = multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), 3, n_bins=metrics.ECE_BINS)
    assert found["ece"]["value"] == pytest.approx(float(ece), abs=1e-6)


def test_a_weight_of_three_equals_the_case_three_times_over():
    probs, labels, _ = a_cohort(ties=True)
    weights = np.random.default_rng(1).integers(0, 4, len(labels))
    again = np.repeat(np.arange(len(labels)), weights)
    scores, positive = probs[:, 1], labels == 1
    assert metrics.auroc(scores, positive, weights[None])[0] == pytest.approx(
        roc_auc_score(positive[again], scores[again]))
    assert metrics.average_precision(scores, positive, weights[None])[0] == pytest.approx(
        average_precision_score(positive[again], scores[again]))


def test_a_draw_takes_or_leaves_whole_patients_and_as_many_as_there_are():
    groups = ["a", "b", "a", "c", "c", "d", "e"]
    weights = metrics.group_weights(groups, resamples=50, seed=3)
    assert weights.shape == (51, 7)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3, 5, 6]].sum(1) == 5).all()


def test_the_interval_is_that_of_patients_drawn_by_hand():
    probs, labels, groups = a_cohort()
    correct = probs.argmax(1) == labels
    rng, names = np.random.default_rng(9), sorted(set(groups))
    cases_of = {name: np.flatnonzero(np.array(groups) == name) for name in names}
    drawn = [correct[np.concatenate([cases_of[name] for name in rng.choice(names, len(names))])].mean()
             for _ in range(4000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    found = metrics.report(probs, labels, groups, CLASSES, resamples=4000)["accuracy"]
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=.01), pytest.approx(high, abs=.01))


def test_images_of_few_patients_give_a_wider_interval_than_images_of_many():
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 2, 20), 10)  # ten copies of twenty patients
    wrong = np.repeat(rng.random(20) < .3, 10)
    probs = np.where((labels ^ wrong)[:, None] == [0, 1], .8, .2)
    few = metrics.report(probs, labels, [str(i // 10) for i in range(200)], ("a", "b"))["accuracy"]
    many = metrics.report(probs, labels, [str(i) for i in range(200)], ("a", "b"))["accuracy"]
    assert few["high"] - few["low"] > 2 * (many["high"] - many["low"])


def test_the_same_seed_gives_the_same_intervals_as_json():
    one, two, other = (json.dumps(metrics.report(*a_cohort(), CLASSES, resamples=99, seed=seed))
                       for seed in (5, 5, 6))
    assert one == two != other


def test_a_class_without_a_case_has_no_auroc_and_does_not_enter_the_mean():
    probs, labels, groups = a_cohort()
    labels = np.where(labels == 2, 0, labels)
    found = metrics.report(probs, labels, groups, CLASSES, resamples=20)
    assert found["per_class"]["owl"] == {"cases": 0, **{kind: {"value": None, "low": None, "high": None}
                                                        for kind in ("auroc", "aupr")}}
    two = (found["per_class"][name]["auroc"]["value"] for name in ("cat", "dog"))
    assert found["auroc"]["value"] == pytest.approx(sum(two) / 2)


def test_one_patient_gives_figures_but_no_interval():
    probs, labels, _ = a_cohort()
    found = metrics.report(probs, labels, ["p"] * len(labels), CLASSES, resamples=20)["accuracy"]
    assert found["value"] > 0 and found["low"] is None and found["high"] is None


@pytest.mark.parametrize("change, message", [
    ({"probs": np.full((7, 2), .5)}, "3 classes"),
    ({"groups": ["p"]}, "and 1"),
    ({"probs": np.full((7, 3), .5)}, "not logits"),
    ({"labels": np.full(7, 3)}, "class indices 0 to 2")])
def test_input_that_does_not_fit_is_refused(change, message):
    fits = {"probs": np.full((7, 3), 1 / 3), "labels": np.arange(7) % 3, "groups": list("abcdefg")}
    with pytest.raises(ValueError, match=message):
        metrics.report(**{**fits, **change}, classes=CLASSES)
