"""Stored values of one DICOM frame: sizes checked first, then a view of the file, or the worker of `decode`.

Paragraph numbers are of DICOM PS3.3.
"""

from __future__ import annotations

import numpy as np
from pydicom import Dataset, uid
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder

from dcaf_monai.decode import MAX_SAMPLES, MIN_SIDE, decoder, jpeg2000_levels
from dcaf_monai.image import ImageError, Notice


def check_pixel_module(header: Dataset) -> None:
    """Refuses, before anything is decoded, what C.7.6.3 does not allow or this library does not read."""
    values = [header.get(key) for key in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
                                          "SamplesPerPixel", "PixelRepresentation")]
    if not all(type(value) is int for value in values):
        raise ImageError("bad_header", "Image pixel module: need whole numbers, got something else. The "
                         "file is damaged.")
    rows, columns, allocated, bits, high, samples, signed = values
    if min(rows, columns) < MIN_SIDE:
        raise ImageError("too_small", f"Image: need at least {MIN_SIDE} rows and columns, got {rows} x "
                         f"{columns}.")
    if rows * columns * samples > MAX_SAMPLES:
        raise ImageError("too_large", f"Image: need at most {MAX_SAMPLES} samples, got {rows} x {columns}.")
    if allocated not in (8, 16) or not 1 <= bits <= allocated or high != bits - 1 or signed not in (0, 1):
        raise ImageError("bits", f"Pixels: need 8 or 16 bits allocated with the high bit on top of the "
                         f"stored ones, got {allocated}, {bits}, {high}.")
    allowed = {1: ("MONOCHROME1", "MONOCHROME2"),
               3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")}.get(samples, ())
    if header.get("PhotometricInterpretation") not in allowed:
        raise ImageError("photometric", "Photometric Interpretation: need MONOCHROME1 or 2, RGB or YBR with "
                         "their number of samples, got another.")


def frame_pixels(header: Dataset, index: int, frames: int, max_side: int | None,
                 ) -> tuple[np.ndarray, tuple[Notice, ...]]:
    """Stored values of one frame: integers ``(rows, columns)`` without unused bits, or RGB."""
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        return _encapsulated(header, index, frames, max_side), ()
    rows, columns, samples, allocated = (
        header.Rows, header.Columns, header.SamplesPerPixel, header.BitsAllocated)
    size = rows * columns * samples * allocated // 8
    if header.PhotometricInterpretation == "YBR_FULL_422":
        size = size // 3 * 2
    have = len(header.PixelData)
    if have < size * frames:
        raise ImageError("truncated", f"Pixel data: need {size * frames} bytes, got {have}. Export it again.")
    notices: tuple[Notice, ...] = ()
    if have > size * frames + 1:
        notices = (Notice("long_pixel_data", "Pixel data: the file holds more bytes than its size needs; "
                          "the rest was left out."),)
    little = header.original_encoding[1]
    if samples == 1 and (little or allocated == 16):
        sign = "i" if header.PixelRepresentation else "u"
        kind = np.dtype(f"{'<' if little else '>'}{sign}{allocated // 8}")
        stored = np.frombuffer(header.PixelData, kind, rows * columns, size * index).reshape(rows, columns)
        return _used_bits(stored, header.BitsStored), notices
    pixels, _ = get_decoder(syntax).as_array(header, index=index)
    return pixels, notices


def _used_bits(stored: np.ndarray, bits: int) -> np.ndarray:
    """Without what old files keep in the unused high bits (overlays); the sign is extended."""
    unused = stored.dtype.itemsize * 8 - bits
    if unused == 0:
        return stored
    if stored.dtype.kind == "u":
        return stored & stored.dtype.type((1 << bits) - 1)
    return (stored << unused) >> unused


def _encapsulated(header: Dataset, index: int, frames: int, max_side: int | None) -> np.ndarray:
    codestream = get_frame(header.PixelData, index, number_of_frames=frames,
                           extended_offsets=_extended_offsets(header))
    syntax = header.file_meta.TransferSyntaxUID
    reduce = 0
    if max_side and header.SamplesPerPixel == 1 and syntax in (uid.JPEG2000, uid.JPEG2000Lossless):
        while (reduce < jpeg2000_levels(codestream)
               and -(-max(header.Rows, header.Columns) >> (reduce + 1)) >= max_side):
            reduce += 1
    pixels = decoder.frame(
        codestream, syntax=str(syntax), rows=header.Rows, columns=header.Columns,
        samples=header.SamplesPerPixel, bits_allocated=header.BitsAllocated, bits_stored=header.BitsStored,
        signed=bool(header.PixelRepresentation), photometric=header.PhotometricInterpretation,
        planar=header.get("PlanarConfiguration", 0) or 0, reduce=reduce)
    return _used_bits(pixels, header.BitsStored) if pixels.ndim == 2 else pixels


def _extended_offsets(header: Dataset) -> tuple[bytes, bytes] | None:
    if "ExtendedOffsetTable" in header and "ExtendedOffsetTableLengths" in header:
        return header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths
    return None
