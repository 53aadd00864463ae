"""`Fingerprint`: all the audit remembers of one picture, computed once per file content.

The file is looked at as it was stored, in colour when it has colour: a tint that the grey `Image` no longer
shows is a fact about where a picture comes from.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from imagehash import phash as perceptual_hash
from PIL import Image as Pillow
from pydicom import Dataset
from scipy import ndimage

from dcaf_monai.artefacts import Artefacts, find_artefacts
from dcaf_monai.decode import decoder
from dcaf_monai.dicom import read_image
from dcaf_monai.grey import colour_to_grey
from dcaf_monai.image import Image, ImageError, file_sha256, patient_digest

FORMAT = 5
"""Raise it when a fingerprint of the same file would come out otherwise."""
SIDE = 40
"""Rows and columns of the small copy: a tenth of a side is four cells."""
TINTED = 2 / 255
"""Mean difference between colour channels above which a picture counts as tinted."""
TONES = ("mean", "sd", "p0_5", "p5", "p25", "p50", "p75", "p95", "p99_5", "levels", "extremes")
_PERCENTILES = (0.5, 5, 25, 50, 75, 95, 99.5)


@dataclass(frozen=True)
class Fingerprint:
    """One picture, small.

    Args:
        file_sha256: Digest of the file.
        pixel_sha256: Digest of its grey values and shape: equal for a copy in another lossless format.
        small: uint8 ``(SIDE, SIDE)``, area means, stretched between the 0.5th and 99.5th percentile.
        phash: 64 bits as 16 hex digits.
        tones: `TONES` of the grey values as stored, each as a share of the possible range; blank boxes left
            out, which are a finding of their own.
        sharpness: Natural logarithm of the Laplacian's variance, of values in [0, 1].
        shape: ``(rows, columns)`` as decoded.
        file_bytes: Size of the file.
        kind: Format, channels and bits, such as ``jpeg grey 8``.
        saturation: Mean difference between the strongest and the weakest colour channel, of 1.
        tint: ``grey``, or the channel that stands out (``red``, ``yellow``, ... ) of a tinted picture.
        quantisation: Mean of a JPEG file's first quantisation table: 1 is hardly compressed; 0 elsewhere.
        artefacts: Boxes, text, levels and margins.
        header: Age (years), sex, view, maker and a digest of the patient, where a DICOM header tells.
    """

    file_sha256: str
    pixel_sha256: str
    small: np.ndarray
    phash: str
    tones: tuple[float, ...]
    sharpness: float
    shape: tuple[int, int]
    file_bytes: int
    kind: str
    saturation: float
    tint: str
    quantisation: float
    artefacts: Artefacts
    header: Mapping[str, str]


def fingerprint(path: Path, *, frame: int | None = None) -> Fingerprint:
    """The fingerprint of a file.

    Raises:
        ImageError: As `dicom.read_image`.
    """
    data = _read(path)
    opened = _opened(path, data, frame)
    grey, image = opened.grey, opened.image
    artefacts = find_artefacts(grey)
    scaled = grey / (opened.top or 1.0)
    pixels_sha256 = hashlib.sha256(repr(grey.shape).encode() + grey.tobytes()).hexdigest()
    return Fingerprint(
        hashlib.sha256(data).hexdigest(), pixels_sha256, _small(grey), phash(grey), _tones(scaled, artefacts),
        _sharpness(scaled), (grey.shape[0], grey.shape[1]), len(data), opened.kind, *opened.colour,
        quantisation(data), artefacts, _told(image.header) if image else {})


def grey_of(path: Path, *, frame: int | None = None) -> np.ndarray:
    """float32 ``(rows, columns)`` of a file, as its fingerprint sees it.

    Raises:
        ImageError: As `dicom.read_image`.
    """
    return _opened(path, _read(path), frame).grey


@dataclass(frozen=True)
class _Opened:
    grey: np.ndarray
    top: float
    """Largest value that there may be; after a VOI transformation, that there is."""
    kind: str
    colour: tuple[float, str] = (0.0, "grey")
    image: Image | None = None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError("unreadable", f"File: need a readable file, got {error.strerror}.") from None


def _opened(path: Path, data: bytes, frame: int | None) -> _Opened:
    if data[:4] in (b"\x89PNG", b"II*\0", b"MM\0*") or data[:3] == b"\xff\xd8\xff":
        pixels = decoder.raster(data, frame=frame)
        kind = {b"\x89P": "png", b"\xff\xd8": "jpeg"}.get(data[:2], "tiff")
        kind = f"{kind} {'colour' if pixels.ndim == 3 else 'grey'} {pixels.dtype.itemsize * 8}"
        top = float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind == "u" else float(pixels.max())
        colour = tint_of(pixels) if pixels.ndim == 3 else (0.0, "grey")
        grey = colour_to_grey(pixels)[0] if pixels.ndim == 3 else pixels
        if grey.min() == grey.max():
            raise ImageError("constant", "Pixels: need different values, got a picture of one value.")
        return _Opened(np.ascontiguousarray(grey, np.float32), top, kind, colour)
    image = read_image(path, frame=frame)
    kind = (f"dicom {image.header.get('SamplesPerPixel', 1)} x {image.header.get('BitsStored', '')} bits"
            if data[128:132] == b"DICM" else "nifti")
    return _Opened(np.ascontiguousarray(image.pixels, np.float32), float(image.pixels.max()), kind,
                   image=image)


def phash(grey: np.ndarray) -> str:
    """Perceptual hash of ImageHash: the signs of the 64 lowest cosine frequencies about their median."""
    low, high = float(grey.min()), float(grey.max())
    eight = np.rint((grey - low) * (255 / ((high - low) or 1.0))).astype(np.uint8)
    return str(perceptual_hash(Pillow.fromarray(eight)))


def tint_of(pixels: np.ndarray) -> tuple[float, str]:
    """Saturation of a picture ``(rows, columns, 3)``; ``grey``, or in a word the channels that stand out."""
    values = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    saturation = float((values.max(2) - values.min(2)).mean())
    if saturation <= TINTED:
        return saturation, "grey"
    means = values.mean((0, 1))
    strong = tuple(np.flatnonzero(means >= (means.min() + means.max()) / 2))
    return saturation, {(0,): "red", (1,): "green", (2,): "blue", (0, 1): "yellow", (0, 2): "purple",
                        (1, 2): "cyan"}.get(strong, "mixed")


def quantisation(data: bytes) -> float:
    """Mean of the first quantisation table of a JPEG file (ITU-T T.81, B.2.4.1); 0 for any other file."""
    place = 2 if data[:3] == b"\xff\xd8\xff" else len(data)
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2:place + 4], "big")
        if marker == 0xDB:
            wide = data[place + 4] >> 4 if place + 4 < len(data) else 0
            numbers = data[place + 5:place + (133 if wide else 69)]
            table = np.frombuffer(numbers, ">u2" if wide else np.uint8)
            return float(table.mean()) if len(table) == 64 else 0.0
        if marker == 0xDA or length < 2:
            break
        place += 2 + length
    return 0.0


def fingerprints(files: Sequence[tuple[Path, int | None]], cache: Path, *,
                 progress: Callable[[int, int], None] | None = None,
                 ) -> list[Fingerprint | ImageError]:
    """Fingerprints of files in their order; a bad file gives its error and stops nothing.

    Args:
        files: ``(path, frame)``.
        cache: A file of one JSON line a picture, made when missing: an audit that was interrupted, or is run
            again, computes only what is not there. It holds small copies of the pictures.
        progress: Called with (done, total).
    """
    known = dict(_read_cache(cache))
    cache.parent.mkdir(parents=True, exist_ok=True)
    found: list[Fingerprint | ImageError] = []

    def one(file: tuple[Path, int | None]) -> Fingerprint | ImageError:
        path, frame = file
        try:
            key = _key(file_sha256(path), frame)
            return known.get(key) or fingerprint(path, frame=frame)
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError("unreadable", f"File: need a readable file, got {error.strerror}.")

    # two threads: while one waits for the decoder's process the other computes
    pool = ThreadPoolExecutor(2)
    try:
        with cache.open("a", encoding="ascii") as lines:
            for done, (file, result) in enumerate(zip(files, pool.map(one, files), strict=True), start=1):
                key = _key(result.file_sha256, file[1]) if isinstance(result, Fingerprint) else ""
                if isinstance(result, Fingerprint) and key not in known:
                    known[key] = result
                    lines.write(_line(key, result))
                    if not done % 32:
                        lines.flush()
                found.append(result)
                if progress:
                    progress(done, len(files))
    finally:
        pool.shutdown(cancel_futures=True)  # whoever stops the audit does not wait for the rest
    return found


def _small(grey: np.ndarray) -> np.ndarray:
    low, high = np.percentile(grey, (0.5, 99.5))
    stretched = (_resized(grey, SIDE) - low) / (high - low if high > low else 1.0)
    return np.rint(np.clip(stretched, 0, 1) * 255).astype(np.uint8)


def _resized(grey: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Pillow.fromarray(grey).resize((side, side), Pillow.Resampling.BOX))


def _tones(scaled: np.ndarray, artefacts: Artefacts) -> tuple[float, ...]:
    film = np.ones(scaled.shape, bool)
    for row0, column0, row1, column1 in artefacts.boxes:
        film[row0:row1, column0:column1] = False
    shown = scaled[film] if film.any() else scaled
    return (float(shown.mean()), float(shown.std()),
            *(float(value) for value in np.percentile(shown, _PERCENTILES)),
            artefacts.levels / 256, artefacts.extremes)


def _sharpness(scaled: np.ndarray) -> float:
    return float(np.log(ndimage.laplace(scaled).var() + 1e-9))


def _told(header: Dataset) -> dict[str, str]:
    """What a header tells that could stand for the label; identity only as a digest."""
    age = str(header.get("PatientAge", "") or "")
    told = {"age": str(int(age[:3])) if len(age) == 4 and age[:3].isdecimal() and age[3] == "Y" else "",
            "sex": str(header.get("PatientSex", "") or ""),
            "view": str(header.get("ViewPosition", "") or ""),
            "maker": " ".join(str(header.get(word, "") or "")
                              for word in ("Manufacturer", "ManufacturerModelName")).strip(),
            "uid": str(header.get("SOPInstanceUID", "") or ""), "patient": patient_digest(header)}
    return {word: value for word, value in told.items() if value}


def _key(sha256: str, frame: int | None) -> str:
    return f"{FORMAT}:{sha256}:{frame or ''}"


def _line(key: str, mark: Fingerprint) -> str:
    values = {**asdict(mark), "key": key, "small": base64.b64encode(mark.small.tobytes()).decode("ascii")}
    return json.dumps(values) + "\n"


def _read_cache(cache: Path) -> Iterator[tuple[str, Fingerprint]]:
    """Whole lines of this format; a torn last line is a picture to look at again."""
    if not cache.exists():
        return
    for line in cache.read_text(encoding="ascii", errors="replace").splitlines():
        if not line.startswith("{") or not line.endswith("}"):
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        key = values.pop("key")
        if key.startswith(f"{FORMAT}:"):
            small = np.frombuffer(base64.b64decode(values.pop("small")), np.uint8).reshape(SIDE, SIDE)
            found = values.pop("artefacts")
            parts = [tuple(tuple(box) for box in found[word]) for word in ("boxes", "texts")]
            yield key, Fingerprint(
                **{**values, "tones": tuple(values["tones"]), "shape": tuple(values["shape"])}, small=small,
                artefacts=Artefacts(parts[0], parts[1], found["levels"], found["extremes"],
                                    tuple(found["margins"])))
