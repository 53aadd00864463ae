"""`PublishedModel`: the model file as it is now, for every request, job and thread of the server."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from dcaf_monai.calibration import load_overrides
from dcaf_monai.image import Notice
from dcaf_monai.model import Model, ModelError, describe_model, load_model
from dcaf_monai.predict import Predictor
from dcaf_monai.tasks import Task, task_named

logger = logging.getLogger(__name__)


class PublishedModel:
    """The model file as it is now: read again when it was replaced, without stopping anyone.

    Args:
        path: The published file; it need not exist yet. None for a server that never has one.
        device: Where the network runs.
        cutoffs: A site's own cut-offs, for one version of the model; after another one is published
            the model's own hold, and the log and every answer say so.
    """

    def __init__(self, path: Path | None, *, device: str = "cpu", cutoffs: Path | None = None) -> None:
        self.path = path
        self._cutoffs = cutoffs
        self._device = device
        self._stamp: tuple[int, ...] = ()
        self._predictor: Predictor | None = None
        self._loading = threading.Lock()

    @property
    def exists(self) -> bool:
        """Whether a model has been published."""
        return self.path is not None and self.path.is_file()

    def task(self, name: str | None = None) -> Task:
        """The question asked: the model's, or the one named until there is a model.

        Raises:
            ValueError: When the model answers another one than named, or there is neither.
            ModelError: When the model file cannot be read.
        """
        if self.exists:
            assert self.path is not None
            task = Task.model_validate(describe_model(self.path)["task"])
            if name and task_named(name) != task:
                raise ValueError(f"task: need {task.name}, which the model answers, got another.")
            return task
        if name:
            return task_named(name)
        raise ValueError("model or task: need a readable model file, or the name of a task to label for, "
                         "got neither.")

    def predictor(self) -> Predictor:
        """Predictor of the newest readable model.

        The request that notices a new file reads it; those beside it are answered by the old one.

        Raises:
            ModelError: When there is no model yet, or the first one cannot be read.
        """
        if self._predictor is None:
            with self._loading:
                if self._predictor is None:
                    self._read()
        elif self._stamp != self._stamp_now() and self._loading.acquire(blocking=False):
            try:
                self._read()
            except ModelError as error:
                logger.error("The newly published model cannot be read, the old one stays: %s", error)
            finally:
                self._loading.release()
        assert self._predictor is not None
        return self._predictor

    def _read(self) -> None:
        if not self.exists or self.path is None:
            raise ModelError("model: need a trained model, got none yet. Train one first.")
        stamp = self._stamp_now()
        try:
            model = load_model(self.path)
            cutoffs, notices = self._own_cutoffs(model)
            self._predictor = Predictor(model, device=self._device, cutoffs=cutoffs, notices=notices)
        except ValueError as error:  # no dropout: such a model cannot say how unsure it is
            raise ModelError(str(error)) from error
        finally:
            self._stamp = stamp  # a bad file is tried once, not at every request

    def _own_cutoffs(self, model: Model) -> tuple[dict[str, float], tuple[Notice, ...]]:
        if self._cutoffs is None:
            return {}, ()
        try:
            return load_overrides(self._cutoffs, model.version, model.task.classes), ()
        except ValueError as error:
            logger.error("The site's cut-offs are not used, the model's own are: %s", error)
            return {}, (Notice("site_cutoffs", "Cut-offs: the site's own do not fit this version of the "
                               "model and are not used; the model's own are. Fit them anew."),)

    def _stamp_now(self) -> tuple[int, ...]:
        try:
            status = self.path.stat() if self.path else None
        except FileNotFoundError:
            status = None
        return (status.st_mtime_ns, status.st_size, status.st_ino) if status else ()
