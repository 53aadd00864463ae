"""The colour tables of the heat: ``COLOURS[name]`` is uint8 ``(256, 3)``, RGB from 0 to the top of the scale.

Made here and not taken from the application, whose own tables come from files that are not everywhere. Amber
is the server's: one hue whose CIE lightness grows evenly with the value (CIE 15, L*a*b*), so that equal steps
look equal, also in print and to a colour-blind eye. Viridis (van der Walt and Smith, 2015, CC0) is for who is
used to it; it is even in lightness too.
"""

from __future__ import annotations

import numpy as np

HUE_DEGREES = 65.0
LIGHTNESS = (30.0, 90.0)

# Every fifteenth entry of Viridis; between them straight lines stay within 5 of 255.
VIRIDIS = ((68, 1, 84), (72, 23, 105), (71, 42, 122), (67, 61, 132), (61, 78, 138), (53, 94, 141),
           (46, 109, 142), (41, 123, 142), (35, 137, 142), (31, 151, 139), (33, 165, 133), (46, 179, 124),
           (70, 192, 111), (101, 203, 94), (137, 213, 72), (176, 221, 47), (216, 226, 25), (253, 231, 37))


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) ``(..., 3)`` to sRGB (IEC 61966-2-1), 0 to 1 where the screen can show it."""
    middle = (lab[..., 0] + 16) / 116
    ratios = np.stack([middle + lab[..., 1] / 500, middle, middle - lab[..., 2] / 200], axis=-1)
    xyz = np.where(ratios > 6 / 29, ratios**3, 3 * (6 / 29) ** 2 * (ratios - 4 / 29)) \
        * [0.95047, 1.0, 1.08883]
    linear = xyz @ np.array([[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560],
                             [0.0556434, -0.2040259, 1.0572252]]).T
    return np.where(linear <= 0.0031308, 12.92 * linear,
                    1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055)


def single_hue(degrees: float) -> np.ndarray:
    """One hue from dark to light in even steps, as colourful as the screen allows at each."""
    lightness, chroma = np.meshgrid(np.linspace(*LIGHTNESS, 256), np.linspace(0, 90, 361), indexing="ij")
    hue = np.radians(degrees)
    rgb = lab_to_rgb(np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1))
    shown = ((rgb >= 0) & (rgb <= 1)).all(-1)
    strongest = shown.shape[1] - 1 - shown[:, ::-1].argmax(1)
    return np.rint(rgb[np.arange(256), strongest] * 255).astype(np.uint8)


def _between(anchors: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    places = np.linspace(0, 255, len(anchors))
    channels = [np.interp(np.arange(256), places, channel) for channel in np.transpose(anchors)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


COLOURS = {"Amber": single_hue(HUE_DEGREES), "Viridis": _between(VIRIDIS),
           "Grey": _between(((0, 0, 0), (255, 255, 255)))}
