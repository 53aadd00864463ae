"""Heat maps to look at: over the image as PNG, or as NRRD and NIfTI volumes of one slice.

The maps themselves come from `dcaf_monai.heat`, whose names are here too.

The colours are one hue whose CIE lightness grows evenly with the value (CIE 15, L*a*b*), so that
equal steps look equal, also in print and to a colour-blind eye. The scale is the heat's own, fixed
one: a faint map stays faint.
"""

from __future__ import annotations

import io
import re
import textwrap
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import PIL.Image
import PIL.ImageDraw

from dcaf_monai.heat import KINDS, SCALES, Heat, fit_scales, heats
from dcaf_monai.image import Display, Geometry, Image

__all__ = ["COLOURS", "KINDS", "SCALES", "Heat", "blend", "display_nrrd", "fit_scales", "grey_png", "heats",
           "on_image", "write_nifti", "write_nrrd", "write_png"]

HUE_DEGREES = 65.0  # amber: stands out from grey for red-green and for blue-yellow blindness
LIGHTNESS = (30.0, 90.0)


def blend(image: Image, heat: Heat, *, opacity: float = 0.6, threshold: float = 0.1) -> np.ndarray:
    """The heat over the grey image.

    Args:
        image: Shown between the 0.5th and the 99.5th percentile of its own pixels.
        heat: Any map of that image.
        opacity: Of the colour at the top of the scale, 0 to 1.
        threshold: Share of the scale below which the image stays untouched, 0 to below 1; from
            there the colour fades in, so that the threshold makes no edge.

    Returns:
        uint8 ``(rows, columns, 3)`` on the pixel grid of ``image.pixels``, RGB.

    Raises:
        ValueError: For an opacity or threshold out of range, or a heat in another plane.
    """
    if not 0 <= opacity <= 1 or not 0 <= threshold < 1:
        raise ValueError(f"opacity, threshold: need 0 to 1, threshold below 1, got {opacity}, {threshold}.")
    grey = _windowed(image)[..., None] * 255
    share = np.clip(on_image(heat, image) / heat.scale, 0, 1)
    colour = COLOURS[np.rint(share * 255).astype(np.uint8)]
    alpha = opacity * np.clip((share - threshold) / (1 - threshold), 0, 1)[..., None]
    return np.rint(grey * (1 - alpha) + colour * alpha).astype(np.uint8)


def grey_png(image: Image, *, max_side: int) -> bytes:
    """The image alone as an 8-bit grey PNG, windowed as in `blend`, its longer side ``max_side`` at most."""
    picture = PIL.Image.fromarray((_windowed(image) * 255).astype(np.uint8))
    picture.thumbnail((max_side, max_side))
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def _windowed(image: Image) -> np.ndarray:
    low, high = np.percentile(image.pixels, (0.5, 99.5))
    return np.clip((image.pixels - low) / max(high - low, 1e-12), 0, 1)


def on_image(heat: Heat, image: Image) -> np.ndarray:
    """Values of the heat at every pixel of an image, linear between cells, 0 outside the map.

    Returns:
        float64 ``(rows, columns)`` of ``image.pixels``.

    Raises:
        ValueError: When the heat lies in another plane.
    """
    source, grid = image.geometry, heat.geometry
    shift = np.subtract(grid.origin_mm, source.origin_mm)
    off_plane = abs(shift @ np.cross(source.right, source.down))
    if not np.allclose([source.right, source.down], [grid.right, grid.down], atol=1e-4) or off_plane > 0.01:
        raise ValueError("heat: need a map in the plane of the image, got one of another geometry. "
                         "Blend a heat with the image it was made from.")
    down, right = (_linear(image.pixels.shape[axis], source, grid, axis, float(shift @ direction))
                   for axis, direction in enumerate((source.down, source.right)))
    return down @ heat.values @ right.T


def _linear(pixels: int, source: Geometry, grid: Geometry, axis: int, shift_mm: float) -> np.ndarray:
    """``(pixels, cells)``: weights of linear interpolation along one axis."""
    place = (np.arange(pixels) + 0.5) * source.shape[axis] / pixels - 0.5  # index of the stored grid
    index = (place * source.spacing_mm[axis] - shift_mm) / grid.spacing_mm[axis]
    cells = grid.shape[axis]
    inside = (index >= -0.5 - 1e-9) & (index <= cells - 0.5 + 1e-9)
    nearest = np.clip(index, 0, cells - 1)[:, None]
    return np.clip(1 - np.abs(nearest - np.arange(cells)), 0, 1) * inside[:, None]


def write_nrrd(heat: Heat, path: Path) -> None:
    """Write a float32 NRRD of one slice, axes ``(column, row, slice)``, in LPS millimetres."""
    affine = heat.geometry.affine_lps
    nrrd.write(str(path), heat.values.T[:, :, None], {
        "space": "left-posterior-superior", "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3], "kinds": ["domain", "domain", "domain"],
        "dcaf_kind": heat.kind, "dcaf_level": str(heat.level), "dcaf_scale": f"{heat.scale:g}",
        "dcaf_unit": heat.unit})


def display_nrrd(display: Display) -> bytes:
    """A picture as NRRD of one slice, axes ``(column, row, slice)``, raw, little endian, in LPS millimetres.

    Written by hand: the values leave in one copy, which for a film of 8 MB is what counts.
    """
    def vector(numbers: np.ndarray) -> str:
        return f"({','.join(repr(float(number)) for number in numbers)})"

    values = np.ascontiguousarray(display.values, display.values.dtype.newbyteorder("<"))
    rows, columns = values.shape
    affine = display.geometry.affine_lps
    kind = {"float32": "float"}.get(values.dtype.name, values.dtype.name)
    lines = ["NRRD0005", f"type: {kind}", "dimension: 3", "space: left-posterior-superior",
             f"sizes: {columns} {rows} 1",
             f"space directions: {' '.join(vector(affine[:3, axis]) for axis in range(3))}",
             "kinds: domain domain domain", "endian: little", "encoding: raw",
             f"space origin: {vector(affine[:3, 3])}",
             f"dcaf_window:={display.window[0]!r} {display.window[1]!r}",
             f"dcaf_window_source:={display.window_source}"]
    if re.fullmatch(r"[A-Z]{1,4}\\[A-Z]{1,4}", display.patient_orientation):
        lines.append(f"dcaf_patient_orientation:={display.patient_orientation}")
    return b"".join(("\n".join([*lines, "", ""]).encode("ascii"), values.data))


def write_nifti(heat: Heat, path: Path) -> None:
    """Write a float32 NIfTI of one slice, axes ``(column, row, slice)``; its millimetres are RAS."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ heat.geometry.affine_lps
    picture = nibabel.Nifti1Image(heat.values.T[:, :, None], affine)
    picture.header.set_xyzt_units("mm")
    picture.header["descrip"] = f"dcaf {heat.kind} scale {heat.scale:g}".encode()
    nibabel.save(picture, path)


def write_png(image: Image, heat: Heat, path: Path, *, opacity: float = 0.6, threshold: float = 0.1,
              legend: bool = True) -> None:
    """Write the blended picture, with the colour bar and its unit below unless told otherwise.

    Raises:
        ValueError: As of `blend`.
    """
    picture = PIL.Image.fromarray(blend(image, heat, opacity=opacity, threshold=threshold))
    (_with_legend(picture, heat) if legend else picture).save(path, format="PNG")


def _with_legend(picture: PIL.Image.Image, heat: Heat) -> PIL.Image.Image:
    margin, bar, line = 6, 10, 13
    width = max(picture.width, 160)
    text = textwrap.wrap(heat.unit, max((width - 2 * margin) // 6, 16))
    height = picture.height + 2 * margin + bar + line * (len(text) + 1)
    sheet = PIL.Image.new("RGB", (width, height), "black")
    sheet.paste(picture, (0, 0))
    top = picture.height + margin
    strip = PIL.Image.fromarray(np.repeat(COLOURS[None], bar, axis=0)).resize((width - 2 * margin, bar))
    sheet.paste(strip, (margin, top))
    pen = PIL.ImageDraw.Draw(sheet)
    pen.text((margin, top + bar), "0", fill="white")
    pen.text((width - margin, top + bar), f"{heat.scale:.3g}", fill="white", anchor="ra")
    for number, words in enumerate(text, start=1):
        pen.text((margin, top + bar + number * line), words, fill="white")
    return sheet


def _lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) ``(..., 3)`` to sRGB (IEC 61966-2-1), not clipped."""
    middle = (lab[..., 0] + 16) / 116
    ratios = np.stack([middle + lab[..., 1] / 500, middle, middle - lab[..., 2] / 200], axis=-1)
    xyz = np.where(ratios > 6 / 29, ratios**3, 3 * (6 / 29) ** 2 * (ratios - 4 / 29)) \
        * [0.95047, 1.0, 1.08883]
    linear = xyz @ np.array([[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560],
                             [0.0556434, -0.2040259, 1.0572252]]).T
    return np.where(linear <= 0.0031308, 12.92 * linear,
                    1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055)


def _colours() -> np.ndarray:
    """uint8 ``(256, 3)``: the chosen hue, lightness even, chroma as strong as the screen can show."""
    hue = np.radians(HUE_DEGREES)
    lightness, chroma = np.linspace(*LIGHTNESS, 256)[:, None], np.linspace(0, 90, 361)[None]
    lightness, chroma = np.broadcast_arrays(lightness, chroma)
    rgb = _lab_to_rgb(np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1))
    shown = ((rgb >= 0) & (rgb <= 1)).all(-1)
    strongest = shown.shape[1] - 1 - shown[:, ::-1].argmax(1)
    return np.rint(rgb[np.arange(256), strongest] * 255).astype(np.uint8)


COLOURS = _colours()
"""uint8 ``(256, 3)``: RGB from 0 to the top of the scale."""
