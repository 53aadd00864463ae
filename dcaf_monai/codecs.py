"""The decoders themselves: runs inside the worker of `decode`, never in the caller's process.

pydicom's decoders turn a frame into an array (PS3.5 Annex A); each transfer syntax has one plugin,
named here, so that an installed but unsafe one is never tried first. JPEG 2000 at reduced
resolution goes through Pillow, the only one that offers it.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.pixels.utils import get_j2k_parameters

from dcaf_monai.decode import MAX_SAMPLES, codestream_size, jpeg2000_start
from dcaf_monai.image import ImageError

PLUGINS = {
    uid.JPEGBaseline8Bit: "pillow", uid.JPEGExtended12Bit: "pillow",
    uid.JPEGLossless: "pylibjpeg", uid.JPEGLosslessSV1: "pylibjpeg",
    uid.JPEGLSLossless: "pyjpegls", uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pylibjpeg", uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg", uid.HTJ2KLosslessRPCL: "pylibjpeg", uid.HTJ2K: "pylibjpeg",
    uid.RLELossless: "pydicom",
}
Pillow.MAX_IMAGE_PIXELS = None  # our own limit is checked before anything is decoded


def answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """The reply to one request: ``shape`` and ``dtype`` with pixels, or ``error`` and ``message``."""
    try:
        pixels = _frame(request, data) if request["task"] == "frame" else _raster(data, request["frame"])
    except ImageError as error:
        return {"error": error.code, "message": str(error)}, np.empty(0, np.uint8)
    except Exception as error:  # foreign decoders: the one place where their errors become ours
        return {"error": "decode_failed", "message":
                f"Pixel data: need a readable stream, got one the decoder refuses ({type(error).__name__}). "
                "The file is damaged; ask its source for an uncompressed copy."}, np.empty(0, np.uint8)
    return {"shape": pixels.shape, "dtype": pixels.dtype.name}, pixels


def _frame(request: dict[str, Any], data: bytes) -> np.ndarray:
    syntax = uid.UID(request["syntax"])
    if request["reduce"]:
        return _reduced(request, data)
    plugin = PLUGINS.get(syntax)
    if plugin is None or plugin not in get_decoder(syntax).available_plugins:
        raise ImageError("no_decoder", f"Transfer syntax: need one with an installed decoder, got "
                         f"{syntax.name}. Ask the archive for Explicit VR Little Endian.")
    header: dict[str, Any] = {
        "number_of_frames": 1, "rows": request["rows"], "columns": request["columns"],
        "samples_per_pixel": request["samples"], "bits_allocated": request["bits_allocated"],
        "bits_stored": request["bits_stored"], "pixel_representation": int(request["signed"]),
        "photometric_interpretation": request["photometric"], "planar_configuration": request["planar"],
        "pixel_keyword": "PixelData"}
    return get_decoder(syntax).as_array(encapsulate([data]), index=0, decoding_plugin=plugin, **header)[0]


def _reduced(request: dict[str, Any], data: bytes) -> np.ndarray:
    """A grey JPEG 2000 frame without its finest ``reduce`` levels, in the header's signedness."""
    start = jpeg2000_start(data)
    if start is None:
        raise ImageError("decode_failed", "Pixel data: need a JPEG 2000 codestream, got something else. The "
                         "file is damaged.")
    codestream = data[start:]
    stream = get_j2k_parameters(codestream)
    picture: Any = Pillow.open(BytesIO(codestream), formats=("JPEG2000",))
    # Pillow rounds the reduced size where the standard (and its decoder) rounds up, and then finds the
    # stream broken; from a size that divides evenly both come to the same.
    step = 1 << request["reduce"]
    picture._size = tuple(-(-side // step) * step for side in picture.size)
    picture.reduce = request["reduce"]
    precision, container = stream["precision"], 8 if stream["precision"] <= 8 else 16
    # Pillow widens the samples to the whole container and adds half its range to signed ones.
    values = np.asarray(picture).astype(np.int32) >> (container - precision)
    if stream["is_signed"]:
        values -= 1 << (precision - 1)
    values &= (1 << precision) - 1
    if request["signed"]:
        values = (values << (32 - precision)) >> (32 - precision)
    return values.astype(np.int16 if request["signed"] else np.uint16)


def _raster(data: bytes, frame: int | None) -> np.ndarray:
    picture: Pillow.Image = Pillow.open(BytesIO(data), formats=("PNG", "JPEG", "TIFF"))
    rows, columns = codestream_size(data) or (picture.height, picture.width)
    if max(rows * columns, picture.height * picture.width) * len(picture.getbands()) > MAX_SAMPLES:
        raise ImageError("too_large", f"Picture: need at most {MAX_SAMPLES} samples, got {rows} x {columns}. "
                         "Make it smaller.")
    pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
    if pages > 1 and frame is None:
        raise ImageError("frame_needed", f"Picture: need a frame, got a file of {pages}. Name one, from 1.")
    if frame is not None and not 1 <= frame <= pages:
        raise ImageError("no_such_frame", f"Frame: need 1 to {pages}, got {frame}. Name another.")
    if pages > 1 and frame is not None:
        picture.seek(frame - 1)
        if picture.height * picture.width > MAX_SAMPLES:
            raise ImageError("too_large", f"Picture: need at most {MAX_SAMPLES} samples, got more. "
                             "Make it smaller.")
    picture = ImageOps.exif_transpose(picture)
    if "transparency" in picture.info or picture.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() != (255, 255):
            raise ImageError("transparent", "Picture: need opaque pixels, got transparent ones. "
                             "Save it without.")
        picture = picture.convert("RGB")
    if picture.mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        return np.asarray(picture).astype(np.uint16)
    if picture.mode in ("I", "F"):
        return np.asarray(picture)
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
    return np.asarray(picture.convert("RGB"))
