"""Fixtures of the store's tests: a real PostgreSQL on loopback, a studies folder, a store on each database.

A test module takes them by ``pytest_plugins = ("postgres",)``.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from stores import TASK

from dcaf_monai.server.store import Store


def _programs() -> Path | None:
    """Folder with initdb and pg_ctl: on the path, or where Debian keeps them; the newest."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    folders = [place.parent for place in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda folder: float(folder.parent.name), default=None)


def _as_owner(*command: str | Path) -> None:
    """Runs a PostgreSQL program; as user postgres when we are root, whom PostgreSQL refuses."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    done = subprocess.run([*prefix, *map(str, command)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, timeout=120, cwd="/")
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr[-500:]}")


@cache
def server() -> str:
    """URL of a fresh PostgreSQL server (without database name); it stops when the test run ends."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="dcaf-pg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    _as_owner(programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8",
              "--no-sync")
    atexit.register(_as_owner, programs / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    _as_owner(programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o",
              f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}", "start")
    return f"postgresql+psycopg://postgres@127.0.0.1:{port}"


def new_postgres_database() -> str:
    """URL of a new, empty database."""
    name = f"dcaf_{uuid.uuid4().hex}"
    engine = create_engine(f"{server()}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server()}/{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest,
                 tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Makes the address of a new, empty database: each test runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path_factory.mktemp('database')}/dcaf.sqlite3"
    server()
    return new_postgres_database


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A folder with five images in three places, and things that are none."""
    folder = tmp_path / "studies"
    for name in ("a.png", "ward/b.PNG", "ward/deep/c.jpeg", "d.nii.gz", "e.tiff"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    for name in ("notes.txt", "list.csv", ".hidden/x.png", ".y.png", "no_ending"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no image")
    return folder


@pytest.fixture
def store(studies: Path, new_database: Callable[[], str]) -> Iterator[Store]:
    store = Store(studies, TASK, new_database())
    store.refresh()
    yield store
    store.close()
