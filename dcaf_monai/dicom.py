"""`read_image`: any supported file to an `Image`; DICOM here, other formats through `raster`.

`read_display` gives the same picture to a viewer: all of its values, windowed by nobody yet.

The policy: size, preamble and transfer syntax before parsing; SOP class and sizes before decoding;
compressed pixels in the worker of `decode`; uncompressed ones as a view of the file. Whatever is
wrong with a file is an `ImageError` with a stable code whose text holds nothing from the header.
Paragraph numbers are of DICOM PS3.3.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom import Dataset, FileDataset
from pydicom.filereader import _read_file_meta_info, read_dataset
from pydicom.tag import BaseTag

from dcaf_monai.frames import check_pixel_module, frame_pixels
from dcaf_monai.grey import colour_to_grey, percentile_window, stored_to_grey, stored_to_values
from dcaf_monai.image import (
    Display,
    Geometry,
    Image,
    ImageError,
    Notice,
    patient_orientation,
    plausible,
)
from dcaf_monai.raster import raster_display, read_raster

MAX_BYTES = 256 << 20
MAX_ELEMENTS = 100_000
MAX_FRAMES = 10_000
"""Of one file; the largest tomograms have about 2,000."""
SOP_CLASSES = frozenset("1.2.840.10008.5.1.4.1.1." + tail for tail in (
    "1", "1.1", "1.1.1",  # CR, DX for presentation, DX for processing
    "7", "7.2", "7.3", "7.4",  # secondary capture: plain, multi-frame grey byte and word, colour
    "77.1.5.1", "77.1.5.2", "77.1.5.4"))  # ophthalmic photography 8 and 16 bit, ophthalmic tomography
COLOUR_LIMIT = 2 / 255
"""Mean difference between channels above which a colour image is not a grey one."""

# A value pydicom finds invalid would be quoted in a Python warning: patient data in a log.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def read_image(path: str | Path, *, uid: str | None = None, frame: int | None = None,
               max_side: int | None = None) -> Image:
    """One grey image from a DICOM, PNG, JPEG, TIFF or NIfTI file; the content decides, not the name.

    Args:
        path: The file.
        uid: Name of a file that is not DICOM (its file name by default). For DICOM it must be the
            file's SOP Instance UID, optionally ``uid:frame``.
        frame: 1-based; must be given when the file holds several.
        max_side: More pixels than this on the longer side are not needed: a JPEG 2000 codestream is
            decoded at the smallest sufficient resolution. The geometry stays that of the stored grid.

    Raises:
        ImageError: Whatever is wrong with the file; see ``code``.
    """
    path = Path(path)
    data = _read_bytes(path)
    sha256 = hashlib.sha256(data).hexdigest()
    with _damage_told():
        if data[128:132] == b"DICM":
            return _dicom_to_image(data, sha256, uid, frame, max_side)
        return read_raster(data, uid=uid or path.name, frame=frame, sha256=sha256)


def read_display(path: str | Path, *, uid: str | None = None, frame: int | None = None) -> Display:
    """The picture of `read_image` at full resolution before any window, and the window to begin with.

    An image of one value is given: a person may want to see that it is one.

    Args:
        path, uid, frame: As for `read_image`.

    Raises:
        ImageError: Whatever is wrong with the file; see ``code``.
    """
    data = _read_bytes(Path(path))
    with _damage_told():
        if data[128:132] == b"DICM":
            return _dicom_to_display(data, uid, frame)
        return raster_display(data, frame=frame)


def read_many(paths: Iterable[str | Path], *, max_side: int | None = None,
              ) -> Iterator[tuple[Path, Image | ImageError]]:
    """Each path with its image or its error: one bad file stops nothing."""
    for path in map(Path, paths):
        try:
            yield path, read_image(path, max_side=max_side)
        except ImageError as error:
            yield path, error


def sop_instance_uid(path: str | Path) -> str:
    """SOP Instance UID of a DICOM file, from the start of its header.

    Raises:
        ImageError: As `read_header`, and ``bad_uid``.
    """
    return _uid_of(read_header(path, last=0x00080018))


def frame_count(path: str | Path) -> int:
    """Number of frames a DICOM file says it has, from its header without pixels; 1 unless stated.

    Raises:
        ImageError: As `read_header`; ``bad_header``; ``truncated`` when the file cannot hold so many;
            ``too_large``.
    """
    return uid_and_frames(path)[1]


def uid_and_frames(path: str | Path) -> tuple[str, int]:
    """Both of the above from one look at the header.

    Raises:
        ImageError: As `sop_instance_uid` and `frame_count`.
    """
    header = read_header(path, last=0x00280100)
    return _uid_of(header), _frames_of(header, Path(path).stat().st_size)


def read_header(path: str | Path, *, last: int = 0x7FDFFFFF) -> FileDataset:
    """The attributes of a DICOM file up to the tag ``last``; by default all but the pixels.

    Raises:
        ImageError: ``unreadable``, ``too_large``, ``not_dicom``, ``no_transfer_syntax`` or ``damaged``.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if path.stat().st_size > MAX_BYTES:
                raise _too_large()
            if file.read(132)[128:] != b"DICM":
                raise ImageError("not_dicom", "File: need DICOM with its preamble, got something else. "
                                 "Export it again.")
            with _damage_told():
                return _parse(file, last)
    except OSError as error:
        raise _unreadable(error) from None


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _too_large()
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(error) from None


def _too_large() -> ImageError:
    return ImageError("too_large", f"File: need at most {MAX_BYTES >> 20} MiB, got more. Export it alone.")


def _unreadable(error: OSError) -> ImageError:
    return ImageError("unreadable", f"File: need a readable file, got {error.strerror}.")


@contextmanager
def _damage_told() -> Iterator[None]:
    """pydicom and nibabel raise anything on damaged files: translated here, once."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError("damaged", f"File: need a readable image, got one that cannot be parsed "
                         f"({type(error).__name__}). Ask its source for another copy.") from None


def _parse(file: BinaryIO, last: int | None = None) -> FileDataset:
    """The dataset, up to the tag ``last``; its element count and inflated size are bounded."""
    file.seek(132)
    meta = _read_file_meta_info(file)
    syntax = meta.get("TransferSyntaxUID")
    if not syntax or not syntax.is_transfer_syntax:
        raise ImageError("no_transfer_syntax", "File: need a standard Transfer Syntax in its meta header, "
                         "got none or another. Export it again.")
    count = 0

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal count
        count += 1
        if count > MAX_ELEMENTS:
            raise ImageError("too_large", f"Header: need at most {MAX_ELEMENTS} elements, got more.")
        return last is not None and tag > last

    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    body = _inflated(file) if syntax.is_deflated else file
    dataset = read_dataset(body, implicit, little, stop_when=stop)
    header = FileDataset("", dataset, None, meta, implicit, little)
    header.set_original_encoding(implicit, little, dataset._character_set)
    return header


def _inflated(file: BinaryIO) -> BytesIO:
    """The rest of a deflated file; given up as soon as it grows beyond what is read at all."""
    inflater, inflated = zlib.decompressobj(-zlib.MAX_WBITS), BytesIO()
    while piece := file.read(1 << 16):
        inflated.write(inflater.decompress(piece))
        if inflated.tell() > MAX_BYTES:
            raise _too_large()
    inflated.seek(0)
    return inflated


def _uid_of(header: Dataset) -> str:
    name = str(header.get("SOPInstanceUID", "") or "").strip()
    if not re.fullmatch(r"[0-9.]{1,64}", name):
        raise ImageError("bad_uid", "SOP Instance UID: need digits and dots, at most 64, got something else. "
                         "Export it again.")
    return name


def _frames_of(header: FileDataset, size: int) -> int:
    """How many frames; refused when a file of ``size`` bytes cannot hold them: others would make room."""
    try:
        frames = int(header.get("NumberOfFrames", 1) or 1)
    except (TypeError, ValueError):
        frames = 0
    if frames < 1:
        raise ImageError("bad_header", "Number of Frames: need a whole number from 1, got something else. "
                         "The file is damaged.")
    if frames > MAX_FRAMES:
        raise ImageError("too_large", f"Number of Frames: need at most {MAX_FRAMES}, got {frames}. Export it "
                         "again, in parts if it is so long.")
    syntax = header.file_meta.TransferSyntaxUID
    sides = [header.get(key) for key in ("Rows", "Columns", "BitsAllocated")]
    least = 8 if syntax.is_encapsulated or not all(type(side) is int for side in sides) else (
        math.prod(sides) // 8)  # a compressed frame has at least the head of an item
    if frames > 1 and frames * least > (MAX_BYTES if syntax.is_deflated else size):
        raise ImageError("truncated", f"Pixel data: need {frames} frames, got a file too small for them. "
                         "Export it again.")
    return frames


def _dicom_to_image(data: bytes, sha256: str, uid: str | None, frame: int | None,
                    max_side: int | None) -> Image:
    header, number, frames = _checked(data, uid, frame)
    pixels, notices = frame_pixels(header, number - 1, frames, max_side)
    if pixels.ndim == 3:
        grey = _colourless(pixels)
        if grey.min() == grey.max():
            raise ImageError("constant", "Pixels: need different values, got a picture of one value.")
    else:
        grey, more = stored_to_grey(pixels, header)
        notices += more
    notices += _header_notices(header, data)
    geometry = _geometry(header, number - 1)
    for keyword in ("PixelData", "IconImageSequence"):
        if keyword in header:
            del header[keyword]
    name = _uid_of(header)
    return Image(f"{name}:{number}" if frames > 1 else name, grey, geometry, header, notices, sha256)


def _dicom_to_display(data: bytes, uid: str | None, frame: int | None) -> Display:
    header, number, frames = _checked(data, uid, frame)
    pixels, _ = frame_pixels(header, number - 1, frames, None)
    if pixels.ndim == 3:
        values, window = np.rint(_colourless(pixels)).astype(pixels.dtype), None
    else:
        values, window = stored_to_values(pixels, header)
    return Display(values, _geometry(header, number - 1), window or percentile_window(values),
                   "dicom" if window else "percentiles", patient_orientation(header))


def _checked(data: bytes, uid: str | None, frame: int | None) -> tuple[FileDataset, int, int]:
    """The parsed file, the frame asked for (from 1) and how many there are, before anything is decoded."""
    header = _parse(BytesIO(data))
    if header.get("SOPClassUID") not in SOP_CLASSES:
        raise ImageError("sop_class", "Kind of image: need a CR, DX, secondary capture, ophthalmic "
                         "photograph or tomography, got another SOP class.")
    if "PixelData" not in header:
        raise ImageError("no_pixels", "File: need pixel data, got none.")
    found, frames = _uid_of(header), _frames_of(header, len(data))
    if uid is not None and uid != found:
        stem, _, number = uid.partition(":")
        if stem != found or not number.isdecimal() or frame not in (None, int(number)):
            raise ImageError("wrong_uid", "SOP Instance UID: need the one asked for, got another in this "
                             "file.")
        frame = int(number)
    if frames > 1 and frame is None:
        raise ImageError("frame_needed", f"Image: need one frame, got a file of {frames}. Name it as "
                         "uid:frame, from 1.")
    if frame is not None and not 1 <= frame <= frames:
        raise ImageError("no_such_frame", f"Frame: need 1 to {frames}, got {frame}. Name another.")
    check_pixel_module(header)
    return header, frame or 1, frames


def _colourless(pixels: np.ndarray) -> np.ndarray:
    grey, colourfulness = colour_to_grey(pixels)
    if colourfulness > COLOUR_LIMIT:
        raise ImageError("colour", "Image: need grey pixels, got a colour picture. This is not a film.")
    return grey


def _header_notices(header: Dataset, data: bytes) -> tuple[Notice, ...]:
    found = []
    if str(header.get("BurnedInAnnotation", "") or "").upper() == "YES":
        found.append(Notice("burned_in", "Burned-in annotation: the picture holds text, perhaps the "
                            "patient's name. Do not publish it."))
    if header.get("PresentationIntentType") == "FOR PROCESSING":
        found.append(Notice("for_processing", "Presentation intent: these are raw detector values, not a "
                            "film made for reading. Do not trust the answer."))
    orientation = [str(part).upper() for part in header.get("PatientOrientation", None) or ()]
    if len(orientation) == 2 and orientation not in (["L", "F"],) and header.get("Modality") in ("CR", "DX"):
        found.append(Notice("not_reoriented", "Patient orientation: the film is not stored the usual way "
                            "round (left, feet) and was not turned. Do not trust the answer."))
    if data[:2] == b"MZ" or data[:4] == b"\x7fELF":
        found.append(Notice("executable_preamble", "Preamble: the file's start looks like a program. Do not "
                            "run it or pass it on."))
    return tuple(found)


def _geometry(header: Dataset, index: int) -> Geometry:
    """Place of the stored grid: functional groups (C.7.6.16), image plane (C.7.6.2), projection (C.8)."""
    groups = [group for group in (_nth(header, "PerFrameFunctionalGroupsSequence", index),
                                  _nth(header, "SharedFunctionalGroupsSequence", 0)) if group is not None]

    def plane(sequence: str, keyword: str, length: int) -> tuple[float, ...] | None:
        for source in [_nth(group, sequence, 0) for group in groups] + [header]:
            numbers = _numbers(source, keyword, length)
            if numbers:
                return numbers
        return None

    shape = (header.Rows, header.Columns)
    measured = [plane("PixelMeasuresSequence", "PixelSpacing", 2)] + [
        _numbers(header, keyword, 2) for keyword in ("ImagerPixelSpacing", "NominalScannedPixelSpacing")]
    known = [value for value in measured if value and min(value) > 0]
    ratio = _numbers(header, "PixelAspectRatio", 2)
    spacing = known[0] if known else ((ratio[0] / ratio[1], 1.0) if ratio and min(ratio) > 0 else (1.0, 1.0))
    place: dict[str, Any] = {"spacing_mm": spacing, "spacing_known": bool(known)}
    axes = plane("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    if axes:
        right, down = np.array(axes[:3]), np.array(axes[3:])
        if np.allclose([right @ right, down @ down, right @ down], [1, 1, 0], atol=1e-3):
            origin = plane("PlanePositionSequence", "ImagePositionPatient", 3)
            place |= {"right": axes[:3], "down": axes[3:], "origin_mm": origin or (0.0, 0.0, 0.0)}
    return plausible(Geometry(shape, **place))


def _nth(header: Dataset | None, keyword: str, index: int) -> Dataset | None:
    items = header.get(keyword) if header is not None else None
    return items[index] if items is not None and len(items) > index else None


def _numbers(header: Dataset | None, keyword: str, length: int) -> tuple[float, ...] | None:
    """A list of finite numbers of the stated length; None for anything else."""
    try:
        values = tuple(float(value) for value in (header.get(keyword) if header is not None else None) or ())
    except (TypeError, ValueError):
        return None
    return values if len(values) == length and np.isfinite(values).all() else None
