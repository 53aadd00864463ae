"""The server over HTTP: what it answers, every way it can fail, and what must never be said."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import traceback
import uuid
import zlib
from pathlib import Path

import numpy as np
import pytest
from DCAFReviewLib.client import Address, Answer, Call, Server, ServerError, parse_nrrd
from served import Trouble, free_port, http, shared, stranger, wait

SECRET = "tok3n-of-ada-0123456789"


@pytest.fixture(scope="module")
def ada() -> Server:
    return Server(Address(shared().url, shared().tokens["ada"]))


def uids(server: Server) -> list[str]:
    return sorted(item["uid"] for item in server.worklist()["items"])


def scores(answer: Answer) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in answer.document["prediction"]}


def error_of(function, *args) -> ServerError:
    with pytest.raises(ServerError) as caught:
        function(*args)
    return caught.value


def nrrd(values: np.ndarray, encoding: str = "raw", more: str = "") -> bytes:
    """A file as the format's description has it, of one slice 0.5 x 2 mm wide, turned into the x-z plane."""
    kind = {"u2": "uint16", "f4": "float", "u1": "uint8", "i2": "int16"}[values.dtype.str[1:]]
    rows, columns = values.shape
    head = (f"NRRD0005\n# a comment: ignored\ntype: {kind}\ndimension: 3\nspace: left-posterior-superior\n"
            f"sizes: {columns} {rows} 1\nspace directions: (0.5,0,0) (0,0,-2) (0,1,0)\n"
            f"kinds: domain domain domain\nendian: little\nencoding: {encoding}\n"
            f"space origin: (-10,20,30.5)\n{more}\n")
    raw = values.tobytes()
    if encoding == "gzip":
        packer = zlib.compressobj(wbits=31)
        raw = packer.compress(raw) + packer.flush()
    return head.encode() + raw


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("kind", ["<u2", "<f4", "u1", "<i2"])
def test_a_slice_comes_out_of_a_file_row_by_row_with_its_place(encoding: str, kind: str) -> None:
    values = np.arange(35).reshape(5, 7).astype(kind)
    more = ("dcaf_kind:=gate\ndcaf_unit:=Share: of two; 0.5 is balance.\n"
            "dcaf_patient_orientation:=L\\F\nother:=x\n")
    grid = parse_nrrd(nrrd(values, encoding, more))
    assert np.array_equal(grid.values, values) and grid.values.dtype == np.dtype(kind)
    place = grid.ijk_to_lps @ [6, 4, 0, 1]
    assert place.tolist() == [-10 + 6 * 0.5, 20, 30.5 - 4 * 2, 1]
    assert grid.fields == {"kind": "gate", "unit": "Share: of two; 0.5 is balance.",
                           "patient_orientation": "L\\F"}


BAD_FILES = {
    "no header": b"\x89PNG\r\n\x1a\n", "empty": b"", "endless header": b"NRRD0005\n" + b"x" * 70000,
    "short": nrrd(np.zeros((5, 7), "<u2"))[:-1], "long": nrrd(np.zeros((5, 7), "<u2")) + b"x",
    "broken gzip": nrrd(np.zeros((5, 7), "<u2"), "gzip")[:-12] + b"123456789012",
    "bomb": nrrd(np.zeros((5, 7), "<u2")).replace(b"encoding: raw", b"encoding: gzip")[:-70]
    + zlib.compress(bytes(10**7), wbits=31),
    "stack": nrrd(np.zeros((5, 14), "<u2")).replace(b"sizes: 14 5 1", b"sizes: 7 5 2"),
    "another space": nrrd(np.zeros((5, 7), "<u2")).replace(b"left-posterior-superior", b"scanner-xyz"),
    "flat": nrrd(np.zeros((5, 7), "<u2")).replace(b"(0,1,0)", b"(1,0,0)"),
    "not a number": nrrd(np.zeros((5, 7), "<u2")).replace(b"sizes: 7 5 1", b"sizes: 7 x 1"),
    "negative": nrrd(np.zeros((5, 7), "<u2")).replace(b"sizes: 7 5 1", b"sizes: -7 -5 1"),
    "text": nrrd(np.zeros((5, 7), "<u2")).replace(b"encoding: raw", b"encoding: text")}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_none_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"nrrd|geometry"):
        parse_nrrd(BAD_FILES[name])


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8000", "http://", "https://a:b@host", "http://x/?q=1",
                                 "http://x#y", "http://a b", "http://x:99999", "", "http://[::1"])
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address: need"):
        Address(url)


def test_a_token_goes_over_plain_http_to_this_machine_only() -> None:
    for url in ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://hospital.example"):
        Address(url, SECRET)
    for url in ("http://hospital.example", "http://127.0.0.1.example", "http://localhost.example"):
        with pytest.raises(ValueError, match="https"):
            Address(url, SECRET)


@pytest.mark.parametrize("token", ["two words", "line\r\nX-Evil: 1", "caf\u00e9"])
def test_a_token_that_could_change_the_request_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ValueError, match="token") as caught:
        Address("https://x", token)
    assert token not in str(caught.value)


def test_a_time_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="timeout"):
        Address("http://x", timeout_s=0)


def test_the_session_says_who_reads_and_what_may_be_answered(ada: Server) -> None:
    told = ada.session()
    assert (told["reader"], told["role"], told["tokens"]) == ("ada", "reader", True)
    assert [item["name"] for item in told["task"]["classes"]] == list(shared().classes)
    assert told["model"]["version"] and told["maps"] and "entropy" in told["orders"]


def test_the_worklist_comes_in_pages_and_both_directions(ada: Server) -> None:
    whole = ada.worklist()
    assert whole["total"] == len(whole["items"]) == 8
    first, second = (ada.worklist("random", offset=offset, limit=5)["items"] for offset in (0, 5))
    assert len(first) == 5 and len({item["uid"] for item in first + second}) == 8
    up, down = ([item["uid"] for item in ada.worklist("case", descending=descending)["items"]]
                for descending in (False, True))
    assert up == down[::-1] and len(set(up)) == 8


def test_picture_and_heat_map_lie_in_the_same_place_of_the_patient(ada: Server) -> None:
    uid = next(uid for uid in uids(ada) if uid.startswith("2.25."))
    picture, answer = ada.picture(uid), ada.infer(uid, "attention_first")
    rows, columns = picture.values.shape
    assert answer.document["image"]["shape"] == [rows, columns] and rows != columns
    assert answer.heat.values.dtype == np.float32 and answer.heat.fields["kind"] == "attention_first"
    assert float(answer.heat.fields["scale"]) > 0 and answer.heat.fields["unit"]
    assert {"window", "window_source"} <= set(picture.fields)
    directions = [grid.ijk_to_lps[:3, :2] / np.linalg.norm(grid.ijk_to_lps[:3, :2], axis=0)
                  for grid in (picture, answer.heat)]
    assert np.allclose(*directions)
    # the map covers the picture: the middle of the one lies within the other
    middle = np.linalg.inv(answer.heat.ijk_to_lps) @ picture.ijk_to_lps @ [columns / 2, rows / 2, 0, 1]
    assert 0 < middle[0] < answer.heat.values.shape[1] and 0 < middle[1] < answer.heat.values.shape[0]
    alone = ada.infer(uid)
    assert alone.heat is None and scores(alone) == pytest.approx(scores(answer), abs=1e-5)


def test_a_file_of_this_machine_is_answered_like_the_stored_one(ada: Server, tmp_path: Path) -> None:
    stored = next((shared().folder / "studies").rglob("*.dcm"))
    answer = ada.infer_file(stored, "gate")
    assert any(scores(answer) == pytest.approx(scores(ada.infer(uid)), abs=1e-5) for uid in uids(ada))
    assert answer.heat.fields["kind"] == "gate" and len(uids(ada)) == 8


def test_the_name_of_a_file_stays_here(tmp_path: Path) -> None:
    path = tmp_path / "Doe^Jane 1970.NII.gz"
    path.write_bytes(b"pixels")
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def hear() -> None:
            client, _ = listener.accept()
            with client:
                client.settimeout(5)
                while b"--\r\n" not in b"".join(asked):
                    asked.append(client.recv(65536))
                client.sendall(http(200, b'{"prediction": []}'))

        thread = threading.Thread(target=hear)
        thread.start()
        Server(Address(f"http://127.0.0.1:{listener.getsockname()[1]}")).infer_file(path)
        thread.join()
    text = b"".join(asked)
    assert b"pixels" in text and b'filename="image.NII.gz"' in text and b"Doe" not in text


def test_a_file_that_cannot_be_read_is_refused_without_its_path(ada: Server, tmp_path: Path) -> None:
    error = error_of(ada.infer_file, tmp_path / "Doe.dcm")
    assert error.kind == "refused" and "Doe" not in str(error)


def test_an_annotation_sent_twice_is_stored_once(ada: Server) -> None:
    uid = uids(ada)[0]
    document = {"label": shared().classes[0], "reader": "ada", "comment": "\u00e4 & = \u2603\nsecond line",
                "key": str(uuid.uuid4()), "point": [3.5, 60], "box": [1, 2, 3, 4.5], "blind": True}
    first, second = ada.annotate(uid, document), ada.annotate(uid, document)
    assert first == second and first["annotation"]["comment"] == document["comment"]
    assert [entry["key"] for entry in ada.history(uid)].count(document["key"]) == 1
    assert ada.history(uid)[-1]["box"] == [1, 2, 3, 4.5]


def test_a_case_is_taken_and_given_back(ada: Server) -> None:
    bob = Server(Address(shared().url, shared().tokens["bob"]))
    uid = bob.next_case("random")["id"]
    assert error_of(ada.lease, uid).kind == "taken"
    assert bob.release(uid) == {"released": True}
    assert ada.lease(uid)["reader"] == "ada" and ada.release(uid, "ada")["released"]


def answer_of(status: int, body: bytes = b'{"detail": "x: need y, got z."}', **headers: str) -> ServerError:
    with stranger(http(status, body, **headers)) as url:
        return error_of(Server(Address(url)).session)


@pytest.mark.parametrize(("status", "kind"), [
    (401, "not_allowed"), (403, "not_allowed"), (404, "refused"), (409, "taken"), (413, "refused"),
    (422, "refused"), (429, "busy"), (500, "failed"), (503, "failed")])
def test_a_refusal_has_the_kind_of_its_status_and_the_servers_sentence(status: int, kind: str) -> None:
    error = answer_of(status)
    assert (error.kind, error.status, str(error)) == (kind, status, "x: need y, got z.")


@pytest.mark.parametrize(("status", "kind"), [(404, "not_dcaf"), (413, "not_dcaf"), (502, "failed"),
                                              (403, "not_allowed"), (429, "busy")])
def test_a_proxys_own_page_is_told_from_the_servers_sentence(status: int, kind: str) -> None:
    error = answer_of(status, b"<html>nginx</html>")
    assert error.kind == kind and "nginx" not in str(error)


def test_the_real_server_refuses_in_the_same_words(ada: Server) -> None:
    assert error_of(Server(Address(shared().url)).session).kind == "not_allowed"
    assert error_of(ada.train).kind == "not_allowed"
    missing = error_of(ada.prediction, "no such image")
    assert (missing.kind, missing.status) == ("refused", 404)
    bad = error_of(ada.worklist, "knees")
    assert (bad.kind, bad.status) == ("refused", 422) and "order" in str(bad)


def test_a_redirection_is_not_followed_with_the_token() -> None:
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.3)
        place = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        with stranger(http(307, b"", Location=place)) as url:
            error = error_of(Server(Address(url, SECRET)).session)
        with pytest.raises(TimeoutError):
            asked.append(elsewhere.accept())
    assert error.kind == "not_dcaf" and not asked


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"{}", b'"text"', b'{"role": 1}', b"\xff",
                                  b"[" * 100_000])
def test_an_answer_that_is_not_the_servers_says_so(body: bytes) -> None:
    assert answer_of(200, body).kind == "not_dcaf"


def test_what_is_no_http_is_not_dcaf() -> None:
    with stranger(b"SSH-2.0-OpenSSH_9.2\r\n") as url:
        assert error_of(Server(Address(url)).session).kind == "not_dcaf"


def test_a_list_of_faults_is_one_sentence() -> None:
    detail = {"detail": [{"loc": ["query", "limit"], "msg": "need a number", "input": "secret"}]}
    assert str(answer_of(422, json.dumps(detail).encode())) == "limit: need a number."


def test_no_error_says_a_token_a_path_or_a_uid(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    detail = f"no {SECRET} for 1.2.840.113619.2.55.3 in /home/jane doe/x.dcm or C:\\films\\x.dcm"
    with stranger(http(422, json.dumps({"detail": detail}).encode())) as url:
        address = Address(url, SECRET)
        server = Server(address)
        try:
            server.history("1.2.840.113619.2.55.3")
        except ServerError as error:
            told = "".join(traceback.format_exception(type(error), error, error.__traceback__)) + repr(error)
            assert "1.2.840" not in str(error) and "films" not in str(error) and "/home" not in str(error)
    assert SECRET not in told + repr(address) + str(address) + repr(server) + caplog.text


def test_nobody_listening_is_unreachable() -> None:
    assert error_of(Server(Address(f"http://127.0.0.1:{free_port()}")).session).kind == "unreachable"


def test_a_name_nobody_knows_is_unreachable() -> None:
    assert error_of(Server(Address("https://no-such-host.invalid")).session).kind == "unreachable"


@pytest.mark.parametrize("cut", ["request", "lost", "answer"])
def test_a_connection_that_breaks_off_is_unreachable(cut: str) -> None:
    with Trouble(shared().port, cut=cut) as trouble:
        assert error_of(Server(Address(trouble.url, shared().tokens["ada"])).session).kind == "unreachable"


def test_an_answer_that_is_late_is_a_timeout() -> None:
    with Trouble(shared().port, delay_s=60) as trouble:
        start = time.monotonic()
        error = error_of(Server(Address(trouble.url, timeout_s=0.3)).session)
        assert error.kind == "timeout" and time.monotonic() - start < 20


def test_an_answer_that_only_trickles_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def trickle() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                try:
                    for _ in range(1200):
                        client.sendall(b" ")
                        time.sleep(0.05)
                except OSError:
                    return

        threading.Thread(target=trickle, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        start = time.monotonic()
        assert error_of(Server(Address(url, timeout_s=0.4)).session).kind == "timeout"
        assert time.monotonic() - start < 20


def test_an_answer_too_large_is_not_taken() -> None:
    huge = b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n{}"
    with stranger(huge) as url:
        assert error_of(Server(Address(url)).session).kind == "not_dcaf"


def test_cancelling_closes_the_connection_at_once() -> None:
    call, errors = Call(), []
    with Trouble(shared().port, delay_s=60) as trouble:
        def ask() -> None:
            with call:
                errors.append(error_of(Server(Address(trouble.url)).session))

        thread = threading.Thread(target=ask)
        thread.start()
        wait(lambda: trouble.seen)
        call.cancel()
        thread.join(20)
        assert not thread.is_alive() and trouble.hung_up.wait(20)
    assert [error.kind for error in errors] == ["cancelled"]


def test_a_cancelled_call_asks_nothing() -> None:
    call = Call()
    call.cancel()
    with Trouble(shared().port) as trouble, call:
        assert error_of(Server(Address(trouble.url)).session).kind == "cancelled"
        assert trouble.seen in ([], [""])


def test_many_threads_get_each_their_own_answer(ada: Server) -> None:
    wanted, got = uids(ada) * 2, {}

    def ask(number: int, uid: str) -> None:
        got[number] = ada.infer(uid).document["image"]["id"]

    threads = [threading.Thread(target=ask, args=item) for item in enumerate(wanted)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == dict(enumerate(wanted))
