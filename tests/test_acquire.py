"""Acquisition: each strategy against an answer worked by hand or a slow, explicit reference."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import chisquare, entropy

from dcaf_monai import diversity
from dcaf_monai.acquire import STRATEGIES, WITHOUT_MODEL, Pool, acquire, means_by_group
from dcaf_monai.diversity import badge, batch_bald, coreset, typicality, typiclust


def logits_of(*samples):
    """Logits of probabilities ``(samples, cases, classes)``."""
    return torch.tensor(np.log(np.array(samples, np.float64)))


def pool_of(cases=23, samples=7, classes=3, units=5, groups=None, seed=0, **more):
    made = np.random.default_rng(seed)
    return Pool(made.normal(size=(cases, units)).astype(np.float32), groups=groups,
                logits=torch.tensor(made.normal(size=(samples, cases, classes)) * 2), **more)


# -- scores of single cases ---------------------------------------------------------------------------

SURE_AND_NOT = logits_of(
    # in doubt both times; certain and contrary; sure; two answers close, the third nearly out of the question
    [[0.40, 0.30, 0.30], [0.98, 0.01, 0.01], [0.97, 0.02, 0.01], [0.47, 0.45, 0.08]],
    [[0.40, 0.30, 0.30], [0.01, 0.98, 0.01], [0.97, 0.02, 0.01], [0.47, 0.45, 0.08]])


@pytest.mark.parametrize(("strategy", "expected"), [
    ("entropy", [0, 3, 1, 2]),              # 1.089, 0.916, 0.742 (of .495, .495, .01), 0.154
    ("margin", [1, 3, 0, 2]),               # 0, .02, .10, .95
    ("least_confidence", [0, 3, 1, 2]),     # .40, .47, .495, .97
    ("bald", [1, 0, 2, 3])])                # only case 1 has any: .742 - .112; the others in their order
def test_scores_order_cases_as_worked_by_hand(strategy, expected):
    found = acquire(strategy, Pool(np.zeros((4, 1), np.float32), SURE_AND_NOT), count=4, seed=0)
    assert found.cases.tolist() == expected and not found.random.any()


def test_equal_scores_keep_the_order_of_the_pool():
    same = Pool(np.zeros((6, 2), np.float32), torch.zeros(3, 6, 4))
    for strategy in ("entropy", "margin", "least_confidence", "bald", "batchbald", "badge", "coreset"):
        assert acquire(strategy, same, count=6, seed=4).cases.tolist() == [0, 1, 2, 3, 4, 5], strategy


def test_a_temperature_changes_what_is_uncertain():
    logits = torch.tensor([[[4.0, 0, 0], [3.0, 3.0, -9]]])  # one answer likely; two, the third impossible
    cold, hot = (Pool(np.zeros((2, 1), np.float32), logits, temperature=t) for t in (1.0, 20.0))
    assert acquire("entropy", cold, count=2, seed=0).cases.tolist() == [1, 0]
    assert acquire("entropy", hot, count=2, seed=0).cases.tolist() == [0, 1]


def test_powerbald_draws_in_proportion_to_the_mutual_information():
    pool = pool_of(cases=5, samples=4)
    sampled = softmax(pool.logits.numpy(), -1)
    information = entropy(sampled.mean(0), axis=-1) - entropy(sampled, axis=-1).mean(0)
    first = np.bincount([acquire("powerbald", pool, count=1, seed=seed).cases[0] for seed in range(3000)],
                        minlength=5)
    assert chisquare(first, 3000 * information / information.sum()).pvalue > 0.001
    assert chisquare(first, np.full(5, 600)).pvalue < 1e-6


def test_powerbald_leaves_cases_without_information_to_the_end():
    pool = Pool(np.zeros((4, 1), np.float32), SURE_AND_NOT)
    assert {acquire("powerbald", pool, count=1, seed=seed).cases[0] for seed in range(30)} == {1}


def test_entropy_times_density_prefers_the_crowd_and_survives_copies():
    crowd = np.concatenate([np.linspace(0, 1, 30)[:, None], [[50.0]]]).astype(np.float32)
    doubt = torch.zeros(2, 31, 3)
    assert acquire("entropy_density", Pool(crowd, doubt), count=31, seed=0).cases[-1] == 30
    copies = np.zeros((31, 1), np.float32)
    assert acquire("entropy_density", Pool(copies, doubt), count=2, seed=0).cases.tolist() == [0, 1]


# -- BatchBALD ----------------------------------------------------------------------------------------

def joint_information(sampled, cases):
    """I(y_cases; network) by enumerating every joint answer; ``(samples, cases, classes)``."""
    samples, _, classes = sampled.shape
    joint = within = 0.0
    for answers in itertools.product(range(classes), repeat=len(cases)):
        each = np.prod([sampled[:, case, answer] for case, answer in zip(cases, answers, strict=True)], 0)
        joint -= each.mean() * math.log(each.mean())
    within = sum(entropy(sampled[:, case], axis=-1).mean() for case in cases)
    return joint - within


def test_batchbald_is_greedy_on_the_exact_joint_information():
    sampled = softmax(np.random.default_rng(5).normal(size=(6, 9, 3)) * 2, -1)
    expected: list[int] = []
    for _ in range(4):
        left = [case for case in range(9) if case not in expected]
        expected.append(max(left, key=lambda case: joint_information(sampled, [*expected, case])))
    assert batch_bald(sampled, 4, seed=0).tolist() == expected


def test_batchbald_passes_over_a_copy_that_bald_would_take():
    sampled = np.array([[[0.99, 0.01], [0.99, 0.01], [0.8, 0.2]], [[0.01, 0.99], [0.01, 0.99], [0.8, 0.2]],
                        [[0.99, 0.01], [0.99, 0.01], [0.1, 0.9]], [[0.01, 0.99], [0.01, 0.99], [0.1, 0.9]]])
    pool = Pool(np.zeros((3, 1), np.float32), torch.tensor(np.log(sampled)))
    assert acquire("bald", pool, count=2, seed=0).cases.tolist() == [0, 1]
    assert acquire("batchbald", pool, count=2, seed=0).cases.tolist() == [0, 2]


def test_sampled_configurations_estimate_the_entropy_of_the_next_answer():
    sampled = softmax(np.random.default_rng(2).normal(size=(5, 7, 3)) * 2, -1)
    by_case = sampled.transpose(1, 0, 2)
    exact = diversity._JointAnswers(5, 10 ** 6, np.random.default_rng(0))
    drawn = diversity._JointAnswers(5, 4000, np.random.default_rng(0))
    for case in range(6):  # 3^6 joint answers: 4000 keep them all, 400 do not
        exact.add(by_case[case])
        drawn.add(by_case[case])
    few = diversity._JointAnswers(5, 400, np.random.default_rng(0))
    for case in range(6):
        few.add(by_case[case])
    joint = joint_information(sampled, range(7)) - joint_information(sampled, range(6))
    within = entropy(sampled[:, 6], axis=-1).mean()
    assert exact.entropy_of_next(by_case[6:])[0] - within == pytest.approx(joint, abs=1e-9)
    assert drawn.entropy_of_next(by_case[6:])[0] == pytest.approx(exact.entropy_of_next(by_case[6:])[0])
    assert few._sampled
    expected = exact.entropy_of_next(by_case[6:])[0]
    assert few.entropy_of_next(by_case[6:])[0] == pytest.approx(expected, rel=0.03)


def test_batchbald_is_bounded_and_still_orders_every_case():
    sampled = softmax(np.random.default_rng(3).normal(size=(4, 90, 3)), -1)
    order = batch_bald(sampled, 90, seed=1, configurations=16, candidates=40)
    assert sorted(order) == list(range(90))
    assert order.tolist() == batch_bald(sampled, 90, seed=1, configurations=16, candidates=40).tolist()


# -- BADGE --------------------------------------------------------------------------------------------

def test_badge_draws_by_the_distances_of_the_explicit_outer_products(monkeypatch):
    made = np.random.default_rng(1)
    probs, vectors = softmax(made.normal(size=(11, 4)) * 2, -1), made.normal(size=(11, 6))
    residual = probs - np.eye(4)[probs.argmax(1)]
    outer = np.einsum("nk,nu->nku", residual, vectors).reshape(11, -1)
    chosen = [int((outer ** 2).sum(1).argmax())]
    draw = np.random.default_rng(8)
    while len(chosen) < 7:
        squares = ((outer[:, None] - outer[chosen][None]) ** 2).sum(2).min(1)
        chosen.append(int(np.searchsorted(squares.cumsum(), draw.random() * squares.sum(), side="right")))
    assert badge(probs, vectors, 7, seed=8).tolist() == chosen
    monkeypatch.setattr(diversity, "ALL_PRODUCTS", 0)  # one product after the other
    assert badge(probs, vectors, 7, seed=8).tolist() == chosen


def test_badge_takes_no_copy_while_something_else_is_left():
    probs = np.array([[0.6, 0.4]] * 5)
    vectors = np.array([[1.0, 0], [1, 0], [0, 0.9], [1, 0], [0.5, 0.5]])
    for seed in range(20):
        order = badge(probs, vectors, 5, seed=seed).tolist()
        assert order[0] == 0 and set(order[:3]) == {0, 2, 4} and order[3:] == [1, 3]


def test_badge_reads_the_last_hidden_layer_where_it_is_given():
    logits = torch.zeros(2, 3, 2)
    pooled, hidden = np.eye(3, dtype=np.float32), np.array([[1.0], [1.0], [3.0]], np.float32)
    assert acquire("badge", Pool(pooled, logits), count=1, seed=0).cases[0] == 0
    assert acquire("badge", Pool(pooled, logits, hidden), count=1, seed=0).cases[0] == 2


# -- CoreSet, TypiClust -------------------------------------------------------------------------------

def test_coreset_on_a_line_takes_the_farthest_point_each_time():
    line = np.array([[0.0], [1], [2], [7], [10]])
    assert coreset(line, np.empty((0, 1)), 5).tolist() == [2, 4, 3, 0, 1]  # 2 is nearest to the mean
    # a label at 9 leaves 0 (9 away), then 2 and 7 and 1 (2, 2, 1 away): the first of equals
    assert coreset(line, np.array([[9.0]]), 4).tolist() == [0, 2, 3, 1]


def blobs(seed=0):
    made = np.random.default_rng(seed)
    centres = np.array([[0.0, 0], [20, 0], [0, 20]])
    sizes = (30, 20, 10)
    return np.concatenate([centre + made.normal(size=(size, 2))
                           for centre, size in zip(centres, sizes, strict=True)]), np.repeat([0, 1, 2], sizes)


def test_typiclust_takes_the_heart_of_every_cluster_the_largest_first():
    points, member = blobs()
    order = typiclust(points, np.empty((0, 2)), 3, seed=0)
    assert member[order].tolist() == [0, 1, 2]
    for case in order:
        same = points[member == member[case]]
        distance = np.linalg.norm(same - points[case], axis=1)
        nearest = np.sort(np.linalg.norm(same[:, None] - same[None], axis=2), axis=1)[:, 1:21].mean(1)
        assert np.sort(distance)[1:21].mean() == pytest.approx(nearest.min(), rel=1e-5)


def test_typiclust_leaves_covered_clusters_for_later_and_outliers_for_last():
    points, member = blobs()
    covered = np.array([[0.0, 0.0]])
    assert member[typiclust(points, covered, 2, seed=0, clusters=3)].tolist() == [1, 2]
    with_outlier = np.concatenate([points, [[500.0, 500.0]]])
    order = typiclust(with_outlier, np.empty((0, 2)), 61, seed=0, clusters=4)
    assert order[-1] == 60 and sorted(order) == list(range(61))


def test_typicality_of_equidistant_points_is_their_inverse_distance():
    assert typicality(np.array([[0.0, 0], [2, 0], [1, math.sqrt(3)]])) == pytest.approx([0.5, 0.5, 0.5])
    assert typicality(np.zeros((1, 2))).tolist() == [1.0]


# -- the door -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_seed_gives_the_same_cases_each_once(strategy):
    pool = pool_of()
    found = [acquire(strategy, pool, count=9, seed=seed).cases.tolist() for seed in (3, 3)]
    assert found[0] == found[1] and len(set(found[0])) == 9
    everything = acquire(strategy, pool, count=99, seed=3).cases
    assert sorted(everything) == list(range(23))


@pytest.mark.parametrize("strategy", ["random", "powerbald", "badge"])
def test_another_seed_gives_other_cases(strategy):
    pool = pool_of()
    assert len({tuple(acquire(strategy, pool, count=9, seed=seed).cases) for seed in range(6)}) > 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_whole_patients_are_taken_until_there_are_enough_images(strategy):
    groups = [f"p{number % 8}" for number in range(23)]
    found = acquire(strategy, pool_of(groups=groups), count=7, seed=1).cases
    patients = [groups[case] for case in found]
    assert all(patients.count(patient) == groups.count(patient) for patient in set(patients))
    assert [patient for patient, _ in itertools.groupby(patients)] == list(dict.fromkeys(patients))
    assert 7 <= len(found) < 7 + 3
    assert len(acquire(strategy, pool_of(groups=groups), count=23, seed=1).cases) == 23


def test_a_patients_score_is_the_mean_over_its_images():
    # patient b has the most uncertain image and a certain one; a is in doubt throughout
    logits = logits_of([[0.6, 0.4], [0.6, 0.4], [0.5, 0.5], [0.999, 0.001]])
    pool = Pool(np.zeros((4, 1), np.float32), logits, groups=("a", "a", "b", "b"))
    assert acquire("entropy", pool, count=1, seed=0).cases.tolist() == [0, 1]
    apart = Pool(np.zeros((4, 1), np.float32), logits)
    assert acquire("entropy", apart, count=1, seed=0).cases.tolist() == [2]


def test_mean_vectors_come_in_the_order_of_first_appearance():
    found = means_by_group(np.array([[1.0], [2], [3], [8]]), ["z", "a", "z", "a"])
    assert found.tolist() == [[2.0], [5.0]]


def test_a_random_share_is_a_fair_sample_spread_over_the_order():
    pool = pool_of(cases=40)
    plain = acquire("entropy", pool, count=20, seed=0)
    counts, taken = np.zeros(40), 0
    for seed in range(400):
        found = acquire("entropy", pool, count=20, seed=seed, random_share=0.25)
        assert found.random.sum() == 5 and len(set(found.cases)) == 20
        assert all(found.random[start:start + 4].sum() == 1 for start in range(0, 20, 4))
        chosen = found.cases[~found.random]
        left = [case for case in plain.cases if case not in set(found.cases[found.random])]
        assert chosen.tolist()[:len(left)] == left[:len(chosen)]
        counts[found.cases[found.random]] += 1
        taken += 5
    assert chisquare(counts).pvalue > 0.001  # also of the cases the strategy would have taken itself
    small = [acquire("entropy", pool, count=3, seed=seed, random_share=0.1).random.sum()
             for seed in range(500)]
    assert np.mean(small) == pytest.approx(0.3, abs=0.07)
    assert acquire("entropy", pool, count=5, seed=0, random_share=1).random.all()


def test_an_empty_pool_gives_nothing():
    found = acquire("random", Pool(np.empty((0, 3), np.float32)), count=4, seed=0)
    assert len(found.cases) == len(found.random) == 0


@pytest.mark.parametrize("strategy", WITHOUT_MODEL)
def test_a_cold_start_needs_no_model(strategy):
    pool = Pool(pool_of(cases=12).pooled)
    assert len(acquire(strategy, pool, count=5, seed=0).cases) == 5


@pytest.mark.parametrize(("call", "message"), [
    (lambda: acquire("newest", pool_of(), count=1, seed=0), "strategy: need one of random, entropy"),
    (lambda: acquire("entropy", pool_of(), count=0, seed=0), "count: need at least 1, got 0"),
    (lambda: acquire("entropy", pool_of(), count=1, seed=0, random_share=1.5), "random_share: need 0 to 1"),
    (lambda: acquire("bald", Pool(np.zeros((3, 2))), count=1, seed=0), "strategy bald: need logits"),
    (lambda: Pool(np.zeros((3, 2)), torch.zeros(2, 4, 2)), "pool: need pooled"),
    (lambda: Pool(np.zeros((3, 2)), groups=["a"]), "pool: need pooled"),
    (lambda: Pool(np.zeros((3, 2)), hidden=np.zeros((2, 2))), "pool: need pooled"),
    (lambda: Pool(np.zeros((3, 2)), labelled=np.zeros((4, 3))), "labelled: need vectors of 2 units"),
    (lambda: Pool(np.full((3, 2), np.nan)), "pooled: need finite numbers")])
def test_what_cannot_be_acquired_from_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
