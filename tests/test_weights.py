import os
import socket
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from dcaf_monai import weights
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.trunks import Trunk
from dcaf_monai.weights import WeightsError, fill, lite_to_timm, load_trunk_weights, read_state

RESNET50 = (Path(__file__).resolve().parents[1].parent
            / "shared/data/weights/resnet50_in1k_to_layer3_fp16.safetensors")


def whole_state(name: str, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return timm.create_model(name).state_dict()


def test_local_files_of_both_kinds_fill_both_trunks(tmp_path):
    states = whole_state("test_efficientnet", 5), whole_state("test_resnet", 6)
    save_file(states[0], tmp_path / "first.safetensors")
    torch.save(states[1], tmp_path / "second.pth")
    network = DualCrossAttentionFusion(2, backbones=("test_efficientnet", "test_resnet"), width=8, fused=16,
                                       weights=(tmp_path / "first.safetensors", tmp_path / "second.pth"))
    for trunk, state in zip((network.first, network.second), states, strict=True):
        own = trunk.body.state_dict()
        assert own and all(torch.equal(own[key], state[key]) for key in own)


def test_filled_trunks_see_what_the_whole_network_sees():
    whole = timm.create_model("test_resnet").eval()
    trunk = Trunk("test_resnet").eval()
    fill(trunk, whole.state_dict())
    x = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        expected = whole.forward_intermediates((x - 0.5) / 0.5, indices=[2, 3], intermediates_only=True)
        for ours, theirs in zip(trunk(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_layers_behind_the_cut_may_be_missing_but_not_those_before_it():
    state = whole_state("test_resnet", 1)
    fill(Trunk("test_resnet"), {key: value for key, value in state.items()
                                if not key.startswith(("layer4", "fc"))})
    without = {key: value for key, value in state.items() if key != "layer2.0.conv1.weight"}
    with pytest.raises(WeightsError, match="it misses layer2.0.conv1.weight"):
        fill(Trunk("test_resnet"), without)


def test_unknown_names_and_other_shapes_are_errors_that_name_the_first_few():
    state = whole_state("test_resnet", 1)
    extra = {f"neck.{number}": torch.zeros(1) for number in range(5)}
    with pytest.raises(WeightsError, match="does not know neck.0, neck.1, neck.2 and 2 more"):
        fill(Trunk("test_resnet"), {**state, **extra})
    with pytest.raises(WeightsError, match="has another shape of conv1.0.weight"):
        fill(Trunk("test_resnet"), {**state, "conv1.0.weight": torch.zeros(2, 3)})
    with pytest.raises(WeightsError, match="weights: need those of test_resnet, got others"):
        fill(Trunk("test_resnet"), whole_state("test_efficientnet", 1))


def test_a_refused_file_leaves_the_trunk_as_it_was():
    trunk = Trunk("test_resnet")
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    with pytest.raises(WeightsError):
        fill(trunk, {**whole_state("test_resnet", 1), "neck": torch.zeros(1)})
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())


def test_an_absent_file_is_a_clear_error(tmp_path):
    for name in ("none.safetensors", "none.pth"):
        with pytest.raises(WeightsError, match=f"need a file, found none named {name}"):
            read_state(tmp_path / name)


def test_a_broken_file_is_a_clear_error(tmp_path):
    for name in ("broken.safetensors", "broken.pth"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(WeightsError, match=f"need a readable file, got {name}"):
            read_state(tmp_path / name)


def test_a_file_that_would_run_code_is_refused_and_the_code_does_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"a": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(WeightsError, match="need a readable file, got hostile.pth"):
        read_state(tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()


def test_a_file_of_something_else_than_named_tensors_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="need tensors by name, got something else in list.pth"):
        read_state(tmp_path / "list.pth")


def test_any_other_word_for_weights_is_refused():
    trunk = Trunk("test_resnet")
    with pytest.raises(ValueError, match='weights: need "none", "pretrained" or two paths, got \'imagenet\''):
        load_trunk_weights(trunk, trunk, weights="imagenet")


@pytest.mark.parametrize("server", ["refuses", "accepts and never answers"])
def test_unreachable_weights_are_a_quick_error_that_says_what_to_do(server, monkeypatch, tmp_path):
    door = socket.create_server(("127.0.0.1", 0))
    endpoint = f"http://127.0.0.1:{door.getsockname()[1]}"
    if server == "refuses":
        door.close()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
                        endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "PATIENCE_S", 2.0)
    started = time.monotonic()
    with pytest.raises(WeightsError, match='need timm\'s weights of test_resnet.*two local files, or "none"'):
        DualCrossAttentionFusion(2, backbones=("test_resnet", "test_resnet"), weights="pretrained")
    assert time.monotonic() - started < 10
    door.close()


def lite_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's tensors of an EfficientNet-Lite under the other names, written out by hand per layer."""
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    other = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
             "conv_pwl": "_project_conv", "bn3": "_bn2"}
    repeats = (1, 2, 2, 3, 3, 4, 1)
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "blocks":
            stage, repeat, layer, tensor = int(parts[1]), int(parts[2]), parts[3], parts[4]
            names = first if stage == 0 else other
            renamed[f"_blocks.{sum(repeats[:stage]) + repeat}.{names[layer]}.{tensor}"] = value
        else:
            top = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1",
                   "classifier": "_fc"}
            renamed[f"{top[parts[0]]}.{parts[1]}"] = value
    return renamed


def test_efficientnet_lite_files_are_renamed_to_timms_names():
    state = whole_state("tf_efficientnet_lite0", 2)
    back = lite_to_timm(lite_state(state))
    assert back.keys() == state.keys()
    assert all(back[key] is not None and torch.equal(back[key], state[key]) for key in state)


def test_efficientnet_lite_files_bring_their_own_input_normalisation():
    trunk = Trunk("tf_efficientnet_lite0")
    assert trunk.mean.flatten().tolist() == [0.5] * 3
    fill(trunk, lite_state(whole_state("tf_efficientnet_lite0", 2)))
    white_and_black = (torch.tensor([255.0, 0.0]) / 255 - trunk.mean.flatten()[0]) / trunk.std.flatten()[0]
    torch.testing.assert_close(white_and_black, torch.tensor([1.0, -127 / 128]), atol=1e-5, rtol=0)
    assert "mean" in trunk.state_dict()  # it travels with the weights


def test_a_strange_name_among_efficientnet_lite_tensors_is_an_error():
    state = lite_state(whole_state("tf_efficientnet_lite0", 2))
    for key in ("_blocks.0._attention.weight", "_blocks.99._bn1.weight", "neck"):
        with pytest.raises(WeightsError, match=f"need the names of an EfficientNet-Lite, got {key}"):
            lite_to_timm({**state, key: torch.zeros(1)})


def test_the_resnet50_stand_in_sees_more_than_random_weights_do():
    if not RESNET50.exists():
        pytest.skip("needs ../shared/data/weights beside the project")
    torch.manual_seed(0)
    trunk = Trunk("resnet50").eval()
    fill(trunk, load_file(RESNET50))
    edges = torch.zeros(2, 1, 96, 96)
    edges[0, :, :, 48:] = 1  # an upright edge
    edges[1, :, 48:, :] = 1  # a level one
    noise = 0.05 * torch.rand(2, 1, 96, 96)
    with torch.no_grad():
        clean, noisy = (trunk(x)[1].mean((2, 3)) for x in (edges, (edges + noise).clamp(0, 1)))
    assert torch.isfinite(clean).all() and 0.01 < clean.mean() < 10
    alike = torch.cosine_similarity(clean, noisy)
    different = torch.cosine_similarity(clean[0], clean[1], dim=0)
    assert alike.min() > different  # the same edge under noise is nearer than another edge
