"""The Predictor: one door, any thread, batch or single, the same answer."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dcaf_monai.conformal import fit_conformal
from dcaf_monai.dicom import read_image, sop_instance_uid
from dcaf_monai.drift import fit_reference
from dcaf_monai.heat import KINDS
from dcaf_monai.image import ImageError
from dcaf_monai.model import load_model
from dcaf_monai.predict import Predictor


@pytest.fixture(scope="module")
def predictor(tiny_model: Path) -> Predictor:
    return Predictor(load_model(tiny_model), batch_size=4)


@pytest.fixture(scope="module")
def paths(films: Path) -> list[Path]:
    return sorted(films.rglob("*.dcm"))[:6]


def test_the_last_layer_turns_what_it_reads_into_the_logits(predictor: Predictor) -> None:
    model = predictor.model
    pooled = np.random.default_rng(0).normal(size=(3, 2 * model.network.config.fused)).astype(np.float32)
    hidden = torch.from_numpy(predictor.hidden(pooled))
    assert hidden.shape == (3, model.network.config.hidden)
    torch.testing.assert_close(model.network.head[-1](hidden), model.network.head(torch.from_numpy(pooled)))


def test_a_batch_answers_as_one_by_one(predictor: Predictor, paths: list[Path]) -> None:
    images = [read_image(path) for path in paths]
    together = predictor.predict(images)
    for image, batched in zip(images, together, strict=True):
        alone = predictor.predict([image])[0]
        np.testing.assert_allclose(alone.probs, batched.probs, atol=1e-5)
        assert alone.mutual_information == pytest.approx(batched.mutual_information, abs=1e-5)
        assert alone.uid == batched.uid


def test_the_laws_of_entropy_hold(predictor: Predictor, paths: list[Path]) -> None:
    for _, answer in predictor.predict_files((None, path, None) for path in paths):
        assert answer.probs.sum() == pytest.approx(1, abs=1e-6)
        assert 0 <= answer.predictive_entropy <= math.log(2) + 1e-9
        assert answer.mutual_information >= 0
        assert answer.predictive_entropy == pytest.approx(
            answer.expected_entropy + answer.mutual_information, abs=1e-6)
        assert (answer.std > 0).all(), "dropout must spread the samples"


def test_the_same_image_gives_the_same_answer_twice(predictor: Predictor, tiny_model: Path,
                                                    paths: list[Path]) -> None:
    first = predictor.predict_file(paths[0])
    again = Predictor(load_model(tiny_model)).predict_file(paths[0])
    np.testing.assert_array_equal(first.probs, again.probs)


def test_threads_get_the_answers_of_one_thread(predictor: Predictor, paths: list[Path]) -> None:
    alone = [predictor.predict_file(path, overlays=("class_activation",)) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(
            lambda path: predictor.predict_file(path, overlays=("class_activation",)), paths * 2))
    for expected, got in zip(alone * 2, threaded, strict=True):
        assert got.uid == expected.uid
        np.testing.assert_allclose(got.probs, expected.probs, atol=1e-6)
        np.testing.assert_allclose(got.heats["class_activation"].values,
                                   expected.heats["class_activation"].values, atol=1e-5)


def test_one_bad_file_stops_nothing(predictor: Predictor, paths: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"not a film")
    first, last = sop_instance_uid(paths[0]), sop_instance_uid(paths[1])
    files = [(first, paths[0], None), ("bad", bad, None), (last, paths[1], None)]
    answers = list(predictor.predict_files(files))
    assert [uid for uid, _ in answers] == [first, "bad", last]
    assert isinstance(answers[1][1], ImageError)
    assert answers[0][1].uid == first and answers[2][1].uid == last


def test_the_document_is_plain_json_in_the_agreed_shape(predictor: Predictor, paths: list[Path]) -> None:
    document = predictor.predict_file(paths[0]).document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    scores = [item["score"] for item in document["prediction"]]
    assert scores == sorted(scores, reverse=True)
    assert document["label_names"] == {"normal": 0, "pneumonia": 1}
    assert set(document["uncertainty"]) == {"predictive_entropy", "expected_entropy", "mutual_information",
                                            "normalized_entropy", "std", "samples", "seed"}
    assert document["model"]["sha256"] == predictor.model.sha256 and document["model"]["task"] == "pneumonia"
    image = read_image(paths[0])
    assert document["image"]["shape"] == list(image.geometry.shape)
    assert document["image"]["id"] == image.uid


@pytest.mark.parametrize("kind", KINDS)
def test_every_overlay_lies_on_the_image_and_keeps_its_scale(predictor: Predictor, paths: list[Path],
                                                             kind: str) -> None:
    answer = predictor.predict_file(paths[0], overlays=(kind,))
    heat = answer.heats[kind]
    assert heat.values.dtype == np.float32 and heat.values.min() >= 0 and heat.scale > 0
    rows, columns = answer.geometry.shape
    corner = heat.geometry.point_mm(-0.5, -0.5)
    far = heat.geometry.point_mm(heat.values.shape[0] - 0.5, heat.values.shape[1] - 0.5)
    inner, outer = answer.geometry.point_mm(0, 0), answer.geometry.point_mm(rows - 1, columns - 1)
    assert (corner[:2] <= inner[:2]).all() and (far[:2] >= outer[:2]).all()


def test_an_unknown_overlay_or_class_is_refused(predictor: Predictor, paths: list[Path]) -> None:
    with pytest.raises(ValueError, match="overlay: need one of"):
        predictor.predict_file(paths[0], overlays=("rainbow",))
    with pytest.raises(ValueError, match="label: need one of"):
        predictor.predict_file(paths[0], overlays=("class_activation",), target="fracture")


def test_a_site_cutoff_replaces_the_models(tiny_model: Path, paths: list[Path]) -> None:
    low = Predictor(load_model(tiny_model), cutoffs={"pneumonia": 0.0}).predict_file(paths[0])
    high = Predictor(load_model(tiny_model), cutoffs={"pneumonia": 1.0}).predict_file(paths[0])
    assert low.document()["operating_points"]["pneumonia"] == {"cutoff": 0.0, "positive": True}
    assert high.document()["operating_points"]["pneumonia"]["positive"] is False


def test_real_films_are_answered_and_others_warned_about_or_refused(predictor: Predictor,
                                                                    shared_data: Path) -> None:
    for path in sorted((shared_data / "dicom/chest").glob("*.dcm")):
        codes = {notice.code for notice in predictor.predict_file(path).notices}
        assert not codes & {"wrong_modality", "wrong_body_part", "wrong_view"}, path.name
    for path in sorted((shared_data / "dicom/other").glob("*.dcm")):
        try:
            codes = {notice.code for notice in predictor.predict_file(path).notices}
        except ImageError:
            continue
        assert codes & {"wrong_modality", "wrong_body_part"}, path.name


def test_samples_are_the_logits_whose_mean_softmax_is_the_answer(predictor: Predictor,
                                                                  paths: list[Path]) -> None:
    answer = predictor.predict_file(paths[1])
    assert answer.sampled.shape == (predictor.model.samples, 2)
    odds = np.exp(answer.sampled.astype(np.float64) / predictor.model.temperature)
    np.testing.assert_allclose((odds / odds.sum(1, keepdims=True)).mean(0), answer.probs, atol=1e-6)


def test_a_model_with_thresholds_shows_its_set_and_says_how_far_to_trust_it(predictor: Predictor,
                                                                              paths: list[Path]) -> None:
    rng = np.random.default_rng(0)
    sets = fit_conformal(rng.dirichlet((5, 5), 60), np.arange(60) % 2, [str(case) for case in range(60)],
                         predictor.model.task.classes, alpha=0.2)
    answer = Predictor(replace(predictor.model, conformal=sets)).predict_file(paths[0])
    told = answer.document()["conformal"]
    assert told["set"] == sets.names(answer.probs) and told["alpha"] == 0.2
    assert (told["method"], told["conditional"]) == ("lac", True)
    assert [each["code"] for each in told["warnings"]] == ["few_calibration_cases"]
    json.dumps(told, allow_nan=False)
    assert "conformal" not in predictor.predict_file(paths[0]).document()


def test_a_picture_unlike_the_training_images_brings_a_notice_and_an_ordinary_one_does_not(
        predictor: Predictor, paths: list[Path]) -> None:
    pooled = np.array([answer.pooled for _, answer in predictor.predict_files(
        (None, path, None) for path in paths)])
    rng = np.random.default_rng(0)
    around = pooled[0] + 0.01 * np.abs(pooled).max() * rng.normal(size=(80, pooled.shape[1]))
    careful = Predictor(replace(predictor.model, drift=fit_reference(around[:50], around[50:])))
    ordinary = careful.predict_file(paths[0])
    far = replace(careful.model.drift, mean=careful.model.drift.mean + np.float32(10 * np.abs(pooled).max()))
    stranger = Predictor(replace(predictor.model, drift=far)).predict_file(paths[0])
    assert "unlike_training" not in [notice.code for notice in ordinary.notices]
    assert "unlike_training" in [each["code"] for each in stranger.document()["warnings"]]
