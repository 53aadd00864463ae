"""PNG, JPEG, TIFF and NIfTI files to an `Image`.

Such files say little: no patient, no modality, often no spacing (a picture's dpi is the printer's,
not the detector's, and is not used). NIfTI does carry a place: its affine is turned from RAS to the
LPS of `Geometry`, and its first axis, which runs along a row, becomes the columns.
"""

from __future__ import annotations

import struct
import zlib

import nibabel
import numpy as np

from dcaf_monai.decode import MAX_SAMPLES, MIN_SIDE, decoder
from dcaf_monai.grey import colour_to_grey, narrow, percentile_window
from dcaf_monai.image import Display, Geometry, Image, ImageError, Notice, plausible

MAX_INFLATED = 256 << 20
COLOUR_NOTICE = 2 / 255
"""Mean difference between channels above which a picture counts as coloured or tinted."""


def read_raster(data: bytes, *, uid: str, frame: int | None = None, sha256: str = "") -> Image:
    """A picture or NIfTI slice as an `Image`.

    Args:
        data: The whole file.
        uid: The image's name; with ``frame``, of a file that has several, it becomes ``uid:frame``.
        frame: Page of a TIFF, slice of a NIfTI; 1-based.
        sha256: Digest of the file.

    Raises:
        ImageError: ``not_an_image``, ``archive``, ``too_small``, ``too_large``, ``constant``,
            ``geometry``, ``frame_needed``, ``no_such_frame``, or what `decode.Decoder.raster` raises.
    """
    values, geometry, several, notices = _values(data, frame)
    if values.min() == values.max():
        raise ImageError("constant", "Pixels: need different values, got a picture of one value. There is "
                         "nothing to classify.")
    if several and not uid.endswith(f":{frame}"):
        uid = f"{uid}:{frame}"
    return Image(uid, values.astype(np.float32), geometry, notices=notices, sha256=sha256)


def raster_display(data: bytes, *, frame: int | None = None) -> Display:
    """The same picture or slice for a viewer, in a compact type; see `dicom.read_display`.

    Raises:
        ImageError: As `read_raster`, but not for a picture of one value.
    """
    values, geometry, _, _ = _values(data, frame, whole=True)
    values = narrow(values)
    return Display(values, geometry, percentile_window(values), "percentiles")


def _values(data: bytes, frame: int | None, *,
            whole: bool = False) -> tuple[np.ndarray, Geometry, bool, tuple[Notice, ...]]:
    """Grey values ``(rows, columns)``, their place, whether the file holds several, and notices.

    With ``whole`` the brightness of a colour picture is rounded to the picture's own type.
    """
    if data[:2] == b"\x1f\x8b":
        data = _inflate_nifti(data)
    if _is_nifti(data):
        values, geometry, several = _nifti(data, frame)
        notices: tuple[Notice, ...] = ()
    elif data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff" or data[:4] in (b"II*\0", b"MM\0*"):
        pixels = decoder.raster(data, frame=frame)
        values, notices = _colourless(pixels)
        if whole and pixels.dtype.kind == "u":
            values = np.rint(values).astype(pixels.dtype, copy=False)
        geometry = Geometry((len(values), len(values[0])), spacing_known=False)
        several = frame is not None and frame > 1
    elif data[:4] == b"PK\x03\x04":
        raise _archive()
    else:
        raise ImageError("not_an_image", "File: need DICOM (with its preamble), PNG, JPEG, TIFF or NIfTI, "
                         "got something else.")
    if min(values.shape) < MIN_SIDE:
        raise ImageError("too_small", f"Image: need at least {MIN_SIDE} rows and columns, got "
                         f"{values.shape}.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError("constant", "Pixels: need finite values, got others. There is nothing to classify.")
    return values, plausible(geometry), several, notices


def _colourless(pixels: np.ndarray) -> tuple[np.ndarray, tuple[Notice, ...]]:
    if pixels.ndim == 2:
        return pixels, ()
    grey, colourfulness = colour_to_grey(pixels)
    if colourfulness <= COLOUR_NOTICE:
        return grey, ()
    return grey, (Notice("colour", "Colour: this is a colour or tinted picture; its brightness was used. Do "
                         "not trust the answer if it is not a photograph of a film."),)


def _archive() -> ImageError:
    return ImageError("archive", "File: need an image, got an archive. Unpack it first.")


def _inflate_nifti(data: bytes) -> bytes:
    """The content of a gzip file if it is NIfTI; inflated in bounded steps."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    start = inflater.decompress(data, 1024)
    if not _is_nifti(start):
        raise _archive()
    rest = inflater.decompress(inflater.unconsumed_tail, MAX_INFLATED)
    if inflater.unconsumed_tail:
        raise ImageError("too_large", f"File: need at most {MAX_INFLATED >> 20} MiB inflated, got more.")
    return start + rest


def _is_nifti(data: bytes) -> bool:
    for order in "<>":
        if len(data) >= 352:
            size, = struct.unpack_from(order + "i", data)
            if (size, data[344:347]) == (348, b"n+1") or (size, data[4:7]) == (540, b"n+2"):
                return True
    return False


def _nifti(data: bytes, frame: int | None) -> tuple[np.ndarray, Geometry, bool]:
    kind = nibabel.Nifti2Image if data[4:7] == b"n+2" else nibabel.Nifti1Image
    volume = kind.from_bytes(data)
    shape = tuple(volume.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3) or volume.get_data_dtype().kind not in "iuf":
        raise ImageError("not_an_image", "NIfTI: need numbers in two or three dimensions, got another kind.")
    if shape[0] * shape[1] > MAX_SAMPLES:
        raise ImageError("too_large", f"Slice: need at most {MAX_SAMPLES} samples, got {shape[0]} x "
                         f"{shape[1]}.")
    slices = shape[2] if len(shape) == 3 else 1
    if slices > 1 and frame is None:
        raise ImageError("frame_needed", f"Image: need one slice, got a file of {slices}. Name a frame, "
                         "from 1.")
    if frame is not None and not 1 <= frame <= slices:
        raise ImageError("no_such_frame", f"Frame: need 1 to {slices}, got {frame}. Name another.")
    index = (frame or 1) - 1
    position = (slice(None), slice(None), index) + (0,) * (len(volume.shape) - 3)
    values = np.asarray(volume.dataobj[position[:len(volume.shape)]])
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    right, down = lps[:3, 0], lps[:3, 1]
    origin = lps @ np.array([0.0, 0.0, index, 1.0])
    across, along = float(np.linalg.norm(right)), float(np.linalg.norm(down))
    try:
        geometry = Geometry((shape[1], shape[0]), (along, across), _point(origin), _point(right / across),
                            _point(down / along))
    except (ValueError, ZeroDivisionError):
        raise ImageError("geometry", "NIfTI: need an affine of right angles, got another.") from None
    return np.ascontiguousarray(values.T), geometry, slices > 1


def _point(vector: np.ndarray) -> tuple[float, float, float]:
    return float(vector[0]), float(vector[1]), float(vector[2])
