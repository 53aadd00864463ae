"""Associations against scikit-learn, hand-worked tables, and the laws of permutation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import contingency
from sklearn.metrics import mutual_info_score, roc_auc_score

from dcaf_monai.association import (
    FOLDS,
    Design,
    cells_auroc,
    cramers_v,
    held_out,
    holm,
    mutual_information,
    permuted,
    scores_auroc,
)


def a_design(cases: int = 120, per_patient: int = 3, classes: int = 2) -> Design:
    rng = np.random.default_rng(5)
    labels = [f"label {code}" for code in rng.integers(0, classes, cases)]
    return Design(labels, [f"patient {case // per_patient}" for case in range(cases)], draws=399)


def test_holm_raises_each_p_by_how_many_are_left() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_cramers_v_of_a_large_table_is_scipys_and_of_independence_is_nothing() -> None:
    table = np.array([[400, 200, 100], [100, 300, 900]])
    found = cramers_v(np.stack([table, np.outer([70, 30], [20, 50, 30]), [[0, 5, 5], [0, 0, 0]]]))
    assert found[0] == pytest.approx(contingency.association(table, method="cramer"), abs=2e-3)
    assert found[1] == found[2] == 0


def test_the_correction_for_bias_is_that_of_a_table_worked_by_hand() -> None:
    # chi2 of [[8, 2], [3, 7]] is 20 (8*7 - 2*3)^2 / (10*10*11*9) = 5.0505; phi2 = 0.25253 - 1/19; rows - 1/19
    expected = np.sqrt((5.050505 / 20 - 1 / 19) / (2 - 1 / 19 - 1))
    assert cramers_v(np.array([[[8, 2], [3, 7]]]))[0] == pytest.approx(expected, abs=1e-6)


def test_mutual_information_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 3, 200), rng.integers(0, 5, 200)
    assert mutual_information(one, two) == pytest.approx(mutual_info_score(one, two))
    assert mutual_information(one, one) == pytest.approx(mutual_info_score(one, one))


def test_areas_of_columns_and_of_cells_are_scikit_learns_with_ties() -> None:
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(0, 6, (90, 4)).astype(float), rng.random((90, 4)) < 0.4
    expected = [roc_auc_score(positive[:, column], scores[:, column]) for column in range(4)]
    assert scores_auroc(scores, positive) == pytest.approx(expected)
    # the same as cells: seven cells of cases, of which two have the same score
    cells = rng.integers(0, 7, 90)
    of_cell = np.array([[0.3, 0.1, 0.9, 0.3, 0.5, 0.0, 0.7]])
    inside = np.bincount(cells, minlength=7).astype(float)
    hits = np.bincount(cells, weights=positive[:, 0], minlength=7)[None]
    assert cells_auroc(of_cell, hits, inside)[0] == pytest.approx(
        roc_auc_score(positive[:, 0], of_cell[0][cells]))
    assert scores_auroc(scores, np.zeros((90, 4), bool)) == pytest.approx(0.5)
    assert cells_auroc(of_cell, np.zeros((1, 7)), inside) == pytest.approx(0.5)


def test_permuted_labels_keep_whole_patients_apart_only_by_size() -> None:
    codes, groups = np.array([0, 0, 1, 1, 0, 2]), ["a", "a", "b", "b", "c", "d"]
    drawn = permuted(codes, groups, draws=500, rng=np.random.default_rng(0))
    assert {tuple(row[:4]) for row in drawn} == {(0, 0, 1, 1), (1, 1, 0, 0)}
    assert {tuple(row[4:]) for row in drawn} == {(0, 2), (2, 0)}


def test_a_label_shared_by_all_pictures_of_a_patient_is_not_more_than_chance() -> None:
    # 12 patients of 10 pictures: features know the patient, so plain permutation would call it certain
    groups = [f"patient {case // 10}" for case in range(120)]
    labels = ["one" if case // 10 % 2 else "two" for case in range(120)]
    rng = np.random.default_rng(2)
    bodies = rng.normal(size=(12, 6))[np.arange(120) // 10] + rng.normal(0, 0.01, (120, 6))
    design = Design(labels, groups, draws=399)
    assert design.probe(bodies).p > 0.05
    assert design.alone(bodies[:, 0]).p > 0.05


@pytest.mark.parametrize("classes", [2, 3])
def test_what_gives_the_label_away_is_certain_and_what_does_not_is_not(classes: int) -> None:
    design = a_design(180, classes=classes)
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(180, 8))
    told = noise.copy()
    told[:, 2] += 4 * (design.codes == classes - 1)
    for found in (design.probe(told), design.alone(told[:, 2])):
        assert found.best == f"label {classes - 1}" if classes > 2 else "label 1"
        assert found.p == 1 / 400 and found.low > 0.9
    for found in (design.probe(noise), design.alone(noise[:, 0])):
        assert found.p > 0.02 and found.effect < 0.7


def test_one_property_need_not_rise_with_the_label() -> None:
    design = a_design(180)
    rng = np.random.default_rng(4)
    values = np.where(design.codes == 1, rng.normal(0, 0.2, 180), rng.choice([-1.0, 1.0], 180))
    assert roc_auc_score(design.codes, values) < 0.7 < design.alone(values).low


def test_scores_of_a_property_come_from_other_patients_only() -> None:
    design = a_design(60)
    values = np.arange(60) // 3 % 10.0  # whole patients share a value
    found = design.alone(values)
    for patient in range(20):
        own = slice(3 * patient, 3 * patient + 3)
        fold, value = design._folds[3 * patient], values[3 * patient]
        others = (design._folds != fold)
        mean = design.codes[others].mean()
        same = others & (values == value)
        expected = (design.codes[same].sum() + mean) / (same.sum() + 1)
        assert found.scores[own] == pytest.approx(expected)
    assert len(set(design._folds)) == FOLDS


def test_what_never_varies_has_no_association() -> None:
    design = a_design()
    assert design.alone(np.full(120, 3.0)) is None
    assert design.table(["same"] * 120) is None


def test_a_category_has_its_interval_and_mutual_information() -> None:
    design = a_design()
    found = design.table([f"value {code}" for code in design.codes])
    assert found.effect == pytest.approx(1, abs=0.01) and found.low > 0.95 and found.p == 1 / 400
    assert found.figures["mutual_information_nats"] == pytest.approx(
        mutual_info_score(design.codes, design.codes), abs=1e-4)


def test_a_regression_on_the_training_split_is_judged_on_the_others() -> None:
    rng = np.random.default_rng(6)
    positive = rng.random(200) < 0.5
    numbers = rng.normal(size=(200, 50)) + positive[:, None] * np.where(np.arange(50) < 5, 1.5, 0)
    learned = np.arange(200) < 140
    groups = [str(case // 2) for case in range(200)]
    found = held_out(numbers, positive, learned, groups)
    assert found["cases"] == 60 and found["low"] < found["auroc"] and found["auroc"] > 0.9
    shuffled = positive.copy()
    shuffled[:140] = rng.permutation(shuffled[:140])
    assert held_out(numbers, shuffled, learned, groups)["low"] < 0.6
    assert held_out(numbers, positive, np.ones(200, bool), groups) is None


@pytest.mark.parametrize(("labels", "groups", "words"), [
    (["a", "b"], ["p"], "one each a case, got 2 and 1"),
    (["a"] * 30, [str(i) for i in range(30)], "at least two"),
    (["a"] * 25 + ["b"] * 9, [str(i) for i in range(34)], "each with 10 cases"),
    (["a"] * 20 + ["b"] * 20, [str(i) for i in range(20)] + ["one"] * 20, "of two patients")])
def test_too_little_to_tell_is_refused(labels: list[str], groups: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Design(labels, groups)
