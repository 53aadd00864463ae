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


@pytest.mark.parametrize("held, words", [([], "no class fits"), (["cnv"], "only CNV"),
                                         (["cnv", "normal"], "CNV, Normal")])
def test_the_conformal_set_is_said_in_words(held: list, words: str) -> None:
    told = reading.conformal(document(0.5, 0.1, conformal={"alpha": 0.1, "set": held}), TITLES)
    assert words in told and "90%" in told


def test_a_model_without_calibration_says_nothing_of_sets() -> None:
    assert reading.conformal(document(0.5, 0.1), TITLES) == ""


def test_the_text_of_a_case_has_model_figures_and_warnings() -> None:
    warned = document(0.5, 0.1, warnings=[{"code": "inverted", "message": "The image looks inverted."}])
    lines = reading.as_text(warned, TITLES).split("\n")
    assert lines[0].startswith("DCAF m (v1), task oct") and "not a medical device" in lines[0]
    assert "CNV: 70.0% (SD 10.0%, cut-off 0.60)" in lines and "Normal: 30.0% (SD 10.0%)" in lines
    assert lines[-1] == "Warning: The image looks inverted."
