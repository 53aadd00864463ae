"""Rounds on record, the law through them, and advice that never takes a lack of evidence for evidence."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from dcaf_monai.cohort import Case, read_cohort
from dcaf_monai.model import Model, save_model
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.phantom import write_films
from dcaf_monai.progress import BASIS, Gain, draw_progress, fit_law, judge_progress
from dcaf_monai.publish import shelf
from dcaf_monai.rounds import FILE, Figure, Round, measure_rounds, record_round, rounds
from dcaf_monai.tasks import TASKS
from dcaf_monai.transforms import Preprocessing

CASES = [Case(uid, Path(uid), label, "val", group) for uid, label, group in (
    ("b.png", "pneumonia", "p1"), ("a.png", "normal", "p2"), ("c.png", "normal", "p1"))]
PROBS = np.array([[.2, .8], [.5, .5], [.25, .75]])


@pytest.fixture(scope="module")
def base() -> Model:
    torch.manual_seed(0)
    network = DualCrossAttentionFusion(2, backbones=("test_efficientnet", "test_resnet"), width=8, heads=2,
                                       fused=16, hidden=12).eval()
    return Model(network, TASKS["pneumonia"], Preprocessing(size=64), samples=3)


def made(base: Model, number: int, labels: int = 40, nll: float = .5, split: str = "aa") -> Model:
    figures = {"nll": {"value": nll, "low": nll - .1, "high": nll + .1},
               "auroc": {"value": .9, "low": .8, "high": .95}}
    return replace(base, version=f"2025010{number}T000000Z-{number:08x}", provenance={
        "mode": "frozen", "validation_nll": nll, "validation_sha256": split, "validation": figures,
        "counts": {"train": {"normal": labels - 3, "pneumonia": 3}, "val": {"normal": 9, "pneumonia": 9}}})


def a_project(losses_of, labels=(50, 100, 200, 400, 800), patients=400, **more) -> list[Round]:
    """Rounds whose images' losses ``losses_of(labels, rng, images)`` gives, three images a patient."""
    member = tuple(np.repeat(np.arange(patients), 3).tolist())
    found = []
    for number, count in enumerate(labels, start=1):
        losses = losses_of(count, np.random.default_rng(number), len(member))
        found.append(Round(**{"version": f"v{number}", "labels": count, "published": True, "mode": "frozen",
                              "validation_sha256": "aa", "nll": Figure(value=float(np.mean(losses))),
                              "judged_sha256": "bb", "losses": tuple(losses.tolist()), "patients": member,
                              **more}))
    return found


def flat(labels, rng, images):
    """Learnt out: hard and easy images, and a little luck in each round."""
    return np.abs(np.random.default_rng(99).normal(.3, .2, images) + rng.normal(0, .02, images))


def restless(labels, rng, images):
    return np.abs(flat(labels, rng, images) + rng.normal(0, .3, images))


def falling(labels, rng, images):
    return flat(labels, rng, images) + 2 * labels ** -.5


def test_a_round_keeps_the_loss_of_every_image_in_the_order_of_names(base, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    recorded = record_round(path, made(base, 1), probs=PROBS, cases=CASES, published=False)
    assert recorded.losses == pytest.approx([-math.log(.5), -math.log(.8), -math.log(.25)])
    assert recorded.patients == (0, 1, 1)
    assert recorded.labels == 40 and recorded.nll == Figure(value=.5, low=.4, high=.6)
    again = record_round(path, made(base, 2), probs=PROBS[::-1], cases=CASES[::-1], published=True)
    assert again.losses == recorded.losses and again.pairs_with(recorded)
    assert rounds(path) == [recorded, again]
    text = (shelf(path) / FILE).read_text()
    assert len(text.splitlines()) == 2 and ".png" not in text and "p1" not in text


def test_rounds_of_other_images_or_without_losses_do_not_pair(base, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    one = record_round(path, made(base, 1), probs=PROBS, cases=CASES)
    other = record_round(path, made(base, 2), probs=PROBS[:2], cases=CASES[:2])
    assert not one.pairs_with(other)
    assert not one.model_copy(update={"losses": (), "patients": ()}).pairs_with(one)


def test_a_line_that_a_crash_tore_is_passed_over_and_swallows_nothing(base, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    record_round(path, made(base, 1), probs=PROBS, cases=CASES)
    with (shelf(path) / FILE).open("a") as file:
        file.write('{"version": "2025')
    record_round(path, made(base, 2), probs=PROBS, cases=CASES)
    assert [entry.version[:8] for entry in rounds(path)] == ["20250101", "20250102"]


def test_models_on_the_shelf_are_rounds_without_losses_until_they_are_measured(base, tmp_path) -> None:
    write_films(tmp_path / "films", 24, seed=5, shapes=((70, 64),))
    cohort = read_cohort(tmp_path / "films" / "labels.csv", TASKS["pneumonia"])
    path = tmp_path / "model.safetensors"
    for number, split in ((1, cohort.validation_sha256), (2, "other"), (3, cohort.validation_sha256)):
        model = made(base, number, labels=10 * number, nll=.7, split=split)
        save_model(model, shelf(path) / f"{model.version}.safetensors")
    (shelf(path) / "notes.safetensors").write_text("not a version")
    assert [(entry.labels, entry.losses, entry.published) for entry in rounds(path)] == [
        (10, (), True), (20, (), True), (30, (), True)]
    record_round(path, made(base, 4, labels=35), probs=PROBS, cases=CASES, published=False)
    told = []
    assert measure_rounds(path, cohort, notify=lambda *where: told.append(where)) == 2
    assert told == [(1, 2), (2, 2)] and measure_rounds(path, cohort) == 0
    first, other, third, refused = rounds(path)
    assert first.pairs_with(third) and first.losses == third.losses  # one and the same network
    assert len(first.losses) == len(cohort.split("val")) and not other.losses
    assert (first.published, first.nll.value, refused.published) == (True, .7, False)


def test_answers_that_do_not_fit_the_cases_are_refused(base, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"probs: need \(3, 2\)"):
        record_round(tmp_path / "m.safetensors", made(base, 1), probs=PROBS[:2], cases=CASES)
    with pytest.raises(ValueError, match="each with its patient"):
        Round(version="v", labels=1, nll=Figure(value=1), losses=(1.0,), patients=())


def test_the_law_is_found_again_from_points_on_it() -> None:
    labels = [30, 60, 150, 400, 1000]
    law = fit_law(labels, [.2 + 3 * count ** -.7 for count in labels])
    assert (law.floor, law.scale, law.exponent) == pytest.approx((.2, 3, .7), rel=1e-3)
    assert law.loss(2000) == pytest.approx(.2 + 3 * 2000 ** -.7, rel=1e-4)


def test_the_law_is_the_one_that_scipys_own_search_finds() -> None:
    labels = np.array([25.0, 50, 100, 200, 400, 800])
    losses = .1 + labels ** -.4 + np.random.default_rng(1).normal(0, .01, 6)
    (floor, scale, exponent), _ = curve_fit(lambda n, a, b, c: a + b * n ** -c, labels, losses,
                                            p0=(.1, 1, .5), bounds=([0, 0, .05], [1, 20, 3]))
    law = fit_law(labels.tolist(), losses.tolist())
    assert (law.floor, law.scale, law.exponent) == pytest.approx((floor, scale, exponent), rel=.02)


def test_three_numbers_of_labels_give_no_law_and_rising_losses_a_flat_one() -> None:
    assert fit_law([10, 20, 20, 40], [.9, .8, .8, .7]) is None
    law = fit_law([10, 20, 40, 80], [.5, .6, .7, .8])
    assert law.loss(80) - law.loss(160) == pytest.approx(0, abs=1e-9)
    assert law.loss(80) == pytest.approx(.65)


def test_a_learnt_out_project_may_stop_and_the_reasons_are_in_words() -> None:
    found = judge_progress(a_project(flat))
    assert found.answer == "more labels are unlikely to help"
    assert found.recent.low < 0 < found.recent.high < found.margin
    assert found.doubling.high < found.margin
    for word in ("from 100 to 800 training labels", "twice as many", "0.02", "Rare findings"):
        assert word in found.why


def test_a_falling_curve_goes_on() -> None:
    found = judge_progress(a_project(falling))
    assert found.answer == "go on" and "still paying" in found.why
    assert found.recent.value == pytest.approx(2 * 100 ** -.5 - 2 * 800 ** -.5, abs=.01)
    assert found.doubling.value == pytest.approx(2 * 800 ** -.5 - 2 * 1600 ** -.5, abs=.01)
    assert found.doubling.low < found.doubling.value < found.doubling.high


def test_no_gain_seen_yet_a_curve_that_promises_one_goes_on() -> None:
    rounds = a_project(falling, labels=(50, 400, 500, 600, 700), patients=8)
    wide = [entry.model_copy(update={"losses": (), "patients": ()}) for entry in rounds]
    found = judge_progress(wide, margin=.005)
    assert found.answer == "go on" and "not flat yet" in found.why and found.recent.low is None


@pytest.mark.parametrize(("project", "reason"), [
    (a_project(flat, labels=(50, 100, 200)), "different numbers of labels on this validation split: 3"),
    (a_project(flat, labels=(50, 100, 100, 100)), "validation split: 2"),
    ([], "validation split: 0"),
    (a_project(lambda *_: np.full(87, .3), patients=29), "29 patients, is too small to rule out"),
    (a_project(restless, patients=40), "40 patients, is too small to rule out"),
    ([entry.model_copy(update={"losses": (), "patients": (), "judged_sha256": ""})
      for entry in a_project(flat)], "without the losses of the single images"),
    (a_project(lambda labels, rng, images: flat(labels, rng, images) + labels / 4000), "made it worse")])
def test_without_evidence_it_is_too_early_to_say(project, reason) -> None:
    found = judge_progress(project)
    assert found.answer == "too early to say" and reason in found.why


def test_the_gain_pairs_images_and_its_interval_is_that_of_the_difference() -> None:
    """Half the patients gain .3 and half lose .1: the mean is .1 however different the images are."""
    def losses(labels, rng, images):
        hard = np.random.default_rng(5).exponential(2, images)
        return hard + 1 - (labels == 800) * np.where(np.arange(images) // 3 % 2, .3, -.1)
    found = judge_progress(a_project(losses, patients=100)).recent
    assert found.value == pytest.approx(.1)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * .2 / math.sqrt(100), rel=.1)


def test_rounds_on_another_validation_split_are_left_out_and_said_so() -> None:
    old = a_project(falling, labels=(10, 20), validation_sha256="cc")
    found = judge_progress([*old, *a_project(flat)])
    assert [point.labels for point in found.points] == [50, 100, 200, 400, 800]
    assert [notice.code for notice in found.notices] == ["other_validation"]
    assert "2 rounds" in found.notices[0].message


def test_a_curve_of_survivors_and_a_mixed_one_are_called_so() -> None:
    bare = [entry.model_copy(update={"losses": (), "patients": ()}) for entry in a_project(flat)]
    assert [notice.code for notice in judge_progress(bare).notices] == ["refused_unknown"]
    mixed = [*a_project(flat)[:4], a_project(flat)[4].model_copy(update={"mode": "full"})]
    assert [notice.code for notice in judge_progress(mixed).notices] == ["mixed_modes"]


def test_the_document_is_plain_json_without_losses() -> None:
    told = json.loads(json.dumps(judge_progress(a_project(falling)).document(), allow_nan=False))
    assert told["basis"] == BASIS and "never on the training labels" in BASIS
    assert [point["labels"] for point in told["points"]] == [50, 100, 200, 400, 800]
    assert set(told["points"][0]) == {"version", "labels", "published", "mode", "nll", "auroc"}
    assert set(told["law"]) == {"floor", "scale", "exponent"}
    empty = judge_progress([]).document()
    assert empty["law"] is None and empty["points"] == [] and empty["recent_gain"] is None


def test_the_figure_is_a_picture_with_and_without_points() -> None:
    for project in ([], a_project(falling)):
        assert draw_progress(judge_progress(project)).startswith(b"\x89PNG")


def test_a_rule_that_could_not_be_honest_is_refused() -> None:
    with pytest.raises(ValueError, match="steps: need at least 3, got 2"):
        judge_progress([], steps=2)
    with pytest.raises(ValueError, match="margin: need a gain above 0"):
        judge_progress([], margin=0)
    assert str(Gain(.1)) == "0.1000" and str(Gain(.1, 0, .2)) == "0.1000 (95 % interval 0.0000 to 0.2000)"
