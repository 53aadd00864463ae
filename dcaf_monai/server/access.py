"""Who may speak to the server, from where, how much, and what its log may say.

Two ways of running, decided by whether tokens exist:

* no token file: one reader on this machine. Only loopback peers are answered, only under a
  loopback name (a web page whose name was re-pointed to 127.0.0.1 is turned away), and never
  a request that a foreign web page started.
* token file: every request to every path carries ``Authorization: Bearer TOKEN``; from another
  machine only over TLS, or behind a proxy that the operator vouches for.

`Guard` is the outermost layer and sees every path, so nothing has to remember to be protected.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Role = Literal["reader", "admin"]
ROLES: tuple[Role, ...] = ("reader", "admin")
READER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
MAX_BODY = 256 * 1024 * 1024
"""Largest request accepted, bytes: an uploaded multi-frame OCT fits."""


@dataclass(frozen=True)
class Reader:
    """Who a request comes from.

    Args:
        name: The reader's name; empty for the single reader of a server without tokens, who
            names himself in each annotation.
        role: ``admin`` may also train, score and predict the whole pool.
    """

    name: str
    role: Role


LOCAL = Reader("", "admin")


class Tokens:
    """The readers a token file knows; the file is read again when it changes.

    One reader a line: ``<sha256 of the token> <role> <name>``. A token is 256 random bits, so a
    plain digest cannot be searched and needs no salt or stretching.

    Args:
        path: Token file written by `new_token`.

    Raises:
        ValueError: When the file cannot be read or a line is not of that form.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._readers: dict[bytes, Reader] = {}
        self._refresh()

    def reader(self, token: str) -> Reader | None:
        """The reader whom a token belongs to; None when it is nobody's.

        Raises:
            ValueError: When the file has become unreadable; nobody is let in then.
        """
        self._refresh()
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for known, reader in self._readers.items():  # no early exit: same time for everyone
            if hmac.compare_digest(known, digest):
                found = reader
        return found

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._readers = _read_tokens(self._path)
                self._stamp = stamp
        except OSError as error:
            raise ValueError(f"token file: need a readable file, got {error.strerror}. "
                             "Make one with `dcaf token add`.") from error


def _read_tokens(path: Path) -> dict[bytes, Reader]:
    readers = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([0-9a-f]{64}) (reader|admin) (\S+)", line.strip())
        if not match or not READER_NAME.fullmatch(match[3]):
            raise ValueError(f"token file: need `<sha256> <role> <name>` on each line, line {number} "
                             "is not. Make entries with `dcaf token add`.")
        readers[bytes.fromhex(match[1])] = Reader(match[3], match[2])  # type: ignore[arg-type]
    return readers


def new_token(path: Path, reader: str, role: Role = "reader") -> str:
    """A fresh token for a reader; only its digest is written.

    Earlier tokens of the same reader stop working.

    Args:
        path: Token file; made, readable by its owner alone, when it does not exist.
        reader: Letters, digits and ``. _ @ -``; 64 at most.
        role: ``reader`` or ``admin``.

    Raises:
        ValueError: For another name or role, or a file that is not a token file.
    """
    if not READER_NAME.fullmatch(reader):
        raise ValueError("reader: need 1 to 64 letters, digits or . _ @ -, beginning with a letter or "
                         f"digit, got {reader[:64]!r}.")
    if role not in ROLES:
        raise ValueError(f"role: need one of {', '.join(ROLES)}, got {role!r}.")
    token = secrets.token_urlsafe(32)
    readers = _read_tokens(path) if path.exists() else {}
    readers = {digest: known for digest, known in readers.items() if known.name != reader}
    readers[hashlib.sha256(token.encode()).digest()] = Reader(reader, role)
    _write_tokens(path, readers)
    return token


def remove_token(path: Path, reader: str) -> None:
    """Takes a reader's access away; a running server notices at the next request.

    Raises:
        ValueError: When the file has no such reader.
    """
    readers = _read_tokens(path) if path.exists() else {}
    left = {digest: known for digest, known in readers.items() if known.name != reader}
    if len(left) == len(readers):
        raise ValueError(f"reader: need one of the token file's, got {reader[:64]!r}.")
    _write_tokens(path, left)


def _write_tokens(path: Path, readers: dict[bytes, Reader]) -> None:
    descriptor, draft = tempfile.mkstemp(dir=path.resolve().parent, prefix=path.name)  # mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        for digest, reader in readers.items():
            file.write(f"{digest.hex()} {reader.role} {reader.name}\n")
    os.replace(draft, path)


@dataclass(frozen=True)
class Access:
    """The rules of one server.

    Args:
        tokens: Known readers; None for the single reader on this machine.
        behind_proxy: A proxy ends TLS; plain HTTP from other machines is then accepted.
        origins: Web origins (``https://host:port``) whose pages may call.
        max_body: Largest request body, bytes.
    """

    tokens: Tokens | None = None
    behind_proxy: bool = False
    origins: frozenset[str] = field(default_factory=frozenset)
    max_body: int = MAX_BODY


def access_rules(conf: Mapping[str, str]) -> Access:
    """A server's rules from its settings.

    Args:
        conf: ``token_file``, ``behind_proxy`` (true or false), ``cors`` (origins, comma-separated),
            ``max_body`` (bytes).

    Raises:
        ValueError: When the token file cannot be used, a proxy is vouched for without tokens, or an origin
            is none.
    """
    tokens = Tokens(Path(conf["token_file"])) if conf.get("token_file") else None
    behind_proxy = conf.get("behind_proxy", "").lower() == "true"
    if behind_proxy and tokens is None:
        raise ValueError("behind_proxy: need a token file, got none. "
                         "Everybody behind a proxy looks local.")
    origins = frozenset(origin.strip().rstrip("/") for origin in conf.get("cors", "").split(",")
                        if origin.strip())
    if any(not origin.startswith(("http://", "https://")) for origin in origins):
        raise ValueError("cors: need origins such as https://viewer.example, got another form. "
                         "Name each one.")
    return Access(tokens, behind_proxy, origins, int(conf.get("max_body", MAX_BODY)))


class Guard:
    """ASGI layer that lets in who may come in; answers everyone else with one sentence.

    It leaves the `Reader` in ``request.state.reader``.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        try:
            connection = HTTPConnection(scope)
            scope.setdefault("state", {})["reader"] = self._reader(connection)
            receive = _limited(receive, connection, self._access.max_body)
        except HTTPException as refusal:
            answer = JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
            return await answer(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"cache-control", b"no-store"),
                                      (b"x-content-type-options", b"nosniff")]
            await send(message)

        return await self._app(scope, receive, send_guarded)

    def _reader(self, connection: HTTPConnection) -> Reader:
        peer = connection.client.host if connection.client else ""
        secure = connection.url.scheme == "https" or self._access.behind_proxy or is_loopback(peer)
        if self._access.tokens is None:
            return self._local_reader(connection, peer)
        if not secure:
            raise HTTPException(403, "connection: need TLS from another machine, got plain HTTP. "
                                "Start the server with a certificate.")
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        reader = self._access.tokens.reader(token.strip()) if scheme.lower() == "bearer" else None
        if reader is None:
            raise HTTPException(401, "token: need `Authorization: Bearer TOKEN` with a valid token. "
                                "Ask your administrator for one.", {"WWW-Authenticate": "Bearer"})
        return reader

    def _local_reader(self, connection: HTTPConnection, peer: str) -> Reader:
        if not is_loopback(peer):
            raise HTTPException(403, "connection: need a token file before other machines are answered. "
                                "Make one with `dcaf token add` and start with --token-file.")
        if not is_loopback(_host(connection.headers.get("host", ""))):
            raise HTTPException(403, "Host: need localhost or 127.0.0.1, got another name. "
                                "Open the server under its loopback address.")
        origin = connection.headers.get("origin")
        foreign = connection.headers.get("sec-fetch-site") in ("cross-site", "same-site")
        own = origin is not None and urlsplit(origin).netloc == connection.headers.get("host")
        if (origin is not None or foreign) and not own and origin not in self._access.origins:
            raise HTTPException(403, "Origin: need this server's own pages or a configured origin, got "
                                "another web page. Allow it with --cors.")
        return LOCAL


def current_reader(request: Request) -> Reader:
    """The reader a request comes from (FastAPI dependency)."""
    return request.state.reader


def admin(request: Request) -> Reader:
    """The administrator a request comes from (FastAPI dependency).

    Raises:
        HTTPException: 403 for a reader.
    """
    reader: Reader = request.state.reader
    if reader.role != "admin":
        raise HTTPException(403, "role: need admin for this, got reader. Ask your administrator.")
    return reader


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _host(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:  # "[::1" and the like
        return ""


def _limited(receive: Receive, connection: HTTPConnection, limit: int) -> Receive:
    """``receive`` that ends with 413 as soon as the body is larger than ``limit`` bytes."""
    refusal = HTTPException(413, f"request: need at most {limit} bytes, got more.")
    stated = connection.headers.get("content-length", "0")
    if not stated.isdigit() or int(stated) > limit:
        raise refusal
    seen = 0

    async def receive_limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise refusal
        return message

    return receive_limited


_SECRETS = (
    (re.compile(r"://[^/\s@]+@"), "://<login>@"),
    (re.compile(r"(?i)\bbearer\s+\S+"), "Bearer <token>"),
    (re.compile(r"\b[0-2](?:\.\d+){4,}(?::\d+)?"), "<uid>"),
    (re.compile(r"""(['"])(?:/|[A-Za-z]:\\)(?:(?!\1|\.py\1).)*\1"""), "<path>"),
    (re.compile(r"(?<![\w<'\"./])(?!//)/(?!\S*\.py\b)[^\s'\",;]{2,}(?: [^\s'\",;]*/[^\s'\",;]*)*"), "<path>"),
)


class Redaction(logging.Filter):
    """Log filter that leaves no UID, password, token or file path in a record and its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        return True


def redact(text: str) -> str:
    """``text`` without UIDs, tokens and file paths (source files of a traceback stay)."""
    for pattern, stand_in in _SECRETS:
        text = pattern.sub(stand_in, text)
    return text


def redact_logs() -> None:
    """Keeps patients out of the log of this process; may be called again.

    MONAI Label logs whole requests, images' metadata and paths at INFO: only its warnings stay.
    No access log: query strings hold UIDs.
    """
    logging.getLogger("monailabel").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True
    loggers = [logging.getLogger(), *(logger for logger in logging.Logger.manager.loggerDict.values()
                                      if isinstance(logger, logging.Logger))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if not any(isinstance(known, Redaction) for known in handler.filters):
            handler.addFilter(Redaction())
