"""Who is let in, what is refused, and what the log keeps to itself."""

from __future__ import annotations

import http.client
import json
import logging
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from pydicom import dcmread
from server_process import ServerProcess, images, shared_server, tiny_model, token_server
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from dcaf_monai.phantom import write_films
from dcaf_monai.server.access import Access, Guard, Redaction, Tokens, new_token, redact, remove_token
from dcaf_monai.server.serve import serve

ADMIN_ONLY = [("POST", "/train/dcaf"), ("POST", "/train/"), ("DELETE", "/train/"), ("POST", "/scoring/dcaf"),
              ("POST", "/scoring/"), ("DELETE", "/scoring/"), ("POST", "/batch/infer/dcaf"),
              ("DELETE", "/batch/infer"), ("GET", "/model/dcaf"), ("GET", "/model/info/dcaf"),
              ("GET", "/datastore/dataset")]
SWITCHED_OFF = [("POST", "/reload"), ("PUT", "/model/dcaf"), ("DELETE", "/model/dcaf"), ("PUT", "/session/"),
                ("GET", "/session/x"), ("GET", "/logs/"), ("GET", "/proxy/dicom/wado/x"), ("GET", "/ohif/x"),
                ("PUT", "/datastore/image"), ("PUT", "/datastore/"), ("DELETE", "/datastore/image"),
                ("DELETE", "/datastore/label"), ("PUT", "/datastore/label/info"),
                ("PUT", "/datastore/image/info"), ("POST", "/infer/wsi/dcaf"), ("GET", "/static/x"),
                ("GET", "/docs")]
BAD_IDS = ["/etc/passwd", "../../etc/passwd", "other/../../studies/other/ramp.PNG", "..", ".", "a\x00b",
           "file:///etc/passwd", "other/", "x" * 5000, "ramp.PNG'; DROP TABLE images; --", "%2e%2e%2f"]


def every_route() -> list[tuple[str, str]]:
    from dcaf_monai.server import jobs, review, routes

    found = [(method, re.sub("{(model|method|strategy)}", "dcaf", route.path))
             for module in (routes, jobs, review) for route in module.router.routes
             for method in route.methods]
    assert len(found) > 30
    return [*found, ("GET", "/openapi.json"), *SWITCHED_OFF]


def test_every_route_asks_for_a_token() -> None:
    server, _ = token_server()
    with server.client() as client:
        for method, path in every_route():
            answer = client.request(method, path)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert method == "HEAD" or "token" in answer.json()["detail"]


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer wrong", "Basic {ada}", "Bearer {ada}x", "{ada}"])
def test_a_wrong_credential_is_nobodys(value: str) -> None:
    server, tokens = token_server()
    with server.client() as client:
        assert client.get("/info/", headers={"Authorization": value.format(**tokens)}).status_code == 401


def test_a_reader_may_read_but_not_start_or_stop_work() -> None:
    server, tokens = token_server()
    with server.client(headers={"Authorization": f"Bearer {tokens['ada']}"}) as client:
        assert client.get("/info/").status_code == 200
        for method, path in ADMIN_ONLY:
            answer = client.request(method, path)
            assert answer.status_code == 403, (method, path)
            assert "admin" in answer.json()["detail"]


def test_an_administrator_passes_where_a_reader_does_not() -> None:
    server, tokens = token_server()
    with server.client(headers={"Authorization": f"Bearer {tokens['chief']}"}) as client:
        for method, path in ADMIN_ONLY:
            if "train" not in path:  # that would start one
                assert client.request(method, path).status_code not in (401, 403, 500), (method, path)


def test_routes_that_change_code_weights_or_files_do_not_exist() -> None:
    with shared_server().client() as client:
        for method, path in SWITCHED_OFF:
            answer = client.request(method, path)
            assert answer.status_code in (404, 405), (method, path)
            assert answer.json()["detail"]


@pytest.mark.parametrize("uid", BAD_IDS)
def test_an_id_that_is_no_image_of_the_store_is_a_404_or_422_everywhere(uid: str) -> None:
    annotation = {"params": '{"label": "normal", "reader": "ada", "comment": ""}'}
    with shared_server().client() as client:
        answers = [
            client.post("/infer/dcaf", params={"image": uid}),
            client.get("/datastore/image", params={"image": uid}),
            client.get("/datastore/image/info", params={"image": uid}),
            client.get("/datastore/label", params={"label": uid, "tag": "final"}),
            client.get("/datastore/label/info", params={"label": uid, "tag": "original"}),
            client.put("/datastore/label", params={"image": uid, "tag": "final"}, data=annotation),
            client.post("/activelearning/random", json={"image": uid}),
            client.get("/dcaf/history", params={"image": uid}),
            client.get("/dcaf/image", params={"image": uid}),
            client.get("/dcaf/prediction", params={"image": uid}),
            client.post("/dcaf/lease", json={"image": uid}),
            client.post("/dcaf/skip", json={"image": uid}),
            client.delete("/dcaf/lease", params={"image": uid})]
        for answer in answers:
            assert answer.status_code in (404, 422), answer.request.url
            assert answer.json()["detail"]


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Host": "192.168.1.9:8000"}, {"Host": ""},
                                     {"Host": "[::1"}, {"Origin": "https://evil.example"},
                                     {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_web_page_cannot_use_the_readers_browser_against_a_local_server(headers: dict) -> None:
    with shared_server().client() as client:
        assert client.get("/info/").status_code == 200
        assert client.get("/info/", headers=headers).status_code == 403
        assert client.post("/train/dcaf", headers=headers).status_code == 403


def test_no_origin_is_allowed_that_was_not_named() -> None:
    with shared_server().client() as client:
        answer = client.options("/info/", headers={"Origin": "https://evil.example",
                                                   "Access-Control-Request-Method": "GET"})
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_request_that_states_too_large_a_body_is_refused_before_it_is_sent() -> None:
    address = urlsplit(shared_server().url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    connection.putrequest("POST", "/infer/dcaf")
    connection.putheader("Content-Length", str(10 ** 10))
    connection.endheaders()
    assert connection.getresponse().status == 413


def test_a_body_that_never_says_its_size_is_cut_off_at_the_limit() -> None:
    async def pieces(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield bytes(100)

    api = FastAPI()
    api.add_api_route("/", size_of_body, methods=["POST"])
    for count, status in ((9, 200), (11, 413)):
        answer = asked(Access(max_body=1000), "127.0.0.1", "http://localhost/", app=api,
                       content=pieces(count))
        assert answer.status_code == status and "content-length" not in answer.request.headers


async def size_of_body(request: Request) -> int:
    return len(await request.body())


def test_answers_are_not_kept_by_caches_nor_guessed_at() -> None:
    with shared_server().client() as client:
        headers = client.get("/info/").headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await JSONResponse(scope["state"]["reader"].name)(scope, receive, send)


def asked(access: Access, peer: str, url: str = "http://10.0.0.9/", *, app: ASGIApp = read_all,
          **request) -> httpx.Response:
    import asyncio

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Guard(app, access), client=(peer, 5))
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.post(url, **request)

    return asyncio.run(ask())


def test_without_tokens_no_other_machine_is_answered() -> None:
    assert asked(Access(), "10.0.0.5").status_code == 403
    assert asked(Access(), "127.0.0.1", "http://localhost/").status_code == 200
    assert asked(Access(), "::ffff:127.0.0.1", "http://127.0.0.1:8000/").status_code == 200


def test_a_token_over_plain_http_from_another_machine_is_refused(tmp_path: Path) -> None:
    token = {"headers": {"Authorization": f"Bearer {new_token(tmp_path / 'tokens', 'ada')}"}}
    access = Access(Tokens(tmp_path / "tokens"))
    assert asked(access, "10.0.0.5", **token).status_code == 403
    assert asked(access, "10.0.0.5", "https://10.0.0.9/", **token).json() == "ada"
    proxied = Access(Tokens(tmp_path / "tokens"), behind_proxy=True)
    assert asked(proxied, "10.0.0.5", **token).json() == "ada"


def test_a_named_origin_may_call() -> None:
    access = Access(origins=frozenset({"https://viewer.example"}))
    for origin, status in (("https://viewer.example", 200), ("https://evil.example", 403)):
        assert asked(access, "127.0.0.1", "http://localhost/",
                     headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"}).status_code == status


def test_a_token_file_holds_no_token_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    first, second = new_token(path, "ada"), new_token(path, "chief", "admin")
    assert first not in path.read_text() and second not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    tokens = Tokens(path)
    assert (tokens.reader(first).name, tokens.reader(first).role) == ("ada", "reader")
    assert tokens.reader(second).role == "admin"
    assert tokens.reader("") is None


def test_a_token_ends_when_its_reader_gets_another_or_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    first = new_token(path, "ada")
    tokens = Tokens(path)
    second = new_token(path, "ada")
    assert tokens.reader(first) is None and tokens.reader(second).name == "ada"
    remove_token(path, "ada")
    assert tokens.reader(second) is None
    with pytest.raises(ValueError, match="reader"):
        remove_token(path, "ada")


@pytest.mark.parametrize(("reader", "role"), [("", "reader"), ("a b", "reader"), ("a\nb", "reader"),
                                              ("-a", "reader"), ("a" * 65, "reader"), ("ada", "root")])
def test_a_token_needs_a_plain_name_and_a_known_role(tmp_path: Path, reader: str, role: str) -> None:
    with pytest.raises(ValueError, match="reader:|role:"):
        new_token(tmp_path / "tokens", reader, role)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["ada secret\n", "0" * 64 + " root ada\n", "0" * 63 + " admin ada\n"])
def test_a_file_that_is_no_token_file_lets_nobody_in(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ValueError, match="token file"):
        Tokens(path)
    with pytest.raises(ValueError, match="token file"):
        Tokens(tmp_path / "none")


@pytest.mark.parametrize(("settings", "fault"), [
    ({"host": "0.0.0.0"}, "token file"), ({"behind_proxy": True}, "token file"),
    ({"host": "0.0.0.0", "token_file": "tokens"}, "TLS"), ({"certfile": "x"}, "certificate"),
    ({"certfile": "x", "keyfile": "y"}, "certificate"), ({"host": "no.such.host.invalid"}, "token file"),
    ({"task": None}, "model"), ({"task": "knees"}, "task"), ({"token_file": "none"}, "token file")])
def test_an_unsafe_or_impossible_server_is_refused_before_it_starts(tmp_path: Path, settings: dict,
                                                                    fault: str) -> None:
    new_token(tmp_path / "tokens", "ada")
    given = {"task": "pneumonia"} | {name: tmp_path / value if name.endswith("file") else value
                                     for name, value in settings.items()}
    with pytest.raises(ValueError, match=fault):
        serve(tmp_path, None, **given)
    with pytest.raises(ValueError, match="studies"):
        serve(tmp_path / "nowhere", None, task="pneumonia")


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    port = urlsplit(shared_server().url).port
    with pytest.raises(ValueError, match="port: need a free one"):
        serve(tmp_path, None, task="pneumonia", port=port)


@pytest.mark.parametrize(("text", "secret"), [
    ("image 1.2.840.10008.5.1.4.1 was read", "1.2.840"), ("2.25.317.9.8.7:3", "317"),
    ("[Errno 2] No such file or directory: '/data/Jane Doe/a b.dcm'", "Doe"),
    ("open /srv/films/doe_jane.dcm failed", "doe"), ("Authorization: Bearer abc.def-ghi", "abc.def"),
    ("postgresql+psycopg://dcaf:hunter2@db/x refused", "hunter2")])
def test_what_names_a_patient_or_opens_a_door_is_not_logged(text: str, secret: str) -> None:
    assert secret in text and secret not in redact(text)


def test_a_traceback_keeps_its_source_files_and_loses_its_values(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(Redaction())
    try:
        Path("/data/Jane Doe.dcm").read_bytes()
    except OSError:
        logging.getLogger("test").exception("reading %s", "1.2.3.4.5.6")
    finally:
        caplog.handler.filters.clear()
    assert "Doe" not in caplog.text and "1.2.3.4" not in caplog.text
    assert "test_server_access.py" in caplog.text


def test_the_servers_log_names_no_image_no_reader_no_token_and_no_comment() -> None:
    server, tokens = token_server()
    with server.client(headers={"Authorization": f"Bearer {tokens['ada']}"}) as client:
        uid = images(client)[0]
        client.put("/datastore/label", params={"image": uid, "tag": "final"},
                   data={"params": '{"label": "normal", "comment": "canary-comment"}'}).raise_for_status()
        client.post("/infer/dcaf", params={"image": uid}, data={"params": '{"canary": "canary-param"}'})
        client.put("/datastore/label", params={"image": "canary-id"}, data={"params": "canary-json"})
        client.post("/activelearning/canary-strategy", json={"client_id": "canary-client"})
        client.post("/infer/dcaf", files={"file": ("canary-film.dcm", b"no film")})
    output = server.output()
    assert "Application startup complete" in output
    for secret in ("canary", uid, *tokens.values(), "ramp"):
        assert secret not in output


def test_no_patient_name_leaves_a_film_and_a_named_origin_gets_its_answers(tmp_path: Path) -> None:
    """One server from its start through inference, queue, annotation and archive."""
    film = dcmread(write_films(tmp_path / "made", 2, shapes=((96, 80),))[0])
    film.PatientName, film.PatientID, film.ReferringPhysicianName = "Canary^Jane", "CANARY-7", "Canary^Doc"
    (tmp_path / "studies").mkdir()
    film.save_as(tmp_path / "studies/film.dcm")
    (tmp_path / "studies/bad.dcm").write_bytes((tmp_path / "studies/film.dcm").read_bytes()[:300])
    tiny_model(tmp_path / "model.safetensors")
    page = {"Origin": "https://viewer.example", "Access-Control-Request-Method": "PUT"}
    told = []
    with ServerProcess({"studies": str(tmp_path / "studies"), "model": str(tmp_path / "model.safetensors"),
                        "cors": ["https://viewer.example"]}) as server, server.client() as client:
        assert client.options("/datastore/label", headers=page).headers["access-control-allow-origin"] == (
            "https://viewer.example")
        assert client.options("/info/", headers=page | {"Origin": "https://evil.example"}).status_code >= 400
        uid, = images(client)
        for method, path, more in (
                ("POST", "/scoring/dcaf", {"params": {"run_sync": True}}),
                ("POST", "/infer/dcaf", {"params": {"image": uid, "output": "all"}}),
                ("POST", "/activelearning/entropy", {"json": {"client_id": "ada"}}),
                ("PUT", "/datastore/label", {"params": {"image": uid}, "data": {"params": json.dumps(
                    {"label": "normal", "reader": "ada", "comment": ""})}}),
                ("GET", "/datastore/label", {"params": {"label": uid, "tag": "final"}}),
                ("GET", "/datastore/", {"params": {"output": "all"}}), ("GET", "/dcaf/worklist", {}),
                ("GET", "/dcaf/export", {}), ("GET", "/info/", {})):
            answer = client.request(method, path, **more).raise_for_status()
            told.append(answer.content + str(answer.headers).encode())
        told.append(server.output().encode())
    kept = [file for file in (tmp_path / "studies/.dcaf").rglob("*") if file.is_file()]
    told += [file.read_bytes() for file in kept] + [str(kept).encode()]
    assert len(kept) >= 1 and not [text for text in told if b"canary" in text.lower()]
