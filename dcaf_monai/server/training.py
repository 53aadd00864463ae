"""Training on the readers' labels: what the store knows becomes a cohort, `train.fit` does the rest."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcaf_monai.server import compat  # noqa: F401  (before monailabel)

# isort: split
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.utils import tasks

from dcaf_monai.cohort import Cohort, cohort_from_labels, read_cohort
from dcaf_monai.model import ModelError, load_model
from dcaf_monai.server.published import PublishedModel
from dcaf_monai.server.store import Store, StoreError, UnknownImage
from dcaf_monai.tasks import Task
from dcaf_monai.train import TrainError, fit, work_folder
from dcaf_monai.weights import WeightsError

logger = logging.getLogger(__name__)

STATES = ("idle", "running", "ranking", "published", "refused", "failed", "stopped")
"""Of a training: ``ranking`` predicts the pool again with the model just published."""


class Training(TrainTask):
    """The trainer. It runs in a process of its own; its progress is a small file both can read.

    Args:
        model: The published model, which training starts from and may replace.
        task: The question.
        folder: Where progress, checkpoints and the frozen split are kept.
        data: What the model was first trained on (class folders or CSV); None when the readers'
            labels are all there is.
        device: Where the network is trained.
    """

    def __init__(self, model: PublishedModel, task: Task, *, folder: Path, data: Path | None = None,
                 device: str = "cpu") -> None:
        super().__init__("Learns from the readers' labels; publishes only what is better")
        self._model = model
        self._task = task
        self._folder = folder
        self._data = data
        self._device = device

    def config(self) -> dict[str, Any]:
        """What a client may choose; the first value is what happens when it does not."""
        return {"mode": ["frozen", "full"]}

    def stats(self) -> dict[str, Any]:
        """The last training, for ``/info/``."""
        return self.progress()

    def progress(self) -> dict[str, Any]:
        """How the last training stands.

        Returns:
            ``state`` (one of `STATES`) and ``message``; as far as it got ``stage``, ``done``,
            ``total``, ``note``, ``curve`` (``{"epoch", "train_loss", "validation_nll"}`` of every epoch so
            far), ``previous_version`` (null for a first training), ``candidate_nll``,
            ``published_nll``, ``version``.
        """
        try:
            told = json.loads((self._folder / "progress.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"state": "idle", "message": "No training was started."}
        job = tasks("train")[-1] if tasks("train") else {"status": "STOPPED"}
        if told["state"] in ("running", "ranking") and job["status"] not in ("SUBMITTED", "RUNNING"):
            ended = "failed" if job["status"] == "ERROR" else "stopped"
            told |= {"state": ended, "message": f"Training {ended} during: {told['message']}"}
        return told

    def announce(self, state: str, message: str, **more: Any) -> None:
        """Says how training stands, to whoever asks the server; whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=self._folder)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"state": state, "message": message, **more}, file)
        os.replace(draft, self._folder / "progress.json")
        logger.info("Training: %s: %s", state, message)

    def __call__(self, request: Mapping[str, Any], datastore: Store) -> dict[str, Any]:
        """Trains, and publishes what passes the gate.

        Args:
            request: ``mode``, ``epochs``, ``batch_size``, ``seed``; all may be missing.
            datastore: The store whose labels are learnt.

        Returns:
            ``published``, ``message``, ``candidate_nll``, ``published_nll``, ``version``,
            ``previous_version``, ``curve``.

        Raises:
            SystemExit: When training is not possible; `progress` says why.
        """
        known: dict[str, Any] = {"curve": [], "previous_version": None}

        def progress(stage: str, done: int, total: int, note: str = "") -> None:
            message = f"{stage} {done} of {total}" + (f", {note}" if note else "")
            self.announce("running", message, stage=stage, done=done, total=total, note=note, **known)

        try:
            recipe = self._recipe(request)
            if "init_from" in recipe:
                known["previous_version"] = recipe["init_from"].version
            result = fit(self._cohort(datastore), out=self._out(), device=self._device, progress=progress,
                         learned=lambda history: known.update(curve=list(history)), **recipe)
        except (TrainError, WeightsError, ModelError, StoreError, ValueError) as error:
            self.announce("failed", str(error), **known)
            raise SystemExit(1) from error
        verdict = result.verdict
        answer = {"published": verdict.published, "message": verdict.reason, "version": result.model.version,
                  "candidate_nll": verdict.candidate_nll, "published_nll": verdict.published_nll, **known}
        if verdict.published:
            self.announce("ranking", f"{verdict.reason} Ranking the pool by it.", **{
                name: answer[name] for name in ("version", *known)})
        else:
            self.settle(answer)
        return answer

    def settle(self, answer: Mapping[str, Any]) -> None:
        """Announces the end of a training: the gate's verdict."""
        more = {name: value for name, value in answer.items() if name not in ("published", "message")}
        self.announce("published" if answer["published"] else "refused", answer["message"], **more)

    def _cohort(self, store: Store) -> Cohort:
        labels, gone = [], 0
        for uid, label in store.current_labels().items():
            try:
                path, frame = store.location(uid)
            except UnknownImage:  # deleted since the folder was last looked through
                gone += 1
                continue
            labels.append((uid, path, frame, label, None))
        left_out = f", {gone} left out: their files are gone" if gone else ""
        self.announce("running", f"Reading {len(labels)} labels{left_out}")
        base = None
        if self._data:
            # the split that `dcaf train` drew, so that no case it learnt from judges here
            base = read_cohort(self._data, self._task, frozen=work_folder(self._out()) / "data-split.csv")
        return cohort_from_labels(labels, self._task, base=base, frozen=self._folder / "split.csv")

    def _out(self) -> Path:
        if self._model.path is None:
            raise ValueError("model: need a place for it, got none. Start the server with --model FILE.")
        return self._model.path

    def _recipe(self, request: Mapping[str, Any]) -> dict[str, Any]:
        chosen = {name: request[name] for name in ("mode", "epochs", "batch_size", "seed") if name in request}
        if self._model.exists:
            assert self._model.path is not None
            chosen["init_from"] = load_model(self._model.path)
        return chosen
