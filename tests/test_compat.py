"""What MONAI Label finds in its surroundings after `compat`."""

from __future__ import annotations

import importlib.util
import os
import sys

import pydicom.uid
import pytest

from dcaf_monai.server import compat


def test_the_module_that_pydicom_3_removed_is_found_again() -> None:
    from pydicom import _storage_sopclass_uids  # type: ignore[attr-defined]
    assert _storage_sopclass_uids is pydicom.uid


def test_itk_can_be_imported_and_looked_for_whether_installed_or_not() -> None:
    import itk  # noqa: F401
    assert importlib.util.find_spec("itk") is not None


def test_a_setting_in_the_environment_wins_over_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_LABEL_TRACKING_ENABLED", "true")
    monkeypatch.delenv("MONAI_LABEL_AUTO_UPDATE_SCORING")
    module = sys.modules["itk"]
    compat.prepare()
    assert os.environ["MONAI_LABEL_TRACKING_ENABLED"] == "true"
    assert os.environ["MONAI_LABEL_AUTO_UPDATE_SCORING"] == "false"
    assert sys.modules["itk"] is module
