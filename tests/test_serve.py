"""Serving other machines: a real certificate over a real socket, and a site's own cut-offs."""

import json
import os
import ssl
import tempfile
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from server_process import TASK, ServerProcess, images, studies, tiny_model

from dcaf_monai.server.access import new_token


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=2)).add_extension(alternative, critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256()))
    (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    for file, secret in (("key.pem", NoEncryption()), ("locked.pem", BestAvailableEncryption(b"secret"))):
        (folder / file).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
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


@pytest.mark.parametrize(("options", "code", "sentence"), [
    (["--database", "mysql://db/dcaf"], 2, "database: need sqlite or postgresql"),
    (["--database", "postgresql://dcaf:hunter2@127.0.0.1:1/dcaf"], 1, "database: need an answer"),
    (["--database", "sqlite:////proc/dcaf.sqlite3"], 1, "database: need an answer"),
    (["--studies", "taken"], 1, "store: need a writable folder"),
    (["--task", "oct"], 2, "task: need pneumonia"),
    (["--data", "nowhere.csv"], 2, "data: need a folder of class folders or a CSV table, got 'nowhere.csv'"),
    (["--certfile", "cert.pem", "--keyfile", "locked.pem"], 2, "in PEM without a password"),
    (["--certfile", "model.safetensors", "--keyfile", "key.pem"], 2, "certificate: need a certificate"),
    (["--cors", "viewer.example"], 2, "cors: need origins such as"),
    (["--model", "still.safetensors"], 2, "head: need a dropout")])
def test_what_cannot_be_served_is_one_sentence_and_no_server(
        dcaf, certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        options: list[str], code: int, sentence: str) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/.dcaf").write_bytes(b"")             # as good as read-only, for root too
    for file in certificate[0].parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tiny_model(tmp_path / "model.safetensors")
    tiny_model(tmp_path / "still.safetensors", dropout=0.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", None)          # what serve changes is put back
    for name in ("MONAI_LABEL_APP_DIR", "MONAI_LABEL_STUDIES", "MONAI_LABEL_APP_CONF", "TMPDIR",
                 "MONAI_LABEL_SERVER_PORT", "PYTHONPATH", "DCAF_DATABASE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    given = {"--studies": "studies", "--model": "model.safetensors", "--port": "18765"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    found, out, err = dcaf("serve", *(word for pair in given.items() for word in pair))
    assert (found, "Traceback" in err) == (code, False), err
    assert sentence in err and "DCAF serves" not in out and "hunter2" not in err
