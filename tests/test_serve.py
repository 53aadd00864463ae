"""Serving other machines: a real certificate over a real socket, and a site's own cut-offs."""

import json
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from server_process import TASK, ServerProcess, images, studies, tiny_model

from dcaf_monai.server.access import new_token


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "key.pem",
                    "-out", folder / "cert.pem", "-days", "2", "-subj", "/CN=127.0.0.1",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_a_server_with_tls_and_tokens_answers_whoever_trusts_it_and_has_one(
        certificate: tuple[Path, Path], tmp_path: Path) -> None:
    studies(tmp_path / "studies", count=2)
    model = tiny_model(tmp_path / "model.safetensors")
    cutoffs = tmp_path / "cutoffs.json"
    cutoffs.write_text(json.dumps({"model_version": model.version, "cutoffs": {"pneumonia": 0.125}}))
    token = new_token(tmp_path / "tokens", "ada", "reader")
    settings = {"studies": str(tmp_path / "studies"), "model": str(tmp_path / "model.safetensors"),
                "token_file": str(tmp_path / "tokens"), "certfile": str(certificate[0]),
                "keyfile": str(certificate[1]), "cutoffs": str(cutoffs)}
    with ServerProcess(settings) as server:
        assert server.url.startswith("https://127.0.0.1")
        with httpx.Client(base_url=server.url, timeout=60) as stranger, pytest.raises(httpx.ConnectError):
            stranger.get("/info/")
        trusting = ssl.create_default_context(cafile=certificate[0])
        with httpx.Client(base_url=server.url, verify=trusting, timeout=60) as client:
            assert client.get("/info/").status_code == 401
            client.headers["Authorization"] = f"Bearer {token}"
            assert client.get("/info/").json()["labels"] == list(TASK.classes)
            answer = client.post("/infer/dcaf", params={"image": images(client)[0]}).raise_for_status().json()
    points = answer["operating_points"]
    assert points["pneumonia"]["cutoff"] == 0.125
    score = {item["label"]: item["score"] for item in answer["prediction"]}["pneumonia"]
    assert points["pneumonia"]["positive"] == (score >= 0.125)


def test_cut_offs_of_another_version_are_refused_before_the_start(tmp_path: Path) -> None:
    from dcaf_monai.server.serve import serve

    studies(tmp_path / "studies", count=2)
    tiny_model(tmp_path / "model.safetensors")
    cutoffs = tmp_path / "cutoffs.json"
    cutoffs.write_text(json.dumps({"model_version": "another", "cutoffs": {"pneumonia": 0.5}}))
    with pytest.raises(ValueError, match="cut-offs: need some fitted on model version"):
        serve(tmp_path / "studies", tmp_path / "model.safetensors", cutoffs=cutoffs)


def test_a_share_of_the_cases_is_drawn_at_random_and_said_to_be(tmp_path: Path) -> None:
    studies(tmp_path / "studies", count=4)
    tiny_model(tmp_path / "model.safetensors")
    settings = {"studies": str(tmp_path / "studies"), "model": str(tmp_path / "model.safetensors")}
    drawn = {}
    for share in (1.0, 0.0):
        with ServerProcess(settings | {"random_share": share}) as server, server.client() as client:
            client.post("/scoring/dcaf", params={"run_sync": True}, json={}).raise_for_status()
            for order in ("entropy", "badge"):
                case = client.post(f"/activelearning/{order}", json={"reader": f"{order}-{share}"}).json()
                drawn[order, share] = case["random"]
    assert drawn == {("entropy", 1.0): True, ("badge", 1.0): True, ("entropy", 0.0): False,
                     ("badge", 0.0): False}


def test_a_share_that_is_none_is_refused_before_the_start(tmp_path: Path) -> None:
    from dcaf_monai.server.serve import serve

    studies(tmp_path / "studies", count=2)
    tiny_model(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="random_share: need 0 to 1, got 1.5"):
        serve(tmp_path / "studies", tmp_path / "model.safetensors", random_share=1.5)
