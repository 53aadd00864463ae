"""The client over TLS: whose certificate it trusts, and what it says when it does not."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest
from DCAFReviewLib.client import Address, Call, Server
from served import Trouble, shared, wait
from test_client import error_of, uids

SECRET = "tok3n-of-ada-0123456789"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "key.pem",
                    "-out", folder / "cert.pem", "-days", "2", "-subj", "/CN=127.0.0.1",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_a_certificate_is_trusted_by_its_own_authority_alone(certificate: tuple[Path, Path]) -> None:
    with Trouble(shared().port, tls=certificate) as trouble:
        token = shared().tokens["ada"]
        trusting = Server(Address(trouble.url, token, ca_file=str(certificate[0])))
        assert trusting.session()["reader"] == "ada" and trusting.picture(uids(trusting)[0]).values.size
        before = len(trouble.seen)
        error = error_of(Server(Address(trouble.url, token)).session)
        assert error.kind == "unreachable" and "certificate" in str(error)
        other_name = trouble.url.replace("127.0.0.1", "localhost")
        assert error_of(Server(Address(other_name, token, str(certificate[0]))).session).kind == "unreachable"
        assert len(trouble.seen) == before


def test_cancelling_works_under_tls_too(certificate: tuple[Path, Path]) -> None:
    call, errors = Call(), []
    with Trouble(shared().port, delay_s=20, tls=certificate) as trouble:
        def ask() -> None:
            with call:
                errors.append(error_of(Server(Address(trouble.url, ca_file=str(certificate[0]))).session))

        thread = threading.Thread(target=ask)
        thread.start()
        wait(lambda: trouble.seen)
        call.cancel()
        thread.join(3)
        assert not thread.is_alive() and errors[0].kind == "cancelled"
        assert trouble.hung_up.wait(20)


def test_tls_asked_of_a_server_without_says_so() -> None:
    url = shared().url.replace("http:", "https:")
    error = error_of(Server(Address(url)).session)
    assert error.kind == "unreachable" and "TLS" in str(error)


def test_a_ca_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(ValueError, match="CA file"):
            Server(Address("https://x", ca_file=str(tmp_path / name)))
