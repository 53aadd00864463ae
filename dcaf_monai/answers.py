"""`Answers`: what one model says of many images, as arrays; all an evaluation needs of a model.

Everything comes through the one door, `Predictor`: a figure in a report is a figure about what
``dcaf predict`` and the server answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcaf_monai.cohort import Case
from dcaf_monai.image import ImageError
from dcaf_monai.predict import Prediction, Predictor
from dcaf_monai.tasks import Task
from dcaf_monai.uncertainty import summarize

File = tuple[str | None, Path, int | None]
"""Name, path and frame, as `Predictor.predict_files` takes them."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answers:
    """What a model says of images, in their order; all arrays are float64 unless told otherwise.

    Args:
        classes: Class names, in the order of the columns.
        uids: Name of each image.
        probs: ``(images, classes)``, the answer: mean over dropout samples, at the model's temperature.
        uncalibrated: The same at temperature 1.
        plain: ``(images, classes)`` without dropout, at the model's temperature: what an ordinary softmax
            classifier with these weights would say.
        predictive_entropy: ``(images,)``, nats, of ``probs``.
        expected_entropy: ``(images,)``, nats, mean over the samples.
        mutual_information: ``(images,)``, nats, their difference.
        pooled: float32 ``(images, units)``, features before the head.
        notices: Codes of what `predict` warns of, for each image.
        labels: int64 ``(images,)`` class indices, -1 where none is known.
        groups: Patient of each image.
        seconds: From the first file opened to the last answer.
        refused: Names of images that could not be read, each with the reason; they are not in the arrays.

    Raises:
        ValueError: For arrays of different lengths or no image.
    """

    classes: tuple[str, ...]
    uids: tuple[str, ...]
    probs: np.ndarray = field(repr=False)
    uncalibrated: np.ndarray = field(repr=False)
    plain: np.ndarray = field(repr=False)
    predictive_entropy: np.ndarray = field(repr=False)
    expected_entropy: np.ndarray = field(repr=False)
    mutual_information: np.ndarray = field(repr=False)
    pooled: np.ndarray = field(repr=False)
    notices: tuple[tuple[str, ...], ...] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    groups: tuple[str, ...] = field(repr=False)
    seconds: float = 0.0
    refused: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in _PER_IMAGE}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"answers: need as many of everything as images, at least one, got {lengths}.")

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def predicted(self) -> np.ndarray:
        """Index of the most probable class, ``(images,)``."""
        return self.probs.argmax(1)

    @property
    def correct(self) -> np.ndarray:
        """Whether the most probable class is the label, ``(images,)``."""
        return self.predicted == self.labels

    @property
    def doubt(self) -> dict[str, np.ndarray]:
        """Every way to say how unsure an answer is, ``(images,)`` each, larger is less sure.

        ``softmax`` is one less the largest probability without dropout, ``max_probability`` the same of the
        mean over dropout samples.
        """
        return {"softmax": 1 - self.plain.max(1), "max_probability": 1 - self.probs.max(1),
                "entropy": self.predictive_entropy, "mutual_information": self.mutual_information}

    def take(self, places: Sequence[int] | np.ndarray) -> Answers:
        """The answers of some images, by place."""
        places = np.asarray(places, np.int64)
        picked: dict[str, Any] = {name: value[places] if isinstance(value := getattr(self, name), np.ndarray)
                                  else tuple(value[place] for place in places) for name in _PER_IMAGE}
        return replace(self, **picked)


_PER_IMAGE = tuple(entry.name for entry in fields(Answers)
                   if entry.name not in ("classes", "seconds", "refused"))


def answer_cases(predictor: Predictor, cases: Sequence[Case], task: Task, *,
                 progress: Progress | None = None) -> Answers:
    """Answers to labelled images.

    Args:
        predictor: With the model.
        cases: At least one of them readable.
        task: Whose classes the labels are.
        progress: Told (done, total).

    Raises:
        ValueError: When no image can be read, or the model answers another question.
    """
    if predictor.model.task.classes != task.classes:
        raise ValueError(f"model: need one of classes {', '.join(task.classes)}, got "
                         f"{', '.join(predictor.model.task.classes)}.")
    return _answers(predictor, [(case.uid, case.path, case.frame) for case in cases],
                    labels=[task.class_index(case.label) for case in cases],
                    groups=[case.group for case in cases], progress=progress)


def answer_files(predictor: Predictor, files: Sequence[File], *, progress: Progress | None = None) -> Answers:
    """Answers to images nobody labelled; each counts as a patient of its own.

    Raises:
        ValueError: When no image can be read.
    """
    return _answers(predictor, files, labels=[-1] * len(files), groups=[str(path) for _, path, _ in files],
                    progress=progress)


def gathered(predictions: Iterable[Prediction], predictor: Predictor) -> Answers:
    """Predictions as arrays, nothing known of their labels; no prediction is kept longer than its turn.

    Args:
        predictions: At least one.
        predictor: That made them.

    Returns:
        Labels are -1 and every image is a group of its own.

    Raises:
        ValueError: For no prediction.
    """
    model = predictor.model
    rows: list[tuple] = []
    for one in predictions:
        at_1 = summarize(torch.from_numpy(np.ascontiguousarray(one.sampled))[:, None])
        rows.append((one.uid, one.probs, at_1.probs[0].numpy(), one.predictive_entropy, one.expected_entropy,
                     one.mutual_information, one.pooled, tuple(notice.code for notice in one.notices)))
    if not rows:
        raise ValueError("data: need at least one readable image, got none.")
    uids, probs, uncalibrated, predictive, expected, mutual, pooled, notices = zip(*rows, strict=True)
    features = np.array(pooled, np.float32)
    head = model.network.head
    with torch.inference_mode():
        logits = head(torch.from_numpy(features).to(next(head.parameters()).device)).double().cpu()
    return Answers(model.task.classes, uids, np.array(probs, np.float64), np.array(uncalibrated, np.float64),
                   (logits / model.temperature).softmax(1).numpy(), np.array(predictive, np.float64),
                   np.array(expected, np.float64), np.array(mutual, np.float64), features, notices,
                   np.full(len(uids), -1, np.int64), uids)


def _answers(predictor: Predictor, files: Sequence[File], *, labels: Sequence[int], groups: Sequence[str],
             progress: Progress | None) -> Answers:
    kept: list[int] = []
    refused: list[tuple[str, str]] = []

    def readable() -> Iterator[Prediction]:
        for place, (_, found) in enumerate(predictor.predict_files(files)):
            if isinstance(found, ImageError):
                refused.append((files[place][1].name, str(found)))
            else:
                kept.append(place)
                yield found
            if progress:
                progress(place + 1, len(files))

    started = time.perf_counter()
    try:
        found = gathered(readable(), predictor)
    except ValueError as error:
        if not refused or kept:
            raise
        raise ValueError(f"data: need at least one readable image, got none. The first: {refused[0][1]}") \
            from error
    return replace(found, labels=np.array([labels[place] for place in kept], np.int64),
                   groups=tuple(groups[place] for place in kept),
                   seconds=time.perf_counter() - started, refused=tuple(refused))


def common_images(several: Sequence[Answers]) -> list[Answers]:
    """Answers of several models cut to the images all of them could read, in one order.

    Raises:
        ValueError: When there is no such image.
    """
    shared = set(several[0].uids).intersection(*(one.uids for one in several[1:]))
    if not shared:
        raise ValueError("models: need images that all of them can read, got none.")
    order = [uid for uid in several[0].uids if uid in shared]
    cut = []
    for one in several:
        place = {uid: index for index, uid in enumerate(one.uids)}
        cut.append(one.take([place[uid] for uid in order]))
    return cut
