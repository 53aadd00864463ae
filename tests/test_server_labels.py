"""What readers say through the server: kept for good, under the right name, and handed on."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import httpx
import pytest
from server_process import TASK, ServerProcess, images, studies, token_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """A server without model and tokens: what a site has on its first day."""
    folder = studies(tmp_path_factory.mktemp("studies"))
    with ServerProcess({"studies": str(folder), "model": None, "task": TASK.name}) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess):
    with server.client() as client:
        yield client


def annotate(client: httpx.Client, uid: str, document: object, **query) -> httpx.Response:
    text = document if isinstance(document, str) else json.dumps(document)
    return client.put("/datastore/label", params={"image": uid, "tag": "final", **query},
                      files={"label": ("annotation.json", text, "application/json")})


def test_without_a_model_images_worklist_and_labels_work(client: httpx.Client) -> None:
    info = client.get("/info/").raise_for_status().json()
    assert info["models"] == {} and info["labels"] == list(TASK.classes)
    assert info["datastore"]["total"] == 8
    assert client.get("/dcaf/worklist", params={"limit": 3}).json()["total"] == 8
    uid = images(client)[0]
    assert client.get("/datastore/image", params={"image": uid}).content
    assert client.post("/activelearning/entropy", json={"client_id": "early"}).json()["id"]
    for answer in (client.post("/infer/dcaf", params={"image": uid}), client.post("/batch/infer/dcaf"),
                   client.post("/scoring/dcaf"), client.get("/dcaf/prediction", params={"image": uid}),
                   client.get("/model/dcaf")):
        assert answer.status_code == 404 and answer.json()["detail"]


def test_the_smallest_annotation_comes_back_with_its_time(client: httpx.Client) -> None:
    uid = images(client)[1]
    answer = annotate(client, uid, {"label": "normal", "reader": "ada", "comment": ""})
    assert answer.raise_for_status().json()["image"] == uid
    assert answer.json()["label"] == uid
    told = client.get("/dcaf/history", params={"image": uid}).json()
    assert [entry["reader"] for entry in told] == ["ada"]
    assert told[0]["created"] and told[0]["label"] == "normal"
    assert answer.json()["annotation"] == told[0]
    assert client.get("/datastore/label", params={"label": uid, "tag": "final"}).json()["annotations"] == told


def test_a_second_opinion_is_added_and_nothing_is_overwritten(client: httpx.Client) -> None:
    uid = images(client)[2]
    said = [("ada", "normal"), ("bob", "pneumonia"), ("ada", "pneumonia"), ("eve", "uncertain")]
    for reader, label in said:
        annotate(client, uid, {"label": label, "reader": reader, "comment": "x"}).raise_for_status()
    told = client.get("/dcaf/history", params={"image": uid}).json()
    assert [(entry["reader"], entry["label"]) for entry in told] == said
    assert uid in [item["uid"] for item in client.get("/dcaf/disagreements").json()]
    assert client.get("/dcaf/agreement").status_code == 200


def test_params_alone_carry_an_annotation_as_stock_forms_do(client: httpx.Client) -> None:
    uid = images(client)[3]
    answer = client.put("/datastore/label", params={"image": uid},
                        data={"params": json.dumps({"label": "pneumonia", "comment": "", "reader": "ada"})})
    assert answer.status_code == 200
    named_by_client_id = client.put(
        "/datastore/label", params={"image": uid}, data={"params": json.dumps({"client_id": "desk 3"})},
        files={"label": ("a.json", json.dumps({"label": "normal", "comment": ""}))})
    assert named_by_client_id.json()["annotation"]["reader"] == "desk 3"


@pytest.mark.parametrize(("document", "word"), [
    ({"label": "knee", "reader": "ada", "comment": ""}, "label"),
    ({"label": "normal", "reader": "", "comment": "", "box": [5, 5, 4, 6]}, "box"),
    ({"label": "normal", "reader": "ada", "comment": "", "confidence": 2}, "confidence"),
    ({"label": "normal", "reader": "ada", "comment": "", "patient": "x"}, "patient"),
    ({"label": "normal", "reader": "ada", "comment": "", "created": "2020-01-01T00:00:00Z"}, "created"),
    ({"label": "normal", "reader": "a" * 65, "comment": ""}, "reader"),
    ({"label": "normal", "reader": 5, "comment": ""}, "reader"),
    ({"label_info": [{"name": "normal", "idx": 1}]}, "label"),
    ([1, 2], "annotation"), ("no json", "annotation"), ("[" * 5000, "annotation")])
def test_an_annotation_that_is_none_is_refused_with_a_sentence(client: httpx.Client, document: object,
                                                               word: str) -> None:
    uid = images(client)[4]
    answer = annotate(client, uid, document)
    assert answer.status_code == 422
    assert word in answer.json()["detail"]
    assert client.get("/dcaf/history", params={"image": uid}).json() == []


def test_a_label_of_another_tag_or_size_is_refused(client: httpx.Client) -> None:
    uid = images(client)[4]
    fine = {"label": "normal", "reader": "ada", "comment": ""}
    assert annotate(client, uid, fine, tag="original").status_code == 422
    assert annotate(client, uid, fine | {"comment": "x" * 70_000}).status_code == 413
    assert annotate(client, "no-such-image", fine).status_code == 404


def test_two_readers_are_never_handed_the_same_case(client: httpx.Client) -> None:
    cases: list[str] = []

    def take(reader: str) -> None:
        cases.append(client.post("/activelearning/random", json={"client_id": reader}).json()["id"])

    threads = [threading.Thread(target=take, args=(f"reader-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(cases)) == 4
    taken = client.post("/dcaf/lease", json={"image": cases[0], "reader": "someone-else"})
    assert taken.status_code == 409 and "another reader" in taken.json()["detail"]
    for number in range(4):
        for uid in cases:
            client.delete("/dcaf/lease", params={"image": uid, "reader": f"reader-{number}"})


def test_an_empty_queue_says_so(client: httpx.Client) -> None:
    for uid in images(client):
        skipped = client.post("/dcaf/skip", json={"image": uid, "reader": "tired", "reason": "tea"})
        assert skipped.status_code == 200
    answer = client.post("/activelearning/entropy", json={"client_id": "tired"}).raise_for_status().json()
    assert "id" not in answer and "Nothing is left" in answer["message"]
    skipped = client.get("/dcaf/worklist", params={"status": "skipped", "reader": "tired"}).json()
    assert skipped["total"] == 8


@pytest.mark.parametrize("query", [{"order": "knees"}, {"status": "knees"}, {"limit": 0}, {"limit": 5000},
                                   {"offset": -1}, {"limit": "x"}])
def test_a_bad_page_is_a_422(client: httpx.Client, query: dict) -> None:
    answer = client.get("/dcaf/worklist", params=query)
    assert answer.status_code == 422 and answer.json()["detail"]


def test_annotations_leave_as_plain_json_and_csv(client: httpx.Client) -> None:
    uid = images(client)[5]
    annotate(client, uid, {"label": "normal", "reader": "ada", "comment": "=1+1"}).raise_for_status()
    assert "=1+1" in client.get("/dcaf/export").text
    table = client.get("/dcaf/export", params={"format": "csv"})
    assert table.headers["content-type"].startswith("text/csv")
    assert uid in table.text and ",=1+1" not in table.text


def test_a_token_decides_who_the_reader_is() -> None:
    server, tokens = token_server()
    with server.client(headers={"Authorization": f"Bearer {tokens['ada']}"}) as ada, \
            server.client(headers={"Authorization": f"Bearer {tokens['bob']}"}) as bob:
        uid = images(ada)[1]
        annotate(ada, uid, {"label": "normal", "comment": ""}).raise_for_status()
        annotate(bob, uid, {"label": "pneumonia", "reader": "bob", "comment": ""}).raise_for_status()
        forged = annotate(bob, uid, {"label": "normal", "reader": "ada", "comment": ""})
        assert forged.status_code == 403 and "reader" in forged.json()["detail"]
        told = ada.get("/dcaf/history", params={"image": uid}).json()
        assert [entry["reader"] for entry in told] == ["ada", "bob"]
        assert [entry["label"] for entry in told] == ["normal", "pneumonia"]
        mine = ada.post("/activelearning/random", json={"client_id": "user-xyz"}).json()
        assert mine["reader"] == "ada"
        assert bob.post("/dcaf/skip", json={"image": mine["id"], "reader": "ada"}).status_code == 403
        assert bob.post("/dcaf/lease", json={"image": mine["id"]}).status_code == 409


def test_what_was_acknowledged_before_a_crash_is_there_after_it(tmp_path: Path) -> None:
    folder = studies(tmp_path / "studies", 4)
    settings = {"studies": str(folder), "model": None, "task": TASK.name}
    acknowledged: list[str] = []
    with ServerProcess(settings) as server:
        with server.client() as client:
            uids = images(client)

        def submit(reader: str) -> None:
            with server.client() as client:
                for number in range(10_000):
                    document = {"label": "normal", "reader": reader, "comment": f"{reader} {number}"}
                    try:
                        answer = annotate(client, uids[number % len(uids)], document)
                    except httpx.TransportError:
                        return
                    if answer.status_code == 200:
                        acknowledged.append(document["comment"])

        threads = [threading.Thread(target=submit, args=(name,)) for name in ("ada", "bob")]
        for thread in threads:
            thread.start()
        server._wait(lambda: len(acknowledged) >= 40)
        server.kill()
        for thread in threads:
            thread.join()
    with ServerProcess(settings) as server, server.client() as client:
        kept = [entry["comment"] for uid in uids
                for entry in client.get("/dcaf/history", params={"image": uid}).json()]
    assert len(acknowledged) >= 40
    assert set(acknowledged) <= set(kept) and len(kept) == len(set(kept))
    assert len(kept) <= len(acknowledged) + 2  # at most the answer that each thread never heard
