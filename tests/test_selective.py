"""Selective prediction against random orders drawn by hand, scikit-learn and the published identities."""

import json
from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import auc, roc_auc_score

from dcaf_monai import selective as module
from dcaf_monai.metrics import group_weights
from dcaf_monai.selective import RiskCoverage, risk_coverage, selective

NONE = {"value": None, "low": None, "high": None}


def a_cohort(cases=151, patients=43, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, cases)
    uncertainty = rng.beta(1, 3, cases)
    predicted = np.where(rng.random(cases) < uncertainty, (labels + 1) % 3, labels)
    if ties:
        uncertainty = np.round(uncertainty, 1)
    return labels, predicted, uncertainty, [f"p{rng.integers(patients)}" for _ in range(cases)]


def figures(uncertainty, wrong, weights=None):
    weights = np.ones((1, len(wrong))) if weights is None else np.atleast_2d(weights)
    return {kind: values.tolist() if len(values) > 1 else values[0] for kind, values in module.figures(
        np.asarray(uncertainty, float), np.asarray(wrong, bool), weights).items()}


def areas_of_an_order(wrong):
    """AURC and AUGRC of cases in a given order, as sums over how many are accepted."""
    failed = np.cumsum(wrong)
    accepted = np.arange(1, len(wrong) + 1)
    curve = np.concatenate([[0], failed]) / len(wrong)
    return np.mean(failed / accepted), auc(np.linspace(0, 1, len(wrong) + 1), curve)


def test_figures_by_hand():
    # from the most certain on: right, wrong, right, right, wrong
    found = figures([.1, .2, .3, .4, .5], [0, 1, 0, 0, 1])
    assert found["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    assert found["excess_aurc"] == pytest.approx(found["aurc"] - (1 / 4 + 2 / 5) / 5)
    assert found["augrc"] == pytest.approx((0 + .5 + 1 + 1 + 1.5) / 25)
    assert found["risk_at_80_coverage"] == pytest.approx(1 / 4)
    assert found["coverage_at_5_risk"] == pytest.approx(1 / 5)
    assert found["failure_auroc"] == pytest.approx(4 / 6)  # of 2 x 3 pairs, wrong above right


def test_ties_are_the_mean_over_all_orders():
    uncertainty, wrong = np.array([1, 2, 2, 2, 3, 3]), np.array([0, 1, 0, 1, 0, 1])
    orders = [(0, *middle, *last) for middle in permutations((1, 2, 3)) for last in permutations((4, 5))]
    by_hand = np.mean([areas_of_an_order(wrong[list(order)]) for order in orders], axis=0)
    first_five = np.mean([wrong[list(order)][:5].mean() for order in orders])
    found = figures(uncertainty, wrong)
    assert (found["aurc"], found["augrc"]) == pytest.approx(tuple(by_hand))
    assert found["risk_at_80_coverage"] == pytest.approx(first_five)  # 4.8 cases are 5


def test_without_ties_the_areas_are_sums_over_the_order():
    labels, predicted, uncertainty, _ = a_cohort()
    wrong = labels != predicted
    found = figures(uncertainty, wrong)
    assert (found["aurc"], found["augrc"]) == pytest.approx(areas_of_an_order(wrong[np.argsort(uncertainty)]))


@pytest.mark.parametrize("ties", [False, True])
def test_augrc_is_the_published_function_of_failure_auroc_and_accuracy(ties):
    labels, predicted, uncertainty, _ = a_cohort(ties=ties)
    wrong = labels != predicted
    error, area = wrong.mean(), roc_auc_score(wrong, uncertainty)
    found = figures(uncertainty, wrong)
    assert found["failure_auroc"] == pytest.approx(area)
    assert found["augrc"] == pytest.approx((1 - area) * (1 - error) * error + error ** 2 / 2)


@pytest.mark.parametrize("ties", [False, True])
def test_a_weight_of_three_equals_the_case_three_times_over(ties):
    labels, predicted, uncertainty, groups = a_cohort(ties=ties)
    wrong = labels != predicted
    weights = group_weights(groups, resamples=4, seed=1)
    found = figures(uncertainty, wrong, weights)
    for number, row in enumerate(weights.astype(int)):
        again = np.repeat(np.arange(len(wrong)), row)
        alone = figures(uncertainty[again], wrong[again])
        assert {kind: values[number] for kind, values in found.items()} == pytest.approx(alone)


def test_a_score_that_says_nothing_leaves_the_error_as_it_is():
    wrong = np.arange(40) % 4 == 0
    found = figures(np.zeros(40), wrong)
    assert found["aurc"] == pytest.approx(1 / 4) and found["risk_at_80_coverage"] == pytest.approx(1 / 4)
    assert found["augrc"] == pytest.approx(1 / 8) and found["failure_auroc"] == pytest.approx(1 / 2)
    assert found["coverage_at_5_risk"] == 0


def test_no_order_is_better_than_all_wrong_answers_last_and_none_worse_than_first():
    labels, predicted, uncertainty, _ = a_cohort()
    wrong = labels != predicted
    best, found, worst = (figures(scores, wrong) for scores in (wrong, uncertainty, ~wrong))
    assert best["excess_aurc"] == pytest.approx(0, abs=1e-12)
    for kind in ("aurc", "augrc", "risk_at_80_coverage"):
        assert best[kind] < found[kind] < worst[kind]
    assert best["coverage_at_5_risk"] > found["coverage_at_5_risk"] > worst["coverage_at_5_risk"] == 0
    assert (best["failure_auroc"], worst["failure_auroc"]) == (1, 0)


def test_coverage_at_a_risk_is_the_largest_though_the_risk_is_above_it_before():
    wrong = np.zeros(40, bool)
    wrong[0] = True  # the most certain answer is wrong: 5 % only from the 20th case on
    wrong[30:] = True
    found = figures(np.arange(40), wrong)
    assert found["coverage_at_5_risk"] == pytest.approx(30 / 40)  # 1 of 30; 2 of 31 is above
    assert figures(np.arange(20), wrong[:20])["coverage_at_5_risk"] == 1  # 1 of 20 is exactly 5 %


def test_no_cutoff_splits_a_tie():
    wrong = np.array([0] * 20 + [1] * 2)
    uncertainty = np.array([0] * 10 + [1] * 12)
    # one wrong answer more than a risk of 5 % would bear is in the second tie: 2 of 22
    assert figures(uncertainty, wrong)["coverage_at_5_risk"] == pytest.approx(10 / 22)


def test_never_wrong_has_no_failure_auroc_and_covers_all():
    labels, _, uncertainty, groups = a_cohort()
    found = selective(labels, labels, {"softmax": uncertainty}, groups, resamples=20)
    assert found["risk"] == {"value": 0, "low": 0, "high": 0}
    own = found["scores"]["softmax"]
    assert own["failure_auroc"] == NONE
    assert own["coverage_at_5_risk"]["value"] == 1 and own["aurc"]["value"] == own["augrc"]["value"] == 0


def test_several_scores_side_by_side_as_json_and_the_same_seed_gives_the_same_intervals():
    labels, predicted, uncertainty, groups = a_cohort()
    scores = {"softmax": uncertainty, "entropy": 3 * uncertainty ** 2, "mutual_information": -uncertainty}
    one, two, other = (json.dumps(selective(labels, predicted, scores, groups, resamples=99, seed=seed))
                       for seed in (5, 5, 6))
    assert one == two != other
    found = json.loads(one)
    assert (found["cases"], found["patients"], found["resamples"]) == (151, len(set(groups)), 99)
    assert found["risk"]["value"] == pytest.approx(np.mean(labels != predicted))
    softmax, entropy, opposite = (found["scores"][name] for name in scores)
    assert softmax == entropy  # only the order counts
    assert opposite["failure_auroc"]["value"] == pytest.approx(1 - softmax["failure_auroc"]["value"])
    for kind in ("aurc", "excess_aurc", "augrc", "risk_at_80_coverage", "failure_auroc"):
        assert softmax[kind]["low"] < softmax[kind]["value"] < softmax[kind]["high"]


def test_the_interval_is_that_of_patients_drawn_by_hand():
    labels, predicted, uncertainty, groups = a_cohort()
    wrong = labels != predicted
    rng, names = np.random.default_rng(9), sorted(set(groups))
    cases_of = {name: np.flatnonzero(np.array(groups) == name) for name in names}
    drawn = []
    for _ in range(2000):
        cases = np.concatenate([cases_of[name] for name in rng.choice(names, len(names))])
        drawn.append(areas_of_an_order(wrong[cases][np.argsort(uncertainty[cases], kind="stable")]))
    by_hand = np.percentile(drawn, [2.5, 97.5], axis=0)
    found = selective(labels, predicted, {"s": uncertainty}, groups, resamples=2000)["scores"]["s"]
    assert (found["aurc"]["low"], found["aurc"]["high"]) == pytest.approx(tuple(by_hand[:, 0]), abs=.01)
    assert (found["augrc"]["low"], found["augrc"]["high"]) == pytest.approx(tuple(by_hand[:, 1]), abs=.004)


@pytest.mark.parametrize("ties", [False, True])
def test_no_figure_depends_on_the_order_of_the_cases(ties):
    labels, predicted, uncertainty, groups = a_cohort(ties=ties)
    order = np.random.default_rng(4).permutation(len(labels))
    one = selective(labels, predicted, {"s": uncertainty}, groups, resamples=30)["scores"]["s"]
    two = selective(labels[order], predicted[order], {"s": uncertainty[order]}, [groups[i] for i in order],
                    resamples=30)["scores"]["s"]
    for kind in one:
        assert one[kind] == pytest.approx(two[kind])


def test_one_patient_gives_figures_but_no_interval():
    labels, predicted, uncertainty, _ = a_cohort()
    found = selective(labels, predicted, {"s": uncertainty}, ["p"] * len(labels), resamples=20)
    assert found["risk"]["value"] > 0 and found["risk"]["low"] is None
    band = risk_coverage(labels, predicted, uncertainty, ["p"] * len(labels), points=4, resamples=20)
    assert np.isfinite(band.risk).all() and np.isnan(band.low).all() and np.isnan(band.high).all()


def test_the_curve_by_hand():
    labels, predicted = np.zeros(5, int), np.array([0, 1, 0, 0, 1])
    found = risk_coverage(labels, predicted, np.array([.1, .2, .3, .4, .5]), list("abcde"), points=4,
                          resamples=0)
    assert isinstance(found, RiskCoverage)
    assert found.coverage.tolist() == [.25, .5, .75, 1]  # of 5 cases: 2, 3, 4, 5
    np.testing.assert_allclose(found.risk, [1 / 2, 1 / 3, 1 / 4, 2 / 5])


def test_the_curve_ends_at_the_error_passes_the_risk_at_80_and_its_mean_is_the_aurc():
    labels, predicted, uncertainty, groups = a_cohort(ties=True)
    found = selective(labels, predicted, {"s": uncertainty}, groups, resamples=200)
    curve = risk_coverage(labels, predicted, uncertainty, groups, points=len(labels), resamples=200)
    assert curve.risk[-1] == pytest.approx(found["risk"]["value"])
    assert (curve.low[-1], curve.high[-1]) == pytest.approx((found["risk"]["low"], found["risk"]["high"]))
    assert curve.risk.mean() == pytest.approx(found["scores"]["s"]["aurc"]["value"])
    percent = risk_coverage(labels, predicted, uncertainty, groups, resamples=200)
    assert len(percent.coverage) == 100 and percent.coverage[79] == .8
    eighty = found["scores"]["s"]["risk_at_80_coverage"]
    assert (percent.risk[79], percent.low[79], percent.high[79]) == pytest.approx(
        (eighty["value"], eighty["low"], eighty["high"]))


@pytest.mark.parametrize("change, message", [
    ({"labels": np.empty(0), "predicted": np.empty(0), "groups": []}, "at least one case"),
    ({"predicted": np.zeros(6)}, r"got \(7,\), \(6,\) and 7"),
    ({"groups": ["p"]}, "and 1"),
    ({"labels": np.zeros((7, 1)), "predicted": np.zeros((7, 1))}, "need one of each for every case"),
    ({"uncertainty": np.zeros(6)}, r"need 7 finite numbers, one a case, got \(6,\)\."),
    ({"uncertainty": np.full(7, np.nan)}, "with some that are not finite")])
def test_input_that_does_not_fit_is_refused(change, message):
    fits = {"labels": np.zeros(7), "predicted": np.ones(7), "uncertainty": np.zeros(7), "groups": "abcdefg",
            **change}
    with pytest.raises(ValueError, match=message):
        risk_coverage(*fits.values())
    with pytest.raises(ValueError, match=message):
        selective(**{**fits, "uncertainty": {"entropy": fits["uncertainty"]}})


def test_no_score_and_no_point_are_refused():
    labels, predicted, uncertainty, groups = a_cohort()
    with pytest.raises(ValueError, match="uncertainty: need at least one score, got none"):
        selective(labels, predicted, {}, groups)
    with pytest.raises(ValueError, match="points: need at least 1, got 0"):
        risk_coverage(labels, predicted, uncertainty, groups, points=0)
