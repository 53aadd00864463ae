"""Fixtures every test may use: synthetic films and a small untrained model."""

from __future__ import annotations

import sys
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


@pytest.fixture
def dcaf(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Call ``dcaf ARGUMENTS``; gives exit code, standard output and standard error."""

    from dcaf_monai import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dcaf", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
