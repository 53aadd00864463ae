import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.visualize import GradCAM
from torch import nn

from dcaf_monai.blocks import CrossAttention, Project, Refine, map_to_tokens, tokens_to_map
from dcaf_monai.heat import KINDS, heats, kinds_of
from dcaf_monai.image import Geometry, Placement
from dcaf_monai.network import DualCrossAttentionFusion, Features, NetworkConfig, optimised
from dcaf_monai.trunks import Trunk

TINY = {"backbones": ("test_efficientnet", "test_resnet"), "width": 16, "heads": 2, "fused": 32, "hidden": 8}


def tiny(**changes) -> DualCrossAttentionFusion:
    torch.manual_seed(0)
    network = DualCrossAttentionFusion(3, **{**TINY, **changes})
    network.train()
    with torch.no_grad():
        network(torch.rand(4, 1, 64, 96))  # batch norms leave their start values
    return network.eval()


@pytest.fixture(scope="module")
def network() -> DualCrossAttentionFusion:
    return tiny()


@pytest.fixture(scope="module")
def features(network) -> Features:
    torch.manual_seed(1)
    with torch.no_grad():
        return network.trunks(torch.rand(2, 1, 80, 112))  # maps of 10x14 and 5x7


def test_the_default_pair_has_the_size_and_the_maps_of_the_specification():
    default = DualCrossAttentionFusion(3).eval()
    assert default.config.backbones == ("efficientnet_b4", "resnet34")
    parameters = sum(parameter.numel() for parameter in default.parameters())
    assert parameters / 1e6 == pytest.approx(10.39, abs=0.005)
    with torch.no_grad():
        for side, eighth in ((224, 28), (380, 48)):
            found = default.trunks(torch.zeros(1, 1, side, side))
            half = eighth // 2
            assert found.first_8.shape == (1, 56, eighth, eighth)
            assert found.first_16.shape == (1, 112, half, half)
            assert found.second_8.shape == (1, 128, eighth, eighth)
            assert found.second_16.shape == (1, 256, half, half)
        fused = default.fuse(found)
        assert [tuple(level.shape) for level in fused.maps] == [(1, 256, 48, 48), (1, 256, 24, 24)]
        assert fused.pooled.shape == (1, 512)
        assert default.head(fused.pooled).shape == (1, 3)


def test_nothing_behind_the_cut_is_kept():
    first, second = Trunk("efficientnet_b4"), Trunk("resnet34")
    assert len(first.body.blocks) == 4
    assert not any(key.startswith(("layer4", "fc")) for key in second.body.state_dict())


@pytest.mark.parametrize(("name", "channels"), [
    ("tf_efficientnet_lite0", (40, 80)), ("resnet50", (512, 1024)), ("mobilenetv3_small_050", (16, 24)),
    ("densenet121", (512, 1024)), ("convnext_atto", (80, 160))])
def test_other_families_are_cut_at_strides_8_and_16(name, channels):
    trunk = Trunk(name).eval()
    with torch.no_grad():
        eighth, sixteenth = trunk(torch.zeros(1, 3, 64, 96))
    assert (trunk.channels, eighth.shape[2:], sixteenth.shape[2:]) == (channels, (8, 12), (4, 6))


@pytest.mark.parametrize(("name", "message"), [
    ("no_such_net", "backbone: need the name of a timm model, got 'no_such_net'"),
    ("vit_tiny_patch16_224", "backbone vit_tiny_patch16_224: need features at strides 8 and 16")])
def test_a_backbone_without_those_features_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        Trunk(name)


def test_each_trunk_normalises_grey_by_its_own_mean_and_deviation(network):
    grey = torch.rand(2, 1, 48, 64)
    for trunk, mean, std in ((network.first, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
                             (network.second, [0.5] * 3, [0.5] * 3)):
        mean, std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
        bare = copy.deepcopy(trunk)
        bare.mean.zero_()
        bare.std.fill_(1)
        with torch.no_grad():
            for ours, expected in zip(trunk(grey), bare((grey.repeat(1, 3, 1, 1) - mean) / std), strict=True):
                torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_a_wrong_input_shape_is_refused(network):
    for shape in ((1, 2, 32, 32), (1, 32, 32)):
        with pytest.raises(ValueError, match=r"input: need \(batch, 1 or 3, rows, columns\)"):
            network.trunks(torch.zeros(shape))


def test_maps_of_unequal_size_are_refused(network):
    class Shifted(nn.Module):
        def forward(self, x):
            eighth, sixteenth = network.second(x)
            return eighth, sixteenth[..., 1:]

    odd = tiny()
    odd.second = Shifted()
    with pytest.raises(ValueError, match=r"backbones: need maps of equal size, got \(4, 4\) and \(4, 3\)"):
        odd.trunks(torch.zeros(1, 1, 64, 64))


def test_tokens_go_row_by_row_and_back():
    grid = torch.arange(2 * 3 * 5 * 7.0).view(2, 3, 5, 7)
    tokens = map_to_tokens(grid)
    assert torch.equal(tokens[1, 2 * 7 + 4], grid[1, :, 2, 4])
    assert torch.equal(tokens_to_map(tokens, (5, 7)), grid)


def test_projection_equals_a_1x1_convolution_of_the_concatenation_and_batch_norm():
    torch.manual_seed(0)
    ours = Project([3, 5], 4)
    convolution, norm = nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)
    convolution.weight.data = ours.linear.weight.data[:, :, None, None]
    a, b = torch.randn(2, 3, 5, 7), torch.randn(2, 5, 5, 7)
    for mode in (True, False):
        ours.train(mode)
        norm.train(mode)
        found = tokens_to_map(ours(map_to_tokens(a), map_to_tokens(b)), (5, 7))
        torch.testing.assert_close(found, norm(convolution(torch.cat((a, b), 1))), atol=1e-5, rtol=1e-5)


def test_cross_attention_equals_pytorchs_own_with_the_gate_of_the_specification():
    torch.manual_seed(0)
    ours = CrossAttention(width=12, heads=3)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight.data = torch.cat((ours.query.weight, ours.key_value.weight)).data
    theirs.in_proj_bias.data = torch.cat((ours.query.bias, ours.key_value.bias)).data
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    own, other = torch.randn(2, 35, 12), torch.randn(2, 6, 12)
    other_normed = ours.other_norm(other)
    answer, weights = theirs(ours.own_norm(own), other_normed, other_normed, average_attn_weights=False)
    gate = torch.sigmoid(torch.cat((own, answer), -1) @ ours.gate.weight.T + ours.gate.bias)
    enriched, attention, our_gate = ours.explain(own, other)
    torch.testing.assert_close(enriched, own + gate * answer, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(own, other), enriched, atol=1e-5, rtol=0)
    torch.testing.assert_close(attention, weights, atol=1e-6, rtol=0)
    torch.testing.assert_close(our_gate, gate, atol=1e-6, rtol=0)
    assert (ours.gate.bias == -1).all()


def test_refinement_equals_its_formula_on_maps():
    torch.manual_seed(0)
    refine, grid = Refine(32), torch.randn(2, 32, 5, 7)
    channel = torch.sigmoid(refine.channel(grid.mean((2, 3))) + refine.channel(grid.amax((2, 3))))
    weighted = grid * channel[:, :, None, None]
    spatial = torch.sigmoid(refine.spatial(torch.cat((weighted.mean(1, True), weighted.amax(1, True)), 1)))
    tokens, found = refine(map_to_tokens(grid), (5, 7))
    torch.testing.assert_close(tokens_to_map(tokens, (5, 7)), grid + weighted * spatial, atol=1e-6, rtol=0)
    torch.testing.assert_close(tokens_to_map(found, (5, 7)), spatial, atol=1e-6, rtol=0)


def test_explaining_is_the_same_computation_as_fusing(network, features):
    with torch.no_grad():
        fused, explained = network.fuse(features), network.explain(features)
    torch.testing.assert_close(explained.pooled, fused.pooled, atol=1e-5, rtol=0)
    for ours, theirs in zip(explained.maps, fused.maps, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    means = torch.cat([level.mean((2, 3)) for level in fused.maps], 1)
    torch.testing.assert_close(fused.pooled, means, atol=1e-6, rtol=0)


def test_an_explanation_holds_attention_gates_and_spatial_maps_of_both_levels(network, features):
    with torch.no_grad():
        explained = network.explain(features)
    for level, size, keys in zip(explained.levels, ((10, 14), (5, 7)), ((5, 7), (5, 7)), strict=True):
        cells, key_cells = size[0] * size[1], keys[0] * keys[1]
        assert level.key_grid == keys
        for attention, gate in zip(level.attention, level.gates, strict=True):
            assert attention.shape == (2, 2, cells, key_cells)
            torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, cells))
            assert gate.shape == (2, 16, *size) and 0 < gate.min() and gate.max() < 1
        assert level.spatial.shape == (2, 1, *size) and 0 < level.spatial.min() and level.spatial.max() < 1


def test_every_branch_and_both_directions_reach_the_logits(network, features):
    with torch.no_grad():
        before = network.fuse(features).pooled
        for name in ("first_8", "first_16", "second_8", "second_16"):
            changed = Features(**{**vars(features), name: getattr(features, name) + 1})
            assert (network.fuse(changed).pooled - before).abs().max() > 1e-4, name


def test_pooled_trunk_maps_are_means_over_squares_and_fuse_to_coarser_maps(network):
    x = torch.rand(2, 1, 80, 96)
    coarse = tiny(pool=2)
    coarse.load_state_dict(network.state_dict())
    with torch.no_grad():
        fine, pooled = network.trunks(x), coarse.trunks(x)
        fused = coarse.fuse(pooled)
    assert fine.first_8.shape[2:] == (10, 12) and pooled.first_8.shape[2:] == (5, 6)
    expected = fine.second_8.unflatten(3, (6, 2)).unflatten(2, (5, 2)).mean((3, 5))
    torch.testing.assert_close(pooled.second_8, expected)
    assert pooled.first_16.shape[2:] == (3, 3)  # five rows: the last window is shared
    assert [tuple(level.shape[2:]) for level in fused.maps] == [(5, 6), (3, 3)]


@pytest.mark.parametrize(("changes", "without", "kinds"), [
    ({"branches": "first"}, ("first_asks", "project_second"), ("class_activation", "spatial")),
    ({"branches": "second"}, ("second_asks",), ("class_activation", "spatial")),
    ({"attention": False}, ("first_asks", "project_first"), ("class_activation", "spatial")),
    ({"gate": False}, ("first_asks.gate",),
     ("class_activation", "attention_first", "attention_second", "spatial")),
    ({"refine": False}, ("refine",), ("class_activation", "attention_first", "attention_second", "gate"))])
def test_an_ablated_network_lacks_the_part_and_explains_what_is_left(features, changes, without, kinds):
    ablated = tiny(**changes)
    names = list(ablated.state_dict())
    assert not [name for name in names for part in without if f".{part}" in name]
    with torch.no_grad():
        fused, explained = ablated.fuse(features), ablated.explain(features)
    torch.testing.assert_close(explained.pooled, fused.pooled, atol=1e-5, rtol=1e-4)
    assert kinds_of(ablated.config) == kinds
    place = (Placement(64, (0.0, 0.0), (1.0, 1.0)), Geometry((64, 64)))
    found = heats(ablated.head, explained, classes=[0, 1], places=[place] * 2, kinds=kinds)
    assert set(found[0]) == set(kinds)
    for lost in set(KINDS) - set(kinds):
        with pytest.raises(ValueError, match=f"{lost}: need a network that has this part, got one without"):
            heats(ablated.head, explained, classes=[0, 1], places=[place] * 2, kinds=[lost])
    again = optimised(ablated)
    with torch.no_grad():
        torch.testing.assert_close(again.fuse(features).pooled, fused.pooled, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("branch", "silent"), [("first", "second"), ("second", "first")])
def test_a_single_branch_hears_nothing_of_the_other(features, branch, silent):
    ablated = tiny(branches=branch)
    changed = {f"{silent}_8": torch.rand_like(getattr(features, f"{silent}_8")),
               f"{silent}_16": torch.rand_like(getattr(features, f"{silent}_16"))}
    with torch.no_grad():
        torch.testing.assert_close(ablated.fuse(features).pooled,
                                   ablated.fuse(replace(features, **changed)).pooled)


def test_a_channel_mask_silences_its_channels_before_they_are_refined(network, features):
    mask = torch.ones(32)
    mask[3] = 0
    with torch.no_grad():
        masked = network.fuse(features, (mask, None))
        plain = network.fuse(features)
    assert (masked.maps[0][:, 3] == 0).all()
    torch.testing.assert_close(masked.maps[1], plain.maps[1])


def test_odd_sizes_go_through(network):
    with torch.no_grad():
        explained = network.explain(network.trunks(torch.rand(1, 3, 72, 104)))
    assert explained.levels[0].spatial.shape[2:] == (9, 13)
    assert explained.levels[0].key_grid == (5, 7)


def test_an_answer_does_not_depend_on_the_batch(network):
    x = torch.rand(3, 1, 48, 64)
    with torch.no_grad():
        one_by_one = torch.cat([network(row[None]) for row in x])
        torch.testing.assert_close(network(x), one_by_one, atol=1e-5, rtol=0)


def test_only_the_head_is_stochastic_in_training(network):
    fresh, x = tiny(), torch.rand(2, 1, 48, 64)
    fresh.train()
    for module in fresh.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    with torch.no_grad():
        first, second = (fresh.fuse(fresh.trunks(x)).pooled for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(fresh.head(first), fresh.head(first))


def test_frozen_trunks_keep_weights_and_statistics_through_training():
    fresh = tiny()
    fresh.freeze_trunks()
    fresh.train()
    assert not fresh.first.training and not fresh.second.training and fresh.level_1.training
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    optimiser = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    fresh(torch.rand(4, 1, 48, 64)).square().sum().backward()
    optimiser.step()
    changed = {key for key, value in fresh.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.split(".")[0] for key in changed} == {"level_1", "level_2", "head"}


def test_the_optimised_copy_gives_the_same_answers_and_leaves_the_original_alone(network):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fast, x = optimised(network), torch.rand(2, 1, 80, 112)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in fast.modules())
    with torch.no_grad():
        torch.testing.assert_close(fast(x), network(x), atol=1e-4, rtol=0)
        ours, theirs = fast.explain(fast.trunks(x)), network.explain(network.trunks(x))
    torch.testing.assert_close(ours.pooled, theirs.pooled, atol=1e-4, rtol=0)
    for ours_level, theirs_level in zip(ours.levels, theirs.levels, strict=True):
        torch.testing.assert_close(ours_level.attention[0], theirs_level.attention[0], atol=1e-4, rtol=0)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_monais_gradcam_finds_the_fused_maps_as_named_layers(network):
    cam = GradCAM(nn_module=network, target_layers="level_2")(torch.rand(1, 1, 80, 112), class_idx=1)
    assert cam.shape == (1, 1, 80, 112) and np.isfinite(np.asarray(cam)).all()


def test_a_network_is_rebuilt_from_its_configuration(network):
    again = DualCrossAttentionFusion(**network.config.model_dump()).eval()
    again.load_state_dict(network.state_dict())
    x = torch.rand(1, 1, 48, 64)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))


@pytest.mark.parametrize(("field", "value", "message"), [
    ("classes", 1, "greater than or equal to 2"), ("dropout", 1.0, "less than 1"),
    ("heads", 3, r"width: need a multiple of heads \(3\), got 128"), ("depth", 2, "Extra inputs")])
def test_an_impossible_configuration_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**{"classes": 3, field: value})
