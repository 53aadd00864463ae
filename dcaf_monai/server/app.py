"""`DcafApp`: the MONAI Label application. Every task is named here; nothing is discovered."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dcaf_monai.server import compat  # noqa: F401  (before monailabel)

# isort: split
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.utils import background_executors, processes, stop_background_task, tasks

from dcaf_monai.model import ModelError
from dcaf_monai.server.access import redact_logs
from dcaf_monai.server.published import PublishedModel
from dcaf_monai.server.queue import PoolScoring, strategies
from dcaf_monai.server.scores import Evidence
from dcaf_monai.server.store import Store, StoreError
from dcaf_monai.server.tasks import NAME, Classify, PredictPool
from dcaf_monai.server.training import Training

logger = logging.getLogger(__name__)

SETTINGS = {
    "model": "published model file; may not exist yet",
    "task": "name of a task or a .toml file; needed until there is a model",
    "data": "class folders or CSV the model was trained on; retraining adds readers' labels to it",
    "database": "SQLAlchemy URL; DCAF_DATABASE in the environment keeps a password out of logs",
    "cutoffs": "a site's own cut-offs for the model version in place",
    "device": "cpu or cuda; default cuda where there is one",
    "auto_score": "true (default) or false: predict new images without being asked",
    "random_share": "share of the cases handed out that is drawn at random, 0 (default) to 1",
}
"""What ``--conf NAME VALUE`` may say to the application; asgi.py has those of the server."""

SERVER_SETTINGS = ("token_file", "behind_proxy", "cors", "max_body", "server_mode")
JOBS = ("train", "scoring", "batch_infer")
RESCAN_S = 30.0
WORLD = (StoreError, ModelError, OSError, LookupError, ValueError, RuntimeError, MemoryError)
"""What files, the database, a model or starting a process can raise while the folder is looked through."""


class DcafApp(MONAILabelApp):
    """DCAF as MONAI Label runs it, in the server and again in each training or scoring process.

    Building it reads the model's task and opens the store; it writes no file but the database.

    Args:
        app_dir: Folder with ``main.py``; not used.
        studies: Folder of images.
        conf: `SETTINGS`, as text.

    Raises:
        ValueError: For an unknown setting, or when neither a model nor a task is given.
        ModelError: When the model file cannot be read.
        StoreError: When the database cannot be opened.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        redact_logs()
        unknown = sorted(set(conf) - set(SETTINGS) - set(SERVER_SETTINGS))
        if unknown:
            raise ValueError(f"--conf: need one of {', '.join((*SETTINGS, *SERVER_SETTINGS))}, "
                             f"got {', '.join(unknown)}.")
        self._device = conf.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        path = Path(conf["model"]).resolve() if conf.get("model") else None
        cutoffs = Path(conf["cutoffs"]).resolve() if conf.get("cutoffs") else None
        self.model = PublishedModel(path, device=self._device, cutoffs=cutoffs)
        self.task = self.model.task(conf.get("task"))
        self.database = conf.get("database") or os.environ.get("DCAF_DATABASE") or None
        self._data = Path(conf["data"]).resolve() if conf.get("data") else None
        self._auto_score = conf.get("auto_score", "true").lower() != "false"
        self._random_share = float(conf.get("random_share") or 0)
        self._closing = threading.Event()
        super().__init__(app_dir=app_dir, studies=studies, conf=dict(conf), name="DCAF", version="1.0",
                         description=f"DCAF: {self.task.title}. Research software, not a medical device.",
                         labels=list(self.task.classes))

    @property
    def store(self) -> Store:
        """Images, predictions and annotations."""
        return self._datastore

    @property
    def training(self) -> Training:
        """The trainer."""
        return self._trainers[NAME]

    @property
    def strategies(self) -> dict[str, Strategy]:
        """The orders in which cases are handed out, by name."""
        return self._strategies

    def init_datastore(self) -> Store:
        return Store(Path(self.studies), self.task, self.database)

    def init_infers(self) -> dict[str, InferTask]:
        return {NAME: Classify(self.model, self.task.classes)}

    def init_trainers(self) -> dict[str, TrainTask]:
        return {NAME: Training(self.model, self.task, folder=self.store.folder / "training",
                               data=self._data, device=self._device)}

    def init_strategies(self) -> dict[str, Strategy]:
        return strategies()

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {NAME: PoolScoring(self.model.predictor, random_share=self._random_share)}

    def init_batch_infer(self) -> Callable:
        return PredictPool(self.model)

    def _load_sessions(self, load: bool = False) -> None:
        """None: images come from the store or with the request, so there are no sessions."""

    def infer(self, request: Mapping[str, Any], datastore: Store | None = None) -> dict[str, Any]:
        """Predicts one image.

        Args:
            request: ``image`` (an id of the store) or ``file`` (an uploaded file's path), and what
                `Classify` takes.
            datastore: Ignored; the app has one store.

        Returns:
            ``file`` (heat map or None) and ``params`` (the document); MONAI Label's other keys too.

        Raises:
            UnknownImage: When the store has no such image.
            ImageError: When the file is not one grey image.
            ModelError: When there is no model.
            ValueError: For a bad parameter.
        """
        uid = request.get("image")
        if uid:
            path, frame = self.store.location(uid)
            request = {**request, "image": path, "uid": uid, "frame": frame}
        else:
            request = {**request, "image": request["file"]}
        file, prediction = self._infers[NAME].answer(request)
        document = prediction.document()
        if uid:
            self.store.save_prediction(uid, document, Evidence(prediction.pooled, prediction.sampled))
        return {"label": file, "tag": "original", "file": file, "params": document}

    def train(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Trains, and when a better model was published ranks the pool again by it.

        Runs in a process of its own, started by the server.
        """
        _end_with_the_server()
        result = super().train(dict(request))
        if result.get("published"):
            result["scoring"] = super().scoring({"method": NAME})
            self.training.settle(result)
        return result

    def scoring(self, request: Mapping[str, Any], datastore: Store | None = None) -> dict[str, Any]:
        _end_with_the_server()
        return super().scoring(dict(request), datastore)

    def batch_infer(self, request: Mapping[str, Any], datastore: Store | None = None) -> dict[str, Any]:
        _end_with_the_server()
        return super().batch_infer(dict(request), datastore)

    def on_init_complete(self) -> None:
        """Finds the images, and keeps finding new ones; waits at most 20 s for the first look."""
        looked = threading.Event()
        threading.Thread(target=self._watch, args=(looked,), name="studies", daemon=True).start()
        looked.wait(20)

    def close(self) -> None:
        """Stops watching and ends every training, scoring and batch process."""
        self._closing.set()
        for executor in background_executors.values():
            executor.shutdown(wait=False, cancel_futures=True)
        for method in JOBS:
            while processes(method):
                stop_background_task(method)
        self.store.close()

    def _watch(self, looked: threading.Event) -> None:
        """Scans the studies folder now and then, and has what is new predicted."""
        ranked_by = ""
        while not self._closing.is_set():
            try:
                self.store.refresh()
                looked.set()
                if self.model.exists:
                    version = self.model.predictor().model.version
                    if version != ranked_by:  # a model rolled back has scored these images before
                        self.store.rank_by(version)
                        ranked_by = version
                    if self._auto_score and self._should_score(version):
                        self.async_scoring(NAME)
            except WORLD as error:  # a next look may go well; foreign words may name a patient
                ours = isinstance(error, (StoreError, ModelError))
                logger.error("Looking for new images: %s", error if ours else type(error).__name__)
            self._closing.wait(RESCAN_S)

    def _should_score(self, version: str) -> bool:
        failed = [task["status"] for task in tasks("scoring")][-1:] == ["ERROR"]
        return not failed and not running() and bool(self.store.unscored(version, limit=1))


def running(*methods: str) -> bool:
    """Whether a job waits or runs; any job when none is named."""
    return any(task["status"] in ("SUBMITTED", "RUNNING")
               for method in methods or JOBS for task in tasks(method))


def _end_with_the_server() -> None:
    """Ends this job when the server that started it is gone, however it went.

    A killed server cannot tell its children; they would go on training for nobody.
    """
    server = os.environ.get("DCAF_SERVER_PID")
    if not server or os.getpid() == int(server):
        return

    def watch() -> None:
        while os.getppid() == int(server):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="server-watch", daemon=True).start()
