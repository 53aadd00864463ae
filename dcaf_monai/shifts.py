"""Network inputs changed on purpose, to see what a model says of pictures it was never meant for.

A shift works on the network input, not on the `Image` before it. Preprocessing stretches every image
between its own percentiles and so takes back most of what a brighter, flatter or darker picture
would bring; on the input a severity means the same for every task, file and picture size, it is what
reaches the network, and cached inputs need not be read again. Only the picture is changed: black
margins of a letter-box stay black, as they would if the file itself were like that, so that no
detector can win by looking at the margin.

Two sorts: *gross* shifts with one severity (turned, mirrored, inverted, blank), which any detector
should find, mirrored excepted; and *corruptions* in five severities after the kinds of MedMNIST-C
(Di Salvo et al. 2024) and ImageNet-C (Hendrycks and Dietterich 2019), with strengths chosen by us.
Lengths are shares of the input's side. Everything random follows from (seed, case, kind): a case has
the same noise at every severity, only stronger.

Another modality or another part of the body is no shift but other files: give them as a cohort.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import GibbsNoise, RandBiasField
from PIL import Image as Pillow
from scipy import ndimage
from scipy.signal import fftconvolve

SEVERITIES = (1, 2, 3, 4, 5)
Change = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
"""Picture ``(rows, columns)`` float32 in [0, 1], strength and generator to the changed picture."""


@dataclass(frozen=True)
class Shift:
    """One kind of change.

    Args:
        title: What a person reads.
        family: ``gross``, ``noise``, ``blur``, ``grey``, ``digital`` or ``acquisition``.
        change: Does it; the result may leave [0, 1] and is clipped.
        strengths: One for each severity: one of a gross shift, five of a corruption.
        whole: Whether the margins take part, as when the whole input is turned.
    """

    title: str
    family: str
    change: Change
    strengths: tuple[float, ...] = (1.0,)
    whole: bool = False

    @property
    def severities(self) -> tuple[int, ...]:
        """Severities it has, from 1."""
        return SEVERITIES[:len(self.strengths)]


def shifted(picture: torch.Tensor, kind: str, *, severity: int = 1, seed: int = 0,
            case: str = "") -> torch.Tensor:
    """A network input after a shift; the input itself stays as it is.

    Args:
        picture: ``(1, size, size)`` in [0, 1].
        kind: A key of `SHIFTS`.
        severity: 1 to 5; a gross shift has only 1.
        seed: Of everything random.
        case: Uid of the image, so that cases differ in their noise; the same arguments give the same
            picture.

    Returns:
        float32 ``(1, size, size)`` in [0, 1].

    Raises:
        ValueError: For an unknown kind, a severity the kind does not have, or a tensor that is no
            network input.
    """
    if kind not in SHIFTS:
        raise ValueError(f"kind: need one of {', '.join(SHIFTS)}, got {kind!r}.")
    shift = SHIFTS[kind]
    if severity not in shift.severities:
        raise ValueError(f"severity: need one of {', '.join(map(str, shift.severities))} for {kind}, "
                         f"got {severity}.")
    if picture.ndim != 3 or picture.shape[0] != 1 or picture.shape[1] != picture.shape[2]:
        raise ValueError(f"picture: need (1, size, size), got {tuple(picture.shape)}.")
    pixels = picture[0].detach().cpu().numpy().astype(np.float32)  # a copy
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # also refuses nan
        raise ValueError("picture: need values in [0, 1], got others. Make it with image_to_input.")
    digest = hashlib.sha256(f"{seed}\n{case}\n{kind}".encode()).digest()
    random = np.random.default_rng(np.frombuffer(digest, np.uint32))
    place = (slice(None), slice(None)) if shift.whole else _inside(pixels)
    changed = shift.change(pixels[place], shift.strengths[severity - 1], random)
    pixels[place] = np.clip(changed, 0, 1)
    return torch.from_numpy(pixels)[None]


def _inside(pixels: np.ndarray) -> tuple[slice, slice]:
    """The part between black margins; everything when all is black."""
    if not pixels.any():
        return slice(None), slice(None)
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _turned(pixels: np.ndarray, quarters: float, random: np.random.Generator) -> np.ndarray:
    return np.rot90(pixels, int(quarters)).copy()


def _mirrored(pixels: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    return pixels[:, ::-1].copy()


def _inverted(pixels: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    return 1 - pixels


def _blank(pixels: np.ndarray, grey: float, random: np.random.Generator) -> np.ndarray:
    """A film of one grey, which preprocessing makes black whatever grey it was."""
    return np.full_like(pixels, grey)


def _gaussian_noise(pixels: np.ndarray, sd: float, random: np.random.Generator) -> np.ndarray:
    return pixels + sd * random.standard_normal(pixels.shape, np.float32)


def _speckle(pixels: np.ndarray, sd: float, random: np.random.Generator) -> np.ndarray:
    """Noise in proportion to the light, as coherent imaging has it."""
    return pixels * (1 + sd * random.standard_normal(pixels.shape, np.float32))


def _quantum_noise(pixels: np.ndarray, photons: float, random: np.random.Generator) -> np.ndarray:
    """Counting noise with so many quanta in a white pixel."""
    return random.poisson(pixels * photons) / photons


def _impulses(pixels: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Dead pixels, black or white by halves; a pixel dead at one severity is dead at the next."""
    dead, white = random.random(pixels.shape) < share, random.random(pixels.shape) < 0.5
    return np.where(dead, white, pixels)


def _gaussian_blur(pixels: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    return ndimage.gaussian_filter(pixels, share * max(pixels.shape), mode="nearest")


def _motion_blur(pixels: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """A straight, even movement during exposure, in a direction drawn per case."""
    reach = share * max(pixels.shape) / 2
    side = int(np.ceil(reach)) + 1
    kernel = np.zeros((2 * side + 1, 2 * side + 1))
    angle = random.uniform(0, np.pi)
    along = np.linspace(-reach, reach, 8 * side + 1)
    # Each point of the path gives its weight to the four cells around it, in proportion to nearness.
    for axis_0, axis_1 in zip(side + along * np.sin(angle), side + along * np.cos(angle), strict=True):
        row, column = int(axis_0), int(axis_1)
        down, right = axis_0 - row, axis_1 - column
        kernel[row:row + 2, column:column + 2] += np.outer((1 - down, down), (1 - right, right))
    return fftconvolve(np.pad(pixels, side, mode="edge"), kernel / kernel.sum(), mode="valid")


def _contrast(pixels: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    middle = pixels.mean()
    return middle + factor * (pixels - middle)


def _brightness(pixels: np.ndarray, added: float, random: np.random.Generator) -> np.ndarray:
    return pixels + np.float32(added)


def _gamma(pixels: np.ndarray, exponent: float, random: np.random.Generator) -> np.ndarray:
    return pixels ** exponent


def _pixelated(pixels: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    rows, columns = pixels.shape
    coarse = (max(1, round(columns * share)), max(1, round(rows * share)))  # Pillow: (width, height)
    small = Pillow.fromarray(pixels).resize(coarse, Pillow.Resampling.BOX)
    return np.asarray(small.resize((columns, rows), Pillow.Resampling.NEAREST))


def _jpeg(pixels: np.ndarray, quality: float, random: np.random.Generator) -> np.ndarray:
    stream = io.BytesIO()
    Pillow.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(stream, "JPEG", quality=int(quality))
    return np.asarray(Pillow.open(stream), np.float32) / 255


def _ringing(pixels: np.ndarray, cut: float, random: np.random.Generator) -> np.ndarray:
    """Gibbs artefact: frequencies beyond a circle are missing."""
    return np.asarray(GibbsNoise(alpha=cut)(pixels[None]))[0]


def _bias_field(pixels: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """A smooth field of gain, as of a tilted grid or uneven illumination."""
    field = RandBiasField(degree=3, coeff_range=(-strength, strength), prob=1.0)
    field.set_random_state(seed=int(random.integers(2**31)))
    return np.asarray(field(pixels[None]))[0]


def _ghosts(pixels: np.ndarray, weight: float, random: np.random.Generator) -> np.ndarray:
    """Faint copies above and below, as of a patient who moved between two sweeps."""
    step = max(1, round(pixels.shape[0] * random.uniform(0.08, 0.15)))
    copies = [ndimage.shift(pixels, (rows, 0), order=0, mode="mirror") for rows in (-step, step)]
    return (1 - weight) * pixels + weight * np.mean(copies, axis=0)


SHIFTS: Mapping[str, Shift] = {
    "rotated_90": Shift("turned by a quarter", "gross", _turned, (1.0,), whole=True),
    "rotated_180": Shift("upside down", "gross", _turned, (2.0,), whole=True),
    "mirrored": Shift("left and right exchanged", "gross", _mirrored, whole=True),
    "inverted": Shift("black and white exchanged", "gross", _inverted),
    "blank": Shift("nothing in the picture", "gross", _blank, (0.0,)),
    "gaussian_noise": Shift("Gaussian noise", "noise", _gaussian_noise, (.04, .08, .13, .20, .30)),
    "speckle": Shift("speckle", "noise", _speckle, (.10, .20, .35, .50, .70)),
    "quantum_noise": Shift("quantum noise", "noise", _quantum_noise, (200, 80, 30, 12, 5)),
    "impulse_noise": Shift("dead pixels", "noise", _impulses, (.01, .03, .06, .12, .25)),
    "gaussian_blur": Shift("blur", "blur", _gaussian_blur, (.004, .008, .014, .022, .035)),
    "motion_blur": Shift("motion blur", "blur", _motion_blur, (.02, .04, .07, .11, .16)),
    "contrast_down": Shift("contrast lower", "grey", _contrast, (.75, .60, .45, .30, .15)),
    "contrast_up": Shift("contrast higher", "grey", _contrast, (1.25, 1.5, 2.0, 3.0, 5.0)),
    "brightness_up": Shift("brighter", "grey", _brightness, (.08, .16, .25, .35, .50)),
    "brightness_down": Shift("darker", "grey", _brightness, (-.08, -.16, -.25, -.35, -.50)),
    "gamma_dark": Shift("mid-tones darker", "grey", _gamma, (1.25, 1.5, 2.0, 2.75, 4.0)),
    "gamma_bright": Shift("mid-tones brighter", "grey", _gamma, (.80, .65, .50, .35, .25)),
    "pixelated": Shift("coarse pixels", "digital", _pixelated, (.60, .40, .25, .15, .08)),
    "jpeg": Shift("JPEG compression", "digital", _jpeg, (40, 25, 15, 8, 3)),
    "gibbs": Shift("Gibbs ringing", "acquisition", _ringing, (.50, .65, .75, .85, .92)),
    "bias_field": Shift("uneven gain", "acquisition", _bias_field, (.10, .20, .35, .55, .80)),
    "ghosting": Shift("ghosts of movement", "acquisition", _ghosts, (.10, .20, .30, .45, .60)),
}
"""Every kind by name."""
