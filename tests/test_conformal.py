"""Conformal sets against hand-worked thresholds, MAPIE, loops of their own, and the promise of coverage."""

import json
import math

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores import RAPSConformityScore
from pydantic import ValidationError
from sklearn.base import BaseEstimator, ClassifierMixin

from dcaf_monai.conformal import ALPHAS, ConformalSets, fit_conformal, quantile, scores

CLASSES = ("cat", "dog", "owl")


def a_cohort(cases, seed=0, skill=1.0, prior=(.6, .3, .1)):
    """Probabilities of an over-confident model, right classes, one patient a case."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, cases, p=prior)
    logits = 1.5 * (rng.normal(size=(cases, 3)) + skill * np.eye(3)[labels])
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probs, labels, [f"p{seed}-{case}" for case in range(cases)]


class Told(ClassifierMixin, BaseEstimator):
    """A classifier for MAPIE whose inputs are its probabilities."""

    classes_ = np.arange(3)
    n_features_in_ = 3

    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(1)

    def __sklearn_is_fitted__(self):
        return True


def sets_of_mapie(method, calibration, labels, new, *, alpha, seed, **options):
    peer = SplitConformalClassifier(Told(), confidence_level=1 - alpha, conformity_score=method,
                                    prefit=True, random_state=seed).conformalize(calibration, labels)
    return peer.predict_set(new, conformity_score_params=options)[1][:, :, 0]


# Scores and thresholds

def test_the_scores_of_one_case_are_those_worked_by_hand():
    probs = np.array([[.2, .7, .1]])
    assert scores(probs) == pytest.approx(np.array([[.8, .3, .9]]))
    assert scores(probs, method="aps") == pytest.approx(np.array([[.7, 0, .9]]))
    assert scores(probs, method="aps", u=.5) == pytest.approx(np.array([[.8, .35, .95]]))
    assert scores(probs, method="raps", lambda_=.1, k=1) == pytest.approx(np.array([[.8, 0, 1.1]]))
    assert scores(probs, method="raps", lambda_=.1, k=2) == pytest.approx(np.array([[.7, 0, 1.0]]))


def test_classes_of_equal_probability_are_ranked_in_their_order():
    assert scores(np.array([[.25, .5, .25]]), method="aps") == pytest.approx(np.array([[.5, 0, .75]]))


def test_an_unknown_score_is_refused():
    with pytest.raises(ValueError, match="lac, aps or raps, got 'hps'"):
        scores(np.array([[.5, .5]]), method="hps")


@pytest.mark.parametrize("cases, alpha, place", [
    (9, .1, 9), (10, .1, 10), (19, .05, 19), (20, .1, 19), (99, .1, 90), (7, .5, 4)])
def test_the_threshold_is_the_score_at_the_place_worked_by_hand(cases, alpha, place):
    shuffled = np.random.default_rng(0).permutation(cases) + 1.0
    assert quantile(shuffled, alpha) == place


@pytest.mark.parametrize("cases, alpha", [(8, .1), (18, .05), (0, .5)])
def test_too_few_cases_for_the_promise_give_an_infinite_threshold(cases, alpha):
    assert quantile(np.arange(cases, dtype=float), alpha) == math.inf


def test_a_class_with_too_few_cases_is_in_every_set_and_said_to_be():
    probs, labels, groups = a_cohort(130, prior=(.6, .38, .02))
    assert (labels == 2).sum() < 9
    fitted = fit_conformal(probs, labels, groups, CLASSES)
    assert fitted.thresholds["owl"] is None
    assert fitted.sets(np.array([[1.0, 0, 0], [.5, .5, 0]]))[:, 2].all()
    codes = {notice.code: notice.message for notice in fitted.notices()}
    assert f"needs 9 calibration cases, got {(labels == 2).sum()} of owl." in codes["class_always_in_set"]
    assert "of dog" in codes["few_calibration_cases"]


def test_one_threshold_for_all_needs_the_cases_of_all_classes_together():
    probs, labels, groups = a_cohort(8)
    fitted = fit_conformal(probs, labels, groups, CLASSES, conditional=False)
    assert set(fitted.thresholds.values()) == {None}
    assert "got 8 of cat, 8 of dog, 8 of owl" in fitted.notices()[0].message
    enough = fit_conformal(*a_cohort(9), CLASSES, conditional=False)
    assert None not in enough.thresholds.values()


def test_a_hundred_cases_of_each_class_bring_no_notice():
    probs = np.tile([[.6, .3, .1], [.2, .5, .3], [.1, .1, .8]], (100, 1))
    labels, groups = np.tile([0, 1, 2], 100), [str(case) for case in range(300)]
    assert fit_conformal(probs, labels, groups, CLASSES).notices() == ()
    one_less, = fit_conformal(probs[1:], labels[1:], groups[1:], CLASSES).notices()
    assert one_less.message.startswith("Sets: need 100 calibration cases of each class for coverage within a "
                                       "few points of 90%, got 99 of cat.")


def test_thresholds_and_sets_of_a_small_case_are_those_worked_by_hand():
    # Right-class probabilities of "a": .9 .8 .7 .4, of "b": .95 .6 .5; alpha .4 takes the 3rd of 4 and of 3.
    probs = np.array([[.9, .1], [.8, .2], [.7, .3], [.4, .6], [.05, .95], [.4, .6], [.5, .5]])
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    each = fit_conformal(probs, labels, list("stuvwxy"), ("a", "b"), alpha=.4)
    assert each.thresholds == {"a": pytest.approx(.3), "b": pytest.approx(.5)}
    assert each.cases == {"a": 4, "b": 3}
    new = np.array([[.7, .3], [.6, .4], [.5, .5], [.2, .8]])
    assert each.sets(new).tolist() == [[True, False], [False, False], [False, True], [False, True]]
    # All seven together: the ceil(8 * .6) = 5th smallest of .05 .1 .2 .3 .4 .5 .6.
    one = fit_conformal(probs, labels, list("stuvwxy"), ("a", "b"), alpha=.4, conditional=False)
    assert one.thresholds == {"a": pytest.approx(.4), "b": pytest.approx(.4)}
    assert one.sets(new).tolist() == [[True, False], [True, False], [False, False], [False, True]]


def test_names_are_the_classes_of_the_set_with_the_most_probable_first():
    fitted = ConformalSets(method="lac", alpha=.1, conditional=False, classes=CLASSES,
                           thresholds=dict.fromkeys(CLASSES, .75), cases=dict.fromkeys(CLASSES, 200))
    assert fitted.names(np.array([.3, .6, .1])) == ["dog", "cat"]


# Other implementations

@pytest.mark.parametrize("alpha", ALPHAS)
def test_lac_sets_are_those_of_mapie(alpha):
    probs, labels, groups = a_cohort(211)
    new = a_cohort(300, seed=1)[0]
    ours = fit_conformal(probs, labels, groups, CLASSES, alpha=alpha, conditional=False).sets(new)
    assert np.array_equal(ours, sets_of_mapie("lac", probs, labels, new, alpha=alpha, seed=0))
    assert 0 < ours.mean() < 1


@pytest.mark.parametrize("alpha", ALPHAS)
def test_randomised_aps_sets_are_those_of_mapie_under_its_own_random_numbers(alpha):
    probs, labels, _ = a_cohort(211)
    new = a_cohort(300, seed=1)[0]
    # MAPIE takes a share of a class's own probability away, we add one.
    known, drawn = (1 - np.random.RandomState(7).uniform(size=count) for count in (211, 300))
    limit = quantile(scores(probs, method="aps", u=known)[np.arange(211), labels], alpha)
    ours = scores(new, method="aps", u=drawn) <= limit
    theirs = sets_of_mapie("aps", probs, labels, new, alpha=alpha, seed=7, include_last_label="randomized")
    assert np.array_equal(ours, theirs)
    # Its set without chance, at the same threshold, is ours without chance.
    whole = sets_of_mapie("aps", probs, labels, new, alpha=alpha, seed=7, include_last_label=True)
    assert np.array_equal(scores(new, method="aps") <= limit, whole)


@pytest.mark.parametrize("lambda_, k", [(.05, 1), (.3, 2)])
def test_raps_scores_of_the_right_classes_are_those_of_mapie(lambda_, k):
    # Its thresholds cannot be compared: MAPIE sets lambda and k by itself, on a part of the cases.
    probs, labels, _ = a_cohort(211)
    peer = RAPSConformityScore()
    summed, rank = peer.get_true_label_cumsum_proba(labels, probs, np.arange(3))    # u = 1
    theirs = peer._regularize_conformity_score(np.array([k]), lambda_, summed, rank)[:, 0, 0]
    ours = scores(probs, method="raps", lambda_=lambda_, k=k, u=1.0)[np.arange(211), labels]
    assert ours == pytest.approx(theirs, abs=1e-12) and set(rank) == {1, 2, 3}


@pytest.mark.parametrize("method, lambda_, k", [("aps", 0.0, 1), ("raps", .05, 1), ("raps", .3, 2)])
def test_aps_and_raps_sets_are_those_of_a_loop_that_adds_class_by_class(method, lambda_, k):
    probs, labels, groups = a_cohort(157)
    new = a_cohort(40, seed=1)[0]
    fitted = fit_conformal(probs, labels, groups, CLASSES, method=method, lambda_=lambda_, k=k)

    def score(row, wanted):
        total, rank = 0.0, 0
        for column in sorted(range(3), key=lambda column: -row[column]):
            rank += 1
            if column == wanted:
                return total + max(0, rank - k) * lambda_
            total += row[column]

    for column, name in enumerate(CLASSES):
        known = sorted(score(row, column) for row in probs[labels == column])
        limit = known[math.ceil((len(known) + 1) * .9) - 1]
        assert fitted.thresholds[name] == pytest.approx(limit)
        expected = [score(row, column) <= limit for row in new]
        assert fitted.sets(new)[:, column].tolist() == expected


# The promise

def coverages(method, *, cases=49, repeats=250, **options):
    found = []
    for repeat in range(repeats):
        probs, labels, groups = a_cohort(cases + 150, seed=repeat)
        uids = groups if options.get("seed") is not None else None
        fitted = fit_conformal(probs[:cases], labels[:cases], groups[:cases], CLASSES, method=method,
                               conditional=False, uids=uids and uids[:cases], **options)
        sets = fitted.sets(probs[cases:], uids=uids and uids[cases:])
        found.append(sets[np.arange(150), labels[cases:]].mean())
    return np.array(found)


@pytest.mark.parametrize("method, options", [("lac", {}), ("aps", {"seed": 3}),
                                             ("raps", {"seed": 3, "lambda_": .05})])
def test_coverage_of_exchangeable_cases_is_exactly_what_the_place_of_the_threshold_gives(method, options):
    found = coverages(method, **options)
    # The 45th of 49 covers 45/50. Coverage given the threshold is Beta(45, 5), then 150 cases are counted.
    sd = math.sqrt((.9 * .1 / 51 + .9 * .1 / 150) / len(found))
    assert found.mean() == pytest.approx(45 / 50, abs=4 * sd)
    assert found.std() == pytest.approx(sd * math.sqrt(len(found)), rel=.2)


@pytest.mark.parametrize("method", ["aps", "raps"])
def test_deterministic_sets_cover_at_least_what_is_promised_and_are_never_empty(method):
    found = coverages(method)
    assert found.mean() > .9 - 4 * math.sqrt(.09 / 51 / len(found))
    probs, labels, groups = a_cohort(400)
    sets = fit_conformal(probs, labels, groups, CLASSES, method=method).sets(probs)
    assert sets[np.arange(400), probs.argmax(1)].all()


def test_a_model_that_is_right_more_often_than_asked_covers_as_often_as_it_is_right():
    probs, labels, groups = a_cohort(3000, skill=4.0)
    fitted = fit_conformal(probs, labels, groups, CLASSES, method="aps", conditional=False)
    right = probs.argmax(1) == labels
    assert right.mean() > .95 and fitted.thresholds["cat"] == 0
    assert fitted.sets(probs)[np.arange(3000), labels].mean() == right.mean()


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_thresholds_of_each_class_keep_the_promise_for_the_rare_class_that_one_for_all_breaks(method):
    # Fifty cases of the rare class give coverage Beta(46, 5); 20 repeats narrow its mean down.
    rare = {True: [], False: []}
    for repeat in range(20):
        probs, labels, groups = a_cohort(2000, seed=repeat, skill=1.6, prior=(.65, .3, .05))
        probs = probs * [1, 1, .1]  # a model that hardly believes in owls
        probs /= probs.sum(1, keepdims=True)
        for conditional, found in rare.items():
            fitted = fit_conformal(probs[:1000], labels[:1000], groups[:1000], CLASSES, method=method,
                                   conditional=conditional)
            covered = fitted.sets(probs[1000:])[np.arange(1000), labels[1000:]]
            found.append(covered[labels[1000:] == 2].mean())
    assert np.mean(rare[True]) > .9 - 4 * math.sqrt(.09 / 51 / 20)
    assert np.mean(rare[False]) < .75


def test_a_seeded_answer_belongs_to_the_image_and_not_to_the_batch():
    probs, labels, groups = a_cohort(300)
    fitted = fit_conformal(probs, labels, groups, CLASSES, method="aps", uids=groups, seed=5)
    backwards = fitted.sets(probs[::-1], uids=groups[::-1])[::-1]
    assert np.array_equal(fitted.sets(probs, uids=groups), backwards)
    assert [name in fitted.names(probs[4], uid=groups[4]) for name in CLASSES] == backwards[4].tolist()
    other = fit_conformal(probs, labels, groups, CLASSES, method="aps", uids=groups, seed=6)
    assert fitted.thresholds != other.thresholds


@pytest.mark.parametrize("uids", [None, ["only one"]])
def test_randomised_sets_without_a_uid_for_each_case_are_refused(uids):
    probs, labels, groups = a_cohort(30)
    with pytest.raises(ValueError, match="uids: need one for each of 30 cases"):
        fit_conformal(probs, labels, groups, CLASSES, method="aps", uids=uids, seed=5)


# The file

def test_sets_survive_json_with_null_for_infinite_and_no_patient_s_name():
    probs, labels, groups = a_cohort(130, prior=(.6, .38, .02))
    fitted = fit_conformal(probs, labels, groups, CLASSES, method="raps", lambda_=.2, k=2, alpha=.05,
                           fit_groups=["Jane Doe"])
    text = fitted.model_dump_json()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["thresholds"]["owl"] is None
    assert document["roles"]["fit"] == ["01332c876518"]  # sha256sum of the name
    assert len(document["roles"]["calibrate"]) == 130
    assert "Jane" not in text and not any(f'"{group}"' in text for group in groups)
    again = ConformalSets.model_validate_json(text)
    assert again == fitted
    assert np.array_equal(again.sets(probs), fitted.sets(probs))


DOCUMENT = {"method": "aps", "alpha": .1, "conditional": True, "classes": ["cat", "dog"],
            "thresholds": {"cat": .5, "dog": None}, "cases": {"cat": 20, "dog": 3}}


@pytest.mark.parametrize("change, message", [
    ({"alpha": 0}, "alpha"), ({"alpha": 1}, "alpha"), ({"method": "hps"}, "method"),
    ({"thresholds": {"cat": .5}}, "thresholds: need one for each of cat, dog"),
    ({"cases": {"cat": 1, "cow": 2}}, "cases: need one for each of cat, dog"),
    ({"thresholds": {"cat": float("inf"), "dog": .5}}, "finite"),
    ({"thresholds": {"cat": -.5, "dog": .5}}, "greater than or equal to 0"),
    ({"method": "lac", "seed": 1}, "seed: need none for lac"), ({"k": 0}, "k"), ({"more": 1}, "Extra inputs"),
    ({"roles": {"fit": ["p1"]}}, "roles.fit"),
    ({"roles": {"fit": ["0123456789ab"], "calibrate": ["0123456789ab"]}}, "got 1 in both")])
def test_a_document_with_a_fault_is_refused(change, message):
    ConformalSets.model_validate(DOCUMENT)
    with pytest.raises(ValidationError, match=message):
        ConformalSets.model_validate(DOCUMENT | change)


@pytest.mark.parametrize("change, message", [
    ({"probs": np.zeros((7, 3))}, "sum to one"), ({"probs": np.full((7, 3), np.nan)}, "sum to one"),
    ({"probs": np.full((7, 2), .5)}, r"3 classes, got \(7, 2\)"),
    ({"labels": np.zeros(6, int)}, "probs, labels, groups"), ({"groups": ["a"]}, "probs, labels, groups"),
    ({"labels": np.full(7, 3)}, "class indices 0 to 2"), ({"labels": np.full(7, -1)}, "class indices 0 to 2"),
    ({"alpha": 0.0}, "alpha: need a share"), ({"alpha": 1.0}, "alpha: need a share"),
    ({"method": "lac", "seed": 1, "uids": list("abcdefg")}, "seed: need none for lac")])
def test_calibration_cases_or_settings_that_do_not_fit_are_refused(change, message):
    given = {"probs": np.full((7, 3), 1 / 3), "labels": np.zeros(7, int), "groups": list("abcdefg")} | change
    with pytest.raises(ValueError, match=message):
        fit_conformal(given.pop("probs"), given.pop("labels"), given.pop("groups"), CLASSES, **given)


@pytest.mark.parametrize("probs, message", [
    (np.full((7, 2), .5), r"need \(cases, 3\), got \(7, 2\)"), (np.zeros((7, 3)), "sum to one"),
    (np.full((7, 3), np.nan), "sum to one"), (np.array([[1.5, -.5, 0]]), "sum to one")])
def test_no_sets_are_made_of_what_are_no_probabilities_of_these_classes(probs, message):
    fitted = fit_conformal(*a_cohort(30), CLASSES)
    with pytest.raises(ValueError, match=message):
        fitted.sets(probs)


def test_no_calibration_case_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one case"):
        fit_conformal(np.zeros((0, 3)), np.zeros(0, int), [], CLASSES)
