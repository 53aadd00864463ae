"""Training from the server: a job of its own that learns from readers and never outlives the server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from server_process import TASK, ServerProcess, tiny_model

from dcaf_monai.phantom import write_films
from dcaf_monai.server.annotation import Annotation
from dcaf_monai.server.published import PublishedModel
from dcaf_monai.server.store import Store
from dcaf_monai.server.training import Training

SETTINGS = {"epochs": 2, "batch_size": 4, "seed": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """Twelve films with a table, of which eight lie in the studies folder, and a random model."""
    folder = tmp_path_factory.mktemp("training")
    write_films(folder / "data", 20, seed=3, shapes=((96, 80), (80, 112)))
    write_films(folder / "studies", 8, seed=5, shapes=((96, 80), (80, 112)))
    tiny_model(folder / "model.safetensors")
    with ServerProcess({"studies": str(folder / "studies"), "model": str(folder / "model.safetensors"),
                        "data": str(folder / "data" / "labels.csv")}) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess):
    with server.client() as client:
        yield client


def wait_for(client: httpx.Client, *states: str, timeout_s: float = 120) -> dict:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        told = client.get("/dcaf/training").raise_for_status().json()
        if told["state"] in states:
            return told
        assert told["state"] in ("running", "ranking"), told
        time.sleep(0.1)
    raise AssertionError(f"training is still {told}")


def label_everything(client: httpx.Client) -> list[str]:
    labelled = []
    while "id" in (case := client.post("/activelearning/random", json={"client_id": "ada"}).json()):
        label = TASK.classes[len(labelled) % 2]
        said = {"params": json.dumps({"label": label, "reader": "ada", "comment": ""})}
        client.put("/datastore/label", params={"image": case["id"]}, data=said).raise_for_status()
        labelled.append(case["id"])
    return labelled


def test_training_learns_what_readers_said_and_ranks_the_pool_again(server: ServerProcess,
                                                                    client: httpx.Client) -> None:
    assert client.get("/dcaf/training").json()["state"] == "idle"
    before = client.get("/model/info/dcaf").json()["checksum"]
    assert len(label_everything(client)) == 8
    client.post("/scoring/dcaf", params={"run_sync": True}).raise_for_status()
    session = client.get("/dcaf/session").raise_for_status().json()
    started = client.post("/train/dcaf", json=SETTINGS | {"client_id": "stock", "device": "cuda"})
    assert started.raise_for_status().json()["status"] in ("SUBMITTED", "RUNNING")
    assert client.post("/train/dcaf", json=SETTINGS).status_code == 429
    assert client.get("/train/", params={"check_if_running": True}).status_code == 200
    assert client.get("/info/").elapsed.total_seconds() < 2
    told = wait_for(client, "published", "refused")
    assert told["candidate_nll"] > 0 and told["published_nll"] > 0
    assert ("Published" in told["message"]) == (told["state"] == "published")
    task = client.get("/train/").json()
    while task["status"] == "RUNNING":
        time.sleep(0.1)
        task = client.get("/train/").json()
    assert task["status"] == "DONE", task
    assert [point["epoch"] for point in told["curve"]] == [1, 2]
    assert all(point["train_loss"] > 0 and point["validation_nll"] > 0 for point in told["curve"])
    assert told["previous_version"] == session["model"]["version"]
    since = {"since": told["previous_version"]}
    changed = client.get("/dcaf/changes", params=since).raise_for_status().json()
    assert changed["from"] == told["previous_version"] and changed["compared"] == 8
    assert client.get("/dcaf/session").json()["training"]["curve"] == told["curve"]
    after = client.get("/model/info/dcaf").json()["checksum"]
    assert (after != before) == (told["state"] == "published")
    if told["state"] == "published":
        versions = {item["model_version"] for item in client.get("/dcaf/worklist").json()["items"]}
        assert versions == {told["version"]}
    assert client.get("/info/").json()["train_stats"]["dcaf"]["state"] == told["state"]


def test_a_stopped_training_leaves_the_model_alone(server: ServerProcess, client: httpx.Client) -> None:
    before = client.get("/model/info/dcaf").json()["checksum"]
    client.post("/train/dcaf", json=SETTINGS | {"epochs": 500}).raise_for_status()
    server._wait(lambda: client.get("/dcaf/training").json().get("curve"))      # told while it runs
    stopped = client.delete("/train/").raise_for_status().json()
    assert stopped["status"] == "STOPPED"
    server._wait(lambda: client.get("/dcaf/training").json()["state"] == "stopped")
    assert client.get("/dcaf/training").json()["curve"][0]["epoch"] == 1
    server._wait(lambda: not server.children(), timeout_s=10)
    assert client.get("/model/info/dcaf").json()["checksum"] == before
    assert client.delete("/train/").json() == {"message": "train: nothing was running."}


def test_a_training_in_line_leaves_what_is_said_of_the_running_one(server: ServerProcess,
                                                                   client: httpx.Client) -> None:
    client.post("/train/dcaf", json=SETTINGS | {"epochs": 500}).raise_for_status()
    server._wait(lambda: client.get("/dcaf/training").json().get("curve"))
    client.post("/train/dcaf", params={"enqueue": True}, json=SETTINGS | {"epochs": 500}).raise_for_status()
    told = client.get("/dcaf/training").json()
    assert told["state"] == "running" and told["curve"] and told["message"] != "Starting"
    for _ in range(2):                                      # the running one, then the next in line
        server._wait(lambda: "status" in client.delete("/train/").json())
    server._wait(lambda: client.get("/dcaf/training").json()["state"] == "stopped")


def test_a_labelled_image_whose_file_is_gone_is_left_out_and_counted(tmp_path: Path) -> None:
    write_films(tmp_path / "data", 20, seed=3, shapes=((96, 80),))
    write_films(tmp_path / "studies", 8, seed=5, shapes=((96, 80),))
    store = Store(tmp_path / "studies", TASK)
    store.refresh()
    uids = store.list_images()
    for uid in uids:
        store.annotate(uid, Annotation(label="normal", reader="ada"))
    store.location(uids[0])[0].unlink()
    training = Training(PublishedModel(tmp_path / "model.safetensors"), TASK, folder=tmp_path / "training",
                        data=tmp_path / "data/labels.csv")
    cohort = training._cohort(store)
    assert {case.uid for case in cohort.cases} >= set(uids[1:]) and len(cohort.cases) == 27
    told = json.loads((tmp_path / "training/progress.json").read_text())
    assert told["message"] == "Reading 7 labels, 1 left out: their files are gone"


@pytest.mark.parametrize(("params", "word"), [({"epochs": 0}, "epochs"), ({"mode": "x"}, "mode"),
                                              ({"out": "/etc/passwd"}, "out"), ({"seed": -1}, "seed")])
def test_a_bad_parameter_starts_nothing(client: httpx.Client, params: dict, word: str) -> None:
    answer = client.post("/train/dcaf", json=params)
    assert answer.status_code == 422 and word in answer.json()["detail"]
    assert client.get("/train/", params={"check_if_running": True}).status_code == 404


def train_and_end(server: ServerProcess, end: Callable[[], None]) -> None:
    """Starts a long training, ends the server, and sees that the job is gone too."""
    with server.client() as client:
        client.post("/train/dcaf", json=SETTINGS | {"epochs": 500}).raise_for_status()
        server._wait(lambda: client.get("/dcaf/training").json().get("stage"))
    jobs = server.children()
    assert jobs
    end()
    _, alive = psutil.wait_procs(jobs, timeout=10)
    assert not alive


def test_no_job_outlives_a_server_that_crashed(server: ServerProcess) -> None:
    with ServerProcess(server.settings) as other:
        train_and_end(other, other.kill)


def test_no_job_outlives_a_server_that_was_stopped(server: ServerProcess) -> None:
    """The last test of this module: it stops the module's own server."""
    train_and_end(server, server.stop)
    assert server.process.returncode == 0
