"""`Predictor`: the one door through which anything is predicted.

One image goes: file -> `Image` -> network input -> trunks and fusion once -> T sampled heads ->
entropies, and on the way back heat maps in the image's own geometry.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcaf_monai import uncertainty
from dcaf_monai.heat import Heat, heats, kinds_of
from dcaf_monai.image import Geometry, Image, ImageError, Notice, Placement
from dcaf_monai.model import Model
from dcaf_monai.network import optimised
from dcaf_monai.transforms import image_to_input, read_input

SCHEMA = "dcaf-prediction/1"

Placed = tuple[Image, torch.Tensor, Placement]
"""A picture, its network input ``(1, size, size)`` and how that covers it, as `read_input` gives them."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Args:
        uid: The image's name.
        classes: Class names, in the order of the arrays below.
        probs: Mean of the sampled softmax outputs, float64 ``(classes,)``, sums to 1.
        std: Standard deviation of each class over the samples, ``(classes,)``.
        predictive_entropy: Entropy of ``probs``, nats, in [0, ln(classes)].
        expected_entropy: Mean entropy of the samples, nats (the aleatoric part).
        mutual_information: The difference of the two, nats, >= 0 (the epistemic part).
        normalized_entropy: ``predictive_entropy / ln(classes)``, in [0, 1].
        samples: Number of dropout masks.
        seed: Seed of the dropout masks.
        cutoffs: Operating point of each class that has one.
        conformal: ``alpha``, ``method``, ``conditional`` and ``set`` (the most probable class first) of a
            model that carries thresholds; else None.
        model: ``name``, ``version``, ``sha256`` and ``task`` of the model.
        geometry: Place of the image's stored pixel grid.
        patient_orientation: DICOM Patient Orientation, such as ``L\\F``; empty when not stated.
        pooled: float32 feature vector before the head, ``(2 * fused,)``.
        sampled: float32 logits of every dropout sample, before the temperature, ``(samples, classes)``.
        heats: Heat maps asked for, by kind.
        notices: What speaks against trusting this answer.
    """

    uid: str
    classes: tuple[str, ...]
    probs: np.ndarray
    std: np.ndarray
    predictive_entropy: float
    expected_entropy: float
    mutual_information: float
    normalized_entropy: float
    samples: int
    seed: int
    cutoffs: Mapping[str, float]
    model: Mapping[str, str]
    geometry: Geometry
    patient_orientation: str
    pooled: np.ndarray = field(repr=False)
    sampled: np.ndarray = field(repr=False)
    heats: Mapping[str, Heat] = field(default_factory=dict, repr=False)
    notices: tuple[Notice, ...] = ()
    conformal: Mapping[str, Any] | None = None

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.classes[int(np.argmax(self.probs))]

    @property
    def margin(self) -> float:
        """Difference of the two largest probabilities, in [0, 1]."""
        second, first = np.sort(self.probs)[-2:]
        return float(first - second)

    def document(self) -> dict:
        """The JSON document of ``/infer`` and ``dcaf predict --json`` (DESIGN.md, section 4)."""
        order = np.argsort(-self.probs, kind="stable")
        geometry = self.geometry
        return {
            "schema": SCHEMA,
            "prediction": [{"idx": int(i), "label": self.classes[i], "score": float(self.probs[i])}
                           for i in order],
            "label_names": {name: index for index, name in enumerate(self.classes)},
            "uncertainty": {
                "predictive_entropy": self.predictive_entropy,
                "expected_entropy": self.expected_entropy,
                "mutual_information": self.mutual_information,
                "normalized_entropy": self.normalized_entropy,
                "std": {name: float(sd) for name, sd in zip(self.classes, self.std, strict=True)},
                "samples": self.samples, "seed": self.seed},
            "operating_points": {
                name: {"cutoff": cutoff,
                       "positive": bool(self.probs[self.classes.index(name)] >= cutoff)}
                for name, cutoff in self.cutoffs.items()},
            **({"conformal": dict(self.conformal)} if self.conformal else {}),
            "model": dict(self.model),
            "image": {"id": self.uid, "shape": list(geometry.shape),
                      "spacing_mm": list(geometry.spacing_mm) if geometry.spacing_known else None,
                      "orientation": [*geometry.right, *geometry.down],
                      "patient_orientation": self.patient_orientation},
            "warnings": [{"code": n.code, "message": n.message} for n in self.notices],
        }


class Predictor:
    """Predicts with one model; safe to share between threads.

    Args:
        model: The trained model.
        device: Where the network runs.
        cutoffs: A site's own cut-offs, class name to probability (see
            `calibration.load_overrides`); they replace the model's.
        batch_size: Images that go through the network at once.
        notices: What every answer of this predictor is to say besides.

    Raises:
        ValueError: For a model without active dropout.
    """

    def __init__(self, model: Model, *, device: str = "cpu", cutoffs: Mapping[str, float] | None = None,
                 batch_size: int = 8, notices: tuple[Notice, ...] = ()) -> None:
        self.model = model
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.notices = notices
        self.cutoffs = {name: point.cutoff for name, point in model.operating_points.items()}
        self.cutoffs |= dict(cutoffs or {})
        self._network = optimised(model.network).to(self.device)
        self._masks = uncertainty.dropout_masks(model.network.head, samples=model.samples,
                                                seed=model.seed)
        # One computation at a time already uses every core; a second would only slow the first.
        self._turn = threading.Lock()
        self._set_warnings = [{"code": notice.code, "message": notice.message}
                              for notice in (model.conformal.notices() if model.conformal else ())]
        self._reference = {"name": model.name, "version": model.version, "sha256": model.sha256,
                           "task": model.task.name}

    def predict(self, images: Sequence[Image], *, overlays: Sequence[str] = (),
                target: str | None = None) -> list[Prediction]:
        """Predictions of images already read, in their order.

        Args:
            images: Any number of images.
            overlays: Kinds of heat map wanted, from `overlay.KINDS`.
            target: Class that a class-activation map explains; default the most probable one.

        Raises:
            ValueError: For an unknown overlay or class.
        """
        placed = []
        for image in images:
            tensor, placement, notices = image_to_input(image, self.model.preprocessing)
            placed.append((replace(image, notices=image.notices + notices), tensor, placement))
        return list(self.predict_placed(placed, overlays=overlays, target=target))

    def predict_placed(self, placed: Sequence[Placed], *, overlays: Sequence[str] = (),
                       target: str | None = None) -> Iterator[Prediction]:
        """Predictions of network inputs made elsewhere, in batches; else as `predict`."""
        for start in range(0, len(placed), self.batch_size):
            yield from self._batch(placed[start:start + self.batch_size], overlays, target)

    def predict_file(self, path: Path, *, uid: str | None = None, frame: int | None = None,
                     overlays: Sequence[str] = (), target: str | None = None) -> Prediction:
        """Prediction of one file.

        Raises:
            ImageError: When the file cannot be read as one grey image.
            ValueError: For an unknown overlay or class.
        """
        placed = read_input(path, self.model.preprocessing, uid=uid, frame=frame)
        return self._batch([placed], overlays, target)[0]

    def predict_files(self, files: Iterable[tuple[str | None, Path, int | None]], *,
                      overlays: Sequence[str] = (),
                      ) -> Iterator[tuple[str | None, Prediction | ImageError]]:
        """Predictions of many files, in batches; a bad file gives its error and stops nothing.

        Args:
            files: ``(uid, path, frame)``; uid and frame may be None.
            overlays: Kinds of heat map wanted.

        Yields:
            ``(uid, prediction or error)`` in the order of ``files``.
        """
        waiting: list[tuple[str | None, Placed | ImageError]] = []

        def answer() -> Iterator[tuple[str | None, Prediction | ImageError]]:
            readable = [item for _, item in waiting if not isinstance(item, ImageError)]
            predictions = iter(self._batch(readable, overlays, None))
            for uid, item in waiting:
                yield uid, item if isinstance(item, ImageError) else next(predictions)
            waiting.clear()

        for uid, path, frame in files:
            try:
                waiting.append((uid, read_input(path, self.model.preprocessing, uid=uid, frame=frame)))
            except ImageError as error:
                waiting.append((uid, error))
            if len(waiting) == self.batch_size:
                yield from answer()
        yield from answer()

    def hidden(self, pooled: np.ndarray) -> np.ndarray:
        """What the last layer reads, ``(cases, hidden)``, of pooled vectors ``(cases, units)``."""
        units = torch.from_numpy(np.asarray(pooled, np.float32)).to(self.device)
        return uncertainty.penultimate(self.model.network.head, units).cpu().numpy()

    def _batch(self, placed: Sequence[Placed], overlays: Sequence[str],
               target: str | None) -> list[Prediction]:
        """Predictions of at most one batch of prepared images."""
        kinds = kinds_of(self.model.network.config)
        unknown = [kind for kind in overlays if kind not in kinds]
        if unknown:
            raise ValueError(f"overlay: need one of {', '.join(kinds)}, got {unknown[0]!r}.")
        explained = None if target is None else self.model.task.class_index(target)
        if not placed:
            return []
        inputs = torch.stack([tensor for _, tensor, _ in placed]).to(self.device)
        with self._turn, torch.inference_mode():
            features = self._network.trunks(inputs)
            # class activation needs no attention maps; the others do
            looked = set(overlays) - {"class_activation"}
            fused = self._network.explain(features) if looked else self._network.fuse(features)
            logits = uncertainty.sample_logits(self._network.head, fused.pooled, self._masks)
            told = uncertainty.summarize(logits, self.model.temperature)
            maps: list[dict[str, Heat]] = [{} for _ in placed]
            if overlays:
                top = told.probs.argmax(1).tolist()
                maps = heats(self._network.head, fused, kinds=overlays, scales=self.model.heat_scales,
                             classes=top if explained is None else [explained] * len(placed),
                             places=[(placement, image.geometry) for image, _, placement in placed])
        probs, std = told.probs.cpu().numpy(), told.std.cpu().numpy()
        pooled, sampled = fused.pooled.cpu().numpy(), logits.float().cpu().numpy()
        return [Prediction(
            uid=image.uid, classes=self.model.task.classes, probs=probs[index], std=std[index],
            predictive_entropy=float(told.predictive_entropy[index]),
            expected_entropy=float(told.expected_entropy[index]),
            mutual_information=float(told.mutual_information[index]),
            normalized_entropy=float(told.normalized_entropy[index]),
            samples=self.model.samples, seed=self.model.seed, cutoffs=self.cutoffs,
            model=self._reference, geometry=image.geometry, patient_orientation=image.patient_orientation,
            pooled=pooled[index], sampled=sampled[:, index], heats=maps[index],
            notices=(*image.notices, *self.model.task.notices(image), *self._drifted(pooled[index]),
                     *self.notices),
            conformal=self._set(probs[index], image.uid))
            for index, (image, _, _) in enumerate(placed)]

    def _drifted(self, pooled: np.ndarray) -> tuple[Notice, ...]:
        notice = self.model.drift.notice(pooled) if self.model.drift else None
        return () if notice is None else (notice,)

    def _set(self, probs: np.ndarray, uid: str) -> dict[str, Any] | None:
        sets = self.model.conformal
        if sets is None:
            return None
        return {"alpha": sets.alpha, "method": sets.method, "conditional": sets.conditional,
                "set": sets.names(probs, uid=uid), "warnings": self._set_warnings}
