"""The sample film the extension offers is the file that is kept, and Slicer is told so in its own words."""

from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path

import pydicom
import pytest
from DCAFReviewLib import samples

EXTENSION = Path(__file__).resolve().parents[2] / "slicer_extension"


def test_the_checksum_is_that_of_the_film_that_is_kept() -> None:
    film = (EXTENSION / samples.FILE).read_bytes()
    assert hashlib.sha256(film).hexdigest() == samples.SHA256
    assert len(film) < 300_000


def test_the_film_says_that_it_is_synthetic_and_of_no_patient() -> None:
    header = pydicom.dcmread(EXTENSION / samples.FILE)
    assert header.PatientID.startswith("SYNTHETIC-") and "no patient" in header.ImageComments
    assert (header.Rows, header.Columns) == (400, 352) and header.Modality == "DX"
    assert 2000 < header.pixel_array.max() <= 4095


def test_registering_tells_slicer_the_published_file_its_checksum_and_a_picture(
        monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict] = []
    # Slicer's module, which exists only inside the application: it keeps what it is told.
    theirs = types.ModuleType("SampleData")
    theirs.SampleDataLogic = types.SimpleNamespace(
        registerCustomSampleDataSource=lambda **words: told.append(words))
    monkeypatch.setitem(sys.modules, "SampleData", theirs)

    samples.register_sample_data()

    (film,) = told
    assert film["uris"] == f"{samples.PUBLISHED}/{samples.FILE}" and film["uris"].startswith("https://")
    assert film["checksums"] == f"SHA256:{samples.SHA256}" and film["fileNames"].endswith(".dcm")
    assert Path(film["thumbnailFileName"]).is_file() and film["category"] == "DCAF"
