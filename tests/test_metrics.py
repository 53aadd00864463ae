"""Metrics against scikit-learn and torchmetrics, and the bootstrap against drawing patients by hand."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)
from torchmetrics.functional.classification import multiclass_calibration_error

from dcaf_monai import metrics
from dcaf_monai.operating import ppv_npv, rates

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
        assert own["recall"]["value"] == pytest.approx(recall_score(positive, probs.argmax(1) == column))
        assert own["f1"]["value"] == pytest.approx(f1_score(positive, probs.argmax(1) == column))
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score(labels, probs, multi_class="ovr"))
    assert found["accuracy"]["value"] == pytest.approx(accuracy_score(labels, probs.argmax(1)))
    assert found["nll"]["value"] == pytest.approx(log_loss(labels, probs))
    predicted = probs.argmax(1)
    assert found["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found["f1"]["value"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    brier = sum(brier_score_loss(labels == column, probs[:, column]) for column in range(3))
    assert found["brier"]["value"] == pytest.approx(brier)
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
                                                        for kind in ("auroc", "aupr", "recall", "f1")}}
    for whole, part in (("auroc", "auroc"), ("aupr", "aupr"), ("balanced_accuracy", "recall"), ("f1", "f1")):
        two = (found["per_class"][name][part]["value"] for name in ("cat", "dog"))
        assert found[whole]["value"] == pytest.approx(sum(two) / 2)


def test_one_patient_gives_figures_but_no_interval():
    probs, labels, _ = a_cohort()
    found = metrics.report(probs, labels, ["p"] * len(labels), CLASSES, resamples=20)["accuracy"]
    assert found["value"] > 0 and found["low"] is None and found["high"] is None


def test_one_class_alone_has_a_recall_but_no_auroc():
    probs, _, groups = a_cohort()
    found = metrics.report(probs, np.zeros(len(probs), int), groups, CLASSES, resamples=20)
    assert found["auroc"]["value"] is None and found["aupr"]["value"] is None
    assert found["balanced_accuracy"]["value"] == found["accuracy"]["value"] > 0


def test_a_draw_that_lost_a_class_does_not_count_it_as_missed():
    labels = np.array([0, 0, 0, 1, 1, 2, 2])  # two patients each: about a quarter of the draws lose a class
    probs = np.eye(3)[labels]
    found = metrics.report(probs, labels, list("aabcdef"), CLASSES, resamples=400)
    for kind in ("balanced_accuracy", "f1"):
        assert found[kind] == {"value": 1, "low": 1, "high": 1}


def test_figures_by_hand():
    #              right         right         wrong, 0 said  wrong, 2 said
    probs = np.array([[.8, .1, .1], [.1, .7, .2], [.5, .3, .2], [.1, .3, .6]])
    found = metrics.report(probs, np.array([0, 1, 1, 0]), list("abcd"), CLASSES, resamples=0)
    assert found["balanced_accuracy"]["value"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert found["per_class"]["cat"]["f1"]["value"] == pytest.approx(2 / 4)  # 1 hit, 2 said, 2 are
    assert found["per_class"]["dog"]["f1"]["value"] == pytest.approx(2 / 3)  # 1 hit, 1 said, 2 are
    assert found["f1"]["value"] == pytest.approx((2 / 4 + 2 / 3) / 2)
    assert found["brier"]["value"] == pytest.approx((.06 + .14 + .78 + 1.26) / 4)


def adaptive_by_loop(confidence, correct, bins):
    """One tie after the other into the bin its middle falls in."""
    n, held, done = len(confidence), {}, 0
    for value in sorted(set(confidence)):
        tie = confidence == value
        place = int((done + tie.sum() / 2) * bins // n)
        held[place] = held.get(place, 0) + (correct[tie] - value).sum()
        done += tie.sum()
    return sum(abs(gap) for gap in held.values()) / n


@pytest.mark.parametrize("ties", [False, True])
def test_adaptive_ece_is_that_of_a_loop_over_the_cases_of_every_draw(ties):
    probs, labels, groups = a_cohort(ties=ties)
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    weights = metrics.group_weights(groups, resamples=6, seed=2)
    found = metrics.adaptive_calibration_error(confidence, correct, weights)
    for row, error in zip(weights.astype(int), found, strict=True):
        again = np.repeat(np.arange(len(labels)), row)
        assert error == pytest.approx(adaptive_by_loop(confidence[again], correct[again], metrics.ECE_BINS))


def test_bins_of_the_adaptive_ece_are_equal_when_the_cases_can_be_shared_out():
    probs, labels, _ = a_cohort(cases=5 * metrics.ECE_BINS)
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    order = np.argsort(confidence).reshape(metrics.ECE_BINS, 5)
    gaps = np.abs(correct[order].mean(1) - confidence[order].mean(1))
    found = metrics.adaptive_calibration_error(confidence, correct, np.ones((1, len(labels))))
    assert found[0] == pytest.approx(gaps.mean())


def test_probabilities_that_are_all_one_make_a_single_bin():
    confidence, correct = np.ones(40), np.arange(40) < 30
    for error in (metrics.adaptive_calibration_error, metrics.calibration_error):
        assert error(confidence, correct, np.ones((1, 40)))[0] == pytest.approx(.25)


def test_the_reliability_diagram_by_hand():
    probs = np.array([[.9, .1], [.05, .95], [.6, .4], [.25, .75], [1, 0]])
    found = metrics.reliability(probs, np.array([0, 0, 0, 1, 0]), bins=4)
    assert found.edges.tolist() == [0, .25, .5, .75, 1]
    assert found.count.tolist() == [0, 0, 1, 4]  # .75 is a lower edge
    np.testing.assert_allclose(found.accuracy, [np.nan, np.nan, 1, 3 / 4])
    np.testing.assert_allclose(found.confidence, [np.nan, np.nan, .6, (.9 + .95 + .75 + 1) / 4])


def test_the_gaps_of_the_reliability_diagram_add_up_to_the_ece():
    probs, labels, groups = a_cohort()
    found = metrics.reliability(probs, labels)
    full = found.count > 0
    assert found.count.sum() == len(labels) and not full.all()
    gaps = (found.count * np.abs(found.accuracy - found.confidence))[full].sum() / len(labels)
    assert gaps == pytest.approx(metrics.report(probs, labels, groups, CLASSES, resamples=1)["ece"]["value"])


def test_no_figure_depends_on_the_order_of_the_cases_or_the_names_of_patients():
    probs, labels, groups = a_cohort(ties=True)
    order = np.random.default_rng(4).permutation(len(labels))
    one = metrics.report(probs, labels, groups, CLASSES, cutoffs={"dog": .3}, resamples=30)
    two = metrics.report(probs[order], labels[order], [f"x{groups[i]}" for i in order], CLASSES,
                         cutoffs={"dog": .3}, resamples=30)
    assert flat(one) == pytest.approx(flat(two))


def flat(document, path=""):
    if isinstance(document, dict):
        return {place: value for name, inner in document.items()
                for place, value in flat(inner, f"{path}/{name}").items()}
    return {path: document}


def test_operating_points_equal_scikit_learn_and_at_the_share_in_the_data_ppv_is_precision():
    probs, labels, groups = a_cohort()
    found = metrics.report(probs, labels, groups, CLASSES, cutoffs={"owl": .2, "cat": .5}, resamples=50)
    assert list(found["operating_points"]) == ["cat", "owl"]
    for name, cutoff in (("cat", .5), ("owl", .2)):
        column, point = CLASSES.index(name), found["operating_points"][name]
        positive, called = labels == column, probs[:, column] >= cutoff
        assert point["cutoff"] == cutoff
        assert point["sensitivity"]["value"] == pytest.approx(recall_score(positive, called))
        assert point["specificity"]["value"] == pytest.approx(recall_score(~positive, ~called))
        assert (point["prevalence"], point["prevalence_from"]) == (pytest.approx(positive.mean()), "data")
        assert point["ppv"]["value"] == pytest.approx(precision_score(positive, called))
        assert point["npv"]["value"] == pytest.approx(precision_score(~positive, ~called))
        for kind in ("sensitivity", "specificity", "ppv", "npv"):
            assert point[kind]["low"] < point[kind]["value"] < point[kind]["high"]


def test_a_case_at_the_cutoff_is_positive():
    sensitivity, specificity = rates(np.array([.2, .5, .5, .9]), np.array([True, True, False, False]),
                                     np.array([[1, 1, 1, 1], [0, 3, 1, 2]]), cutoff=.5)
    assert sensitivity.tolist() == [1 / 2, 1] and specificity.tolist() == [0, 0]


def test_a_stated_prevalence_changes_what_an_answer_means_but_not_how_often_it_is_right():
    probs, labels, groups = a_cohort()
    given = {"cutoffs": {"owl": .2, "cat": .5}, "resamples": 20}
    data = metrics.report(probs, labels, groups, CLASSES, **given)["operating_points"]
    rare = metrics.report(probs, labels, groups, CLASSES, prevalence={"owl": .01},
                          **given)["operating_points"]
    assert rare["cat"] == data["cat"]  # not stated: still the share in the data
    data, rare = data["owl"], rare["owl"]
    assert (rare["prevalence"], rare["prevalence_from"]) == (.01, "stated")
    assert rare["sensitivity"] == data["sensitivity"] and rare["specificity"] == data["specificity"]
    assert rare["ppv"]["value"] < data["ppv"]["value"] and rare["npv"]["value"] > data["npv"]["value"]


def test_predictive_values_by_hand():
    # of 1000 people 10 are ill: 9 found, 1 missed; of 990 well ones 99 alarmed, 891 cleared
    ppv, npv = ppv_npv(.9, .9, .01)
    assert ppv == pytest.approx(9 / 108) and npv == pytest.approx(891 / 892)
    ppv, npv = ppv_npv(np.array([0, 1, np.nan]), np.array([1, 0, .5]), .3)
    np.testing.assert_allclose(ppv, [np.nan, .3, np.nan])  # never an alarm: no value
    np.testing.assert_allclose(npv, [.7, np.nan, np.nan])


@pytest.mark.parametrize("values, message", [
    ((1.1, .5, .5), "sensitivity: need a share from 0 to 1"),
    ((.5, np.array([.2, -.1]), .5), "specificity: need a share from 0 to 1"),
    ((.5, .5, 30), "prevalence: need a share from 0 to 1, got 30"),
    ((.5, .5, np.nan), "prevalence: need a share from 0 to 1, got nan")])
def test_shares_that_are_none_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ppv_npv(*values)


@pytest.mark.parametrize("change, message", [
    ({"probs": np.full((7, 2), .5)}, "3 classes"),
    ({"groups": ["p"]}, "and 1"),
    ({"probs": np.full((7, 3), .5)}, "not logits"),
    ({"labels": np.full(7, 3)}, "class indices 0 to 2"),
    ({"cutoffs": {"cow": .5}}, "cutoffs: need classes among cat, dog, owl, got 'cow'"),
    ({"cutoffs": {"cat": 1.5}}, "cutoffs: need a number from 0 to 1 for cat, got 1.5"),
    ({"prevalence": {"cow": .5}}, "prevalence: need classes among"),
    ({"prevalence": {"dog": np.nan}}, "prevalence: need a number from 0 to 1 for dog, got nan")])
def test_input_that_does_not_fit_is_refused(change, message):
    fits = {"probs": np.full((7, 3), 1 / 3), "labels": np.arange(7) % 3, "groups": list("abcdefg")}
    with pytest.raises(ValueError, match=message):
        metrics.report(**{**fits, **change}, classes=CLASSES)


@pytest.mark.parametrize("probs, labels, bins, message", [
    (np.full(7, .5), np.zeros(7, int), 15, r"probs: need \(cases, classes\), got \(7,\)"),
    (np.full((7, 2), .5), np.zeros(6, int), 15, r"got \(7, 2\), \(6,\)"),
    (np.full((7, 2), .5), np.full(7, 2), 15, "class indices 0 to 1"),
    (np.full((7, 2), .5), np.zeros(7, int), 0, "bins: need at least 1, got 0")])
def test_a_reliability_diagram_of_what_does_not_fit_is_refused(probs, labels, bins, message):
    with pytest.raises(ValueError, match=message):
        metrics.reliability(probs, labels, bins)


def test_the_ece_by_chance_is_that_of_outcomes_drawn_by_hand():
    confidence = np.array([.95] * 30 + [.55] * 10)
    told = metrics.calibration_error_by_chance(confidence, draws=4000)
    right = np.arange(31)   # two bins: expected gaps of two binomials, weighted by their cases
    expected = sum((binom.pmf(right, n, p) * np.abs(right / n - p)).sum() * n / 40
                   for n, p in ((30, .95), (10, .55)))
    assert told["value"] == pytest.approx(expected, rel=.03)
    assert 0 < told["low"] < told["value"] < told["high"]
    assert metrics.calibration_error_by_chance(np.full(4000, .9))["value"] < .01 < told["value"]
