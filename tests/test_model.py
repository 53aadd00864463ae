"""The model file: what goes in comes out, and every damaged part is named, never believed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from dcaf_monai.calibration import OperatingPoint
from dcaf_monai.conformal import fit_conformal
from dcaf_monai.drift import fit_reference
from dcaf_monai.model import (
    VERSION,
    Model,
    ModelError,
    describe_model,
    load_model,
    new_version,
    save_model,
    weights_sha256,
)
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.tasks import TASKS
from dcaf_monai.transforms import Preprocessing

PAIR = ("test_efficientnet", "test_resnet")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = DualCrossAttentionFusion(4, backbones=PAIR, width=8, heads=2, fused=16, hidden=12).eval()
    point = OperatingPoint(cutoff=.25, criterion="sensitivity", target=.9, achieved=.95, n=20)
    return Model(network, TASKS["oct"], Preprocessing(size=64, fit="stretch"), name="tiny",
                 version=new_version(network), samples=7, seed=3, temperature=1.25,
                 operating_points={"dme": point}, heat_scales={"gate": 1.0, "class_activation": .02},
                 provenance={"mode": "full", "seed": 3, "counts": {"train": {"cnv": 5}},
                             "validation_nll": .5, "remarks": ["dme: few."]})


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    return path, save_model(model, path)


def test_a_saved_model_comes_back_equal_in_every_part(model, file):
    path, saved = file
    loaded = load_model(path)
    assert loaded.sha256 == saved.sha256 and len(saved.sha256) == 64
    for part in ("task", "preprocessing", "name", "version", "samples", "seed", "temperature",
                 "operating_points", "heat_scales"):
        assert getattr(loaded, part) == getattr(model, part), part
    assert loaded.network.config == model.network.config and not loaded.network.training
    for key, value in model.provenance.items():
        assert json.loads(json.dumps(loaded.provenance[key])) == value
    images = torch.rand(2, 1, 64, 64)
    assert torch.equal(loaded.network(images), model.network(images))


def test_loading_leaves_the_caller_s_random_numbers_alone(file):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(file[0])
    assert torch.equal(torch.rand(3), expected)


def test_the_description_tells_the_document_without_the_network(model, file):
    found = describe_model(file[0])
    assert (found["version"], found["task"]["name"]) == (model.version, "oct")
    assert found["sha256"] == file[1].sha256


def test_a_version_sorts_by_time_and_names_its_weights(model):
    assert VERSION.fullmatch(model.version)
    assert model.version.endswith(weights_sha256(model.network.state_dict())[:8])


def test_the_digest_of_weights_sees_a_single_changed_bit_and_no_order(model):
    state = model.network.state_dict()
    backwards = dict(reversed(list(state.items())))
    changed = {**state, "head.5.bias": state["head.5.bias"] + 1e-6}
    assert weights_sha256(state) == weights_sha256(backwards) != weights_sha256(changed)


def test_no_half_file_is_left_when_writing_fails(model, tmp_path):
    taken = tmp_path / "taken.safetensors"
    taken.mkdir()
    (taken / "x").touch()
    with pytest.raises(ModelError, match="cannot write it"):
        save_model(model, taken)
    assert list(tmp_path.iterdir()) == [taken]


@pytest.mark.parametrize("change, message", [
    ({"temperature": 0.0}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"name": "../evil"}, "name"),
    ({"samples": 1}, "samples"),
    ({"task": TASKS["covid19"]}, "need a head of 3 classes for task covid19, got 4"),
    ({"operating_points": {"cow": OperatingPoint(cutoff=.5, criterion="sensitivity", target=.9, achieved=.9,
                                                 n=5)}}, "operating points of the task's classes, got cow"),
    ({"heat_scales": {"gate": 0.0}}, "positive heat scales"),
    ({"provenance": {"patient": "x"}}, "patient"),
    ({"provenance": {"validation": {"nll": float("inf")}}}, "finite JSON values in its document")])
def test_parts_that_do_not_fit_are_not_written(model, tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        save_model(replace(model, **change), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_numbers_are_not_written(tmp_path):
    network = DualCrossAttentionFusion(4, backbones=PAIR, width=8, heads=2, fused=16, hidden=12)
    with torch.no_grad():
        network.head[5].bias[2] = float("nan")
    with pytest.raises(ModelError, match=r"head\.5\.bias: need finite"):
        save_model(Model(network, TASKS["oct"], Preprocessing()), tmp_path / "m.safetensors")


def rewritten(data, path, *, tensors=None, document=None, raw=None):
    """The same file with some tensors or fields of its document changed."""
    length = int.from_bytes(data[:8], "little")
    text = json.loads(data[8:8 + length])["__metadata__"]["dcaf"]
    changed = {**json.loads(text), **(document or {})}
    metadata = {"dcaf": raw if raw is not None else json.dumps(changed)}
    path.write_bytes(save({**load(data), **(tensors or {})}, metadata=metadata))
    return path


@pytest.mark.parametrize("document, message", [
    ({"schema": 2}, "schema"),
    ({"schema": None}, "schema"),
    ({"surprise": 1}, "surprise"),
    ({"temperature": -1}, "temperature"),
    ({"samples": 10**9}, "samples"),
    ({"seed": -1}, "seed"),
    ({"version": "v" * 65}, "version"),
    ({"name": ""}, "name"),
    ({"network": {"classes": 4, "backbones": ["no_such_net", "test_resnet"]}}, "no_such_net"),
    ({"network": {"classes": 4, "backbones": list(PAIR), "width": 8, "heads": 3}}, "multiple of heads"),
    ({"network": {"classes": 4, "backbones": list(PAIR)}}, "need F32"),
    ({"network": {"classes": 5, "backbones": list(PAIR)}}, "need a head of 4 classes"),
    ({"task": {"name": "oct", "title": "t", "classes": ["one"]}}, "task.classes"),
    ({"preprocessing": {"size": 10**6}}, "preprocessing.size"),
    ({"operating_points": {"dme": {"cutoff": 2}}}, "operating_points.dme"),
    ({"heat_scales": {"gate": -1}}, "heat scales"),
    ({"provenance": {"counts": 3}}, "provenance.counts")])
def test_a_document_with_a_fault_is_refused_and_the_fault_named(file, tmp_path, document, message):
    path = rewritten(file[0].read_bytes(), tmp_path / "m.safetensors", document=document)
    with pytest.raises(ModelError, match=message):
        load_model(path)


@pytest.mark.parametrize("tensors, message", [
    ({"extra": torch.zeros(2)}, "1 unknown"),
    ({"head.5.bias": torch.zeros(5)}, r"head\.5\.bias: need F32 \[4\], got F32 \[5\]"),
    ({"head.5.bias": torch.zeros(4, dtype=torch.float16)}, r"head\.5\.bias: need F32 \[4\], got F16"),
    ({"head.5.bias": torch.tensor([0, 1, float("inf"), 0])}, r"head\.5\.bias: need finite")])
def test_tensors_of_another_network_are_refused(file, tmp_path, tensors, message):
    path = rewritten(file[0].read_bytes(), tmp_path / "m.safetensors", tensors=tensors)
    with pytest.raises(ModelError, match=message):
        load_model(path)


def test_a_missing_tensor_is_refused(file, tmp_path):
    data = file[0].read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = load(data)
    del tensors["head.5.bias"]
    path = tmp_path / "m.safetensors"
    path.write_bytes(save(tensors, metadata=json.loads(data[8:8 + length])["__metadata__"]))
    with pytest.raises(ModelError, match=r"1 missing and 0 unknown \(first: head\.5\.bias\)"):
        load_model(path)


@pytest.mark.parametrize("damage, message", [
    (lambda data: b"", "at most"),
    (lambda data: b"PK\x03\x04" + bytes(100), "something else or a part"),
    (lambda data: data[:200], "something else or a part"),
    (lambda data: data[:-4], "whole safetensors file"),
    (lambda data: data + b"x", "whole safetensors file"),
    (lambda data: (2**40).to_bytes(8, "little") + data[8:], "something else or a part"),
    (lambda data: data[:9] + b"!" + data[10:], "dcaf document"),
    (lambda data: save(load(data)), "dcaf document"),
    (lambda data: save(load(data), metadata={"dcaf": "[1"}), "Invalid JSON"),
    (lambda data: (9).to_bytes(8, "little") + b'{"a": 1} ' + bytes(30), "dcaf document"),
    (lambda data: (200_000).to_bytes(8, "little") + b"[" * 200_000, "dcaf document")])
def test_a_damaged_file_is_refused_with_a_sentence(file, tmp_path, damage, message):
    path = tmp_path / "m.safetensors"
    path.write_bytes(damage(file[0].read_bytes()))
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("m.safetensors: ")


def test_a_pickle_is_refused_and_never_run(tmp_path):
    class Mine:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = tmp_path / "m.safetensors"
    torch.save(Mine(), path)
    with pytest.raises(ModelError):
        load_model(path)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"none\.safetensors: cannot read it"):
        load_model(tmp_path / "none.safetensors")


@pytest.fixture(scope="module")
def careful(model):
    """The same model with conformal sets, a reference of ordinary features and a map that failed its test."""
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.ones(4), 40)
    sets = fit_conformal(probs, np.arange(40) % 4, [str(case) for case in range(40)], model.task.classes,
                         fit_groups=["known"])
    drift = fit_reference(rng.normal(size=(50, 32)), rng.normal(size=(20, 32)))
    return replace(model, conformal=sets, drift=drift, unfaithful=("gate",))


def test_conformal_sets_and_the_reference_come_back_as_they_went(careful, tmp_path):
    path = tmp_path / "careful.safetensors"
    save_model(careful, path)
    loaded = load_model(path)
    assert loaded.conformal == careful.conformal and loaded.unfaithful == ("gate",)
    pooled = np.random.default_rng(2).normal(size=(3, 32))
    np.testing.assert_array_equal(loaded.drift.distance(pooled), careful.drift.distance(pooled))
    assert loaded.drift.threshold == careful.drift.threshold
    assert describe_model(path)["conformal"]["alpha"] == 0.1


def test_a_file_without_them_has_none(file):
    loaded = load_model(file[0])
    assert (loaded.conformal, loaded.drift, loaded.unfaithful) == (None, None, ())


def test_conformal_sets_of_other_classes_and_unknown_maps_are_refused(careful, tmp_path):
    others = fit_conformal(np.full((4, 2), 0.5), np.arange(4) % 2, list("abcd"), ("left", "right"))
    for changes, message in (({"conformal": others}, "sets of the task's classes, got left, right"),
                             ({"unfaithful": ("aura",)}, "need kinds of heat among .*, got aura")):
        with pytest.raises(ModelError, match=message):
            save_model(replace(careful, **changes), tmp_path / "refused.safetensors")


@pytest.mark.parametrize("damage", ["missing", "shape", "features"])
def test_a_damaged_reference_is_named(careful, tmp_path, damage):
    path = tmp_path / "careful.safetensors"
    save_model(careful, path)
    data = path.read_bytes()
    tensors = load(data)
    metadata = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    if damage == "missing":
        del tensors["drift.axes"]
    elif damage == "shape":
        tensors["drift.scale"] = tensors["drift.scale"][1:].clone()
    else:
        tensors["drift.mean"] = torch.zeros(30)
        tensors["drift.axes"], tensors["drift.scale"] = torch.eye(30)[:4].clone(), torch.ones(4)
    path.write_bytes(save(tensors, metadata=metadata))
    with pytest.raises(ModelError, match="careful.safetensors: drift: need .* Train or copy the model"):
        load_model(path)
