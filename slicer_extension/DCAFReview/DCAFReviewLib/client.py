"""`Server`: the DCAF server over HTTP, with nothing but Python's own library.

`Server._ask` is the one place where requests leave and where errors are born: whatever goes wrong is a
`ServerError` whose kind says what to do about it and whose sentence may be shown and logged. Redirections
are not followed and proxies of the environment are not used, so that an image and a token go to the
address that was entered and nowhere else.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from .call import Call, ServerError
from .forms import Body, form_body, json_body, parts_of, upload_body
from .nrrd import Grid, parse_nrrd

__all__ = ["Address", "Answer", "Call", "Grid", "Server", "ServerError", "parse_nrrd"]

MAX_ANSWER = 512 * 2**20
"""Largest answer taken, bytes."""
_BLOCK = 2**20
_KINDS = {401: "not_allowed", 403: "not_allowed", 409: "taken", 429: "busy"}
_BARE = {"not_allowed": "server: need a token that it knows, got none or another. Ask your administrator.",
         "busy": "server: it has too much to do. Try again later.",
         "failed": "server: it failed, or does not run behind its proxy. Try again later."}
_NOT_OURS = "server: need an answer of a DCAF server, got something else. Check the address."
_UID = re.compile(r"\b[0-2](?:\.\d+){4,}(?::\d+)?")
_PATH = re.compile(r"(?<![\w:/])(?:[A-Za-z]:\\|/)[^\s'\"]+")


@dataclass(frozen=True)
class Address:
    """Where the server is and how to be let in; checked at birth.

    Args:
        url: ``https://host:port`` or ``http://host:port``, perhaps with a path.
        token: The reader's; over plain HTTP only to this very machine.
        ca_file: PEM file of the authority to trust instead of the system's.
        timeout_s: Longest wait for a whole answer, and for each part of an upload.
        connect_timeout_s: Longest wait for a connection.

    Raises:
        ValueError: For anything that cannot work or is not safe.
    """

    url: str
    token: str = field(default="", repr=False)
    ca_file: str = ""
    timeout_s: float = 30.0
    connect_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError("address: need http://host:port or https://host:port, "
                             "got another form.") from error
        if parts.scheme not in ("http", "https") or not host or parts.username is not None \
                or parts.query or parts.fragment or re.search(r"[\s\x00-\x1f\x7f]", self.url):
            raise ValueError("address: need http://host:port or https://host:port, got another form.")
        if not re.fullmatch(r"[!-~]*", self.token):
            raise ValueError("token: need printable characters without spaces, got others. Copy it again.")
        if self.token and parts.scheme == "http" and not _is_loopback(host):
            raise ValueError("address: need https:// to send a token to another machine, got http://.")
        if self.timeout_s <= 0 or self.connect_timeout_s <= 0:
            raise ValueError("timeout: need more than 0 seconds, got less.")
        object.__setattr__(self, "url", self.url.rstrip("/"))


@dataclass(frozen=True)
class Answer:
    """What the model says of an image: the prediction document and, when asked for, one heat map."""

    document: dict[str, Any]
    heat: Grid | None = None


class Server:
    """A DCAF server; may be used from several threads at once, a connection per request.

    Every method waits for the answer. UIDs are ids of the server's store.

    Args:
        address: Where it is.

    Raises:
        ValueError: When the CA file cannot be used.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._parts = urlsplit(address.url)
        self._tls = _tls(address.ca_file) if self._parts.scheme == "https" else None

    def session(self, reader: str = "") -> dict[str, Any]:
        """Who the reader is, what may be answered, and which model stands there."""
        return self._object("GET", "/dcaf/session", {"reader": reader}, needs=("role", "task", "model"))

    def worklist(self, order: str = "entropy", *, descending: bool | None = None, status: str = "all",
                 label: str = "", reader: str = "", offset: int = 0, limit: int = 100) -> dict[str, Any]:
        """A page of the worklist: ``{total, offset, items}``."""
        direction = "" if descending is None else str(descending).lower()
        query = {"order": order, "descending": direction, "status": status, "label": label,
                 "reader": reader, "offset": offset, "limit": limit}
        return self._object("GET", "/dcaf/worklist", query, needs=("total", "items"))

    def next_case(self, order: str = "entropy", reader: str = "") -> dict[str, Any]:
        """Leases the next case: ``{id, prediction, lease_expires}``, or ``{message}`` when none is left."""
        return self._object("POST", f"/activelearning/{order}", send=json_body(_stated(reader=reader)))

    def lease(self, uid: str, reader: str = "") -> dict[str, Any]:
        """Takes this very case; kind ``taken`` while another reader holds it."""
        return self._object("POST", "/dcaf/lease", send=json_body({"image": uid, **_stated(reader=reader)}))

    def release(self, uid: str, reader: str = "") -> dict[str, Any]:
        """Gives a case back unread."""
        return self._object("DELETE", "/dcaf/lease", {"image": uid, "reader": reader})

    def skip(self, uid: str, reader: str = "", reason: str = "") -> dict[str, Any]:
        """Takes a case out of the reader's queue."""
        return self._object("POST", "/dcaf/skip",
                            send=json_body({"image": uid, "reason": reason, **_stated(reader=reader)}))

    def prediction(self, uid: str) -> dict[str, Any]:
        """The stored prediction document; kind ``refused``, status 404, when there is none."""
        return self._object("GET", "/dcaf/prediction", {"image": uid}, needs=("prediction",))

    def history(self, uid: str) -> list[dict[str, Any]]:
        """Every annotation of an image, oldest first."""
        return self._list("/dcaf/history", {"image": uid})

    def disagreements(self) -> list[dict[str, Any]]:
        """Images whose readers differ and nobody has settled: ``[{uid, labels: {reader: label}}]``."""
        return self._list("/dcaf/disagreements")

    def agreement(self) -> dict[str, Any]:
        """How far the readers agree: ``{images, images_with_two_readers, pairs, fleiss_kappa}``."""
        return self._object("GET", "/dcaf/agreement", needs=("images_with_two_readers", "pairs"))

    def infer(self, uid: str, overlay: str | None = None, target: str | None = None) -> Answer:
        """Asks the model about an image of the store.

        Args:
            uid: The image.
            overlay: Kind of heat map wanted; None for none.
            target: Class that a class-activation map explains; default the most probable one.
        """
        return self._answer(overlay, {"image": uid}, form_body(_wish(overlay, target)))

    def infer_file(self, path: Path | str, overlay: str | None = None, target: str | None = None,
                   frame: int | None = None) -> Answer:
        """Asks the model about a file of this machine, which the server does not keep; see `infer`.

        Args:
            path: Only the ending of its name is sent along.
            overlay: As for `infer`.
            target: As for `infer`.
            frame: Of a multi-frame file, from 1.
        """
        try:
            send = upload_body(Path(path), _wish(overlay, target, frame))
        except OSError as error:
            raise ServerError("refused", f"file: need one that can be read: {error.strerror}.") from error
        return self._answer(overlay, {}, send)

    def picture(self, uid: str) -> Grid:
        """The image as the server reads it: full resolution, bright is dense, no window applied."""
        _, data = self._ask("GET", "/dcaf/image", {"image": uid, "format": "nrrd"})
        return _grid(data)

    def annotate(self, uid: str, document: dict[str, Any]) -> dict[str, Any]:
        """Stores an annotation for good; the same ``key`` sent twice is stored once."""
        return self._object("PUT", "/datastore/label", {"image": uid, "tag": "final"}, form_body(document),
                            needs=("annotation",))

    def train(self, mode: str = "frozen") -> dict[str, Any]:
        """Starts training on what the readers said; kind ``busy`` while one runs."""
        return self._object("POST", "/train/dcaf", send=json_body({"mode": mode}))

    def stop_training(self) -> dict[str, Any]:
        """Ends the running training."""
        return self._object("DELETE", "/train/")

    def training(self) -> dict[str, Any]:
        """How the last training stands."""
        return self._object("GET", "/dcaf/training", needs=("state",))

    def changes(self, since: str) -> dict[str, Any]:
        """What the model of now answers otherwise than that version did."""
        return self._object("GET", "/dcaf/changes", {"since": since}, needs=("compared", "items"))

    def _object(self, method: str, path: str, query: dict[str, Any] | None = None, send: Body | None = None,
                needs: tuple[str, ...] = ()) -> dict[str, Any]:
        _, data = self._ask(method, path, query, send)
        value = _parsed(data)
        if not isinstance(value, dict) or any(name not in value for name in needs):
            raise ServerError("not_dcaf", _NOT_OURS)
        return value

    def _list(self, path: str, query: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        value = _parsed(self._ask("GET", path, query)[1])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ServerError("not_dcaf", _NOT_OURS)
        return value

    def _answer(self, overlay: str | None, query: dict[str, Any], send: Body) -> Answer:
        query = {**query, "output": "all" if overlay else "json"}
        kind, data = self._ask("POST", "/infer/dcaf", query, send)
        parts = parts_of(kind, data) if overlay else {"params": data}
        document = _parsed(parts.get("params", b""))
        if not isinstance(document, dict) or "prediction" not in document \
                or (overlay and "image" not in parts):
            raise ServerError("not_dcaf", _NOT_OURS)
        return Answer(document, _grid(parts["image"]) if overlay else None)

    def _ask(self, method: str, path: str, query: dict[str, Any] | None = None,
             send: Body | None = None) -> tuple[str, bytes]:
        """Content type and body of a good answer; anything else is a `ServerError`."""
        stated = urlencode({name: value for name, value in (query or {}).items() if value != ""})
        target = f"{self._parts.path}{path}" + (f"?{stated}" if stated else "")
        call = Call.current()
        try:
            with closing(self._connection()) as connection:
                connection.connect()
                line = connection.sock   # http.client lets go of it before the answer is read
                call.hold(line)
                try:
                    status, kind, data = self._exchange(connection, line, method, target, send)
                finally:
                    call.hold(None)
        except (OSError, http.client.HTTPException) as error:
            if call.cancelled:
                raise ServerError("cancelled", "request: cancelled.") from error
            raise self._unanswered(error) from error
        if 200 <= status < 300:
            return kind, data
        raise self._refusal(status, data)

    def _connection(self) -> http.client.HTTPConnection:
        host, port, timeout_s = self._parts.hostname, self._parts.port, self.address.connect_timeout_s
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._tls)

    def _exchange(self, connection: http.client.HTTPConnection, line: socket.socket, method: str,
                  target: str, send: Body | None) -> tuple[int, str, bytes]:
        headers = {"Accept": "*/*", "Connection": "close", "User-Agent": "DCAFReview"}
        if self.address.token:
            headers["Authorization"] = f"Bearer {self.address.token}"
        if send is not None:
            headers.update({"Content-Type": send.kind, "Content-Length": str(send.size)})
        line.settimeout(self.address.timeout_s)
        connection.request(method, target, None if send is None else send.blocks, headers)
        deadline = time.monotonic() + self.address.timeout_s
        response = connection.getresponse()
        expected = response.length
        if (expected or 0) > MAX_ANSWER:
            raise ServerError("not_dcaf", _NOT_OURS)
        parts, size = [], 0
        while expected is None or size < expected:
            line.settimeout(max(deadline - time.monotonic(), 0.001))
            part = response.read1(_BLOCK)
            if not part:
                break
            parts.append(part)
            size += len(part)
            if size > MAX_ANSWER:
                raise ServerError("not_dcaf", _NOT_OURS)
        if expected is not None and size < expected:
            raise http.client.IncompleteRead(b"", expected - size)
        return response.status, response.headers.get("Content-Type", ""), b"".join(parts)

    def _unanswered(self, error: Exception) -> ServerError:
        """What it means that no whole answer came."""
        if isinstance(error, socket.timeout):
            return ServerError("timeout", "server: need an answer in time, got none. Try again, "
                                          "or ask whoever runs it.")
        if isinstance(error, ssl.SSLCertVerificationError):
            return ServerError("unreachable", "certificate: need one that this machine trusts and that names "
                                              "the server, got another. Choose the right CA file.")
        if isinstance(error, ssl.SSLError):
            return ServerError("unreachable", "TLS: need a server that speaks it, got one that does not. "
                                              "Check the address.")
        if isinstance(error, (OSError, http.client.IncompleteRead)):
            return ServerError("unreachable", "server: need a connection, got none, or it broke off. "
                                              "Check the address and that the server runs.")
        return ServerError("not_dcaf", _NOT_OURS)

    def _refusal(self, status: int, data: bytes) -> ServerError:
        """What a status other than 2xx means; the server's own sentence when it is one."""
        kind = _KINDS.get(status, "failed" if status >= 500 else "refused")
        sentence = self._sentence(data) or _BARE.get(kind, "")   # a proxy in between says nothing of ours
        if status < 400 or not sentence:
            return ServerError("not_dcaf", _NOT_OURS, status)
        return ServerError(kind, sentence, status)

    def _sentence(self, data: bytes) -> str:
        try:
            detail = json.loads(data)["detail"]
            if isinstance(detail, list):   # FastAPI's own form of a bad parameter
                detail = f"{detail[0]['loc'][-1]}: {detail[0]['msg']}."
        except (ValueError, RecursionError, KeyError, IndexError, TypeError):
            return ""
        if not isinstance(detail, str):
            return ""
        if self.address.token:
            detail = detail.replace(self.address.token, "<token>")
        detail = _PATH.sub("<path>", _UID.sub("<uid>", detail))
        return "".join(sign if sign.isprintable() else " " for sign in detail)[:500]


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ServerError("not_dcaf", _NOT_OURS) from error


def _grid(data: bytes) -> Grid:
    try:
        return parse_nrrd(data)
    except ValueError as error:
        raise ServerError("not_dcaf", f"server: {error}") from error


def _wish(overlay: str | None, target: str | None, frame: int | None = None) -> dict[str, Any]:
    wish = {"overlay": overlay, "class": target, "frame": frame}
    return {name: value for name, value in wish.items() if value is not None}


def _stated(**names: str) -> dict[str, str]:
    return {name: value for name, value in names.items() if value}


def _tls(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ValueError("CA file: need a PEM file of certificates, got none.") from error


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))
