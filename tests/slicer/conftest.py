"""The application that the tests of the Slicer extension run in: started once, emptied before each test."""

from __future__ import annotations

from pathlib import Path

import fixture
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "slicer_extension/DCAFReview/DCAFReview.py"


@pytest.fixture(scope="session")
def _started():
    return fixture.start()


@pytest.fixture
def application(_started):
    """`slicer.app` with an empty scene, no settings and the first layout; nothing may go wrong in a slot."""
    fixture.reset()
    yield _started
    fixture.raise_faults()


@pytest.fixture
def opened(application):
    """The opened module's `DCAFReviewWidget`, closed after the test."""
    if not MODULE.is_file():
        pytest.skip("slicer_extension/DCAFReview/DCAFReview.py is not there")
    widget = fixture.open_module(MODULE)
    yield widget
    fixture.close_module(widget)


@pytest.fixture
def pictures() -> Path:
    """The folder for screenshots, which is not under version control."""
    folder = ROOT / "build/slicer"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
