"""The tutorial's film, offered in Slicer's Sample Data module under the category DCAF.

It is a drawn phantom of this project (no patient), kept in the extension's repository. Nothing is downloaded
here: Slicer fetches the film when a person clicks its picture, and checks the SHA-256.
"""

from __future__ import annotations

from pathlib import Path

PUBLISHED = "https://raw.githubusercontent.com/dcaf/SlicerDCAF/main"
"""Where the extension's folder is published; the same address as in CMakeLists.txt."""
FILE = "SampleData/phantom_film.dcm"
SHA256 = "fcdd4dd54a595870f5c9cf20b137ae6f01d43d20745893ca87a8a36a7b94817a"
THUMBNAIL = Path(__file__).resolve().parents[1] / "Resources/Icons/DCAFPhantomFilm.png"


def register_sample_data() -> None:
    """Adds the film to the Sample Data module. Call it when the application has started, not before."""
    from SampleData import SampleDataLogic

    SampleDataLogic.registerCustomSampleDataSource(
        category="DCAF",
        sampleName="DCAFPhantomFilm",
        uris=f"{PUBLISHED}/{FILE}",
        fileNames="phantom_film.dcm",
        nodeNames="DCAFPhantomFilm",
        checksums=f"SHA256:{SHA256}",
        thumbnailFileName=str(THUMBNAIL),
    )
