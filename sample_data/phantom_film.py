"""Draws the one sample film that is kept with the project, and its thumbnail.

    python sample_data/phantom_film.py [FOLDER]

The film is what the 3D Slicer extension offers under Sample Data; the same command gives the same bytes.
It prints the SHA-256 that `DCAFReviewLib/samples.py` registers.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dcaf_monai.phantom import film_to_dicom, phantom

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (400, 352)
"""Smaller than the films of ``dcaf sample-data``, so that the file stays under 300 KB."""
SEED, CONTRAST = 20, 0.45


def write_film(path: Path) -> str:
    """Writes the film as a DICOM file and gives the SHA-256 of its bytes, in hexadecimal."""
    film = phantom(SEED, lesion=True, shape=SHAPE, contrast=CONTRAST)
    film_to_dicom(film, name="sample film", patient="sample").save_as(path, enforce_file_format=True)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_thumbnail(path: Path, side: int = 128) -> None:
    """Writes the film's middle square as an 8-bit grey PNG of ``side`` x ``side`` pixels."""
    pixels = phantom(SEED, lesion=True, shape=SHAPE, contrast=CONTRAST).pixels
    top, left = (SHAPE[0] - min(SHAPE)) // 2, (SHAPE[1] - min(SHAPE)) // 2
    square = pixels[top:top + min(SHAPE), left:left + min(SHAPE)]
    picture = Image.fromarray((square / 4095 * 255).astype(np.uint8))
    picture.resize((side, side), Image.Resampling.LANCZOS).save(path, optimize=True)


def main() -> None:
    """Writes both where the extension keeps them, or the film alone into the folder that is named."""
    if len(sys.argv) > 1:
        print(write_film(Path(sys.argv[1]) / "phantom_film.dcm"))
        return
    print(write_film(ROOT / "slicer_extension/SampleData/phantom_film.dcm"))
    write_thumbnail(ROOT / "slicer_extension/DCAFReview/Resources/Icons/DCAFPhantomFilm.png")


if __name__ == "__main__":
    main()
