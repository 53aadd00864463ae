"""The server: what ``/infer`` costs over prediction in process, and who waits while a batch runs."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from dcaf_monai.model import Model, load_model, new_version, save_model
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.phantom import write_films
from dcaf_monai.predict import Predictor
from dcaf_monai.tasks import TASKS
from dcaf_monai.transforms import Preprocessing
from tests.server_process import ServerProcess, images

INFER_GOAL_MS, INFO_GOAL_MS = 15.0, 50.0


def rows(*, films: int = 12, turns: int = 30) -> list[dict[str, Any]]:
    """One dictionary per figure: what, ours_ms, peer, peer_ms, ratio (ours over peer), goal."""
    with tempfile.TemporaryDirectory() as folder:
        studies, model = Path(folder) / "studies", Path(folder) / "model.safetensors"
        write_films(studies, films, seed=1)
        default_model(model)
        settings = {"studies": str(studies), "model": str(model)}
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        with ServerProcess(settings, threads) as server, server.client() as client:
            uid = next(uid for uid in images(client))
            path = _path_of(uid, studies)
            predictor = Predictor(load_model(model))
            over_http, in_process = _in_turn([
                lambda: client.post("/infer/dcaf", params={"image": uid}).raise_for_status(),
                lambda: predictor.predict_file(path)], turns)
            alone = [_timed(lambda: client.get("/info/").raise_for_status()) for _ in range(turns)]
            with ThreadPoolExecutor(1) as pool:
                batch = pool.submit(client.post, "/batch/infer/dcaf", params={"run_sync": True}, timeout=300)
                busy = []
                while not batch.done():
                    busy.append(_timed(lambda: client.get("/info/").raise_for_status()))
                    time.sleep(0.01)
            assert batch.result().raise_for_status().json()["status"] == "DONE"
    more = over_http - in_process
    return [
        {"what": f"/infer, {more:+.1f} ms over prediction in process", "ours_ms": over_http,
         "peer": "in process", "peer_ms": in_process, "ratio": over_http / in_process,
         "goal": f"<= +{INFER_GOAL_MS:.0f} ms"},
        {"what": f"/info/ at worst of {len(busy)} while a batch runs", "ours_ms": max(busy),
         "peer": "median with nothing running", "peer_ms": statistics.median(alone),
         "ratio": max(busy) / statistics.median(alone), "goal": f"<= {INFO_GOAL_MS:.0f} ms"}]


def default_model(path: Path) -> None:
    """The default pair at 224 pixels with random weights: time does not depend on their values."""
    task = TASKS["pneumonia"]
    torch.manual_seed(0)
    network = DualCrossAttentionFusion(len(task.classes), weights="none").eval()
    save_model(Model(network=network, task=task, preprocessing=Preprocessing(size=224),
                     version=new_version(network)), path)


def _path_of(uid: str, studies: Path) -> Path:
    from dcaf_monai.dicom import sop_instance_uid

    return next(path for path in studies.rglob("*.dcm") if sop_instance_uid(path) == uid)


def _in_turn(calls: list[Callable[[], Any]], turns: int) -> list[float]:
    """Median milliseconds of each call, made in turn so that all meet the same machine."""
    for call in calls * 3:
        call()
    times = [[_timed(call) for call in calls] for _ in range(turns)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000
