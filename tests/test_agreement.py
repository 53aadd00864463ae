"""Kappas against scikit-learn, a hand-worked example and the laws they obey."""

from __future__ import annotations

import random

import pytest
from sklearn.metrics import cohen_kappa_score

from dcaf_monai.server.agreement import agreement, cohen_kappa, fleiss_kappa

LABELS = ("covid", "normal", "viral_pneumonia", "uncertain")


@pytest.mark.parametrize("seed", range(5))
def test_cohens_kappa_is_scikit_learns(seed: int) -> None:
    draw = random.Random(seed)
    first = draw.choices(LABELS, weights=(5, 3, 2, 1), k=57)
    second = [label if draw.random() < 0.6 else draw.choice(LABELS) for label in first]
    assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


def test_cohens_kappa_of_a_hand_worked_table() -> None:
    # 20 both a, 5 a/b, 10 b/a, 15 both b: observed 0.7, by chance 0.5*0.6 + 0.5*0.4 = 0.5
    first = ["a"] * 25 + ["b"] * 25
    second = ["a"] * 20 + ["b"] * 5 + ["a"] * 10 + ["b"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_fleiss_kappa_of_a_hand_worked_table() -> None:
    # Three readers, four images. Agreement per image: 1, 1/3, 1/3, 0 (a b c) -> mean 5/12.
    # Answers: a 3+2+1+1 = 7, b 0+1+2+1 = 4, c 1 of 12 -> chance (49 + 16 + 1) / 144 = 66/144.
    images = [["a", "a", "a"], ["a", "a", "b"], ["b", "b", "a"], ["a", "b", "c"]]
    assert fleiss_kappa(images) == pytest.approx((5 / 12 - 66 / 144) / (1 - 66 / 144))


def test_fleiss_own_example_of_1971_gives_its_published_value() -> None:
    # Fourteen raters, ten subjects, five categories: the table often reprinted, kappa 0.210.
    table = [(0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
             (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7)]
    images = [[str(kind) for kind, count in enumerate(row) for _ in range(count)] for row in table]
    assert fleiss_kappa(images) == pytest.approx(0.210, abs=5e-4)


def test_perfect_agreement_is_one_and_the_order_of_readers_does_not_matter() -> None:
    first, second = list("aabbc"), list("abbbc")
    assert cohen_kappa(first, first) == pytest.approx(1)
    assert fleiss_kappa(zip(first, first, first, strict=True)) == pytest.approx(1)
    assert cohen_kappa(first, second) == pytest.approx(cohen_kappa(second, first))


def test_a_kappa_without_a_value_says_so_instead_of_guessing() -> None:
    assert cohen_kappa([], []) is None
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert fleiss_kappa([["a"], ["b"]]) is None
    assert fleiss_kappa([["a", "a"], ["a", "a"]]) is None
    with pytest.raises(ValueError, match="one length"):
        cohen_kappa(["a"], [])


def test_the_report_counts_each_pair_on_the_images_both_read() -> None:
    report = agreement([("1", "ana", "a"), ("1", "bo", "a"), ("2", "ana", "a"), ("2", "bo", "b"),
                        ("3", "ana", "b"), ("3", "bo", "b"), ("3", "cy", "b"), ("4", "cy", "a")])
    assert report["images"] == 4 and report["images_with_two_readers"] == 3
    assert report["readers"] == {"ana": 3, "bo": 3, "cy": 2}
    ana_bo, ana_cy, bo_cy = report["pairs"]
    assert ana_bo == {"readers": ["ana", "bo"], "images": 3, "agreed": 2, "kappa": pytest.approx(0.4)}
    assert (ana_cy["images"], ana_cy["kappa"]) == (1, None) and bo_cy["agreed"] == 1
    assert agreement([]) == {"images": 0, "images_with_two_readers": 0, "readers": {}, "pairs": [],
                             "fleiss_kappa": None}
