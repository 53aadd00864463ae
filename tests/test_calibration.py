"""Temperature and operating points, against hand-worked answers and independent references."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from dcaf_monai.calibration import OperatingPoint, fit_operating_points, fit_temperature, load_overrides

CLASSES = ("cat", "dog", "owl")


def sampled_logits(samples=3, cases=400, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, cases, classes, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(2).mean(0), 1, generator=generator)[:, 0]
    return logits, labels


def test_the_temperature_of_well_calibrated_logits_is_one():
    logits, labels = sampled_logits(samples=1, cases=20000)
    assert fit_temperature(logits, labels) == pytest.approx(1.0, abs=0.03)


def test_logits_scaled_by_three_need_three_times_the_temperature():
    logits, labels = sampled_logits(cases=20000)
    assert fit_temperature(logits * 3, labels) == pytest.approx(3 * fit_temperature(logits, labels), rel=1e-3)


def test_the_temperature_is_where_the_gradient_of_the_posterior_vanishes():
    logits, labels = sampled_logits()
    log_temperature = torch.tensor(math.log(fit_temperature(logits, labels)), dtype=torch.float64,
                                   requires_grad=True)
    mean = (logits.double() / log_temperature.exp()).softmax(2).mean(0)
    prior = log_temperature ** 2 / (2 * math.log(2) ** 2)
    (torch.nn.functional.nll_loss(mean.log(), labels, reduction="sum") + prior).backward()
    assert abs(log_temperature.grad.item()) < 1e-3


def test_a_hundred_cases_with_a_few_errors_hardly_feel_the_prior():
    logits, labels = sampled_logits(cases=100)
    mean = [(logits.double() / grid).softmax(2).mean(0)[torch.arange(100), labels].log().sum()
            for grid in np.geomspace(.5, 2, 1001)]
    likeliest = np.geomspace(.5, 2, 1001)[int(torch.stack(mean).argmax())]
    assert fit_temperature(logits, labels) == pytest.approx(likeliest, rel=.05)


@pytest.mark.parametrize("cases", [1, 50, 500])
def test_cases_that_are_all_separated_do_not_ask_for_the_smallest_temperature(cases):
    labels = torch.arange(cases) % 3
    logits = 5.0 * torch.nn.functional.one_hot(labels, 3)[None].double()
    assert .3 < fit_temperature(logits, labels) < 1


@pytest.mark.parametrize("logits, labels, message", [
    (torch.zeros(7, 3), torch.zeros(7, dtype=torch.long), "logits, labels"),
    (torch.zeros(2, 0, 3), torch.zeros(0, dtype=torch.long), "at least one case"),
    (torch.zeros(2, 7, 3), torch.full((7,), 3), "class indices 0 to 2"),
    (torch.full((2, 7, 3), float("nan")), torch.zeros(7, dtype=torch.long), "finite")])
def test_logits_and_labels_that_do_not_fit_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)


# Column "cat": positives .9 .8 .6 .3, negatives .7 .4 .2.
CAT = np.array([.9, .8, .6, .3, .7, .4, .2])
PROBS = np.stack([CAT, (1 - CAT) * .75, (1 - CAT) * .25], axis=1)
LABELS = np.array([0, 0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("criterion, target, cutoff, achieved, n", [
    ("sensitivity", 1.0, .25, 1.0, 4),     # .3 must be in; the next case below is .2
    ("sensitivity", .75, .5, .75, 4),      # .6 is the third of four; the next below is .4
    ("sensitivity", .6, .5, .75, 4),       # two of four are not enough
    ("specificity", 1.0, .75, 1.0, 3),     # .7 must be out; the next above is .8
    ("specificity", .5, .5, 2 / 3, 3)])    # .4 must be out; the next above is .6
def test_a_cut_off_worked_by_hand_is_found(criterion, target, cutoff, achieved, n):
    point = fit_operating_points(PROBS, LABELS, CLASSES, criterion=criterion, target=target)["cat"]
    assert point.cutoff == pytest.approx(cutoff)
    assert (point.achieved, point.n) == (pytest.approx(achieved), n)
    assert (point.criterion, point.target) == (criterion, target)


def test_no_threshold_of_the_roc_curve_is_better_at_the_same_sensitivity():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 211)
    logits = rng.normal(size=(211, 3)) + 1.5 * np.eye(3)[labels]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    points = fit_operating_points(probs, labels, CLASSES, target=.9)
    for column, name in enumerate(CLASSES):
        positive, called = labels == column, probs[:, column] >= points[name].cutoff
        false_rates, true_rates, _ = roc_curve(positive, probs[:, column], drop_intermediate=False)
        assert called[positive].mean() == pytest.approx(points[name].achieved)
        assert called[positive].mean() >= .9
        assert called[~positive].mean() == pytest.approx(false_rates[true_rates >= .9].min())


def test_a_class_without_a_positive_case_gets_no_cut_off():
    assert set(fit_operating_points(PROBS, LABELS, CLASSES)) == {"cat", "dog"}


def test_a_specificity_no_cut_off_reaches_gives_none():
    probs = np.array([[1.0, 0.0], [1.0, 0.0], [0.2, 0.8]])
    points = fit_operating_points(probs, np.array([1, 0, 1]), ("cat", "dog"), criterion="specificity",
                                  target=1.0)
    assert "cat" not in points


@pytest.mark.parametrize("change, message", [
    ({"target": 0.0}, "target"), ({"target": 1.1}, "target"), ({"criterion": "accuracy"}, "criterion")])
def test_a_criterion_or_target_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fit_operating_points(PROBS, LABELS, CLASSES, **change)


def test_probabilities_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(7, 3\)"):
        fit_operating_points(PROBS[:, :2], LABELS, CLASSES)


def test_an_operating_point_survives_json():
    point = OperatingPoint(cutoff=.5, criterion="sensitivity", target=.9, achieved=.95, n=20)
    assert OperatingPoint.model_validate_json(point.model_dump_json()) == point


def test_overrides_are_read_from_json_and_toml(tmp_path):
    as_json, as_toml = tmp_path / "site.json", tmp_path / "site.toml"
    as_json.write_text(json.dumps({"model_version": "v1", "cutoffs": {"cat": .25, "owl": 1}}))
    as_toml.write_text('model_version = "v1"\n[cutoffs]\ncat = 0.25\nowl = 1\n')
    for path in (as_json, as_toml):
        assert load_overrides(path, "v1", CLASSES) == {"cat": .25, "owl": 1.0}


@pytest.mark.parametrize("text, message", [
    ('{"model_version": "v2", "cutoffs": {"cat": 0.5}}', "version v1, got version v2"),
    ('{"model_version": "v1", "cutoffs": {"cow": 0.5}}', "got 'cow'"),
    ('{"model_version": "v1", "cutoffs": {"cat": 1.5}}', "need a probability for cat"),
    ('{"model_version": "v1", "cutoffs": {"cat": NaN}}', "need a probability for cat"),
    ('{"model_version": "v1", "cutoffs": {"cat": "high"}}', "cutoffs.cat"),
    ('{"model_version": "v1"}', "cutoffs: Field required"),
    ('[1, 2', "neither JSON nor TOML")])
def test_overrides_with_a_fault_are_refused_with_a_sentence(tmp_path, text, message):
    path = tmp_path / "site.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_overrides(path, "v1", CLASSES)


def test_overrides_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot read none.json"):
        load_overrides(tmp_path / "none.json", "v1", CLASSES)
