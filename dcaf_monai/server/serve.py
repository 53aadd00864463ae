"""`serve`: checks what it is given, then runs the server until it is told to stop."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn

from dcaf_monai.calibration import load_overrides
from dcaf_monai.server.access import Tokens, access_rules, is_loopback, redact_logs
from dcaf_monai.server.published import PublishedModel

APP = "from dcaf_monai.server.app import DcafApp\n"


def serve(studies: Path, model: Path | None, *, host: str = "127.0.0.1", port: int = 8000,
          database: str | None = None, token_file: Path | None = None, certfile: Path | None = None,
          keyfile: Path | None = None, behind_proxy: bool = False, task: str | None = None,
          data: Path | None = None, cutoffs: Path | None = None, cors: tuple[str, ...] = (),
          auto_score: bool = True, random_share: float = 0.0) -> None:
    """Serves until SIGTERM or Ctrl-C; one process, as every request has a thread of its own.

    Args:
        studies: Folder of images.
        model: Published model; may not exist yet, or be None, when ``task`` is given.
        host: Address to listen on. Anything but loopback needs tokens, and TLS or a proxy.
        port: 0 takes a free one, printed at the start.
        database: SQLAlchemy URL; default SQLite in the studies folder.
        token_file: Readers' tokens.
        certfile: TLS certificate, PEM; with ``keyfile``.
        keyfile: TLS key, PEM.
        behind_proxy: A proxy in front ends TLS.
        task: The question, while there is no model: a name or a ``.toml`` file.
        data: What the model was trained on; retraining adds the readers' labels to it.
        cutoffs: A site's own cut-offs, for the version of the model in place.
        cors: Web origins whose pages may call.
        auto_score: Predict new images without being asked.
        random_share: Share of the cases handed out that is drawn at random, 0 to 1, for monitoring that the
            queue's choice does not bias; drawn from what is unread when the pool is ranked, so it tells of
            the cases still to come, not of those read before.

    Raises:
        ValueError: For a setting that cannot work or is not safe, or a port in use.
        ModelError: When the model file cannot be read.
        StoreError: When the database cannot be opened.
    """
    _check_folders(studies, data)
    _check_safe(host, token_file, certfile, keyfile, behind_proxy)
    published = PublishedModel(model)
    published.task(task)
    if published.exists:
        standing = published.predictor().model  # a network without dropout cannot predict
        if cutoffs is not None:
            load_overrides(cutoffs, standing.version, standing.task.classes)
    if not 0 <= random_share <= 1:
        raise ValueError(f"random_share: need 0 to 1, got {random_share}.")
    stated = {"model": _absolute(model), "task": _absolute(task) if str(task).endswith(".toml") else task,
              "data": _absolute(data), "cutoffs": _absolute(cutoffs), "token_file": _absolute(token_file),
              "cors": ",".join(cors), "behind_proxy": "true" if behind_proxy else "",
              "auto_score": str(auto_score).lower(), "random_share": str(random_share)}
    conf = {name: text for name, text in stated.items() if text}
    access_rules(conf)
    with _listening(host, port) as listener, tempfile.TemporaryDirectory(prefix="dcaf-server-") as private:
        _set_environment(Path(private), studies, conf, listener.getsockname()[1], database)
        _check_store(studies, database)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        redact_logs()
        scheme = "https" if certfile else "http"
        print(f"DCAF serves {scheme}://{host}:{listener.getsockname()[1]} - stop with Ctrl-C", flush=True)
        # uvicorn raises the signal that stopped it once more: end by leaving the blocks above
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(
                "dcaf_monai.server.asgi:app", log_config=None, access_log=False, server_header=False,
                ssl_certfile=certfile, ssl_keyfile=keyfile, timeout_graceful_shutdown=10,
            )).run(sockets=[listener])


def _check_folders(studies: Path, data: Path | None) -> None:
    if not studies.is_dir():
        raise ValueError(f"studies: need a folder of images, got {studies.name!r}, which is none.")
    if data is not None and not data.exists():
        raise ValueError(f"data: need a folder of class folders or a CSV table, got {data.name!r}, which is "
                         "not there.")


def _check_store(studies: Path, database: str | None) -> None:
    """Opens the store once, as each request's thread and each job will."""
    from dcaf_monai.server.store import Store  # brings monailabel, which reads the environment

    Store(studies, database=database or os.environ.get("DCAF_DATABASE")).close()


def _check_safe(host: str, token_file: Path | None, certfile: Path | None, keyfile: Path | None,
                behind_proxy: bool) -> None:
    if (certfile is None) != (keyfile is None):
        raise ValueError("certificate: need --certfile and --keyfile together, got one of them.")
    for file in (certfile, keyfile):
        if file is not None and not file.is_file():
            raise ValueError(f"certificate: need a file, got {file.name!r}, which is none.")
    if certfile is not None and keyfile is not None:
        try:  # a key with a password would have the server wait for somebody to type it
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certfile, keyfile, lambda: "")
        except OSError as error:
            raise ValueError("certificate: need a certificate and its key in PEM without a password, got "
                             f"others ({error.strerror or error}).") from error
    if token_file is not None:
        Tokens(token_file)
    if token_file is None and (behind_proxy or not is_loopback(host)):
        raise ValueError(f"token file: need one to answer other machines at {host}, got none. Make it with "
                         "`dcaf token add` and give --token-file.")
    if not is_loopback(host) and certfile is None and not behind_proxy:
        raise ValueError(f"TLS: need --certfile and --keyfile to answer other machines at {host}, got none. "
                         "Say --behind-proxy when a proxy does TLS.")


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket: taken now, so that a port in use is known before anything is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(f"host: need this machine's name or address, got {host!r}.") from error
    # with its protocol named asyncio turns Nagle's delay off: 40 ms less for every answer
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise ValueError(f"port: need a free one at {host}, got {port}: {error.strerror}. "
                             "Choose another with --port.") from error
        yield listener


def _set_environment(private: Path, studies: Path, conf: dict[str, str], port: int,
                     database: str | None) -> None:
    """What MONAI Label and the jobs it starts read; must come before it is imported.

    Uploads wait in ``private``, which only this account can read and which goes with the server.
    """
    app = private / "app"
    app.mkdir()
    (app / "main.py").write_text(APP, encoding="utf-8")
    os.environ |= {"MONAI_LABEL_APP_DIR": str(app), "MONAI_LABEL_STUDIES": str(studies.resolve()),
                   "MONAI_LABEL_APP_CONF": json.dumps(conf), "MONAI_LABEL_SERVER_PORT": str(port),
                   "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "TMPDIR": str(private)}
    if database is not None:
        os.environ["DCAF_DATABASE"] = database
    tempfile.tempdir = str(private)
    from dcaf_monai.server import compat  # noqa: F401  (before monailabel)

    # isort: split
    from monailabel.config import settings

    settings.MONAI_LABEL_APP_DIR = str(app)  # it may have been imported before this environment was set
    settings.MONAI_LABEL_STUDIES = str(studies.resolve())
    settings.MONAI_LABEL_APP_CONF = conf


def _absolute(path: Path | str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())
