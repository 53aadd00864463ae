"""Fixtures every test may use: synthetic films and a small untrained model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared/data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real images in ../shared/data, which are not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of twelve synthetic films with ``labels.csv``."""
    from dcaf_monai.phantom import write_films

    folder = tmp_path_factory.mktemp("films")
    write_films(folder, count=12, seed=11)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with random weights: fast, and wrong on purpose."""
    from dcaf_monai.model import Model, save_model
    from dcaf_monai.network import DualCrossAttentionFusion
    from dcaf_monai.tasks import TASKS
    from dcaf_monai.transforms import Preprocessing

    torch.manual_seed(5)
    network = DualCrossAttentionFusion(2, backbones=("test_efficientnet", "test_resnet"), width=16,
                                       heads=2, fused=24, hidden=20)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(Model(network=network.eval(), task=TASKS["pneumonia"],
                     preprocessing=Preprocessing(size=96)), path)
    return path
