"""File to network input, beside what people do today.

Ours and its peer run in turn in one process, and each row gives medians and their ratio. The films
are drawn at run time: a chest phantom of 2048 x 2048 pixels in 16 bits.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pydicom
from monai.data import PydicomReader
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Resized,
    ScaleIntensityRangePercentilesd,
)
from pydicom.pixels import compress
from pydicom.uid import JPEG2000Lossless

from dcaf_monai.phantom import Phantom, film_to_dicom, phantom
from dcaf_monai.transforms import Preprocessing, read_input

SIDE = 2048


def rows(*, repeats: int = 9) -> list[dict[str, Any]]:
    """The table's rows: ``what``, ``ours_ms``, ``peer``, ``peer_ms``, ``ratio``, ``goal``."""
    preprocessing = Preprocessing()
    monai = Compose([
        LoadImaged(keys="image", reader=PydicomReader()), EnsureChannelFirstd(keys="image"),
        ScaleIntensityRangePercentilesd(keys="image", lower=0.5, upper=99.5, b_min=0, b_max=1, clip=True),
        Resized(keys="image", spatial_size=(224, 224))])
    with tempfile.TemporaryDirectory() as folder:
        raw, jpeg2000 = _films(Path(folder))
        return [
            _row("raw 2048 x 2048 film to network input", lambda: read_input(raw, preprocessing),
                 "MONAI dictionary pipeline", lambda: monai({"image": str(raw)}), "<= 1/4", repeats),
            _row("JPEG 2000 film to network input", lambda: read_input(jpeg2000, preprocessing),
                 "dcmread and full decode", lambda: pydicom.dcmread(jpeg2000).pixel_array, "<= 1/4", repeats)]


def _films(folder: Path) -> tuple[Path, Path]:
    small = phantom(1, lesion=True, shape=(512, 512)).pixels.astype(np.uint32)
    grain = np.random.default_rng(0).integers(-64, 64, (SIDE, SIDE))
    pixels = np.clip(np.kron(small, np.ones((4, 4), np.uint32)) * 16 + grain + 64, 0, 65535).astype(np.uint16)
    drawn = Phantom(np.minimum(pixels, 4095), "pneumonia", None, 0.0)
    film = film_to_dicom(drawn, name="bench", patient="bench")
    film.BitsStored, film.HighBit, film.WindowCenter, film.WindowWidth = 16, 15, "32768", "65536"
    film.PixelData = pixels.astype("<u2").tobytes()
    raw, jpeg2000 = folder / "raw.dcm", folder / "jpeg2000.dcm"
    film.save_as(raw, enforce_file_format=True)
    compress(film, JPEG2000Lossless, generate_instance_uid=False)
    film.save_as(jpeg2000, enforce_file_format=True)
    return raw, jpeg2000


def _row(name: str, ours: Callable[[], object], peer_name: str, peer: Callable[[], object], goal: str,
         repeats: int) -> dict[str, Any]:
    """Medians in milliseconds of two ways that take turns, after one unmeasured run of each."""
    ours(), peer()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, spent in zip((ours, peer), times, strict=True):
            start = time.perf_counter()
            run()
            spent.append((time.perf_counter() - start) * 1e3)
    ours_ms, peer_ms = median(times[0]), median(times[1])
    return {"what": name, "ours_ms": ours_ms, "peer": peer_name, "peer_ms": peer_ms,
            "ratio": ours_ms / peer_ms, "goal": goal}


if __name__ == "__main__":
    for row in rows():
        print(f"{row['what']}: {row['ours_ms']:.1f} ms; {row['peer']}: {row['peer_ms']:.1f} ms; "
              f"ratio {row['ratio']:.3f} (goal {row['goal']})")
