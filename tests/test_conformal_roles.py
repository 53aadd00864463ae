"""Who may serve for what, and how often sets cover: roles by patient, intervals over patients."""

import json

import numpy as np
import pytest

from dcaf_monai import metrics
from dcaf_monai.conformal import (
    coverage,
    digests,
    fit_conformal,
    overlap_with_roles,
    require_disjoint,
    split_roles,
)

CLASSES = ("cat", "dog", "owl")


def a_cohort(cases, seed=0):
    """Probabilities, right classes, one patient a case."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, cases, p=[.6, .3, .1])
    logits = rng.normal(size=(cases, 3)) + np.eye(3)[labels]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probs, labels, [f"p{seed}-{case}" for case in range(cases)]


# Roles

def test_a_patient_in_two_roles_is_refused_with_the_numbers():
    require_disjoint(["a", "b"], ["c"], ["d", "d"])
    with pytest.raises(ValueError, match="got 1 in fit and calibrate, 2 in calibrate and test. Split by"):
        require_disjoint(["a", "b"], ["b", "c", "d"], ["c", "c", "d", "e"])
    probs, labels, groups = a_cohort(30)
    with pytest.raises(ValueError, match="got 2 in fit and calibrate"):
        fit_conformal(probs, labels, groups, CLASSES, fit_groups=[groups[3], groups[8], "new"])


def test_patients_of_a_model_are_recognised_by_their_digests():
    probs, labels, groups = a_cohort(30)
    fitted = fit_conformal(probs, labels, groups, CLASSES, fit_groups=["f1", "f2"])
    assert overlap_with_roles(fitted.roles, ["f1", "f1", groups[0], groups[1], "new"]) == {
        "fit": 1, "calibrate": 2}
    assert digests(["b", "a", "b"]) == digests(["a", "b"]) and len(digests(["a", "b"])) == 2


@pytest.mark.parametrize("share", [.3, .5, .8])
def test_roles_share_no_patient_and_every_class_alike(share):
    rng = np.random.default_rng(0)
    groups = [f"p{number}" for number in np.minimum(rng.geometric(.01, 600), 260)]
    labels = rng.choice(3, 600, p=[.7, .25, .05])
    fits, calibrates = split_roles(groups, labels, share=share, seed=1)
    assert sorted([*fits, *calibrates]) == list(range(600))
    require_disjoint([groups[case] for case in fits], [groups[case] for case in calibrates], [])
    for column in range(3):
        assert (labels[fits] == column).sum() / (labels == column).sum() == pytest.approx(share, abs=.06)


def test_roles_do_not_depend_on_the_order_of_the_cases_but_on_the_seed():
    rng = np.random.default_rng(0)
    groups, labels = np.array([f"p{rng.integers(40)}" for _ in range(120)]), rng.integers(0, 2, 120)
    fits, _ = split_roles(groups, labels, seed=1)
    mixed = rng.permutation(120)
    again, _ = split_roles(groups[mixed], labels[mixed], seed=1)
    assert set(groups[fits]) == set(groups[mixed][again])
    assert set(groups[split_roles(groups, labels, seed=2)[0]]) != set(groups[fits])


def test_neither_role_is_empty_however_uneven_the_patients():
    for share in (.01, .99):
        fits, calibrates = split_roles(["big"] * 9 + ["small"], np.zeros(10, int), share=share)
        assert len(fits) and len(calibrates)


@pytest.mark.parametrize("groups, share, message", [
    (["a", "a", "a"], .5, "at least 2 patients"), (["a", "b"], .5, "as many of each"),
    (["a", "b", "c"], 0, "share"), (["a", "b", "c"], 1, "share")])
def test_a_split_that_cannot_be_made_is_refused(groups, share, message):
    with pytest.raises(ValueError, match=message):
        split_roles(groups, np.zeros(3, int), share=share)


# Coverage

def test_the_figures_of_a_few_sets_are_those_counted_by_hand():
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 1]], bool)
    found = coverage(sets, np.array([0, 0, 0, 1, 1, 2]), CLASSES, list("aabcde"), resamples=50)
    assert (found["cases"], found["patients"], found["resamples"]) == (6, 5, 50)
    assert found["coverage"]["value"] == pytest.approx(4 / 6)
    assert found["mean_size"]["value"] == pytest.approx(9 / 6)
    assert found["empty_share"]["value"] == pytest.approx(1 / 6)
    cat = found["per_class"]["cat"]
    assert (cat["cases"], cat["coverage"]["value"]) == (3, pytest.approx(2 / 3))
    assert cat["mean_size"]["value"] == pytest.approx(4 / 3)
    assert found["per_class"]["owl"]["coverage"] == {"value": 1.0, "low": None, "high": None}  # one patient
    sizes = {size: (row["cases"], row["coverage"]["value"]) for size, row in found["per_size"].items()}
    assert sizes == {"0": (1, 0.0), "1": (2, .5), "2": (2, 1.0), "3": (1, 1.0)}
    assert found["per_size"]["2"]["share"]["value"] == pytest.approx(2 / 6)
    json.dumps(found, allow_nan=False)


def test_coverage_of_sets_of_the_top_class_is_accuracy_with_the_same_interval():
    probs, labels, groups = a_cohort(157)
    groups = [f"p{int(group.split('-')[1]) // 4}" for group in groups]
    sets = np.eye(3, dtype=bool)[probs.argmax(1)]
    found = coverage(sets, labels, CLASSES, groups, resamples=200, seed=4)["coverage"]
    assert found == pytest.approx(metrics.report(probs, labels, groups, CLASSES, resamples=200,
                                                 seed=4)["accuracy"])
    assert found["low"] < found["value"] < found["high"]


def test_a_size_or_class_that_does_not_occur_has_no_coverage():
    sets = np.eye(3, dtype=bool)[[0, 1, 0]]
    found = coverage(sets, np.array([0, 1, 1]), CLASSES, list("abc"), resamples=20)
    nothing = {"value": None, "low": None, "high": None}
    assert found["per_size"]["0"]["coverage"] == nothing
    assert found["per_class"]["owl"] == {"cases": 0, "coverage": nothing, "mean_size": nothing}


@pytest.mark.parametrize("sets, groups", [(np.ones((3, 2), bool), "abc"), (np.ones((3, 3), bool), "ab"),
                                          (np.ones((0, 3), bool), "")])
def test_sets_that_do_not_fit_the_labels_are_refused(sets, groups):
    with pytest.raises(ValueError, match="sets, labels, groups"):
        coverage(sets, np.zeros(len(sets), int), CLASSES, list(groups))
