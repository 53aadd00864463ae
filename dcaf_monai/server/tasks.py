"""What MONAI Label runs for us: inference, batch inference. Thin: everything predicts by `Predictor`."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcaf_monai.server import compat  # noqa: F401  (before monailabel)

# isort: split
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from dcaf_monai import overlay
from dcaf_monai.dicom import read_image
from dcaf_monai.image import ImageError
from dcaf_monai.overlay import KINDS
from dcaf_monai.predict import Prediction
from dcaf_monai.server.published import PublishedModel
from dcaf_monai.server.scores import Evidence
from dcaf_monai.server.store import Store

logger = logging.getLogger(__name__)

NAME = "dcaf"
"""Name of the one model, trainer and strategy family this server has."""

EXTENSIONS = (".nrrd", ".nii.gz", ".png")
DEFAULT_OVERLAY = "class_activation"


class Classify(InferTask):
    """Inference on one image: the JSON document of DESIGN.md section 4, and one heat map if asked.

    Args:
        model: The published model.
        classes: Class names, in the order of the outputs; empty when unknown.
    """

    def __init__(self, model: PublishedModel, classes: tuple[str, ...]) -> None:
        super().__init__(
            type=InferType.CLASSIFICATION, labels={name: index for index, name in enumerate(classes)},
            dimension=2, description="Class, uncertainty and heat map of one image",
            config={"overlay": sorted(KINDS, key=lambda kind: kind != DEFAULT_OVERLAY),
                    "result_extension": list(EXTENSIONS)})
        self._model = model

    def is_valid(self) -> bool:
        """Whether there is a model to ask."""
        return self._model.exists

    def get_path(self, validate: bool = True) -> str | None:
        """The published model file; None when there is none (MONAI Label's hook)."""
        return str(self._model.path) if self._model.path and (self._model.exists or not validate) else None

    def __call__(self, request: Mapping[str, Any]) -> tuple[str | None, dict]:
        """Path of the heat map or None, and the JSON document (MONAI Label's hook); see `answer`."""
        file, prediction = self.answer(request)
        return file, prediction.document()

    def answer(self, request: Mapping[str, Any]) -> tuple[str | None, Prediction]:
        """Answers one request.

        Args:
            request: ``image`` (path), ``uid``, ``frame``; ``overlay`` (a kind, or None for no map),
                ``class`` that the map explains, ``result_extension``, ``folder`` for the map.

        Returns:
            Path of the heat map or None, and the prediction.

        Raises:
            ImageError: When the file is not one grey image.
            ModelError: When there is no model.
            ValueError: For an unknown overlay or class.
        """
        kind = request.get("overlay")
        path = Path(request["image"])
        prediction = self._model.predictor().predict_file(
            path, uid=request.get("uid"), frame=request.get("frame"),
            overlays=(kind,) if kind else (), target=request.get("class"))
        file = None
        if kind:
            file = Path(request["folder"]) / f"{kind}{request.get('result_extension', '.nrrd')}"
            _write_heat(prediction, kind, file, path, request.get("frame"))
        return str(file) if file else None, prediction


def _write_heat(prediction: Prediction, kind: str, file: Path, source: Path, frame: int | None) -> None:
    heat = prediction.heats[kind]
    if file.name.endswith(".nrrd"):
        overlay.write_nrrd(heat, file)
    elif file.name.endswith(".nii.gz"):
        overlay.write_nifti(heat, file)
    else:
        image = read_image(source, uid=prediction.uid, frame=frame, max_side=1024)
        overlay.write_png(image, heat, file, legend=False)


class PredictPool:
    """Batch inference: predicts many of the store's images and keeps every prediction.

    Args:
        model: The published model.
    """

    def __init__(self, model: PublishedModel) -> None:
        self._model = model

    def __call__(self, request: Mapping[str, Any], store: Store, infer: Callable) -> dict[str, Any]:
        """Runs the batch; one unreadable image is counted and stops nothing.

        Args:
            request: ``images``: ``all``, ``labeled``, ``unlabeled`` or a list of ids;
                ``max_batch_size``: at most so many images, 0 for no limit.
            store: Where images come from and predictions go.
            infer: MONAI Label's single inference; not used, images go through in batches.

        Raises:
            ModelError: When there is no model.
        """
        uids = sorted(_images(request, store))
        uids = uids[:request.get("max_batch_size") or None]
        predictor = self._model.predictor()
        failed: dict[str, str] = {}
        for number, (uid, answer) in enumerate(predictor.predict_files(_located(uids, store)), start=1):
            assert uid is not None
            if isinstance(answer, ImageError):
                failed[uid] = answer.code
            else:
                store.save_prediction(uid, answer.document(), Evidence(answer.pooled, answer.sampled))
            if number % 10 == 0 or number == len(uids):
                logger.info("Batch: %d of %d images, %d unreadable", number, len(uids), len(failed))
        return {"images": len(uids), "predicted": len(uids) - len(failed), "failed": failed}


def _images(request: Mapping[str, Any], store: Store) -> list[str]:
    images = request.get("images", BatchInferImageType.IMAGES_ALL)
    if isinstance(images, list):
        return images
    if images == BatchInferImageType.IMAGES_LABELED:
        return store.get_labeled_images()
    if images == BatchInferImageType.IMAGES_UNLABELED:
        return store.get_unlabeled_images()
    return store.list_images()


def _located(uids: list[str], store: Store) -> Iterator[tuple[str | None, Path, int | None]]:
    for uid in uids:
        path, frame = store.location(uid)
        yield uid, path, frame


@contextmanager
def scratch() -> Iterator[Path]:
    """A private folder for one request's files, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="dcaf-") as folder:
        yield Path(folder)
