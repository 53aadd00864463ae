"""MONAI Label's own client and its own way of starting a server work with ours."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from server_process import TASK, images, shared_server, studies, tiny_model

from dcaf_monai.server import compat  # noqa: F401  (before monailabel)

# isort: split
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def stock(tmp_path: Path) -> MONAILabelClient:
    return MONAILabelClient(shared_server().url, tmpdir=str(tmp_path), client_id="stock user")


def test_the_stock_client_lists_the_model_as_a_classifier(stock: MONAILabelClient) -> None:
    info = stock.info()
    assert info["models"]["dcaf"]["type"] == "classification"
    assert info["models"]["dcaf"]["labels"] == {name: index for index, name in enumerate(TASK.classes)}
    assert "random" in info["strategies"] and "dcaf" in info["trainers"] and "dcaf" in info["scoring"]
    assert info["datastore"]["total"] == 8 and info["labels"] == list(TASK.classes)
    assert stock.auth_enabled() is False


def test_the_stock_clients_inference_is_valid_json(stock: MONAILabelClient) -> None:
    with shared_server().client() as client:
        uid = images(client)[0]
    file, reply = stock.infer("dcaf", uid, {"result_extension": ".nrrd", "result_dtype": "uint8"})
    assert file is None
    assert json.loads(reply)["prediction"][0]["label"] in TASK.classes


def test_the_stock_client_takes_a_case_and_submits_a_label(stock: MONAILabelClient, tmp_path: Path) -> None:
    case = stock.next_sample("random", {})
    assert case["id"] in stock.datastore()["objects"]
    assert "path" not in case  # the server's folders are no client's business
    document = tmp_path / "label.json"
    document.write_text(json.dumps({"label": "normal", "comment": "from the stock client"}))
    saved = stock.save_label(case["id"], str(document), tag="final", params={})
    assert saved["image"] == case["id"] and saved["annotation"]["reader"] == "stock user"
    stored = json.loads(Path(stock.download_label(case["id"], "final")).read_text())
    assert stored["annotations"][-1]["comment"] == "from the stock client"


def test_the_stock_client_is_told_that_a_mask_is_no_answer(stock: MONAILabelClient, tmp_path: Path) -> None:
    mask = tmp_path / "label.nii.gz"
    mask.write_bytes(b"\x1f\x8b\x08 no class label")
    uid = next(iter(stock.datastore()["objects"]))
    with pytest.raises(MONAILabelClientException) as refused:
        stock.save_label(uid, str(mask), tag="final", params={"label_info": [{"name": "lung", "idx": 1}]})
    assert "422" in refused.value.msg and "annotation" in refused.value.msg


def test_the_stock_client_asks_for_training_that_never_ran(stock: MONAILabelClient) -> None:
    assert stock.train_status(check_if_running=True) is False


def test_monai_label_starts_our_application(tmp_path: Path) -> None:
    model = tiny_model(path := tmp_path / "a model.safetensors")
    app = shutil.copytree(ROOT / "apps" / "dcaf", tmp_path / "app")  # upstream makes folders inside it
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "monailabel.main", "start_server", "--app", app,
             "--studies", studies(tmp_path / "studies", 2), "--conf", "model", path,
             "--conf", "auto_score", "false", "--host", "127.0.0.1", "--port", str(port),
             "--uvicorn_app", "dcaf_monai.server.asgi:app"], stdout=log, stderr=log, cwd=tmp_path)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            deadline = time.monotonic() + 90
            while True:
                try:
                    info = client.get("/info/").raise_for_status().json()
                    break
                except httpx.TransportError:
                    assert process.poll() is None, (tmp_path / "log").read_text()
                    assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                    time.sleep(0.2)
            assert info["models"]["dcaf"]["type"] == "classification"
            answer = client.post("/infer/dcaf", params={"image": "other/ramp.PNG"}).raise_for_status().json()
            assert answer["model"]["sha256"] == model.sha256
            assert client.post("/reload").status_code == 404
    finally:
        process.terminate()
        process.wait(20)
