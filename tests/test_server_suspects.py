"""Labels the model disagrees with, from the store and over HTTP; the project's progress over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server_process import ServerProcess, images, studies, tiny_model, token_server
from stores import prediction, read

from dcaf_monai.cohort import Case
from dcaf_monai.rounds import record_round
from dcaf_monai.server.access import new_token
from dcaf_monai.server.store import Store
from dcaf_monai.server.suspects import BASIS, suspects

pytest_plugins = ("postgres",)

A, B, C, D = "a.png", "d.nii.gz", "e.tiff", "ward/b.PNG"
PAST, FUTURE = "20200101T000000Z-0123abcd", "20990101T000000Z-0123abcd"


@pytest.fixture
def read_by_two(store: Store) -> Store:
    """Four images scored by the model of the past: covid .7, .5, .4 and normal .6 (of covid .3)."""
    store.save_predictions([
        (A, prediction(PAST, probabilities=(.7, .2, .1))), (B, prediction(PAST, probabilities=(.5, .4, .1))),
        (C, prediction(PAST, probabilities=(.4, .35, .25))),
        (D, prediction(PAST, probabilities=(.3, .6, .1)))])
    for uid, label, reader in ((A, "viral_pneumonia", "ana"), (A, "covid", "ben"), (B, "covid", "ana"),
                               (C, "normal", "ben"), (C, "uncertain", "ana"), (D, "viral_pneumonia", "ana"),
                               (D, "covid", "ana")):
        store.annotate(uid, read(label, reader))
    return store


def found(store: Store, version: str = PAST, **asked: Any) -> list[tuple[str, str, str]]:
    return [(item["uid"], item["reader"], item["given"])
            for item in suspects(store.database, version, **asked)["items"]]


def test_the_least_believable_current_label_comes_first(read_by_two: Store) -> None:
    page = suspects(read_by_two.database, PAST)
    assert [(item["rank"], item["uid"], item["reader"], item["given"], item["suggested"],
             item["probability_given"], item["probability_suggested"]) for item in page["items"]] == [
        (1, A, "ana", "viral_pneumonia", "covid", .1, .7), (2, D, "ana", "covid", "normal", .3, .6),
        (3, C, "ben", "normal", "covid", .35, .4)]
    assert (page["compared"], page["total"]) == (5, 3)  # "uncertain" and the corrected read do not count
    assert page["basis"] == BASIS and "no proof" in BASIS


def test_a_reader_can_be_asked_for_and_pages_follow_each_other(read_by_two: Store) -> None:
    assert found(read_by_two, reader="ben") == [(C, "ben", "normal")]
    assert suspects(read_by_two.database, PAST, reader="ben")["compared"] == 2
    whole = found(read_by_two)
    assert found(read_by_two, limit=2) + found(read_by_two, offset=2) == whole
    second = suspects(read_by_two.database, PAST, offset=1, limit=1)
    assert second["total"] == 3 and [item["rank"] for item in second["items"]] == [2]


def test_an_adjudication_takes_the_place_of_the_reads(read_by_two: Store) -> None:
    read_by_two.annotate(A, read("covid", "chief", role="adjudication"))
    assert A not in [uid for uid, _, _ in found(read_by_two)]
    read_by_two.annotate(A, read("normal", "chief", role="adjudication"))
    first = suspects(read_by_two.database, PAST)["items"][0]
    assert (first["uid"], first["reader"], first["role"]) == (A, "chief", "adjudication")
    assert (A, "ana", "viral_pneumonia") not in found(read_by_two)


def test_each_label_says_whether_the_model_can_have_learnt_it(read_by_two: Store) -> None:
    assert {item["learnt"] for item in suspects(read_by_two.database, PAST)["items"]} == {"no"}
    for version, learnt in ((FUTURE, "perhaps"), ("v1", "unknown")):
        read_by_two.save_prediction(A, prediction(version))
        page = suspects(read_by_two.database, version)["items"]
        assert [(item["uid"], item["learnt"]) for item in page] == [(A, learnt)]


def test_images_without_a_prediction_of_this_model_or_gone_are_no_suspects(read_by_two: Store) -> None:
    assert found(read_by_two, "another") == []
    read_by_two.remove_image(A)
    assert A not in [uid for uid, _, _ in found(read_by_two)]


@pytest.mark.parametrize(("asked", "message"), [
    ({"limit": 0}, "limit 1 to 500"), ({"limit": 501}, "limit 1 to 500"), ({"offset": -1}, "offset >= 0"),
    ({"reader": "a\nb"}, "reader: need")])
def test_a_question_that_makes_no_sense_is_refused(store: Store, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suspects(store.database, PAST, **asked)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    """``name -> client`` of a server with tokens, a model and one round on record."""
    folder = tmp_path_factory.mktemp("served")
    studies(folder / "studies")
    model = tiny_model(folder / "model.safetensors")
    record_round(folder / "model.safetensors", model, probs=np.array([[.6, .4]]),
                 cases=[Case("a", Path("a"), "normal", "val", "p")], published=True)
    tokens = {name: new_token(folder / "tokens", name, role)
              for name, role in (("ada", "reader"), ("bob", "reader"), ("chief", "admin"))}
    settings = {name: str(folder / place) for name, place in (
        ("studies", "studies"), ("model", "model.safetensors"), ("token_file", "tokens"))}
    with ServerProcess(settings) as server:
        yield lambda name: server.client(headers={"Authorization": f"Bearer {tokens[name]}"})


def disagree(client: httpx.Client, uid: str) -> tuple[str, float]:
    """Scores an image and labels it otherwise than the model; the label and its probability."""
    client.post("/infer/dcaf", params={"image": uid}).raise_for_status()
    answer = client.get("/dcaf/prediction", params={"image": uid}).raise_for_status().json()
    said = {entry["label"]: entry["score"] for entry in answer["prediction"]}
    label = min(said, key=said.__getitem__)
    text = json.dumps({"label": label, "comment": ""})
    client.put("/datastore/label", params={"image": uid, "tag": "final"},
               files={"label": ("annotation.json", text, "application/json")}).raise_for_status()
    return label, said[label]


def test_a_reader_sees_his_own_suspects_and_an_administrator_all(
        served: Callable[[str], httpx.Client]) -> None:
    with served("ada") as ada, served("bob") as bob, served("chief") as chief:
        uid = images(ada)[0]
        label, probability = disagree(ada, uid)
        page = ada.get("/dcaf/suspects").raise_for_status().json()
        assert page["basis"] == BASIS and page["total"] == page["compared"] == 1
        item = page["items"][0]
        assert (item["uid"], item["reader"], item["given"]) == (uid, "ada", label)
        assert item["probability_given"] == pytest.approx(probability)
        assert item["learnt"] in ("no", "perhaps")
        assert bob.get("/dcaf/suspects").json()["items"] == []
        assert bob.get("/dcaf/suspects", params={"reader": "ada"}).status_code == 403
        assert chief.get("/dcaf/suspects").json()["items"] == page["items"]
        assert chief.get("/dcaf/suspects", params={"reader": "bob"}).json()["total"] == 0
        for asked in ({"limit": 0}, {"offset": -1}, {"reader": "a\nb"}):
            assert chief.get("/dcaf/suspects", params=asked).status_code == 422


def test_the_progress_is_told_in_words_and_as_a_picture(served: Callable[[str], httpx.Client]) -> None:
    with served("ada") as client:
        told = client.get("/dcaf/progress").raise_for_status().json()
        assert told["answer"] == "too early to say" and "It takes 4" in told["why"]
        assert "never on the training labels" in told["basis"] and told["law"] is None
        assert "queue_chose_validation" in [notice["code"] for notice in told["notices"]]
        assert client.get(told["agreement"]).status_code == 200
        picture = client.get("/dcaf/progress", params={"format": "png"})
        assert picture.headers["content-type"] == "image/png" and picture.content.startswith(b"\x89PNG")
        for asked in ({"margin": 0}, {"margin": "x"}, {"format": "svg"}):
            assert client.get("/dcaf/progress", params=asked).status_code == 422


def test_without_a_model_there_are_no_suspects_and_progress_says_so() -> None:
    server, tokens = token_server()
    with server.client(headers={"Authorization": f"Bearer {tokens['ada']}"}) as client:
        answer = client.get("/dcaf/suspects")
        assert answer.status_code == 404 and "Train one first" in answer.json()["detail"]
        assert client.get("/dcaf/progress").json()["answer"] == "too early to say"
