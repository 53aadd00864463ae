"""MONAI Label's routes for long work: train, scoring, batch inference. Each runs in its own process.

``run_sync`` waits for that process without a thread: the work never shares an interpreter, and the wait
never a place in line, with the readers' requests.
"""

from __future__ import annotations

import threading
from typing import Annotated, Any, Literal

import psutil
from anyio import sleep, to_thread
from fastapi import APIRouter, Body, Depends, HTTPException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcaf_monai.server import compat  # noqa: F401  (before monailabel)

# isort: split
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import tasks

from dcaf_monai.server.access import admin, redact
from dcaf_monai.server.app import running
from dcaf_monai.server.tasks import NAME

router = APIRouter()
_starting = threading.Lock()


class _Parameters(BaseModel):
    """Parameters a client may give; what stock clients always send is taken and not used."""

    model_config = ConfigDict(extra="forbid")
    client_id: Any = Field(default=None, exclude=True)
    model: Any = Field(default=None, exclude=True)
    name: Any = Field(default=None, exclude=True)
    device: Any = Field(default=None, exclude=True)
    gpus: Any = Field(default=None, exclude=True)
    multi_gpu: Any = Field(default=None, exclude=True)
    logging: Any = Field(default=None, exclude=True)
    max_workers: Any = Field(default=None, exclude=True)
    save_label: Any = Field(default=None, exclude=True)
    label_tag: Any = Field(default=None, exclude=True)


class TrainParameters(_Parameters):
    """What `POST /train/dcaf` takes."""

    mode: Literal["frozen", "full"] | None = None
    epochs: int | None = Field(default=None, ge=1, le=1000)
    batch_size: int | None = Field(default=None, ge=1, le=1024)
    seed: int | None = Field(default=None, ge=0, lt=2**31)


class ScoringParameters(_Parameters):
    """What `POST /scoring/dcaf` takes."""

    max_samples: int | None = Field(default=None, ge=0)
    retry: bool | None = None


class BatchParameters(_Parameters):
    """What `POST /batch/infer/dcaf` takes."""

    max_batch_size: int | None = Field(default=None, ge=0)


Parameters = Annotated[dict[str, Any] | None, Body()]


@router.get("/train/")
def training_status(all: bool = False, check_if_running: bool = False) -> Any:
    """The last training task, or every one; 404 when there is none."""
    return _status("train", all, check_if_running)


@router.post("/train/{model}", dependencies=[Depends(admin)])
async def train(model: str, params: Parameters = None, run_sync: bool = False, enqueue: bool = False) -> Any:
    """Starts training on the readers' labels; 429 while one runs, unless ``enqueue``."""
    return await _start("train", model, _checked(TrainParameters, params), wait=run_sync, enqueue=enqueue)


@router.post("/train/", dependencies=[Depends(admin)], include_in_schema=False)
async def train_all(params: Parameters = None, run_sync: bool = False) -> Any:
    """The same for every trainer, of which there is one."""
    task = await _start("train", NAME, _checked(TrainParameters, (params or {}).get(NAME)), wait=run_sync)
    return {NAME: {"result": task, "detail": None}}


@router.delete("/train/", dependencies=[Depends(admin)])
def stop_training() -> Any:
    """Ends the running training; what it had learnt is kept for the next one."""
    return _stop("train")


@router.get("/scoring/")
def scoring_status(all: bool = False, check_if_running: bool = False) -> Any:
    """The last scoring task, or every one; 404 when there is none."""
    return _status("scoring", all, check_if_running)


@router.post("/scoring/{method}", dependencies=[Depends(admin)])
async def score(method: str, params: Parameters = None, run_sync: bool = False) -> Any:
    """Starts predicting every image the current model has not seen."""
    return await _start("scoring", method, _checked(ScoringParameters, params), wait=run_sync)


@router.post("/scoring/", dependencies=[Depends(admin)], include_in_schema=False)
async def score_all(params: Parameters = None, run_sync: bool = False) -> Any:
    """The same for every scoring method, of which there is one."""
    task = await _start("scoring", NAME, _checked(ScoringParameters, (params or {}).get(NAME)), wait=run_sync)
    return {NAME: {"result": task, "detail": None}}


@router.delete("/scoring/", dependencies=[Depends(admin)])
def stop_scoring() -> Any:
    """Ends the running scoring; every prediction made so far is stored."""
    return _stop("scoring")


@router.get("/batch/infer")
def batch_status(all: bool = False, check_if_running: bool = False) -> Any:
    """The last batch, or every one; 404 when there is none."""
    return _status("batch_infer", all, check_if_running)


@router.post("/batch/infer/{model}", dependencies=[Depends(admin)])
async def batch(model: str, images: Literal["all", "labeled", "unlabeled"] = "all",
                params: Parameters = None, run_sync: bool = False) -> Any:
    """Starts predicting many images, whether or not the model has seen them."""
    return await _start("batch_infer", model, {"images": images, **_checked(BatchParameters, params)},
                        wait=run_sync)


@router.delete("/batch/infer", dependencies=[Depends(admin)])
def stop_batch() -> Any:
    """Ends the running batch; every prediction made so far is stored."""
    return _stop("batch_infer")


def _checked(kind: type[_Parameters], params: dict[str, Any] | None) -> dict[str, Any]:
    try:
        return kind.model_validate(params or {}).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:80]
        raise HTTPException(422, f"{place or 'params'}: {first['msg']}.") from error


async def _start(method: str, name: str, params: dict[str, Any], *, wait: bool, enqueue: bool = False) -> Any:
    if name != NAME:
        raise HTTPException(404, f"{method}: need `{NAME}`, got another name.")
    task = await to_thread.run_sync(_started, method, params, enqueue)
    while wait and task["status"] in ("SUBMITTED", "RUNNING"):
        await sleep(0.1)
    return _shown(task)


def _started(method: str, params: dict[str, Any], enqueue: bool) -> dict[str, Any]:
    app = app_instance()
    if method != "train" and not app.model.exists:
        raise HTTPException(404, "model: need a trained model, got none yet. Train one first.")
    request = {"method" if method == "scoring" else "model": NAME}
    with _starting:  # between looking and starting nobody else may start
        busy = running(method)
        if busy and not enqueue:
            raise HTTPException(429, f"{method}: need the running one to end first. Wait, or stop it.")
        task, detail = AsyncTask.run(method, request=request, params=params, enqueue=True)
        if task is None:
            raise HTTPException(429, detail)
        if method == "train" and not busy:  # what is said of the running one is not for the next to change
            app.training.announce("running", "Starting")
    return task


def _status(method: str, every: bool, only_running: bool) -> Any:
    known = [task for task in tasks(method)
             if not only_running or task["status"] in ("SUBMITTED", "RUNNING")]
    if not known:
        raise HTTPException(404, f"{method}: no task {'is running' if only_running else 'was started'}.")
    return [_shown(task) for task in known] if every else _shown(known[-1])


def _stop(method: str) -> Any:
    try:
        task = AsyncTask.stop(method)
    except (psutil.NoSuchProcess, StopIteration):  # it ended by itself at this moment
        task = None
    return _shown(task) if task else {"message": f"{method}: nothing was running."}


def _shown(task: dict[str, Any]) -> dict[str, Any]:
    """A task as clients see it: its last lines without paths, UIDs or passwords."""
    return {**task, "details": [redact(line) for line in list(task.get("details", ()))]}
