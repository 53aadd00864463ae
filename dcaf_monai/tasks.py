"""The clinical questions: classes, standard codes, lawful augmentation, and what image fits.

The SNOMED CT codes beside the classes are in no DICOM context group, so the DICOM-SNOMED licence
agreement does not cover them: check your own licence before exporting.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dcaf_monai.image import Image, Notice
from dcaf_monai.phantom import phantom

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NOT_A_CLASS = ("uncertain", "not_assessable")
"""Answers a reader may give beside a class; never trained on."""


class Code(BaseModel):
    """A coded concept (PS3.3 section 8.8): value, coding scheme designator, meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    value: str = Field(min_length=1, max_length=16)
    scheme: str = "SCT"
    meaning: str = Field(min_length=1, max_length=64)


class Augmentation(BaseModel):
    """What may be done to a training image without changing its meaning.

    A chest is never mirrored: the heart would change sides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    flip_left_right: bool = False
    rotate_degrees: float = Field(default=7.0, ge=0, le=45)
    translate: float = Field(default=0.05, ge=0, le=0.5)
    scale: float = Field(default=0.05, ge=0, le=0.5)
    brightness: float = Field(default=0.2, ge=0, le=1)
    contrast: float = Field(default=0.2, ge=0, le=1)


class Task(BaseModel):
    """One clinical question.

    Args:
        name: Lower-case word, used in files, addresses and commands.
        title: What a person reads.
        classes: At least two class names, in the order of the model's outputs.
        codes: Standard code of a class, where one exists.
        modalities: DICOM modalities that fit; an image that states another is answered with a
            notice.
        body_parts: DICOM Body Part Examined values that fit; empty for any.
        augmentation: What training may do to an image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")
    title: str = Field(min_length=1, max_length=80)
    classes: tuple[str, ...] = Field(min_length=2, max_length=64)
    codes: Mapping[str, Code] = Field(default_factory=dict)
    modalities: tuple[str, ...] = ("CR", "DX")
    body_parts: tuple[str, ...] = ()
    augmentation: Augmentation = Augmentation()

    @field_validator("classes")
    @classmethod
    def _classes_are_words(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        bad = [name for name in classes if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name)]
        if bad or len(set(classes)) != len(classes):
            raise ValueError("classes: need different lower-case words (a-z, 0-9, _), "
                             f"got {list(classes)}.")
        if set(classes) & set(NOT_A_CLASS):
            raise ValueError(f"classes: {', '.join(NOT_A_CLASS)} are answers every reader may "
                             "give. Leave them out.")
        return classes

    @model_validator(mode="after")
    def _codes_belong_to_classes(self) -> Task:
        unknown = sorted(set(self.codes) - set(self.classes))
        if unknown:
            raise ValueError(f"codes: need class names, got {', '.join(unknown)}.")
        return self

    def class_index(self, label: str) -> int:
        """Index of a class name.

        Raises:
            ValueError: When the task has no such class.
        """
        if label not in self.classes:
            raise ValueError(f"label: need one of {', '.join(self.classes)}, got {label!r}.")
        return self.classes.index(label)

    def notices(self, image: Image) -> tuple[Notice, ...]:
        """What speaks against asking this question of this image, from its header and a look at it."""
        found = []
        header = image.header
        if image.modality and image.modality not in self.modalities:
            found.append(Notice("wrong_modality", f"Modality: this model was made for "
                                f"{'/'.join(self.modalities)}, the image says {image.modality}. "
                                "Do not trust the answer."))
        part = str(header.get("BodyPartExamined", "") or "").upper()
        if self.body_parts and part and part not in self.body_parts:
            found.append(Notice("wrong_body_part", f"Body part: this model was made for "
                                f"{'/'.join(self.body_parts)}, the image says another. "
                                "Do not trust the answer."))
        view = str(header.get("ViewPosition", "") or "").upper()
        if "CHEST" in self.body_parts and view in {"LL", "RL", "LATERAL", "LLD", "RLD"}:
            found.append(Notice("wrong_view", "View: this model was made for frontal films, the "
                                "image says lateral. Do not trust the answer."))
        if "CHEST" in self.body_parts and _likeness_to_chest(image.pixels) < _LEAST_LIKENESS:
            found.append(Notice("looks_inverted", "Grey scale: bright and dark look exchanged, or this is no "
                                "upright frontal chest film. Look at it before you trust the answer."))
        return tuple(found)


_LEAST_LIKENESS = -0.2
"""Below this 1 of 3,000 real chest films lies (half of it is covered), and 98 % of inverted ones."""


@lru_cache(maxsize=1)
def _drawn_chest() -> np.ndarray:
    """Mean of a few synthetic films on a 32 x 32 grid."""
    return np.mean([_grid(phantom(seed, lesion=False, shape=(96, 96)).pixels) for seed in range(8)], axis=0)


def _grid(pixels: np.ndarray) -> np.ndarray:
    rows, columns = ((np.arange(32) + 0.5) / 32 * np.array(pixels.shape)[:, None]).astype(int)
    return pixels[np.ix_(rows, columns)].astype(np.float64)


def _likeness_to_chest(pixels: np.ndarray) -> float:
    """Correlation of a picture with a drawn frontal chest film, -1 to 1; 0 for a picture of one value."""
    picture, drawn = _grid(pixels), _drawn_chest()
    low, high = np.percentile(picture, (0.5, 99.5))
    picture = np.clip(picture, low, high)
    if high <= low:
        return 0.0
    return float(np.corrcoef(picture.ravel(), drawn.ravel())[0, 1])


def _chest(name: str, title: str, codes: dict[str, Code]) -> Task:
    return Task(name=name, title=title, classes=tuple(codes), codes=codes,
                modalities=("CR", "DX"), body_parts=("CHEST", "THORAX", "LUNG"))


_NORMAL = Code(value="281900007", meaning="No abnormality detected")

TASKS: Mapping[str, Task] = {task.name: task for task in (
    _chest("covid19", "COVID-19 on chest X-ray", {
        "covid": Code(value="840539006", meaning="COVID-19"),
        "normal": _NORMAL,
        "viral_pneumonia": Code(value="75570004", meaning="Viral pneumonia")}),
    _chest("tuberculosis", "Tuberculosis on chest X-ray", {
        "normal": _NORMAL,
        "tuberculosis": Code(value="154283005", meaning="Pulmonary tuberculosis")}),
    _chest("pneumonia", "Pneumonia on chest X-ray", {
        "normal": _NORMAL,
        "pneumonia": Code(value="233604007", meaning="Pneumonia")}),
    Task(name="oct", title="Retinal OCT: CNV, DME, drusen, normal",
         classes=("cnv", "dme", "drusen", "normal"),
         codes={"cnv": Code(value="75971007", meaning="Choroidal retinal neovascularization"),
                "dme": Code(value="312912001", meaning="Macular edema due to diabetes mellitus"),
                "drusen": Code(value="247153005", meaning="Retinal drusen"),
                "normal": _NORMAL},
         modalities=("OP", "OPT"), body_parts=("EYE", "RETINA", "HEAD"),
         augmentation=Augmentation(flip_left_right=True)),
)}
"""The four tasks DCAF ships, by name."""


_CLASS_TITLES = {
    "covid": "COVID-19", "normal": "Normal", "viral_pneumonia": "Viral pneumonia",
    "tuberculosis": "Tuberculosis", "pneumonia": "Pneumonia", "cnv": "CNV (choroidal neovascularization)",
    "dme": "DME (diabetic macular edema)", "drusen": "Drusen"}


def class_title(task: Task, label: str) -> str:
    """What a person reads for a class; of a user's own task it is the class name itself.

    Not a field of `Task`: model files carry their task, and those made before still fit.
    """
    shipped = TASKS.get(task.name)
    return _CLASS_TITLES[label] if shipped and label in shipped.classes and label in task.classes else label


def task_named(name: str) -> Task:
    """A shipped task by name, or a user's own from a ``.toml`` file.

    Raises:
        ValueError: When there is no such task, or the file does not describe one.
    """
    if name in TASKS:
        return TASKS[name]
    if name.endswith(".toml"):
        return task_from_toml(Path(name))
    raise ValueError(f"task: need one of {', '.join(TASKS)} or a .toml file, got {name!r}.")


def task_from_toml(path: Path) -> Task:
    """A user-defined task; the keys are the arguments of `Task`.

    Raises:
        ValueError: When the file cannot be read as a task; the message names the first fault.
    """
    try:
        return Task.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"task file: cannot read {path.name}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"task file: {path.name} is not TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"task file: {path.name}: {place or 'task'}: {first['msg']}.") from error
