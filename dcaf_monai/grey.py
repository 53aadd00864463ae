"""Stored values to a grey picture: modality LUT, then VOI, then inversion (PS3.3 C.11, PS3.14).

The result is meant to be looked at: larger values are brighter. Its unit is that of the last step
that ran, so only the order of values carries meaning; the network's input is normalised later.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi

from dcaf_monai.image import ImageError, Notice


def stored_to_grey(stored: np.ndarray, header: Dataset) -> tuple[np.ndarray, tuple[Notice, ...]]:
    """A monochrome frame as it should be shown.

    Args:
        stored: Integers ``(rows, columns)`` without unused bits.
        header: The image's attributes.

    Returns:
        float32 ``(rows, columns)``, larger is brighter, and what was noticed.

    Raises:
        ImageError: ``bad_header`` for a rescale that is no number, ``constant`` for an image of one value.
    """
    padding = _padding(stored, header)
    grey = _modality(stored, header)
    grey = grey.astype(np.float32, copy=grey is stored)
    grey, notices = _voi(grey, header)
    low, high = float(grey.min()), float(grey.max())
    if not (isfinite(low) and isfinite(high) and low < high):
        raise ImageError("constant", "Pixels: need different finite values, got a picture of one value. "
                         "There is nothing to classify.")
    if header.PhotometricInterpretation == "MONOCHROME1":
        np.subtract(low + high, grey, out=grey)
    if padding is not None and padding.any():
        if padding.all():
            raise ImageError("constant", "Pixels: need a picture, got padding alone. There is nothing to "
                             "classify.")
        grey[padding] = grey[~padding].min()  # not part of the film: black, whatever the inversion made of it
    return grey, notices


def stored_to_values(stored: np.ndarray, header: Dataset,
                     ) -> tuple[np.ndarray, tuple[float, float] | None]:
    """A monochrome frame for a viewer that sets its own window: everything above but the VOI.

    Args:
        stored: Integers ``(rows, columns)`` without unused bits.
        header: The image's attributes.

    Returns:
        uint8, int16, uint16 or float32 ``(rows, columns)``, larger is brighter, not to be written to; and
        the file's first window as ``(centre, width)`` in the same units, turned with the values. None
        when it has none, an invalid one, or a VOI LUT, which no window can say.

    Raises:
        ImageError: ``bad_header`` for a rescale that is no number.
    """
    values, window = narrow(_modality(stored, header)), _stated_window(header)
    if header.PhotometricInterpretation == "MONOCHROME1":
        low, high = values.min(), values.max()
        values = _turned(values, low, high)
        window = (float(low) + float(high) - window[0], window[1]) if window else None
    padding = _padding(stored, header)
    if padding is not None and padding.any() and not padding.all():
        values = np.where(padding, values[~padding].min(), values)
    return values, window


def narrow(values: np.ndarray) -> np.ndarray:
    """The same values in uint8, int16, uint16 or, when none of them holds them, float32."""
    if values.dtype in (np.uint8, np.int16, np.uint16, np.float32):
        return values
    if values.dtype.kind in "iu":
        low, high = int(values.min()), int(values.max())
        for kind in ("uint8", "int16", "uint16"):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return values.astype(kind)
    return values.astype(np.float32)


def percentile_window(values: np.ndarray) -> tuple[float, float]:
    """``(centre, width)`` from the 0.5th to the 99.5th percentile of about 250 x 250 of the pixels."""
    step = max(1, max(values.shape) // 250)
    low, high = np.percentile(values[::step, ::step], (0.5, 99.5))
    return float(low + high) / 2, float(high - low) or 1.0


def _turned(values: np.ndarray, low: np.number, high: np.number) -> np.ndarray:
    """``low + high - values``. Integers wrap on the way and come out right: the result fits their type."""
    if values.dtype.kind == "f":
        return np.subtract(np.float32(float(low) + float(high)), values)
    bits = np.dtype(f"u{values.dtype.itemsize}")
    total = np.array((int(low) + int(high)) % (1 << 8 * bits.itemsize), bits)
    return np.subtract(total, values.view(bits), dtype=bits).view(values.dtype)


def _padding(stored: np.ndarray, header: Dataset) -> np.ndarray | None:
    """Where the frame holds Pixel Padding Value, or the range to its limit (C.7.5.1.1.2)."""
    value = header.get("PixelPaddingValue")
    limit = header.get("PixelPaddingRangeLimit", value)
    if not isinstance(value, int) or not isinstance(limit, int):
        return None
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def _modality(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Stored values in modality units; integers stay what they are when nothing has to be done to them."""
    if header.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, header)
    try:
        slope = float(header.get("RescaleSlope", 1))
        intercept = float(header.get("RescaleIntercept", 0))
    except (TypeError, ValueError) as error:
        raise ImageError("bad_header", "Rescale: need a slope and an intercept, got something that is no "
                         "number. The file is damaged.") from error
    if slope == 1 and intercept == 0:
        return stored
    if slope.is_integer() and intercept.is_integer() and max(abs(slope), abs(intercept)) < 1 << 14:
        values = stored.astype(np.int32)
        values *= int(slope)
        values += int(intercept)
        return values
    grey = stored.astype(np.float32)
    grey *= slope
    grey += intercept
    return grey


def _voi(grey: np.ndarray, header: Dataset) -> tuple[np.ndarray, tuple[Notice, ...]]:
    """The first VOI LUT, else the first window; a broken one is left out and said so."""
    try:
        if header.get("VOILUTSequence"):
            whole = np.rint(grey).astype(np.int32)
            return apply_voi(whole, header, index=0).astype(np.float32), ()
        if header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
            centre, width = _first(header.WindowCenter), _first(header.WindowWidth)
            return window(grey, centre, width, str(header.get("VOILUTFunction", "") or "LINEAR")), ()
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError):
        return grey, (Notice("window_ignored", "Window: the file's own grey scale (VOI) is not valid and "
                             "was left out. The picture may look unlike the archive's."),)
    return grey, ()


def _stated_window(header: Dataset) -> tuple[float, float] | None:
    if header.get("VOILUTSequence"):
        return None
    try:
        centre, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    except (TypeError, ValueError, IndexError):
        return None
    return (centre, width) if isfinite(centre) and isfinite(width) and width > 0 else None


def window(grey: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """A window of PS3.3 C.11.2.1.2 and C.11.2.1.3, without stretching what it lets through.

    Args:
        grey: float32, changed in place.
        centre, width: In modality units.
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID`` (its result lies in 0-1).

    Raises:
        ValueError: For a width the function does not allow, or an unknown function.
    """
    if not (isfinite(centre) and isfinite(width)) or width <= 0 or function == "LINEAR" and width < 1:
        raise ValueError(f"window: need a width of at least 1 (above 0 unless LINEAR), got {width}.")
    if function == "SIGMOID":
        scaled = np.clip((grey - centre) * (-4 / width), -80, 80)
        return (1 / (1 + np.exp(scaled))).astype(np.float32)
    if function == "LINEAR":
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    elif function == "LINEAR_EXACT":
        low, high = centre - width / 2, centre + width / 2
    else:
        raise ValueError(f"window: need LINEAR, LINEAR_EXACT or SIGMOID, got {function!r}.")
    if high <= low:  # LINEAR of width 1: a threshold
        return (grey > low).astype(np.float32)
    return np.clip(grey, low, high, out=grey)


def _first(value: Any) -> float:
    return float(value[0] if isinstance(value, Sequence) else value)


def colour_to_grey(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Luminance of an RGB picture, and how colourful it is.

    Args:
        pixels: ``(rows, columns, 3)`` RGB.

    Returns:
        float32 ``(rows, columns)`` (ITU-R BT.601 luma) and the mean difference between the largest and
        smallest channel, as a share of the range of the type.
    """
    top = float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind in "iu" else 1.0
    difference = float((pixels.max(axis=2).astype(np.float32) - pixels.min(axis=2)).mean()) / top
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return grey, difference
