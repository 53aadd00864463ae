"""Comparison of models against DeLong's definition pair by pair and patients drawn by hand."""

import json
import statistics

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from dcaf_monai import metrics, selective
from dcaf_monai.compare import delong, paired, spread

CLASSES = ("cat", "dog", "owl")


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def two_models(cases=149, patients=37, seed=0, better=.8):
    """The same noise for both, and more signal for the first."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, cases, p=[.5, .3, .2])
    noise, own = rng.normal(size=(cases, 3)), rng.normal(size=(2, cases, 3)) / 2
    truth = np.eye(3)[labels]
    return (softmax(noise + own[0] + (1 + better) * truth), softmax(noise + own[1] + truth), labels,
            [f"p{rng.integers(patients)}" for _ in range(cases)])


def delong_pair_by_pair(a, b, positive):
    """The 1988 definition: structural components from the kernel of every pair, and their covariances."""
    wins = [[[1. if x > y else .5 if x == y else 0. for y in scores[~positive]] for x in scores[positive]]
            for scores in (a, b)]
    by_positive = np.cov(np.mean(wins, axis=2)) / positive.sum()
    by_negative = np.cov(np.mean(wins, axis=1)) / (~positive).sum()
    covariance = by_positive + by_negative
    contrast = np.array([1, -1])
    return np.mean(wins, axis=(1, 2)), np.sqrt(contrast @ covariance @ contrast)


@pytest.mark.parametrize("ties", [False, True])
def test_delong_is_the_definition_pair_by_pair(ties):
    a_probs, b_probs, labels, _ = two_models(cases=71)
    a, b, positive = a_probs[:, 1], b_probs[:, 1], labels == 1
    if ties:
        a, b = np.round(a, 1), np.round(b, 1)
    areas, error = delong_pair_by_pair(a, b, positive)
    found = delong(a, b, positive)
    assert (found.a, found.b) == pytest.approx(tuple(areas))
    assert (found.a, found.b) == pytest.approx((roc_auc_score(positive, a), roc_auc_score(positive, b)))
    assert found.difference == pytest.approx(areas[0] - areas[1])
    assert found.standard_error == pytest.approx(error)
    assert (found.low, found.high) == pytest.approx(norm.interval(.95, found.difference, error))
    assert found.p == pytest.approx(2 * norm.sf(abs(found.difference) / error))


def test_delong_by_hand():
    positive = np.array([True, True, False, False, False])
    found = delong(np.array([5, 2, 1, 3, 4]), np.array([3, 5, 4, 1, 2]), positive)
    # a: the positives beat 3 and 1 of three negatives, the negatives lose to 2, 1, 1 of two positives;
    # b: 2 and 3; 1, 2, 2. Differences 1/3, -2/3 (variance 1/2) and 1/2, -1/2, -1/2 (variance 1/3).
    assert (found.a, found.b) == pytest.approx((4 / 6, 5 / 6))
    assert found.standard_error == pytest.approx(np.sqrt(1 / 2 / 2 + 1 / 3 / 3))


def test_delong_only_looks_at_the_order_and_turns_with_the_models_and_the_class():
    a_probs, b_probs, labels, _ = two_models()
    a, b, positive = a_probs[:, 0], b_probs[:, 0], labels == 0
    found = delong(a, b, positive)
    assert delong(np.log(a), b ** 3, positive) == found
    turned, other = delong(b, a, positive), delong(-a, -b, ~positive)
    assert (turned.difference, turned.low, turned.high, turned.p) == pytest.approx(
        (-found.difference, -found.high, -found.low, found.p))
    assert (other.difference, other.standard_error) == pytest.approx((found.difference, found.standard_error))
    order = np.random.default_rng(1).permutation(len(a))
    assert delong(a[order], b[order], positive[order]).p == pytest.approx(found.p)


def test_delong_finds_a_difference_that_is_not_there_in_one_of_twenty_cohorts():
    rng = np.random.default_rng(3)
    found = []
    for _ in range(600):
        positive = rng.random(90) < .4
        shared = rng.normal(size=90) + positive
        found.append(delong(shared + rng.normal(size=90), shared + rng.normal(size=90), positive).p < .05)
    assert np.mean(found) == pytest.approx(.05, abs=.025)


@pytest.mark.parametrize("a, b", [
    (np.arange(9.), np.arange(9.) * 2),                                  # the same order
    (np.arange(9.), np.array([0, 1, 2, 3, 8, 7, 6, 5, 4.])),             # both separate perfectly
    (np.arange(9.), np.array([2, 2, 2, 2, 2, 2, 2, 2, 2.])),             # against a constant
])
def test_without_a_standard_error_delong_has_nothing_to_say(a, b):
    found = delong(a, b, np.arange(9) > 3)
    assert (found.standard_error, found.low, found.high, found.p) == (0, None, None, None)
    assert found.difference == found.a - found.b


@pytest.mark.parametrize("a, b, positive, message", [
    (np.zeros(6), np.zeros(7), np.zeros(7), "need one of each for every case"),
    (np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2)), "need one of each for every case"),
    (np.zeros(4), np.array([0, 1, 2, np.inf]), np.array([0, 0, 1, 1]), "need finite numbers"),
    (np.zeros(4), np.zeros(4), np.array([0, 0, 0, 1]), "two positive and two negative .* got 1 and 3"),
    (np.zeros(4), np.zeros(4), np.array([1, 0, 1, 1]), "got 3 and 1")])
def test_what_delong_cannot_compare_is_refused(a, b, positive, message):
    with pytest.raises(ValueError, match=message):
        delong(a, b, positive)


def test_differences_are_those_of_scikit_learn_and_of_each_models_own_report():
    a, b, labels, groups = two_models()
    found = paired(a, b, labels, groups, CLASSES, resamples=3)
    for kind, figure in (
            ("auroc", lambda probs: roc_auc_score(labels, probs, multi_class="ovr")),
            ("accuracy", lambda probs: accuracy_score(labels, probs.argmax(1))),
            ("nll", lambda probs: log_loss(labels, probs))):
        own = found["figures"][kind]
        assert (own["a"], own["b"], own["difference"]) == pytest.approx((figure(a), figure(b),
                                                                         figure(a) - figure(b)))
    for which, probs in (("a", a), ("b", b)):
        alone = metrics.report(probs, labels, groups, CLASSES, resamples=3)
        unsure = selective.selective(labels, probs.argmax(1), {"softmax": 1 - probs.max(1)}, groups,
                                     resamples=3)
        for kind in ("auroc", "aupr", "accuracy", "balanced_accuracy", "f1", "nll", "brier", "ece",
                     "adaptive_ece"):
            assert found["figures"][kind][which] == pytest.approx(alone[kind]["value"])
        for kind, value in unsure["scores"]["softmax"].items():
            assert found["figures"][kind][which] == pytest.approx(value["value"])
        for name in CLASSES:
            area = alone["per_class"][name]["auroc"]["value"]
            assert found["per_class"][name]["auroc"][which] == pytest.approx(area)
            assert found["per_class"][name]["delong"][which] == pytest.approx(area)


def test_the_interval_is_that_of_the_same_patients_drawn_for_both():
    a, b, labels, groups = two_models()
    rng, names = np.random.default_rng(9), sorted(set(groups))
    cases_of = {name: np.flatnonzero(np.array(groups) == name) for name in names}
    drawn = []
    for _ in range(1500):
        cases = np.concatenate([cases_of[name] for name in rng.choice(names, len(names))])
        accuracy = [(probs.argmax(1) == labels)[cases].mean() for probs in (a, b)]
        squares = [((probs - np.eye(3)[labels]) ** 2)[cases].sum(1).mean() for probs in (a, b)]
        drawn.append([accuracy[0] - accuracy[1], squares[0] - squares[1]])
    by_hand = np.percentile(drawn, [2.5, 97.5], axis=0)
    found = paired(a, b, labels, groups, CLASSES, resamples=1500)["figures"]
    for column, kind in enumerate(("accuracy", "brier")):
        assert (found[kind]["low"], found[kind]["high"]) == pytest.approx(tuple(by_hand[:, column]), abs=.012)


def test_what_is_hard_for_both_cancels():
    a, b, labels, groups = two_models()
    together = paired(a, b, labels, groups, CLASSES, resamples=300)["figures"]["nll"]
    apart = [metrics.report(probs, labels, groups, CLASSES, resamples=300)["nll"] for probs in (a, b)]
    assert together["high"] < 0  # the first is better: a smaller loss
    assert together["high"] - together["low"] < min(own["high"] - own["low"] for own in apart)


def test_on_one_image_a_patient_the_bootstrap_and_delong_agree_and_delong_is_preferred():
    a, b, labels, _ = two_models(cases=300, better=.3)
    found = paired(a, b, labels, [f"p{number}" for number in range(300)], CLASSES, resamples=1000)
    assert found["prefer"] == "delong"
    for name in CLASSES:
        drawn, test = found["per_class"][name]["auroc"], found["per_class"][name]["delong"]
        assert (drawn["low"], drawn["high"]) == pytest.approx((test["low"], test["high"]), abs=.012)


def test_copies_of_patients_fool_delong_but_not_the_bootstrap():
    a, b, labels, _ = two_models(cases=60, better=.3)
    copies = [np.repeat(values, 9, axis=0) for values in (a, b, labels)]
    once = paired(a, b, labels, [str(i) for i in range(60)], CLASSES, resamples=400)
    many = paired(*copies, [str(i // 9) for i in range(540)], CLASSES, resamples=400)
    assert many["prefer"] == "bootstrap"
    one, nine = once["per_class"]["cat"], many["per_class"]["cat"]
    assert nine["delong"]["standard_error"] < one["delong"]["standard_error"] / 2.5
    assert (nine["auroc"]["low"], nine["auroc"]["high"]) == pytest.approx(
        (one["auroc"]["low"], one["auroc"]["high"]), abs=.01)


def test_a_model_does_not_differ_from_itself():
    a, _, labels, groups = two_models()
    found = paired(a, a, labels, groups, CLASSES, resamples=30)
    for own in found["figures"].values():
        assert own["a"] == own["b"] and (own["difference"], own["low"], own["high"]) == (0, 0, 0)
    assert found["per_class"]["owl"]["delong"]["p"] is None


def test_the_other_way_round_every_difference_changes_its_sign():
    a, b, labels, groups = two_models()
    one, two = (paired(*both, labels, groups, CLASSES, resamples=40)["figures"] for both in ((a, b), (b, a)))
    for kind, own in one.items():
        assert (own["difference"], own["low"], own["high"]) == pytest.approx(
            (-two[kind]["difference"], -two[kind]["high"], -two[kind]["low"]))


def test_a_class_with_one_case_has_no_delong_and_one_without_any_no_auroc():
    a, b, labels, groups = two_models()
    labels = np.where(labels == 2, 0, labels)
    found = paired(a, b, labels, groups, CLASSES, resamples=5)["per_class"]["owl"]
    assert found == {"auroc": dict.fromkeys(("a", "b", "difference", "low", "high")), "delong": None}
    labels[0] = 2
    found = paired(a, b, labels, groups, CLASSES, resamples=5)["per_class"]["owl"]
    assert found["auroc"]["a"] is not None and found["delong"] is None


def test_the_same_seed_gives_the_same_json():
    one, two, other = (json.dumps(paired(*two_models(), CLASSES, resamples=20, seed=seed))
                       for seed in (5, 5, 6))
    assert one == two != other


@pytest.mark.parametrize("change, message", [
    ({"b_probs": np.full((6, 3), 1 / 3)}, r"got \(6, 3\)"),
    ({"a_probs": np.full((7, 3), .5)}, "not logits"),
    ({"groups": ["p"]}, "and 1"),
    ({"labels": np.full(7, 3)}, "class indices 0 to 2")])
def test_models_of_other_cases_are_refused(change, message):
    fits = {"a_probs": np.full((7, 3), 1 / 3), "b_probs": np.full((7, 3), 1 / 3), "labels": np.arange(7) % 3,
            "groups": list("abcdefg")}
    with pytest.raises(ValueError, match=message):
        paired(**{**fits, **change}, classes=CLASSES)


def test_seeds_spread_as_a_sample():
    values = [.91, .93, .90, .95, .92]
    assert spread(values) == {"mean": pytest.approx(statistics.mean(values)),
                              "sd": pytest.approx(statistics.stdev(values)), "n": 5}
    assert spread(iter([.5])) == {"mean": .5, "sd": None, "n": 1}


@pytest.mark.parametrize("values", [[], [.5, float("nan")]])
def test_seeds_without_a_figure_are_refused(values):
    with pytest.raises(ValueError, match="values: need at least one, all finite"):
        spread(values)
