"""Real peers on loopback: a DCAF server process, a proxy that makes trouble, and a server of another kind."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
MAIN = Path(os.environ.get("DCAF_PYTHON", HERE.parents[1] / ".venv" / "bin" / "python"))


@dataclass
class Served:
    """A DCAF server in a process of its own; use as a context manager.

    Args:
        wish: For ``serve_films.py``: ``films`` (count), ``model``, ``tokens``, ``data``, ``score``,
            ``cutoffs`` ({class: probability}), ``bias`` (logit added to the first class).
        environment: Added to the process's environment.
    """

    wish: dict
    environment: dict = field(default_factory=dict)

    def __enter__(self) -> Served:
        self.folder = Path(tempfile.mkdtemp(prefix="dcaf-served-"))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it, or starts it again on the same folder and port; waits until it answers."""
        self.log = self.folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [MAIN, HERE / "serve_films.py", self.folder, str(self.port), json.dumps(self.wish)],
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | self.environment)
        deadline = time.monotonic() + 300
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"The server does not answer:\n{self.output()}")
            time.sleep(0.05)
        told = json.loads((self.folder / "told.json").read_text())
        self.tokens, self.classes = told["tokens"], tuple(told["classes"])

    def output(self) -> str:
        """Everything the process has said since it was started."""
        return self.log.read_text()

    def kill(self) -> None:
        """Ends it as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ends it as an operator would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/dcaf/health", timeout=5):
                return True
        except urllib.error.HTTPError:   # without a token it says no, which is an answer
            return True
        except OSError:
            return False


@functools.cache
def shared() -> Served:
    """One server with tokens and a model for all tests that can share one."""
    server = Served({"films": 6, "model": True, "tokens": True})
    server.__enter__()
    atexit.register(server.stop)
    return server


@dataclass
class Trouble:
    """A TCP proxy in front of a server, that makes trouble when told to; use as a context manager.

    Args:
        port: The server's.
        delay_s: Between a request and its being passed on.
        cut: ``request``: hangs up in the middle of a request; ``lost``: passes it on and hangs up before the
            answer; ``answer``: hangs up in the middle of the answer; empty: neither.
        only: Trouble only for requests whose first line holds this text.
        tls: ``(certificate, key)``: speaks TLS to the client.
        adds: Is given the path and the JSON object of each answer that is one, and may change it: so a server
            of another version is spoken to.
    """

    port: int
    delay_s: float = 0.0
    cut: str = ""
    only: str = ""
    tls: tuple[Path, Path] | None = None
    adds: Callable[[str, dict], None] | None = None

    def __enter__(self) -> Trouble:
        self.hung_up = threading.Event()
        """The client hung up while it waited."""
        self.seen: list[str] = []
        """First lines of the requests that came."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if self.tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        context = None
        if self.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.tls)
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client, context), daemon=True).start()

    def _serve(self, client: socket.socket, context: ssl.SSLContext | None) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(client)
            if context:
                client = stack.enter_context(context.wrap_socket(client, server_side=True))
            request = read_message(client)
            if not request:     # called off before anything was asked
                return
            line = request.split(b"\r\n", 1)[0].decode()
            self.seen.append(line)
            delay_s, cut = (self.delay_s, self.cut) if self.only in line else (0.0, "")
            if cut == "request" or self._waited_in_vain(client, delay_s):
                return
            server = stack.enter_context(socket.create_connection(("127.0.0.1", self.port)))
            server.sendall(request)
            answer = b""
            while part := server.recv(65536):
                answer += part
            if self.adds is not None:
                answer = self._with_more(line.split(" ")[1], answer)
            if cut != "lost":
                client.sendall(answer[:len(answer) - 20] if cut == "answer" else answer)

    def _with_more(self, path: str, answer: bytes) -> bytes:
        """The answer with its JSON object, or the one that a map comes with, changed by `adds`."""
        head, _, body = answer.partition(b"\r\n\r\n")
        kind = next((line.split(b":", 1)[1].strip().decode() for line in head.split(b"\r\n")
                     if line.lower().startswith(b"content-type:")), "")
        before, part, after = (b"", body, b"") if kind.startswith("application/json") else _parts(body)
        if not part.startswith(b"{"):
            return answer
        told = json.loads(part)
        self.adds(path, told)
        return http(int(head.split(b" ", 2)[1]), before + json.dumps(told).encode() + after, kind)

    def _waited_in_vain(self, client: socket.socket, delay_s: float) -> bool:
        """Whether the client hung up during the delay."""
        end = time.monotonic() + delay_s
        client.settimeout(0.02)
        while time.monotonic() < end:
            try:
                if not client.recv(1):
                    self.hung_up.set()
                    return True
            except (TimeoutError, ssl.SSLWantReadError):
                continue
            except OSError:
                self.hung_up.set()
                return True
        client.settimeout(60)
        return False


@contextlib.contextmanager
def stranger(answer: bytes):
    """The URL of a server that is not DCAF: it gives this answer to whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client, contextlib.suppress(OSError):
                        read_message(client)
                        client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def _parts(body: bytes) -> tuple[bytes, bytes, bytes]:
    """A body of several parts: what precedes the JSON object, it, what follows; the middle may be empty."""
    start = body.find(b"\r\n\r\n{") + 4
    end = body.find(b"\r\n--", start)
    return (body[:start], body[start:end], body[end:]) if 4 <= start < end else (body, b"", b"")


def http(status: int, body: bytes, kind: str = "application/json", **headers: str) -> bytes:
    """A whole HTTP answer."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}"
            "Connection: close\r\n\r\n").encode() + body


def read_message(client: socket.socket) -> bytes:
    """One HTTP request, whole."""
    client.settimeout(60)
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(65536)
        if not part:
            return data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n")
                   if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        part = client.recv(65536)
        if not part:
            break
        body += part
    return head + b"\r\n\r\n" + body


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait(done, timeout_s: float = 60.0, step=lambda: None):
    """The first truthy value of ``done()``; ``step()`` runs between the looks."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        step()
        if found := done():
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {timeout_s} s")
