"""Errors planted among synthetic labels are found, none is invented, no patient is on both sides."""

import csv

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dcaf_monai.suspects import CAVEAT, find_suspects, out_of_fold, write_suspects

CLASSES = ("cat", "dog", "owl")


def a_world(flips, apart=4.0, cases=240, patients=60, units=12, seed=0):
    """Clouds of three classes, a class per patient; ``(vectors, labels, groups, planted case numbers)``."""
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, patients, cases)
    true = patient % 3
    vectors = apart * np.eye(3, units)[true] + rng.normal(size=(cases, units))
    planted = rng.choice(cases, flips, replace=False)
    labels = true.copy()
    labels[planted] = (true[planted] + rng.integers(1, 3, flips)) % 3
    return vectors, labels, np.array([f"p{number}" for number in patient]), planted


def suspects_of(vectors, labels, groups, **wishes):
    probs = out_of_fold(vectors, labels, groups).probs
    return find_suspects([str(number) for number in range(len(labels))], labels, probs, CLASSES, **wishes)


def test_planted_errors_are_found_with_a_recall_above_08_and_a_precision_above_09():
    planted, flagged, hits, shares = 0, 0, 0, []
    for seed in range(5):
        vectors, labels, groups, wrong = a_world(18, seed=seed)
        suspects, noise = suspects_of(vectors, labels, groups)
        planted, flagged = planted + len(wrong), flagged + len(suspects)
        hits += len({int(suspect.uid) for suspect in suspects} & set(wrong))
        shares.append(noise.share)
    assert hits / planted > .8
    assert hits / flagged > .9
    assert np.mean(shares) == pytest.approx(18 / 240, abs=.015)


@pytest.mark.parametrize("ranked_by", ["self_confidence", "normalized_margin"])
def test_the_least_believable_label_comes_first_and_the_true_class_is_suggested(ranked_by):
    vectors, labels, groups, wrong = a_world(10, apart=6)
    before = labels.copy()
    suspects, _ = suspects_of(vectors, labels, groups, ranked_by=ranked_by)
    assert [suspect.rank for suspect in suspects] == list(range(1, len(suspects) + 1))
    key = {"self_confidence": lambda s: s.probability_given,
           "normalized_margin": lambda s: s.probability_given - s.probability_suggested}[ranked_by]
    assert [key(suspect) for suspect in suspects] == sorted(map(key, suspects))
    for suspect in suspects:
        true = int(groups[int(suspect.uid)][1:]) % 3
        assert suspect.given == CLASSES[labels[int(suspect.uid)]] != suspect.suggested == CLASSES[true]
        assert suspect.probability_given < .5 < suspect.probability_suggested
    assert (labels == before).all()


def test_on_clean_classes_that_lie_apart_nothing_is_suspected():
    for seed in range(3):
        suspects, noise = suspects_of(*a_world(0, apart=6, seed=seed)[:3])
        assert suspects == () and noise.share == 0


def test_on_clean_classes_that_overlap_no_more_is_suspected_than_truth_itself_gets_wrong():
    for seed in range(3):
        vectors, labels, groups, _ = a_world(0, apart=2, seed=seed)
        nearest = (2 * vectors[:, :3]).argmax(1)  # the best answer there is: equal clouds, equal shares
        suspects, _ = suspects_of(vectors, labels, groups)
        assert len(suspects) <= (nearest != labels).sum()


def test_a_patient_is_held_out_whole_and_every_case_once():
    vectors, labels, groups, _ = a_world(12)
    found = out_of_fold(vectors, labels, groups, folds=4)
    assert sorted(set(found.fold)) == [0, 1, 2, 3]
    for patient in set(groups):
        assert len(set(found.fold[groups == patient])) == 1
    np.testing.assert_allclose(found.probs.sum(1), 1)


def test_a_held_out_answer_is_that_of_a_learner_without_the_fold():
    vectors, labels, groups, _ = a_world(12)
    found = out_of_fold(vectors, labels, groups)
    held = found.fold == 2
    mean, scale = vectors[~held].mean(0), vectors[~held].std(0)
    learner = LogisticRegression(C=found.strength, max_iter=300)
    learner.fit((vectors[~held] - mean) / scale, labels[~held])
    np.testing.assert_allclose(found.probs[held], learner.predict_proba((vectors[held] - mean) / scale),
                               atol=1e-6)


def test_what_only_the_patient_tells_cannot_be_learnt():
    """Each patient has a mark of his own and a label by lot: known only to who saw his other images."""
    rng = np.random.default_rng(3)
    patient = np.repeat(np.arange(40), 5)
    labels, marks = rng.permutation(np.arange(40) % 2)[patient], 5 * np.eye(40)[patient]
    alone = np.arange(200).astype(str)
    for groups, low, high in ((patient.astype(str), 0, .65), (alone, .99, 1)):
        right = (out_of_fold(marks, labels, groups).probs.argmax(1) == labels).mean()
        assert low <= right <= high, groups[:2]


def test_the_estimated_noise_is_that_of_confident_counts_by_hand():
    """The mean probability of a class among its own cases is .75 for cat, .6125 for dog. A case counts as the
    class whose mean it reaches: cats .1, .9, .95 as cat, cat .3 as dog, dogs .2, .35, .1 as dog, dog .9 as
    cat, cat .6 as neither. Rows are scaled to the cases given, in whole cases: of 5 cats 3.75 and 1.25 are
    4 and 1, of 4 dogs 1 and 3; divided by all 9."""
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])
    cat = np.array([1, .9, .6, .3, .95, .2, .35, .1, .9])
    suspects, noise = find_suspects(list("abcdefghi"), labels, np.stack([cat, 1 - cat], 1), ("cat", "dog"))
    assert noise.joint["cat"] == pytest.approx({"cat": 4 / 9, "dog": 1 / 9})
    assert noise.joint["dog"] == pytest.approx({"cat": 1 / 9, "dog": 3 / 9})
    assert noise.share == pytest.approx(2 / 9)
    assert noise.caveat == CAVEAT and "second reading" in CAVEAT
    assert [suspect.uid for suspect in suspects] == ["i", "d"]


def test_the_same_seed_gives_the_same_answer_and_folds_never_outnumber_patients():
    vectors, labels, groups, _ = a_world(5, cases=30, patients=9)
    one, two = (out_of_fold(vectors, labels, groups, seed=4) for _ in range(2))
    assert (one.probs == two.probs).all() and one.fold.max() == min(
        5, *(len(set(groups[labels == index])) for index in range(3))) - 1


def test_a_table_of_suspects_reads_back(tmp_path):
    vectors, labels, groups, _ = a_world(6)
    suspects, _ = suspects_of(vectors, labels, groups)
    path = tmp_path / "suspects.csv"
    write_suspects(suspects, path, splits={suspect.uid: "train" for suspect in suspects})
    rows = list(csv.DictReader(path.open()))
    assert [(int(row["rank"]), *(row[name] for name in ("file", "split", "given", "suggested")))
            for row in rows] == [
        (suspect.rank, suspect.uid, "train", suspect.given, suspect.suggested) for suspect in suspects]
    assert float(rows[0]["probability_given"]) == pytest.approx(suspects[0].probability_given, abs=1e-6)
    assert [file.name for file in tmp_path.iterdir()] == ["suspects.csv"]


@pytest.mark.parametrize("change, message", [
    ({"vectors": np.ones((6, 2))}, "with at least one case"),
    ({"groups": list("abc")}, "with at least one case"),
    ({"vectors": np.full((7, 2), np.nan)}, "finite numbers"),
    ({"labels": np.zeros(7, int)}, "at least two classes"),
    ({"labels": np.arange(7) - 1}, "at least two classes"),
    ({"labels": np.array([0, 0, 0, 0, 0, 1, 1]), "groups": list("abcdeff")}, "class 1: need .* at least 2"),
    ({"labels": np.array([0, 0, 0, 0, 0, 2, 2])}, "class 1: need images of at least 2 patients, got 0"),
    ({"folds": 1}, "folds: need at least 2")])
def test_input_that_does_not_fit_is_refused(change, message):
    fits = {"vectors": np.ones((7, 2)), "labels": np.arange(7) % 2, "groups": list("abcdefg")}
    with pytest.raises(ValueError, match=message):
        out_of_fold(**{**fits, **change})


def test_answers_that_do_not_fit_are_refused():
    probs = np.full((3, 2), .5)
    with pytest.raises(ValueError, match=r"need \(cases, 3\)"):
        find_suspects(list("abc"), np.arange(3), probs, CLASSES)
    with pytest.raises(ValueError, match="got none of dog"):
        find_suspects(list("abc"), np.zeros(3, int), probs, ("cat", "dog"))
