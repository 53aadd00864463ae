"""The 3D Slicer module against a real server: switching cases, a worklist of 100,000, the window's gaps.

The viewer is the tests' fixture (real MRML and Qt, software rendering), so drawing costs more here than
on a machine with a graphics card. It runs in the extension's own environment, ``.venv-slicer``.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, OphthalmicTomographyImageStorage, generate_uid
from sqlalchemy import bindparam, select, update

from benchmarks.serving import default_model
from dcaf_monai.phantom import write_films
from dcaf_monai.server.database import images
from dcaf_monai.server.store import Store
from tests.server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-slicer/bin/python"
FILMS = 18
"""One for each turn of reading on, and some that are never read."""
FILES, FRAMES = 100, 1000
GAP_GOAL_MS, PAGE_GOAL_MS, SWITCH_GOAL = 100.0, 300.0, 1.5


def rows() -> list[dict[str, Any]]:
    """One dictionary per figure: what, ours_ms, peer, peer_ms, ratio (ours over peer), goal."""
    if not PYTHON.is_file():
        raise FileNotFoundError(f"viewer: need the extension's environment, got no {PYTHON.name}. "
                                "Say `make .venv-slicer/.installed` first.")
    switch, pages = _cases(), _worklist()
    told = [_row(f"{what}, {word}", switch[key][word], f"bare answer and picture load, {word}",
                 switch["bare"][word], f"<= {SWITCH_GOAL}")
            for what, key in (("case switch, 2048 x 2048", "switch"), ("next case, looked ahead", "next"))
            for word in ("median", "p95")]
    told += [_row(f"of a switch until the {stage} is there", switch[stage]["median"], "case switch",
                  switch["switch"]["median"]) for stage in ("picture", "answer", "overlay")]
    told.append(_row("window's longest gap while switching", switch["gap"]["max"], "goal", GAP_GOAL_MS,
                     "<= 1"))
    told.append(_row(f"connect to first page of {pages['total']:,}", pages["first"], "goal", PAGE_GOAL_MS,
                     "<= 1"))
    told.append(_row("any page, median", pages["page"], "goal", PAGE_GOAL_MS, "<= 1"))
    told.append(_row("any page, slowest", pages["page max"], "goal", PAGE_GOAL_MS, "<= 1"))
    told.append(_row("window's longest gap while paging", pages["gap"], "goal", GAP_GOAL_MS, "<= 1"))
    return told


def _cases() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        studies, model = Path(folder) / "studies", Path(folder) / "model.safetensors"
        write_films(studies, FILMS, seed=1, shapes=((2048, 2048),))
        default_model(model)
        with ServerProcess({"studies": str(studies), "model": str(model)}) as server:
            return _in_slicer("cases", server.url)


def _worklist() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        studies, model = Path(folder) / "studies", Path(folder) / "model.safetensors"
        studies.mkdir()
        for number in range(FILES):
            _write_frames(studies / f"{number}.dcm", number)
        default_model(model)
        _score(Store(studies, None))
        with ServerProcess({"studies": str(studies), "model": str(model)}) as server:
            return _in_slicer("worklist", server.url)


def _in_slicer(what: str, url: str) -> dict[str, Any]:
    ended = subprocess.run([PYTHON, Path(__file__).with_name("viewer_in_slicer.py"), what, url], check=True,
                           stdout=subprocess.PIPE, text=True,
                           env={**os.environ, "QT_QPA_PLATFORM": "offscreen"})
    return json.loads(ended.stdout.splitlines()[-1])


def _row(what: str, ours_ms: float, peer: str, peer_ms: float, goal: str | None = None) -> dict[str, Any]:
    return {"what": what, "ours_ms": ours_ms, "peer": peer, "peer_ms": peer_ms, "ratio": ours_ms / peer_ms,
            "goal": goal}


def _score(store: Store) -> None:
    """Gives every image a rank, as scoring would."""
    store.refresh()
    rng = np.random.default_rng(0)
    with store.database.write() as connection:
        uids = connection.execute(select(images.c.uid)).scalars().all()
        told = rng.random((len(uids), 2))
        connection.execute(update(images).where(images.c.uid == bindparam("image")), [
            {"image": uid, "ranked_by": "bench", "entropy": 0.69 * share, "mutual_information": 0.1 * share,
             "margin": 1 - share, "normalized_entropy": share,
             "label": "pneumonia" if top > 0.5 else "normal", "score": 0.5 + top / 2}
            for uid, (share, top) in zip(uids, told.tolist(), strict=True)])
    store.close()


def _write_frames(path: Path, seed: int) -> None:
    """One multi-frame OCT of small frames: many images in few files."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = OphthalmicTomographyImageStorage
    dataset = Dataset()
    dataset.SOPClassUID = OphthalmicTomographyImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(seed)])
    dataset.Modality, dataset.PhotometricInterpretation = "OPT", "MONOCHROME2"
    dataset.Rows = dataset.Columns = 16
    dataset.NumberOfFrames, dataset.SamplesPerPixel = FRAMES, 1
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = np.random.default_rng(seed).integers(0, 255, (FRAMES, 16, 16), np.uint8).tobytes()
    dataset.file_meta = meta
    dataset.save_as(path, enforce_file_format=True)
