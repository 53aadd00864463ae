"""What the tests of the session share: a connected session driven by `tick`, and steps of reading."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from DCAFReviewLib.client import Address, Server
from DCAFReviewLib.journal import Journal
from DCAFReviewLib.session import Session
from served import Served, wait

FIRST, SECOND = "normal", "pneumonia"
NEVER = {"pneumonia": 0.99, "normal": 0.01}
"""Cut-offs: pneumonia is never reached, normal always."""


def peer(server: Served, name: str) -> Server:
    return Server(Address(server.url, server.tokens[name]))


@contextlib.contextmanager
def reading(server: Served, folder: Path, name: str = "ada", url: str = "", **options: object):
    """A connected session; its ``topics`` are those heard so far."""
    session = Session(Journal(folder / "journal"), **options)
    session.topics = []
    session.listen(session.topics.append)
    session.connect(url or server.url, token=server.tokens.get(name, ""), reader=name)
    try:
        until(session, lambda: session.connection.state == "on" and not session.page.busy)
        yield session
    finally:
        session.close()


def until(session: Session, done, timeout_s: float = 60.0):
    """Ticks until something is so."""
    try:
        return wait(done, timeout_s, session.tick)
    except AssertionError as error:
        raise AssertionError(f"{error}: {session.connection}, {session.case}, {session.notice}") from error


def opened(session: Session):
    """The open case once everything of it is there."""
    until(session, lambda: session.case and not session.case.awaited and not session.seeking)
    return session.case


def next_of(session: Session):
    session.next_case()
    return opened(session)


def answer(session: Session, label: str) -> str:
    """Submits; the UID answered, once the server has it and the next case is there."""
    uid = session.case.uid
    session.choose(label)
    session.submit()
    until(session, lambda: session.waiting == 0 and not session.seeking)
    return uid


def labels(server: Server, uid: str) -> list[tuple[str, str, str]]:
    return [(entry["reader"], entry["label"], entry["role"]) for entry in server.history(uid)]


def status_of(server: Server, uid: str) -> dict:
    return next(item for item in server.worklist(limit=500)["items"] if item["uid"] == uid)


def ahead_of(session: Session):
    """The case fetched ahead, once everything of it is there."""
    until(session, lambda: session.ahead is not None and not session.ahead.awaited)
    return session.ahead


def likely(session: Session) -> list[str]:
    """The cases of the page that may come, in their order; the first is the one the server gives."""
    return [item["uid"] for item in session.page.items if item["status"] == "unread"]


def tick(session: Session, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        session.tick()
        time.sleep(0.02)
