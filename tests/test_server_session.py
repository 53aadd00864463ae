"""What a reading client asks of the server: its session, whole pictures, pages of the worklist, changes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import httpx
import nrrd
import numpy as np
import pytest
from server_process import TASK, images, shared_server, token_server

from dcaf_monai.dicom import read_display
from dcaf_monai.model import describe_model


@pytest.fixture
def client():
    with shared_server().client() as client:
        yield client


def test_a_session_tells_all_a_client_has_to_know(client: httpx.Client) -> None:
    told = client.get("/dcaf/session", params={"reader": "ada"}).raise_for_status().json()
    described = describe_model(Path(shared_server().settings["model"]))
    assert told["reader"] == "ada" and told["role"] == "admin" and told["tokens"] is False
    assert told["task"] == {"name": TASK.name, "title": TASK.title,
                            "besides": ["uncertain", "not_assessable"], "classes": [
                                {"name": "normal", "title": "Normal"},
                                {"name": "pneumonia", "title": "Pneumonia"}]}
    assert told["model"] == {"name": "tiny", "version": described["version"],
                             "sha256": described["sha256"], "task": TASK.name}
    assert told["maps"][0] == "class_activation" and "gate" in told["maps"]
    assert told["unfaithful"] == []
    assert told["orders"][0] == "entropy" and told["total"] == len(images(client))
    assert told["statuses"][0] == "all" and told["training"]["state"] == "idle"
    assert client.get("/dcaf/session").json()["reader"] is None
    assert client.get("/dcaf/session", params={"reader": "a\nb"}).status_code == 422


def test_every_order_and_status_of_the_session_can_be_asked_for(client: httpx.Client) -> None:
    told = client.get("/dcaf/session").json()
    for order in told["orders"]:
        for status in told["statuses"]:
            asked = {"order": order, "status": status, "reader": "nobody.yet", "limit": 3}
            assert client.get("/dcaf/worklist", params=asked).status_code == 200, asked


def test_with_tokens_the_session_is_the_tokens_readers_and_works_without_a_model() -> None:
    server, tokens = token_server()
    for name, role in (("ada", "reader"), ("chief", "admin")):
        with server.client(headers={"Authorization": f"Bearer {tokens[name]}"}) as client:
            told = client.get("/dcaf/session").raise_for_status().json()
            assert (told["reader"], told["role"], told["tokens"]) == (name, role, True)
            assert told["model"] is None and told["total"] == 8
            assert client.get("/dcaf/session", params={"reader": "bob"}).status_code == 403
    with server.client() as client:
        assert client.get("/dcaf/session").status_code == 401


def test_the_whole_picture_comes_as_nrrd_with_its_window(client: httpx.Client) -> None:
    folder = Path(shared_server().settings["studies"])
    whole = {"format": "nrrd", "image": "other/ramp.PNG"}
    answer = client.get("/dcaf/image", params=whole).raise_for_status()
    stream = BytesIO(answer.content)
    header = nrrd.read_header(stream)
    display = read_display(folder / "other/ramp.PNG")
    np.testing.assert_array_equal(nrrd.read_data(header, stream)[:, :, 0].T, display.values)
    assert header["sizes"].tolist() == [100, 80, 1] and header["dcaf_window_source"] == "percentiles"
    assert [float(word) for word in header["dcaf_window"].split()] == list(display.window)
    film = next(uid for uid in images(client) if uid.startswith("2.25."))
    answer = client.get("/dcaf/image", params=whole | {"image": film}).raise_for_status()
    assert nrrd.read_header(BytesIO(answer.content))["dcaf_window_source"] == "dicom"
    for asked, status in ((whole | {"image": "nobody"}, 404), (whole | {"format": "x"}, 422)):
        assert client.get("/dcaf/image", params=asked).status_code == status
