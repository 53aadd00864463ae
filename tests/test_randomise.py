"""Cascading randomisation: what is untrained when, and similarities against scipy and torchmetrics."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torchmetrics.functional.image import structural_similarity_index_measure

from dcaf_monai import randomise
from dcaf_monai.explainer import heat_explainer
from dcaf_monai.network import DualCrossAttentionFusion


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    built = DualCrossAttentionFusion(3, backbones=("test_efficientnet", "test_resnet"), width=8, heads=2,
                                     fused=12, hidden=10)
    with torch.no_grad():  # what training would have changed
        for module in built.modules():
            if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                module.running_mean += .5
                module.weight *= 1.3
    return built.eval()


@pytest.fixture(scope="module")
def inputs():
    return torch.rand((5, 1, 64, 64), generator=torch.Generator().manual_seed(1))


def weights(network, stage):
    return torch.cat([each.detach().flatten() for each in getattr(network, stage).parameters()])


def test_rank_correlation_is_that_of_scipy_with_ties():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, (2, 4, 5, 7)).astype(float)
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(one, other, strict=True)]
    assert randomise.rank_correlation(one, other) == pytest.approx(expected)
    assert randomise.rank_correlation(one, -one**3) == pytest.approx([-1] * 4)


def test_a_blank_map_is_like_another_blank_one_and_like_nothing_else():
    blank, other = np.full((1, 5, 7), 3.), np.random.default_rng(0).random((1, 5, 7))
    assert randomise.rank_correlation(blank, blank / 2).tolist() == [1]
    assert randomise.rank_correlation(blank, other).tolist() == [0]
    assert randomise.structural_similarity(blank, blank / 2).tolist() == pytest.approx([1])
    assert randomise.structural_similarity(blank, other)[0] < .1


def test_structural_similarity_is_that_of_torchmetrics_inside_the_map():
    rng = np.random.default_rng(1)
    one, other = rng.random((2, 3, 12, 15))
    for maps in (one, other):  # on the range 0 to 1 already, so that scaling does nothing
        maps.reshape(3, -1)[:, 0], maps.reshape(3, -1)[:, 1] = 0, 1
    _, full = structural_similarity_index_measure(
        torch.from_numpy(one)[:, None], torch.from_numpy(other)[:, None], gaussian_kernel=False,
        kernel_size=7, data_range=1.0, return_full_image=True, reduction="none")
    expected = full[:, 0, 3:-3, 3:-3].mean((1, 2)).numpy()
    assert randomise.structural_similarity(one, other) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (3, 9), (6, 8), (12, 14)])
def test_a_map_is_like_itself_however_it_is_scaled_and_however_small(shape):
    maps = np.random.default_rng(2).random((2, *shape))
    assert randomise.structural_similarity(maps, 7 * maps + 3) == pytest.approx([1, 1])
    assert (randomise.structural_similarity(maps, 1 - maps) < 0).all()


def test_each_stage_goes_after_those_above_it_and_the_network_itself_stays(network, inputs):
    before = copy.deepcopy(network.state_dict())
    state = torch.random.get_rng_state()
    gone = []
    for stage, untrained in randomise.cascade(network, inputs, seed=4):
        gone.append(stage)
        for each in randomise.STAGES:
            same = torch.equal(weights(untrained, each), weights(network, each))
            assert same == (each not in gone), (stage, each)
        assert not any(module.training for module in untrained.modules())
    assert gone == list(randomise.STAGES)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_untrained_stage_has_statistics_of_the_inputs_and_a_trained_one_keeps_its_own(network, inputs):
    stages = randomise.cascade(network, inputs, seed=4)
    untrained = next(twin for stage, twin in stages if stage == "level_1")
    seen = []
    untrained.level_1.join.norm.register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.no_grad():
        untrained(inputs)
    assert seen[0].mean(0) == pytest.approx(np.zeros(12), abs=1e-4)
    assert seen[0].var(0) == pytest.approx(np.ones(12), abs=.02)
    trained = {name: value for name, value in network.first.state_dict().items() if "running" in name}
    assert trained and all(torch.equal(untrained.first.state_dict()[name], value)
                           for name, value in trained.items())


def test_the_same_seed_makes_the_same_untrained_network(network, inputs):
    def answer(seed):
        *_, (_, untrained) = randomise.cascade(network, inputs, seed=seed)
        with torch.no_grad():
            return untrained(inputs)

    assert torch.equal(answer(1), answer(1))
    assert not torch.allclose(answer(1), answer(2), atol=1e-3)


def test_maps_of_one_patient_are_not_maps_of_another_image():
    maps = np.array([[[0., 1, 2, 3]], [[0, 1, 2, 3]], [[3, 2, 1, 0]]])
    apart = randomise.between(maps, ["a", "b", "c"], randomise.rank_correlation)
    assert apart == pytest.approx([0, 0, -1])  # (1 - 1) / 2, (1 - 1) / 2, (-1 - 1) / 2
    together = randomise.between(maps, ["a", "a", "c"], randomise.rank_correlation)
    assert together == pytest.approx([-1, -1, -1])
    assert np.isnan(randomise.between(maps, ["a"] * 3, randomise.rank_correlation)).all()
    assert np.isnan(randomise.between(maps[:1], ["a"], randomise.rank_correlation)).all()


def test_a_map_changes_with_the_stages_it_depends_on_and_not_before(network, inputs):
    told = []
    kinds = ("class_activation", "attention_first", "spatial")
    found = randomise.similarities(network, inputs, classes=[0, 1, 2, 0, 1], explainer=heat_explainer(kinds),
                                   groups=list("abcde"), draws=2,
                                   progress=lambda done, total: told.append((done, total)))
    assert tuple(found) == kinds and found["spatial"].rank.shape == (5, 5)
    for kind in ("attention_first", "spatial"):  # they lie before the head
        assert found[kind].rank[0] == pytest.approx(np.ones(5)) and found[kind].ssim[0] == pytest.approx(1)
        assert found[kind].rank[-1].mean() < .95
    assert found["class_activation"].rank[0].mean() < .95
    assert (found["class_activation"].rank >= np.abs(found["class_activation"].signed_rank) - 1e-12).all()
    assert told == [(step, 10) for step in range(1, 11)]


def test_a_test_without_an_untrained_network_is_refused(network, inputs):
    with pytest.raises(ValueError, match="draws"):
        randomise.similarities(network, inputs, classes=[0] * 5, explainer=heat_explainer(("gate",)),
                               groups=list("abcde"), draws=0)
