"""`Session`: all that happens between a reader and a server, as a state machine that never waits.

It lives in the main thread, is moved on by `Session.tick`, and tells its listeners what changed. What takes
long runs in the courier's threads; a reply for something that is no longer wanted is dropped. It knows
nothing of windows and scenes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from .cases import Cases
from .client import Address, Server, ServerError
from .courier import Courier
from .errands import Errands
from .journal import Entry, Journal
from .outbox import Outbox
from .report import case_text, sent_csv
from .state import Case, Connection, Notice, Page, Sent, Training
from .topics import tells

__all__ = ["Case", "Connection", "Notice", "Page", "Sent", "Session", "Training"]

POLL_RUNNING_S, POLL_S = 1.0, 15.0
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0
LAST_WORD_S = 1.0
"""Longest wait at the very end, for giving the open case back."""
THREADS = 7
"""Three may be fetching ahead, and must not keep the reader waiting."""
_TRAINING = {field.name for field in fields(Training)} - {"changes"}


class Session(Cases):
    """One reader at one server.

    Every public attribute is to be read, `read_first` also to be set. Listeners hear the topics
    ``connection page case picture heat training journal agreement notice``.

    Args:
        journal: Keeps annotations until the server has them.
        make_server: From an `Address`.
        clock: Seconds.
        has_local: Whether the viewer has the image of a UID itself; its picture is then not asked for.
    """

    def __init__(self, journal: Journal, *, make_server: Callable[[Address], Server] = Server,
                 clock: Callable[[], float] = time.monotonic,
                 has_local: Callable[[str], bool] = lambda uid: False) -> None:
        super().__init__()
        self.connection = Connection()
        self.page = Page()
        self.case: Case | None = None
        self.ahead: Case | None = None
        self.seeking = ""
        self.training = Training()
        self.notice = Notice()
        self.read_first = False
        self.sent: tuple[Sent, ...] = ()
        self.agreement: dict[str, Any] | None = None
        self._journal = journal
        self._make_server = make_server
        self._clock = clock
        self._has_local = has_local
        self._courier = Courier(THREADS)
        self._errands = Errands(self._courier)
        self._outbox = Outbox(journal, clock)
        self._server: Server | None = None
        self._name = ""
        self._last: Case | None = None
        self._map_kind = ""
        self._skips = ()
        self._paused = False
        self._poll_at = self._retry_at = self._skip_at = 0.0
        self._retry_s = FIRST_RETRY_S

    @property
    def waiting(self) -> int:
        """How many annotations this server has not acknowledged."""
        return len(self._outbox.pending)

    @property
    def refused(self) -> tuple[Entry, ...]:
        """Annotations that this server refused, with the reason in ``why``."""
        return self._outbox.refused

    @tells
    def connect(self, url: str, token: str = "", ca_file: str = "", reader: str = "") -> None:
        """Goes to a server; `connection` tells how it went.

        Raises:
            ValueError: For an address, token or CA file that cannot work or is not safe.
        """
        server = self._make_server(Address(url, token, ca_file))
        again = self.connection.state == "off" and server.address.url == self.connection.url
        if not again:   # else, say, only the token had ended: the open case keeps its answer
            self.disconnect()
        self._server, self._name = server, reader.strip()
        self.connection = Connection("connecting", url=server.address.url, reader=self.connection.reader)
        self.page, self.training = Page(), Training()
        self._outbox.afresh()
        self._look_in_journal()
        self._mark("connection", "page", "training")
        self._ask_session()

    @tells
    def disconnect(self) -> None:
        """Leaves the server: the open case is given back, everything under way is called off."""
        case, self.case, self.ahead, self._last = self.case, None, None, None
        self.seeking, self._skips, self.agreement = "", (), None
        self._errands.drop_all()
        if case is not None and case.leased:
            self._errands.ask(self._server.release, case.uid, self.connection.reader)
        self.connection = Connection()
        self._look_in_journal()
        self._mark("connection", "case", "picture", "heat", "agreement")

    @tells
    def tick(self) -> None:
        """Moves everything on; to be called about every 20 ms. Never waits."""
        self._errands.collect()
        now, state = self._clock(), self.connection.state
        if state == "on":
            if now >= self._poll_at:
                self._poll()
            if self.case is not None and self.case.leased and now >= self.case.renew_at:
                self._hold()
            if self._outbox.stale():
                self._look_in_journal()
            self._send()
            self._send_skip()
            if not self._paused:
                self._go_on()
                self._look_ahead()
        elif state == "lost" and now >= self._retry_at and not self._errands.under_way("session"):
            self._ask_session()

    @tells
    def pause(self) -> None:
        """Nobody looks: what was asked for the eye is called off, as is the search for the next case.

        An open case of the worklist stays open with what was answered so far, its lease is renewed, answers
        are sent. An image that was only classified is left: it cannot be answered, and its file goes.
        """
        self._paused, self.seeking = True, ""
        self._drop_ahead()
        if self.case is not None and not self.case.stored:
            self._leave()
        self._drop_parts()
        self._errands.drop("page")
        self.page.busy = False
        self._mark("case", "page")

    @tells
    def resume(self) -> None:
        """Somebody looks again: what is missing of the page and of the open case is asked for."""
        paused, self._paused = self._paused, False
        if not paused or self.connection.state != "on":
            return
        self._refresh()
        if self.case is not None:
            self._fetch(self.case)

    @tells
    def show_page(self, **changes: Any) -> None:
        """Shows another page of the worklist.

        Args:
            changes: Of ``order``, ``descending``, ``status``, ``label`` and ``offset``; a change of the
                first four goes back to the first page.
        """
        unknown = set(changes) - {"order", "descending", "status", "label", "offset"}
        if unknown:
            raise ValueError(f"page: need order, descending, status, label or offset, got {unknown.pop()!r}.")
        if set(changes) - {"offset"}:
            self.page.offset = 0
        for name, value in changes.items():
            setattr(self.page, name, value)
        self._refresh()

    @tells
    def train(self, mode: str = "frozen") -> None:
        """Starts training on what the readers said; `training` tells how it goes."""
        if self._server is not None:
            self._errands.ask(self._server.train, mode, then=lambda _: self._poll(), failed=self._failed)

    @tells
    def stop_training(self) -> None:
        """Ends the running training."""
        if self._server is not None:
            self._errands.ask(self._server.stop_training, then=lambda _: self._poll(), failed=self._failed)

    @tells
    def dismiss(self, key: str) -> None:
        """Forgets an annotation that the server refused."""
        self._journal.dismiss(key)
        self._look_in_journal()

    def text(self) -> str:
        """The open case for a person to read, as far as it may be seen; empty when none is open."""
        return "" if self.case is None else case_text(self.case, self.connection)

    def csv(self) -> str:
        """The annotations submitted so far as a table."""
        self._look_in_journal()
        return sent_csv(self.sent, {entry.key for entry in self._outbox.pending},
                        {entry.key for entry in self._outbox.refused})

    def close(self) -> None:
        """Ends the session: the open case is given back, what was not acknowledged stays in the journal."""
        self.disconnect()
        self._courier.close(LAST_WORD_S if self._errands.under_way(None) else 0.0)

    def _ask_session(self) -> None:
        named = "" if self._server.address.token else self._name   # a token says itself whose it is
        self._errands.ask(self._server.session, named, then=self._welcomed, failed=self._not_welcomed,
                          owner="session")

    def _welcomed(self, answer: dict[str, Any]) -> None:
        back, known = self.connection.state != "on", self.connection.reader
        version = (self.connection.model or {}).get("version")
        try:
            self.connection.welcome(answer, self._name)
        except ValueError as error:
            return self._off(str(error))
        if known and known != self.connection.reader and self.case is not None:
            self.case.leased = False   # it is the other reader's, and so is what was chosen
            self._leave()
        self._retry_s = FIRST_RETRY_S
        self._mark("connection")
        if self.connection.orders and self.page.order not in self.connection.orders:
            self.page.order, self.page.descending = self.connection.orders[0], None
        if back:
            self._outbox.afresh()
            self._trained(answer.get("training") or {"state": "idle"}, tell=False)
            self._refresh()
        if back or version != (self.connection.model or {}).get("version"):
            self._drop_ahead()
            if self.case is not None:
                self._fetch(self.case)
                if back and self.case.stored:
                    self._hold()

    def _not_welcomed(self, error: ServerError) -> None:
        if self.connection.state == "lost" and error.kind in ("unreachable", "timeout", "failed", "busy"):
            self.connection.message = str(error)
            self._later()
        elif self.connection.state == "on":   # it was asked again, for a new model
            self._failed(error)
        else:
            self._off(str(error))

    def _off(self, why: str) -> None:
        """The connection is over until somebody connects again; the open case stays for its answer."""
        self._errands.drop_all()
        self.ahead = None
        self.connection.state, self.connection.message, self.seeking = "off", why, ""
        self.page.busy = False
        self._drop_parts()
        self._mark("connection", "page", "case")
        self._say(why, "error")

    def _lost(self, error: ServerError) -> None:
        if self.connection.state == "on":
            self.connection.state, self.connection.message = "lost", str(error)
            self._drop_ahead()
            self._later()
            self._mark("connection")

    def _later(self) -> None:
        self._retry_at = self._clock() + self._retry_s
        self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)
        self._mark("connection")

    def _refresh(self) -> None:
        """Asks for the page as it is now; an answer to an earlier wish is no longer wanted."""
        page = self.page
        if self.connection.state != "on":
            return

        def came(answer: dict[str, Any]) -> None:
            page.busy, page.total, page.items = False, answer["total"], tuple(answer["items"])
            self._mark("page")

        def failed(error: ServerError) -> None:
            page.busy = False
            self._mark("page")
            self._failed(error)

        self._errands.drop("page")
        page.busy = True
        self._mark("page")
        self._errands.ask(self._server.worklist, page.order, descending=page.descending, status=page.status,
                          label=page.label, reader=self.connection.reader, offset=page.offset,
                          limit=page.limit, then=came, failed=failed, owner="page")

    def _poll(self) -> None:
        self._poll_at = self._clock() + (POLL_RUNNING_S if self.training.running else POLL_S)
        if not self._errands.under_way("training"):
            self._errands.ask(self._server.training, then=self._trained, failed=self._not_polled,
                              owner="training")

    def _not_polled(self, error: ServerError) -> None:
        if error.kind == "timeout":
            self._lost(error)
        else:
            self._failed(error)

    def _trained(self, told: dict[str, Any], tell: bool = True) -> None:
        """Takes over how training stands; a new model means a new ranking."""
        before = self.training
        now = Training(**{name: value for name, value in told.items() if name in _TRAINING})
        now.curve = tuple(now.curve or ())
        if now.version == before.version:
            now.changes = before.changes
        self.training = now
        self._poll_at = min(self._poll_at, self._clock() + (POLL_RUNNING_S if now.running else POLL_S))
        if now != before:
            self._mark("training")
        over = not now.running and (now.state, now.version) != (before.state, before.version)
        if over and tell:
            self._say(now.message, "info" if now.state == "published" else "warning")
        if now.state != "published":
            return
        if over and now.previous_version:
            self._errands.ask(self._server.changes, now.previous_version, then=self._changed,
                              failed=self._failed)
        elif now.version != (self.connection.model or {}).get("version") \
                and not self._errands.under_way("session"):
            self._ask_session()
        if over and tell:
            self._refresh()

    def _changed(self, changes: dict[str, Any]) -> None:
        self.training.changes = changes
        self._mark("training")
        self._ask_session()   # only now: the request that meets a new model first is the one that loads it

    def _look_in_journal(self) -> None:
        if self._outbox.look(self.connection.url):
            self._mark("journal")

    def _send(self) -> None:
        """Sends the annotation that is due, one at a time."""
        if self.connection.state != "on" or self._errands.under_way("outbox"):
            return
        entry = self._outbox.due(self.connection)
        if entry is None:
            return

        def acknowledged(_: dict[str, Any]) -> None:
            self._journal.settle(entry.key)
            self._outbox.now()
            self._look_in_journal()
            self._send()
            self._refresh()

        def failed(error: ServerError) -> None:
            if error.kind == "refused":   # it will never be taken
                self._journal.refuse(entry.key, str(error))
                self._look_in_journal()
                self._say(f"The server refused an answer; it is kept here. {error}", "error")
            else:
                self._outbox.later(entry)
                self._failed(error)

        self._errands.ask(self._server.annotate, entry.uid, entry.document, then=acknowledged, failed=failed,
                          owner="outbox", in_turn=True)

    def _failed(self, error: ServerError) -> None:
        """What every error of a request means: the connection is gone, or there is something to tell."""
        if error.kind == "unreachable":
            self._lost(error)
        elif error.status == 401:
            self._off(str(error))
        else:
            self._say(str(error), "warning" if error.kind in ("taken", "busy") else "error")

    def _say(self, text: str, severity: str) -> None:
        self.notice = Notice(text, severity)
        self._mark("notice")
