"""The gate, the shelf of versions, and that no reader ever sees half a model."""

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from dcaf_monai.model import Model, ModelError, load_model, save_model
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.publish import RECORD, history, publish, publish_version, rollback, shelf
from dcaf_monai.tasks import TASKS
from dcaf_monai.transforms import Preprocessing


@pytest.fixture(scope="module")
def base():
    network = DualCrossAttentionFusion(2, backbones=("test_efficientnet", "test_resnet"), width=8, heads=2,
                                       fused=16, hidden=12)
    return Model(network, TASKS["pneumonia"], Preprocessing(size=64))


def candidate(base, number, nll=.5):
    """A model of its own version and temperature."""
    return replace(base, version=f"2025010{number}T000000Z-{number:08x}", temperature=float(number),
                   provenance={"validation_nll": nll, "mode": "full", "created": f"day {number}"})


def test_the_first_model_is_published_and_put_on_the_shelf(base, tmp_path):
    path = tmp_path / "model.safetensors"
    verdict = publish(candidate(base, 1), path, candidate_nll=.7)
    assert verdict.published and verdict.published_nll is None and "first model" in verdict.reason
    assert load_model(path).temperature == 1
    assert path.read_bytes() == (shelf(path) / "20250101T000000Z-00000001.safetensors").read_bytes()


@pytest.mark.parametrize("nll, published", [(.4, True), (.5, False), (.6, False), (float("nan"), False)])
def test_only_a_smaller_likelihood_loss_passes_the_gate(base, tmp_path, nll, published):
    path = tmp_path / "model.safetensors"
    publish(candidate(base, 1), path, candidate_nll=.5)
    seen = []
    verdict = publish(candidate(base, 2), path, candidate_nll=nll,
                      published_nll=lambda model: seen.append(model.temperature) or .5)
    assert seen == [1.0]  # the model that stood there was the one measured
    assert (verdict.published, verdict.published_nll) == (published, .5)
    assert load_model(path).temperature == (2 if published else 1)
    assert len(history(path)) == (2 if published else 1)
    assert "on the same images" in verdict.reason


def test_history_is_newest_first_and_knows_which_one_stands(base, tmp_path):
    path = tmp_path / "model.safetensors"
    for number, nll in ((1, .5), (2, .4), (3, .3)):
        publish(candidate(base, number, nll), path, candidate_nll=nll, published_nll=lambda model: 9.0)
    (shelf(path) / "notes.safetensors").write_text("not a version")
    found = history(path)
    assert [(entry.created, entry.validation_nll, entry.published) for entry in found] == [
        ("day 3", .3, True), ("day 2", .4, False), ("day 1", .5, False)]
    assert found[0].sha256 == load_model(path).sha256


def test_rollback_goes_back_one_version_at_a_time_and_then_says_so(base, tmp_path):
    path = tmp_path / "model.safetensors"
    for number in (1, 2, 3):
        publish(candidate(base, number), path, candidate_nll=.5, published_nll=lambda model: 9.0)
    for number in (2, 1):
        assert rollback(path) == candidate(base, number).version == load_model(path).version
    with pytest.raises(ValueError, match="need an earlier version to go back to"):
        rollback(path)
    assert publish_version(path, candidate(base, 3).version) == load_model(path).version
    assert len(history(path)) == 3


def test_rollback_follows_the_order_of_publishing_and_not_of_birth(base, tmp_path):
    path = tmp_path / "model.safetensors"
    one, two, three = (candidate(base, number) for number in (1, 2, 3))
    for model in (one, three, two):  # born earlier, trained longer
        publish(model, path, candidate_nll=.5, published_nll=lambda model: 9.0)
    publish_version(path, one.version)
    assert [rollback(path) for _ in range(3)] == [two.version, three.version, one.version]
    with pytest.raises(ValueError, match="need an earlier version"):
        rollback(path)


def test_a_shelf_without_a_record_goes_back_by_birth(base, tmp_path):
    path = tmp_path / "model.safetensors"
    for number in (1, 2, 3):
        publish(candidate(base, number), path, candidate_nll=.5, published_nll=lambda model: 9.0)
    (shelf(path) / RECORD).unlink()
    assert rollback(path) == candidate(base, 2).version


def test_the_second_of_two_publishers_is_compared_with_the_first(base, tmp_path):
    path = tmp_path / "model.safetensors"
    publish(candidate(base, 1), path, candidate_nll=.5)
    seen = []

    def judged(model):
        seen.append(model.version)
        time.sleep(.3)
        return {1: .5, 2: .4, 3: .3}[model.temperature]

    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda n: publish(candidate(base, n), path, candidate_nll={2: .4, 3: .3}[n],
                                                   published_nll=judged), (2, 3)))
    assert load_model(path).temperature == 3 and len(set(seen)) == 2
    both = seen[1] == candidate(base, 2).version  # the better one came second
    assert [verdict.published for verdict in verdicts] == [both, True]


def test_a_version_the_shelf_does_not_have_is_refused(base, tmp_path):
    path = tmp_path / "model.safetensors"
    publish(candidate(base, 1), path, candidate_nll=.5)
    with pytest.raises(ValueError, match="version: need one of 20250101T000000Z-00000001"):
        publish_version(path, "../../etc")


def test_a_damaged_version_is_not_published(base, tmp_path):
    path = tmp_path / "model.safetensors"
    for number in (1, 2):
        publish(candidate(base, number), path, candidate_nll=.5, published_nll=lambda model: 9.0)
    kept = shelf(path) / f"{candidate(base, 1).version}.safetensors"
    kept.write_bytes(kept.read_bytes()[:-8])
    with pytest.raises(ModelError, match="whole safetensors file"):
        publish_version(path, candidate(base, 1).version)
    assert load_model(path).temperature == 2


def test_a_model_copied_in_by_hand_is_kept_before_it_is_replaced(base, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(candidate(base, 1), path)
    publish(candidate(base, 2), path, candidate_nll=.1, published_nll=lambda model: .5)
    assert rollback(path) == candidate(base, 1).version


def test_a_model_of_another_task_is_not_replaced(base, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(replace(candidate(base, 1), task=TASKS["tuberculosis"]), path)
    with pytest.raises(ModelError, match="need a model of task pneumonia .* got one of task tub"):
        publish(candidate(base, 2), path, candidate_nll=.1, published_nll=lambda model: .5)


def test_a_candidate_without_a_version_is_refused(base, tmp_path):
    with pytest.raises(ValueError, match="need a version from new_version"):
        publish(base, tmp_path / "model.safetensors", candidate_nll=.5)


def test_a_gate_without_the_other_figure_is_refused(base, tmp_path):
    path = tmp_path / "model.safetensors"
    publish(candidate(base, 1), path, candidate_nll=.5)
    with pytest.raises(ValueError, match="published_nll: need it"):
        publish(candidate(base, 2), path, candidate_nll=.4)


def read_for_ever(path, stop, answers):
    """A server's view: load again and again; any failure is an answer too."""
    torch.set_num_threads(1)
    versions, failures = set(), []
    while not stop.is_set() or not versions:
        try:
            versions.add(load_model(path).version)
        except ModelError as error:
            failures.append(str(error))
    answers.put((versions, failures))


def test_a_process_that_reads_all_the_while_never_sees_half_a_model(base, tmp_path):
    path = tmp_path / "model.safetensors"
    for number in (1, 2):
        publish(candidate(base, number), path, candidate_nll=.5, published_nll=lambda model: 9.0)
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    stop, answers = context.Event(), context.Queue()
    reader = context.Process(target=read_for_ever, args=(path, stop, answers), daemon=True)
    reader.start()
    until = time.monotonic() + 3
    while time.monotonic() < until:
        for number in (1, 2):
            publish_version(path, candidate(base, number).version)
    stop.set()
    versions, failures = answers.get(timeout=60)
    reader.join(60)
    assert failures == []
    assert versions == {candidate(base, 1).version, candidate(base, 2).version}
