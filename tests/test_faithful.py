"""The check of explanations: maps with known faults are told apart, and every figure is where it belongs."""

import copy
import dataclasses
import io
import json

import numpy as np
import PIL.Image
import pytest
import torch

from dcaf_monai import erasure, faithful, randomise
from dcaf_monai.explainer import centre_prior, on_input
from dcaf_monai.faithful_figures import faithfulness_png
from dcaf_monai.heat import KINDS
from dcaf_monai.metrics import group_weights
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.pointing import Lesions

SIZE = 64
TINY = {"backbones": ("test_efficientnet", "test_resnet"), "width": 8, "heads": 2, "fused": 12, "hidden": 10}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(7)
    return DualCrossAttentionFusion(3, **TINY).eval()


@pytest.fixture(scope="module")
def inputs():
    return torch.rand((6, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def lesions(inputs):
    return Lesions(inputs[:4], ((8, 8, 24, 24),) * 4, 1)


@pytest.fixture(scope="module")
def checked(network, inputs, lesions):
    masks = [np.arange(SIZE)[:, None] * np.ones(SIZE) < 16 if case else None for case in range(6)]
    return faithful.check_explanations(network, inputs, classes=[0, 1, 2, 0, 1, 2], groups=list("aabbcc"),
                                       masks=masks, lesions=lesions, draws=1)


def first_weights(network):
    return network.first.body.state_dict()[next(iter(network.first.body.state_dict()))]


def made_explainer(network, inputs, classes):
    """Maps with a known fault, and one that has none."""
    cells = inputs[:, 0].unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4)).numpy()
    seed = int(first_weights(network).double().abs().sum() * 1e6)
    learned = np.random.default_rng(seed).normal(size=(64, 64))
    blob = centre_prior(8)[None].repeat(len(inputs), axis=0)
    told = np.abs((cells - .5).reshape(-1, 64) @ learned).reshape(-1, 8, 8)
    return {"blob": blob, "picture": cells, "learned": told, "blank": np.ones_like(blob)}


def test_maps_that_do_not_tell_of_image_or_network_fail_and_others_pass(network, inputs):
    found = faithful.check_explanations(network, inputs, explainer=made_explainer).document(resamples=200)
    assert faithful.failed_kinds(found) == ("blob", "picture", "blank")
    why = {kind: each["why"] for kind, each in found["kinds"].items()}
    assert "do not tell of the image" in why["blob"] and "do not tell of the image" in why["blank"]
    assert "do not tell of what was learned" in why["picture"] and "correlation 1.00" in why["picture"]
    assert why["learned"].startswith("Passes")


def test_all_five_kinds_are_checked_and_depend_on_weights_where_they_should(checked):
    document = checked.document(resamples=100)
    assert tuple(document["kinds"]) == KINDS == checked.kinds
    for kind, found in document["kinds"].items():
        after_head = found["randomisation"]["rank"][0]["value"]
        assert (after_head == pytest.approx(1)) == (kind != "class_activation")


def test_an_ablated_network_is_checked_by_the_kinds_it_has(inputs):
    torch.manual_seed(0)
    plain = DualCrossAttentionFusion(2, **TINY, attention=False, refine=False).eval()
    assert faithful.check_explanations(plain, inputs[:2], draws=1).kinds == ("class_activation",)


def test_the_document_is_plain_json(checked):
    document = checked.document(resamples=100)
    again = json.loads(json.dumps(document, allow_nan=False))
    assert again == document
    assert (again["schema"], again["cases"], again["patients"]) == (faithful.SCHEMA, 6, 3)
    assert faithful.failed_kinds(again) == faithful.failed_kinds(document)
    assert again["stages"] == ["head", "level_2", "level_1", "second", "first"]


def test_the_figures_of_the_document_are_means_over_the_cases(checked):
    document = checked.document(resamples=100)
    gate, random = document["kinds"]["gate"], document["controls"]["random"]
    own, chance = checked.curves.areas("gate"), checked.curves.areas("random")
    for name in ("deletion", "insertion", "morf", "lerf", "road"):
        assert gate[name]["value"] == pytest.approx(own[name].mean())
        assert gate[name]["low"] <= gate[name]["value"] <= gate[name]["high"]
        assert random[name]["value"] == pytest.approx(chance[name].mean())
    gains = {name: gate["gains"][name]["over_random"]["value"] for name in ("deletion", "insertion", "road")}
    assert gains["deletion"] == pytest.approx((chance["deletion"] - own["deletion"]).mean())  # less is better
    assert gains["insertion"] == pytest.approx((own["insertion"] - chance["insertion"]).mean())
    assert gains["road"] == pytest.approx((own["road"] - chance["road"]).mean())
    points = [point["value"] for point in gate["curves"]["deletion"]]
    assert points == pytest.approx(checked.curves.deletion["gate"].mean(0))


def test_all_orders_begin_and_end_at_the_networks_own_answer(checked, network, inputs):
    with torch.no_grad():
        probs = torch.softmax(network(inputs), 1)[torch.arange(6), [0, 1, 2, 0, 1, 2]].numpy()
    assert set(checked.curves.deletion) == {*KINDS, "random", "centre"}
    for values in checked.curves.deletion.values():
        assert values[:, 0] == pytest.approx(probs, abs=1e-4)
    for values in checked.curves.insertion.values():
        assert values[:, -1] == pytest.approx(probs, abs=1e-4)


def test_the_most_probable_class_is_explained_unless_told_otherwise(network, inputs):
    found = faithful.check_explanations(network, inputs[:2], kinds=("gate",), draws=1, temperature=2.0)
    with torch.no_grad():
        top = torch.softmax(network(inputs[:2]) / 2, 1).amax(1).numpy()
    assert found.curves.deletion["gate"][:, 0] == pytest.approx(top, abs=1e-4)
    assert found.document(resamples=9)["temperature"] == 2.0


def test_energy_stands_beside_the_masks_area_and_without_masks_there_is_none(checked, network, inputs):
    energy = checked.document(resamples=100)["kinds"]["gate"]["energy"]
    assert energy["area"]["value"] == pytest.approx(.25)
    assert energy["inside"]["value"] == pytest.approx(np.nanmean(checked.energy["gate"]))
    assert np.isnan(checked.energy["gate"][0]) and np.isfinite(checked.energy["gate"][1:]).all()
    assert energy["gain_over_area"]["value"] == pytest.approx(energy["inside"]["value"] - .25)
    own = np.zeros((1, 8, 8), np.float32)
    own[0, 2:4, 5] = 1
    within = faithful.check_explanations(network, inputs[:1], masks=[on_input(own, SIZE)[0] > 0], draws=1,
                                         explainer=lambda *_: {"own": own})
    assert within.energy["own"] == pytest.approx([1])
    without = faithful.check_explanations(network, inputs[:1], draws=1, explainer=lambda *_: {"own": own})
    assert without.document(resamples=9)["kinds"]["own"]["energy"] is None


def test_the_pointing_game_stands_in_the_document_with_its_chance_level(checked, network, inputs):
    document = checked.document(resamples=100)
    assert document["phantoms"]["films"] == 4 and document["phantoms"]["tolerance_cells"] == .5
    with torch.no_grad():
        right = (network(inputs[:4]).argmax(1) == 1).float().mean()
    assert document["phantoms"]["recognised"] == pytest.approx(float(right))
    gate = document["kinds"]["gate"]["pointing"]
    assert gate["hits"]["value"] == pytest.approx(checked.pointing.hits["gate"].mean())
    assert gate["chance"] == pytest.approx((4 / 8) ** 2)  # centres 4, 12, 20 and 28 lie in 8 - 4 to 24 + 4
    assert document["controls"]["centre"]["pointing"]["hits"]["value"] == 0


def test_an_interval_is_over_patients_who_have_a_value():
    values = np.array([1., 3, np.nan, 5])
    weights = np.array([[1., 1, 1, 1], [2, 2, 0, 0], [0, 0, 2, 2], [0, 0, 0, 0]])
    found = faithful.mean_interval(values, weights, 3)
    assert found["value"] == 3  # (1 + 3 + 5) / 3
    assert (found["low"], found["high"]) == (pytest.approx(2.075), pytest.approx(4.925))  # between 2 and 5
    alone = faithful.mean_interval(values, group_weights(["a"] * 4, resamples=20, seed=0), 1)
    assert alone == {"value": 3, "low": None, "high": None}


def measured(*, rank=.2, ssim=.1, rank_between=.3, ssim_between=.3):
    """A `Faithfulness` of ten cases with given figures of the randomisation test, and flat curves."""
    def stages(last):
        return np.linspace(1, last, 5)[:, None] * np.ones(10)

    flat = {name: np.full((10, 3), .5) for name in ("own", "random", "centre")}
    similarity = randomise.Similarity(stages(rank), stages(rank), stages(ssim), np.full(10, rank_between),
                                      np.full(10, ssim_between))
    curves = erasure.Curves((0, .5, 1), (.1, .2, .3), *[flat] * 4)
    return faithful.Faithfulness(
        kinds=("own",), groups=tuple("abcdefghij"), curves=curves, similarities={"own": similarity},
        energy={}, mask_area=np.full(10, np.nan), pointing=None, settings={})


@pytest.mark.parametrize("figures, passes, words", [
    ({}, True, "maps change"),
    ({"rank": .5}, True, "limit 0.50"),
    ({"rank": .51}, False, "what was learned"),
    ({"ssim": .31}, False, "another image"),
    ({"ssim": .3}, True, "0.30 against 0.30"),
    ({"rank_between": .91, "ssim_between": .9}, False, "of the image"),
    ({"rank_between": np.nan, "ssim_between": np.nan}, True, "maps change")])
def test_the_verdict_turns_at_its_limits(figures, passes, words):
    found = measured(**figures).document(resamples=50)["kinds"]["own"]
    assert found["passes"] is passes and words in found["why"]
    assert found["why"].endswith("Against a random order: no different by deletion, insertion, ROAD.")


def test_the_sentence_tells_by_what_a_map_is_better_or_worse_than_chance():
    found = measured()
    better = {**found.curves.deletion, "own": np.full((10, 3), .2)}
    curves = erasure.Curves((0, .5, 1), (.1, .2, .3), better, better, *[found.curves.morf] * 2)
    document = dataclasses.replace(found, curves=curves).document(resamples=50)
    assert document["kinds"]["own"]["why"].endswith(
        "better by deletion; worse by insertion; no different by ROAD.")


def test_more_cases_than_the_limit_are_a_seeded_choice_and_progress_is_told(network, inputs):
    told = []
    names = list("uvwxyz")

    def chosen(seed):
        found = faithful.check_explanations(network, inputs, groups=names, kinds=("gate",), limit=3, draws=1,
                                            seed=seed, progress=lambda *stage: told.append(stage))
        return found.groups

    first = chosen(0)
    assert len(first) == 3 and set(first) < set(names) and list(first) == sorted(first)
    assert {chosen(seed) for seed in (1, 2, 3)} != {first}
    assert told[:8] == [("randomisation", step, 5) for step in range(1, 6)] + [
        ("erasure", case, 3) for case in range(1, 4)]


def test_the_same_seed_gives_the_same_document_and_leaves_the_network_alone(network, inputs):
    before = copy.deepcopy(network.state_dict())
    one, two = (json.dumps(faithful.check_explanations(network, inputs[:2], kinds=("spatial",), draws=1,
                                                       ).document(resamples=20)) for _ in range(2))
    assert one == two
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_figure_is_a_picture_with_a_column_a_kind(checked):
    document = checked.document(resamples=50)
    five = PIL.Image.open(io.BytesIO(faithfulness_png(document, dpi=50)))
    one = {**document, "kinds": {"gate": document["kinds"]["gate"]}}
    single = PIL.Image.open(io.BytesIO(faithfulness_png(one, dpi=50)))
    assert five.format == "PNG" and five.size[1] == single.size[1]
    assert five.size[0] - single.size[0] == pytest.approx(4 * 2.4 * 50, abs=1)
    assert len(np.unique(np.asarray(five.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_a_figure_of_one_patient_is_drawn_without_bands(network, inputs):
    found = faithful.check_explanations(network, inputs[:2], groups=["a", "a"], kinds=("gate",), draws=1)
    document = found.document(resamples=9)
    assert document["kinds"]["gate"]["deletion"]["low"] is None
    assert document["kinds"]["gate"]["randomisation"]["between_images"]["ssim"]["value"] is None
    assert faithfulness_png(document, dpi=40).startswith(b"\x89PNG")


@pytest.mark.parametrize("change, message", [
    ({"inputs": torch.zeros(2, SIZE, SIZE)}, "inputs"),
    ({"inputs": torch.zeros(0, 1, SIZE, SIZE)}, "at least one"),
    ({"inputs": torch.zeros(2, 1, SIZE, 32)}, "size"), ({"classes": [0]}, "classes: need one a case"),
    ({"classes": [0, 3]}, "indices 0 to 2"), ({"groups": ["a"] * 3}, "groups"), ({"masks": [None]}, "masks"),
    ({"masks": [None, np.ones((5, 7))]}, r"got \(5, 7\)"), ({"kinds": ("rainbow",)}, "rainbow"),
    ({"limit": 0}, "limit"), ({"draws": 0}, "draws")])
def test_what_cannot_be_checked_is_refused(change, message, network):
    fits = {"inputs": torch.zeros(2, 1, SIZE, SIZE), **change}
    with pytest.raises(ValueError, match=message):
        faithful.check_explanations(network, fits.pop("inputs"), **fits)


def test_a_network_in_training_and_a_foreign_document_are_refused(network, inputs):
    with pytest.raises(ValueError, match="eval mode"):
        faithful.check_explanations(copy.deepcopy(network).train(), inputs)
    with pytest.raises(ValueError, match="dcaf-faithfulness/1, got 'dcaf-prediction/1'"):
        faithful.failed_kinds({"schema": "dcaf-prediction/1"})
    with pytest.raises(ValueError, match="at least one kind"):
        faithfulness_png({"kinds": {}})
