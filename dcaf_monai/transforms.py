"""`Image` to network input, with the exact place of that input on the image; lawful augmentation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from monai.transforms import (
    Compose,
    EnsureType,
    RandAdjustContrast,
    RandAffine,
    RandFlip,
    RandScaleIntensity,
    ScaleIntensityRange,
    Transform,
)
from PIL import Image as Pillow
from pydantic import BaseModel, ConfigDict, Field, field_validator

from dcaf_monai.dicom import read_image
from dcaf_monai.image import Image, Notice, Placement
from dcaf_monai.tasks import Task

_FEWEST_LEVELS, _MOSTLY_ONE_GREY = 8, 0.85


class Preprocessing(BaseModel):
    """What is done to every image before the network; part of a model's file.

    Args:
        size: Side of the square input, pixels.
        fit: ``letterbox`` shows the whole image on black, ``crop`` its middle, ``stretch`` distorts it.
            The first two keep physical proportions (pixels need not be square).
        percentiles: Values that become 0 and 1, taken inside the picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    size: int = Field(default=224, ge=32, le=1024)
    fit: Literal["letterbox", "crop", "stretch"] = "letterbox"
    percentiles: tuple[float, float] = (0.5, 99.5)

    @field_validator("percentiles")
    @classmethod
    def _percentiles_rise(cls, percentiles: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ValueError(f"percentiles: need two rising numbers in 0-100, got {percentiles}.")
        return percentiles


def image_to_input(image: Image, preprocessing: Preprocessing,
                   ) -> tuple[torch.Tensor, Placement, tuple[Notice, ...]]:
    """The network's view of an image.

    Args:
        image: Any grey image; its pixels may be of lower resolution than its geometry.
        preprocessing: Size, fit and grey scale.

    Returns:
        float32 ``(1, size, size)`` in [0, 1], 0 outside the picture; where it lies on the *stored*
        grid; and what is unusual about the picture.
    """
    size = preprocessing.size
    content, offset = _content(image, preprocessing)
    # Numpy and Pillow alone, in one thread: on a busy machine torch's threads wait for each other many
    # times longer than this work takes. The filter is the antialiased one of torch, edges on edges.
    picture = Pillow.fromarray(np.ascontiguousarray(image.pixels))
    resized = np.asarray(picture.resize((content[1], content[0]), Pillow.Resampling.BILINEAR,
                                        reducing_gap=3.0))
    scale = (image.geometry.shape[0] / content[0], image.geometry.shape[1] / content[1])
    placement = Placement(size, (-offset[0] * scale[0], -offset[1] * scale[1]), scale)

    inside = resized[max(0, -offset[0]):size - offset[0], max(0, -offset[1]):size - offset[1]]
    low, high = np.percentile(inside, preprocessing.percentiles)
    if high <= low:  # few bright pixels on one grey: keep them visible
        low, high = inside.min(), inside.max()
    scaled = np.clip((inside - np.float32(low)) / np.float32(max(high - low, 1e-12)), 0, 1)
    out = np.zeros((1, size, size), np.float32)
    top, left = max(0, offset[0]), max(0, offset[1])
    out[0, top:top + scaled.shape[0], left:left + scaled.shape[1]] = scaled
    return torch.from_numpy(out), placement, _notices(image, scaled)


def read_input(path: str | Path, preprocessing: Preprocessing, *, uid: str | None = None,
               frame: int | None = None) -> tuple[Image, torch.Tensor, Placement]:
    """File to network input by the shortest way.

    A JPEG 2000 film is decoded at about twice the input's resolution; ``image.notices`` include those
    about the input.

    Raises:
        ImageError: As `dicom.read_image`.
    """
    # Twice the input leaves the resize enough to average; a crop may enlarge up to twice more.
    enough = preprocessing.size * (4 if preprocessing.fit == "crop" else 2)
    image = read_image(path, uid=uid, frame=frame, max_side=enough)
    tensor, placement, notices = image_to_input(image, preprocessing)
    if notices:
        image = replace(image, notices=image.notices + notices)
    return image, tensor, placement


def training_augmentation(task: Task, seed: int, *, size: int = 224) -> Compose:
    """Random changes that keep an image's meaning, on ``(1, size, size)`` tensors in [0, 1].

    Args:
        task: Says what is lawful; a chest is never mirrored.
        seed: Same seed, same sequence of changes; ``set_random_state`` starts another.
        size: Side of the input; shifts are a share of it.
    """
    lawful = task.augmentation
    steps: list[Transform] = [
        RandAffine(prob=1.0, rotate_range=float(np.deg2rad(lawful.rotate_degrees)), scale_range=lawful.scale,
                   translate_range=lawful.translate * size, padding_mode="zeros", mode="bilinear"),
        RandAdjustContrast(gamma=(1 / (1 + lawful.contrast), 1 + lawful.contrast), prob=0.8),
        RandScaleIntensity(factors=lawful.brightness, prob=0.8),
        ScaleIntensityRange(a_min=0, a_max=1, b_min=0, b_max=1, clip=True),
        EnsureType(data_type="tensor", track_meta=False),
    ]
    if lawful.flip_left_right:
        steps.insert(0, RandFlip(prob=0.5, spatial_axis=1))
    return Compose(steps).set_random_state(seed=seed)


def _content(image: Image, preprocessing: Preprocessing) -> tuple[tuple[int, int], tuple[int, int]]:
    """Whole input pixels ``(rows, columns)`` the image takes, and where its corner lies in the input."""
    size = preprocessing.size
    if preprocessing.fit == "stretch":
        return (size, size), (0, 0)
    height, width = (n * mm for n, mm in zip(image.geometry.shape, image.geometry.spacing_mm, strict=True))
    full = max(height, width) if preprocessing.fit == "letterbox" else min(height, width)
    rows, columns = max(1, round(height / full * size)), max(1, round(width / full * size))
    return (rows, columns), ((size - rows) // 2, (size - columns) // 2)


def _notices(image: Image, inside: np.ndarray) -> tuple[Notice, ...]:
    """Pictures no scanner makes; the limits are far outside what 2,000 real films and B-scans show."""
    found = []
    sample = image.pixels[::max(1, image.pixels.shape[0] // 64), ::max(1, image.pixels.shape[1] // 64)]
    if np.unique(sample).size <= _FEWEST_LEVELS:
        found.append(Notice("few_grey_levels", "Grey levels: the picture has almost none between black and "
                            "white. Do not trust the answer."))
    fullest = np.histogram(inside, 32, (0, 1))[0].max() / inside.size
    if fullest > _MOSTLY_ONE_GREY:
        found.append(Notice("mostly_one_grey", f"Content: {fullest:.0%} of the picture is one grey. Do not "
                            "trust the answer."))
    return tuple(found)
