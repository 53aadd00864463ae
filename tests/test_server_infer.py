"""Asking the server for predictions: the HTTP contract of DESIGN.md section 4."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from email.parser import BytesParser
from email.policy import HTTP
from io import BytesIO
from pathlib import Path

import httpx
import nibabel
import nrrd
import numpy as np
import PIL.Image
import pytest
from server_process import TASK, images, shared_server, tiny_model

from dcaf_monai.model import load_model
from dcaf_monai.predict import Predictor


@pytest.fixture
def client():
    with shared_server().client() as client:
        yield client


def folder() -> Path:
    return Path(shared_server().settings["studies"])


def with_evidence() -> set[str]:
    """Images that the batch strategies can compare."""
    with closing(sqlite3.connect(folder() / ".dcaf/dcaf.sqlite3")) as database:
        return {uid for uid, in database.execute("SELECT uid FROM evidence")}


def predictor() -> Predictor:
    return Predictor(load_model(Path(shared_server().settings["model"])))


def parts(answer: httpx.Response) -> dict[str, tuple[str, bytes]]:
    """``{name: (file name, bytes)}`` of a multipart answer."""
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + answer.content)
    return {part.get_param("name", header="content-disposition"):
            (part.get_filename(), part.get_payload(decode=True)) for part in message.iter_parts()}


def test_images_are_found_in_every_folder_and_by_every_ending(client: httpx.Client) -> None:
    found = images(client)
    assert {"other/ramp.PNG", "other/ramp 2.jpeg"} <= set(found)
    assert len(found) == 8
    assert all(uid.startswith("2.25.") for uid in found if not uid.startswith("other/"))


def test_the_answer_is_the_document_of_the_contract(client: httpx.Client) -> None:
    uid = images(client)[0]
    answer = client.post("/infer/dcaf", params={"image": uid, "output": "json"})
    assert answer.headers["content-type"] == "application/json"
    document = answer.raise_for_status().json()
    assert set(document) >= {"schema", "prediction", "label_names", "uncertainty", "model", "image",
                             "operating_points", "warnings"}
    scores = [entry["score"] for entry in document["prediction"]]
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1, abs=1e-6)
    assert document["label_names"] == {name: index for index, name in enumerate(TASK.classes)}
    assert {entry["label"]: entry["idx"] for entry in document["prediction"]} == document["label_names"]
    entropy = document["uncertainty"]["predictive_entropy"]
    assert entropy == pytest.approx(-sum(p * math.log(p) for p in scores), abs=1e-5)
    assert set(document["uncertainty"]["std"]) == set(TASK.classes)
    assert document["model"]["task"] == TASK.name and len(document["model"]["sha256"]) == 64
    assert document["image"]["id"] == uid and len(document["image"]["shape"]) == 2


def test_the_server_answers_what_the_predictor_answers(client: httpx.Client) -> None:
    path = folder() / "other" / "ramp.PNG"
    document = client.post("/infer/dcaf", params={"image": "other/ramp.PNG"}).json()
    expected = predictor().predict_file(path, uid="other/ramp.PNG").document()
    assert document["image"] == expected["image"] and document["image"]["shape"] == [80, 100]
    for ours, theirs in zip(document["prediction"], expected["prediction"], strict=True):
        assert ours["label"] == theirs["label"] and ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_the_same_question_has_the_same_answer_from_many_threads(client: httpx.Client) -> None:
    wanted = images(client)[:3] * 4
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda uid: client.post("/infer/dcaf", params={"image": uid}).json(), wanted))
    for uid, answer in zip(wanted, answers, strict=True):
        assert answer == answers[wanted.index(uid)] and answer["image"]["id"] == uid


def test_the_heat_map_comes_on_its_own_grid_in_the_images_space(client: httpx.Client, tmp_path: Path) -> None:
    uid = next(uid for uid in images(client) if uid.startswith("2.25."))
    answer = client.post("/infer/dcaf", params={"image": uid, "output": "all"},
                         data={"params": json.dumps({"overlay": "attention_first"})}).raise_for_status()
    found = parts(answer)
    assert json.loads(found["params"][1])["image"]["id"] == uid
    name, data = found["image"]
    assert name.endswith(".nrrd")
    (tmp_path / "heat.nrrd").write_bytes(data)
    values, header = nrrd.read(str(tmp_path / "heat.nrrd"))
    path = next(path for path in folder().rglob("*.dcm") if predictor().predict_file(path).uid == uid)
    heat = predictor().predict_file(path, overlays=("attention_first",)).heats["attention_first"]
    assert values.dtype == np.float32
    assert np.allclose(np.squeeze(values).T, heat.values, atol=1e-5)
    assert np.allclose(np.linalg.norm(header["space directions"][0]), heat.geometry.spacing_mm[1], atol=1e-4)


def test_the_heat_of_an_uploaded_oblique_nifti_slice_lies_where_its_slice_lies(client: httpx.Client,
                                                                               tmp_path: Path) -> None:
    """Against a picture of the same pixels, whose map lies in pixel indices: columns +x, rows +y."""
    turn = np.linalg.qr(np.array([[1.0, 0.2, -0.3], [0.1, 0.9, 0.4], [0.5, -0.2, 0.8]]))[0]
    affine = np.eye(4)      # RAS; 0.6 x 0.6 mm, because the network is fed by true proportions
    affine[:3, :3], affine[:3, 3] = turn * [0.6, 0.6, 3.0], [12.0, -34.0, 56.0]
    columns, rows = 110, 70
    pixels = (np.add.outer(3 * np.arange(rows), np.arange(columns)) % 251).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(pixels.T[:, :, None], affine), tmp_path / "slice.nii")
    PIL.Image.fromarray(pixels).save(tmp_path / "slice.png")
    heats, headers = [], []
    for name in ("slice.png", "slice.nii"):
        upload = {"file": (name, (tmp_path / name).read_bytes())}
        wish = {"params": json.dumps({"class": TASK.classes[0]})}
        found = parts(client.post("/infer/dcaf", params={"output": "all"}, data=wish,
                                  files=upload).raise_for_status())
        assert json.loads(found["params"][1])["image"]["shape"] == [rows, columns]
        (tmp_path / "heat.nrrd").write_bytes(found["image"][1])
        heat, header = nrrd.read(str(tmp_path / "heat.nrrd"))
        assert header["space"] == "left-posterior-superior"
        heats.append(heat)
        headers.append(header)
    np.testing.assert_allclose(heats[1], heats[0], atol=1e-5)
    to_slice = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    drawn, placed = headers
    np.testing.assert_allclose(placed["space origin"], (to_slice @ [*drawn["space origin"], 1])[:3],
                               atol=1e-4)
    for axis in (0, 1):
        np.testing.assert_allclose(placed["space directions"][axis],
                                   to_slice[:3, :3] @ drawn["space directions"][axis], atol=1e-4)


def test_a_png_shows_the_map_on_the_picture(client: httpx.Client) -> None:
    wish = {"params": json.dumps({"result_extension": ".png", "class": "pneumonia", "client_id": "x",
                                  "result_dtype": "uint8"})}
    answer = client.post("/infer/dcaf", params={"image": "other/ramp.PNG", "output": "all"}, data=wish)
    picture = PIL.Image.open(BytesIO(parts(answer.raise_for_status())["image"][1]))
    assert picture.size == (100, 80) and picture.mode == "RGB"
    alone = client.post("/infer/dcaf", params={"image": "other/ramp.PNG", "output": "image"}, data=wish)
    assert alone.headers["content-type"] == "image/png"
    assert np.array_equal(PIL.Image.open(BytesIO(alone.content)), picture)


def test_an_uploaded_film_is_answered_and_not_kept(client: httpx.Client) -> None:
    before = images(client)
    path = next(folder().rglob("*.dcm"))
    film = {"file": ("../../evil.dcm", path.read_bytes())}
    uploaded = client.post("/infer/dcaf", files=film).raise_for_status()
    uid = uploaded.json()["image"]["id"]
    assert uploaded.json() == client.post("/infer/dcaf", params={"image": uid}).json()
    assert images(client) == before
    private = [Path(line.split("=", 1)[1]) for line in
               Path(f"/proc/{shared_server().process.pid}/environ").read_text().split("\0")
               if line.startswith("TMPDIR=")]
    assert not [left for place in private for left in place.glob("dcaf-*/upload*")]


@pytest.mark.parametrize(("query", "params", "status", "word"), [
    ({"image": "no-such-image"}, {}, 404, "image"),
    ({}, {}, 422, "image"),
    ({"image": "other/ramp.PNG", "output": "dicom_seg"}, {}, 422, "output"),
    ({"image": "other/ramp.PNG", "output": "all"}, {"overlay": "x"}, 422, "overlay"),
    ({"image": "other/ramp.PNG", "output": "all"}, {"result_extension": ".exe"}, 422, "result_extension"),
    ({"image": "other/ramp.PNG", "output": "all"}, {"class": "knee"}, 422, "label"),
    ({"image": "other/ramp.PNG"}, {"device": "cuda"}, 422, "device"),
    ({"image": "other/ramp.PNG"}, {"image": "/etc/passwd"}, 422, "image"),
    ({"image": "other/ramp.PNG"}, ["list"], 422, "params"),
    ({"image": "other/ramp.PNG"}, "{", 422, "params")])
def test_a_callers_mistake_is_one_sentence(client: httpx.Client, query: dict, params: object, status: int,
                                           word: str) -> None:
    text = params if isinstance(params, str) else json.dumps(params)
    answer = client.post("/infer/dcaf", params=query, data={"params": text})
    assert answer.status_code == status
    assert word in answer.json()["detail"]


def test_another_model_or_strategy_is_a_404(client: httpx.Client) -> None:
    for path in ("/infer/other", "/batch/infer/other", "/train/other", "/scoring/other",
                 "/activelearning/other", "/model/info/other"):
        answer = client.get(path) if path.startswith("/model") else client.post(path)
        assert answer.status_code == 404 and answer.json()["detail"], path


@pytest.mark.parametrize("data", [b"", b"no film", b"\x00" * 132 + b"DICM"])
def test_an_upload_that_is_no_film_is_a_422(client: httpx.Client, data: bytes) -> None:
    answer = client.post("/infer/dcaf", files={"file": ("film.dcm", data)})
    assert answer.status_code == 422 and answer.json()["detail"] and answer.json()["code"]


def test_a_prediction_is_kept_and_ranks_the_image(client: httpx.Client) -> None:
    document = client.post("/infer/dcaf", params={"image": "other/ramp 2.jpeg"}).json()
    assert client.get("/dcaf/prediction", params={"image": "other/ramp 2.jpeg"}).json() == document
    listed = {item["uid"]: item for item in client.get("/dcaf/worklist").json()["items"]}
    assert listed["other/ramp 2.jpeg"]["predictive_entropy"] == document["uncertainty"]["predictive_entropy"]
    assert "other/ramp 2.jpeg" in with_evidence()


def test_the_picture_is_a_small_png(client: httpx.Client) -> None:
    answer = client.get("/dcaf/image", params={"image": "other/ramp.PNG", "max_side": 40}).raise_for_status()
    picture = np.asarray(PIL.Image.open(BytesIO(answer.content)), float)
    assert picture.shape == (32, 40)
    assert (np.diff(picture[10]) >= 0).all() and picture[10, -1] > 250


def test_a_batch_predicts_every_image_on_a_machine_without_a_gpu_while_others_are_answered(
        client: httpx.Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, "/batch/infer/dcaf", params={"run_sync": True})
        slowest = 0.0
        while not running.done():
            start = time.monotonic()
            client.get("/info/").raise_for_status()
            slowest = max(slowest, time.monotonic() - start)
            time.sleep(0.02)
    task = running.result().raise_for_status().json()
    assert task["status"] == "DONE", task
    assert slowest < 1.0  # benchmarks/serving.py holds the real figure, on a quiet machine
    for uid in images(client):
        assert client.get("/dcaf/prediction", params={"image": uid}).status_code == 200
    assert with_evidence() == set(images(client))
    status = client.get("/batch/infer").json()
    assert status["id"] == task["id"] and not [line for line in status["details"] if "/studies" in line]


def test_a_crowd_of_inferences_keeps_nobody_else_waiting(client: httpx.Client) -> None:
    film = BytesIO()
    ramp = np.linspace(0, 65535, 3000 * 2500).reshape(3000, 2500)
    PIL.Image.fromarray(ramp.astype(np.uint16)).save(film, "PNG")

    def ask(_: int) -> int:
        return client.post("/infer/dcaf", files={"file": ("film.png", film.getvalue())}).status_code

    with ThreadPoolExecutor(70) as crowd:
        answers = [crowd.submit(ask, number) for number in range(70)]
        time.sleep(1)
        slowest = 0.0
        for _ in range(5):
            start = time.monotonic()
            client.get("/info/").raise_for_status()
            slowest = max(slowest, time.monotonic() - start)
        left = sum(not answer.done() for answer in answers)
    assert [answer.result() for answer in answers] == [200] * 70
    assert slowest < 1.0 and left > 40, (slowest, left)


def test_a_newly_published_model_answers_without_a_restart(client: httpx.Client) -> None:
    path = Path(shared_server().settings["model"])
    first = path.read_bytes()

    def answered_by() -> str:
        return client.post("/infer/dcaf", params={"image": "other/ramp.PNG"}).json()["model"]["sha256"]

    try:
        assert answered_by() == hashlib.sha256(first).hexdigest()
        path.write_bytes(b"half a file")
        assert answered_by() == hashlib.sha256(first).hexdigest()
        second = tiny_model(path, seed=2)
        assert answered_by() == second.sha256
    finally:
        path.write_bytes(first)
    assert answered_by() == hashlib.sha256(first).hexdigest()
