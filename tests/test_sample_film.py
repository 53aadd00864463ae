"""The one film that is kept with the project can be drawn again, to the byte."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from dcaf_monai.dicom import read_image

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "slicer_extension/SampleData/phantom_film.dcm"


def test_the_documented_command_draws_the_kept_film_again(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, ROOT / "sample_data/phantom_film.py", tmp_path],
                            capture_output=True, text=True, timeout=60, check=True)
    drawn = (tmp_path / "phantom_film.dcm").read_bytes()
    assert drawn == KEPT.read_bytes()
    assert result.stdout.strip() == hashlib.sha256(drawn).hexdigest()


def test_the_kept_film_is_read_like_any_other() -> None:
    image = read_image(KEPT)
    assert image.pixels.shape == (400, 352)
    assert not [notice.code for notice in image.notices]
