"""Answers of a model as arrays, the roles of patients, and pictures that do not belong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_evaluation import QUICK, TASK, a_model, a_table

from dcaf_monai.answers import Answers, common_images
from dcaf_monai.cohort import read_cohort
from dcaf_monai.conformal import fit_conformal
from dcaf_monai.drift import FEWEST, fit_reference
from dcaf_monai.evaluate import Examined, Settings, evaluate, examine
from dcaf_monai.evaluation_parts import conformal_tables, drift_reference
from dcaf_monai.outside import outside_files, outside_row, shifted_answers, spaced
from dcaf_monai.predict import Predictor


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return a_table(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def cohort(table):
    return read_cohort(table, TASK)


@pytest.fixture(scope="module")
def one(cohort):
    """A model with its answers."""
    return examine(Predictor(a_model(3)), cohort, label="seed3")


def test_answers_are_those_of_the_network_at_both_temperatures_and_without_dropout(one, cohort):
    case = cohort.split("test")[5]
    told = one.predictor.predict_file(case.path, uid=case.uid)
    place = one.test.uids.index(case.uid)
    sampled = torch.from_numpy(told.sampled.copy()).double()
    assert one.test.probs[place] == pytest.approx((sampled / 2.0).softmax(1).mean(0).numpy(), abs=1e-6)
    assert one.test.uncalibrated[place] == pytest.approx(sampled.softmax(1).mean(0).numpy(), abs=1e-6)
    with torch.inference_mode():
        logits = one.model.network.head(torch.from_numpy(told.pooled.copy())[None]).double()
    assert one.test.plain[place] == pytest.approx((logits / 2.0).softmax(1)[0].numpy(), abs=1e-6)
    assert one.test.labels[place] == TASK.class_index(case.label) and one.test.groups[place] == case.group


def test_images_common_to_models_stand_in_one_order(one):
    full = one.test
    cut = common_images([full.take([4, 2, 9]), full.take([9, 0, 4])])
    assert [one.uids for one in cut] == [(full.uids[4], full.uids[9])] * 2
    assert (cut[1].probs == full.probs[[4, 9]]).all() and cut[1].groups == (full.groups[4], full.groups[9])
    with pytest.raises(ValueError, match="that all of them can read"):
        common_images([full.take([1]), full.take([2])])
    with pytest.raises(ValueError, match="as many of everything"):
        replace(full, labels=full.labels[1:])


def test_a_test_patient_who_calibrated_the_model_is_refused(one, cohort):
    test = one.test
    sets = fit_conformal(test.probs, test.labels, test.groups, TASK.classes, fit_groups=["someone"])
    leaky = replace(one, predictor=Predictor(a_model(3, conformal=sets)))
    with pytest.raises(ValueError, match="got 12 who served to fit or calibrate"):
        evaluate([leaky], cohort, settings=Settings(resamples=20, shift_images=0, explain=0))


def test_the_roles_a_model_names_are_kept(one):
    """The patients who fitted its temperature do not calibrate, however training split them."""
    held = one.validation
    fits = sorted(set(held.groups))[:5]
    rest = held.take([place for place, group in enumerate(held.groups) if group not in fits])
    sets = fit_conformal(rest.probs, rest.labels, rest.groups, TASK.classes, fit_groups=fits, alpha=.2)
    own = replace(one, predictor=Predictor(a_model(3, conformal=sets)))
    document, _ = conformal_tables(own, QUICK)
    assert document["roles"] == {"fit": 10, "calibrate": 50, "test": 24}
    assert not any("does not say which patients" in notice for notice in document["notices"])
    unknown = conformal_tables(one, QUICK)[0]["notices"]
    assert any("does not say which patients" in notice for notice in unknown)


def test_the_validation_split_itself_gets_no_conformal_table(cohort, one):
    held = Examined("val", one.predictor, one.validation, None)
    document, sets = conformal_tables(held, QUICK)
    assert document["tables"] == [] and not sets


def test_distance_of_features_is_the_models_own_or_one_of_validation_or_none(one):
    found, source = drift_reference(one)
    assert source == "validation" and found.cases == 30
    own = fit_reference(one.test.pooled[:20], one.test.pooled[20:])
    known = replace(one, predictor=Predictor(a_model(3, drift=own)))
    assert drift_reference(known)[1] == "model" and drift_reference(known)[0].cases == 20
    few = replace(one, validation=one.validation.take(np.arange(FEWEST)))
    assert drift_reference(few) == (None, "none")
    assert drift_reference(replace(one, validation=None)) == (None, "none")


def test_a_shift_reaches_the_network(one, cohort):
    cases = cohort.split("test")[:2]
    found = {kind: answers for kind, severity, answers in
             shifted_answers(one.predictor, cases, most=2, severities=(5,))}
    own = one.test.take([0, 1])
    assert np.abs(found["inverted"].probs - own.probs).max() > 1e-3
    assert found["blank"].probs[0] == pytest.approx(found["blank"].probs[1], abs=.02)
    assert (found["blank"].labels == own.labels).all() and found["blank"].groups == own.groups
    assert outside_row("x", own, found["blank"], resamples=10)["family"] == "other data"


def test_outside_pictures_come_from_a_folder_or_a_table(table, films, tmp_path):
    assert len(outside_files(films)) == 12 and len(outside_files(table)) == 88
    assert [path.name for _, path, _ in spaced(outside_files(table), 3)] == [
        "secretname0.png", "secretname43.png", "secretname87.png"]
    (tmp_path / "t.csv").write_text("path\nx.png\n")
    for source, message in ((tmp_path / "none", "which is neither"),
                            (tmp_path / "t.csv", "need the column file")):
        with pytest.raises(ValueError, match=message):
            outside_files(source)
    (tmp_path / "t.csv").unlink()
    with pytest.raises(ValueError, match="got none"):
        outside_files(tmp_path)


def test_a_split_without_a_case_is_refused(cohort, one):
    with pytest.raises(ValueError, match="need a split with cases"):
        examine(one.predictor, cohort, label="m", split="nothing")
    assert isinstance(one.test, Answers) and len(one.test) == 24
