"""What a prediction says in words and bars."""

import math

import pytest
from DCAFReviewLib import reading

TITLES = {"normal": "Normal", "cnv": "CNV"}


def document(entropy_share: float, disagreement: float, **more) -> dict:
    """A two-class prediction whose entropy is a share of ln 2, of which a share is disagreement."""
    entropy = entropy_share * math.log(2)
    return {"prediction": [{"label": "cnv", "score": 0.7}, {"label": "normal", "score": 0.3}],
            "uncertainty": {"predictive_entropy": entropy, "normalized_entropy": entropy_share,
                            "mutual_information": disagreement * entropy, "samples": 50,
                            "std": {"cnv": 0.1, "normal": 0.1}},
            "operating_points": {"cnv": {"cutoff": 0.6, "positive": True}},
            "model": {"name": "m", "version": "v1", "task": "oct"}, "warnings": [], **more}


def test_a_clear_answer_is_called_clear_and_not_certain() -> None:
    told = reading.verdict(document(0.1, 0.5), TITLES)
    assert "clear: CNV" in told and "can still be wrong" in told


def test_doubt_between_two_classes_names_both() -> None:
    assert "between CNV and Normal" in reading.verdict(document(0.5, 0.0), TITLES)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_samples_that_disagree_ask_for_a_second_look(share: float) -> None:
    assert "second look" in reading.verdict(document(share, 0.21), TITLES)
    assert "ambiguous" in reading.verdict(document(share, 0.19), TITLES)


def test_the_limits_belong_to_the_more_doubtful_side() -> None:
    assert "hesitates" in reading.verdict(document(reading.SURE, 0.0), TITLES)
    assert "does not know" in reading.verdict(document(reading.UNSURE, 0.0), TITLES)


def test_no_entropy_at_all_divides_by_nothing() -> None:
    assert "clear" in reading.verdict(document(0.0, 0.0), TITLES)


def test_bars_keep_the_order_and_carry_cutoff_and_spread() -> None:
    cnv, normal = reading.bars(document(0.5, 0.1), TITLES)
    assert (cnv.title, cnv.probability, cnv.sd, cnv.cutoff, cnv.positive) == ("CNV", 0.7, 0.1, 0.6, True)
    assert (normal.cutoff, normal.positive, normal.in_set) == (None, None, None)


def test_bars_tell_what_the_conformal_set_holds() -> None:
    told = document(0.5, 0.1, conformal={"alpha": 0.1, "set": ["cnv"]})
    assert [bar.in_set for bar in reading.bars(told, TITLES)] == [True, False]


@pytest.mark.parametrize("held, words", [([], "no class fits: the model is less sure here"),
                                         (["cnv"], "Only CNV is left"),
                                         (["cnv", "normal"], "Nothing can be ruled out: CNV, Normal")])
def test_the_conformal_set_is_said_in_words(held: list, words: str) -> None:
    told = reading.conformal(document(0.5, 0.1, conformal={"alpha": 0.1, "set": held}), TITLES)
    assert words in told and "90%" in told


def test_several_classes_of_more_are_left() -> None:
    three = document(0.5, 0.1, conformal={"alpha": 0.05, "set": ["cnv", "drusen"]})
    three["prediction"].insert(1, {"label": "drusen", "score": 0.0})
    assert "Left are CNV, drusen." in reading.conformal(three, TITLES)


def test_the_words_tell_what_is_promised_of_whom_and_how_the_set_was_made() -> None:
    told = {"alpha": 0.1, "set": ["cnv"], "method": "raps"}
    assert "90% of all cases" in reading.conformal(document(0.5, 0.1, conformal=told), TITLES)
    each = reading.conformal(document(0.5, 0.1, conformal={**told, "conditional": True}), TITLES)
    assert "90% of the cases of each class" in each and each.endswith("(RAPS).")


def test_warnings_of_image_and_set_are_told_once_each() -> None:
    unlike, few = ({"code": code, "message": f"{code}."} for code in ("unlike_training", "few"))
    made = {"alpha": 0.1, "set": [], "warnings": [few, unlike]}
    told = document(0.5, 0.1, warnings=[unlike], conformal=made)
    assert reading.warnings(told) == ("unlike_training.", "few.")
    assert reading.warnings(document(0.5, 0.1)) == ()


def test_a_model_without_calibration_says_nothing_of_sets() -> None:
    assert reading.conformal(document(0.5, 0.1), TITLES) == ""
