"""`Cases`: the part of a session that opens, answers and leaves cases."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from .ahead import LISTINGS, Ahead
from .call import ServerError
from .journal import Journal
from .state import Case, Sent
from .topics import tells

UNSET: Any = object()
LEASE_S = 1800.0


class Cases(Ahead):
    """Opening, answering and leaving; what a session is made of besides lies in `Session`."""

    sent: tuple[Sent, ...]
    agreement: dict[str, Any] | None
    _journal: Journal
    _last: Case | None
    _skips: tuple[tuple[str, str, str], ...]   # UID, reader and reason of those the server has not heard of
    _skip_at: float
    _say: Callable[[str, str], None]
    _refresh: Callable[[], None]
    _look_in_journal: Callable[[], None]
    _send: Callable[[], None]

    @tells
    def next_case(self) -> None:
        """Asks for the next case by the page's order; the open one is left unread when it comes."""
        if self.connection.state == "off":
            return self._say("Connect to a server first.", "warning")
        self._seek()

    @tells
    def open_case(self, uid: str) -> None:
        """Opens this very case and holds it; gives it up again when another reader holds it.

        The open case asked for again stays as it is, with what was answered so far.
        """
        if self.connection.state == "off":
            return self._say("Connect to a server first.", "warning")
        self.seeking = ""
        if self.case is None or self.case.uid != uid:
            self._leave()
            self._show(self._fresh(uid))
        self._hold()

    @tells
    def skip(self, reason: str = "") -> None:
        """Takes the open case out of this reader's queue and goes on to the next."""
        case = self.case
        if case is None or not case.stored:
            return self._say("Open a case of the worklist first.", "warning")
        self._skips += ((case.uid, self.connection.reader, " ".join(reason.split())[:500]),)
        self._send_skip()
        case.leased = False   # the server ends the lease itself
        self._leave()
        self._seek(anew=True)

    @tells
    def close_case(self) -> None:
        """Leaves the open case; unread it is given back."""
        self.seeking = ""
        self._leave()
        self._drop_ahead()

    @tells
    def classify(self, path: Path | str, name: str, frame: int | None = None) -> None:
        """Opens an image of the viewer, which the server answers and does not keep."""
        if self.connection.state == "off":
            return self._say("Connect to a server first.", "warning")
        self.seeking = ""
        self._leave()
        self._show(Case("", name, False, self._clock(), self._clock, local=True, file=(Path(path), frame),
                        map_kind=self._map_kind))

    @tells
    def choose(self, label: str) -> None:
        """Answers the open case, not yet for good.

        Raises:
            ValueError: For a label that is no answer to the task.
        """
        if label not in self.connection.answers:
            raise ValueError(f"label: need one of {', '.join(self.connection.answers)}, got {label!r}.")
        if self.case is not None:
            self.case.choice = label
            self._mark("case")

    @tells
    def remark(self, *, comment: str = UNSET, confidence: float | None = UNSET,
               point: tuple[float, float] | None = UNSET,
               box: tuple[float, float, float, float] | None = UNSET, adjudicate: bool = UNSET) -> None:
        """Adds to the answer; what is not named stays as it is.

        Args:
            comment: Free text.
            confidence: 0 to 1; None takes it back.
            point: ``(row, column)`` in pixels; None takes it back.
            box: ``(row0, column0, row1, column1)`` in pixels; None takes it back.
            adjudicate: The answer settles a disagreement of readers.
        """
        said = {"comment": comment, "confidence": confidence, "point": point, "box": box,
                "adjudicate": adjudicate}
        if self.case is not None:
            for name, value in said.items():
                if value is not UNSET:
                    setattr(self.case, name, value)
            self._mark("case")

    @tells
    def submit(self) -> None:
        """Keeps the answer in the journal, sends it, and goes on to the next case."""
        case = self.case
        if case is None or case.choice is None or not case.stored:
            return self._say("Choose an answer for a case of the worklist first.", "warning")
        document = case.annotation(self.connection.reader)
        try:
            key = self._journal.add(self.connection.url, case.uid, document)
        except OSError as error:
            return self._say(f"Journal: need to write to the disk, got: {error.strerror}. "
                             "Nothing is lost: submit again.", "error")
        self.sent += (Sent(key, case.uid, document),)
        self._last = case
        case.leased = False   # the server ends the lease with the annotation
        self._leave()
        self._look_in_journal()
        self._send()
        self._seek(anew=True)

    @tells
    def undo(self) -> None:
        """Takes the choice back; without one, opens the case submitted last with its answer chosen."""
        if self.case is not None and self.case.choice is not None:
            self.case.choice = None
            self._mark("case")
        elif self._last is not None:
            again, self._last, self.seeking = self._last.again(), None, ""
            self._leave()
            self._show(again)
            self._hold()
        else:
            self._say("There is nothing to undo.", "info")

    @tells
    def reveal(self) -> None:
        """Ends the blind first read: the model's answer may be seen."""
        if self.case is not None and not self.case.revealed:
            self.case.reveal()
            self._mark("case", "heat")

    @tells
    def ask_map(self, kind: str, target: str | None = None) -> None:
        """Chooses the heat map to show.

        Args:
            kind: One of the connection's maps.
            target: Class that a class-activation map explains; default the most probable one.
        """
        self._map_kind = kind
        if self.case is not None:
            self.case.map_kind, self.case.map_target = kind, target
            self._drop_heat(self.case)
            self._map(self.case)
            self._mark("heat")

    @tells
    def fetch_picture(self) -> None:
        """Asks the server for a picture that the viewer said it had and could not show."""
        if self.case is not None and self.case.stored:
            self.case.local = False
            self._fetch(self.case)

    @tells
    def ask_agreement(self) -> None:
        """Asks how far the readers agree so far; `agreement` tells it then."""
        if self.connection.state != "on" or self._errands.under_way("agreement"):
            return

        def came(told: dict[str, Any]) -> None:
            self.agreement = told
            self._mark("agreement")

        self._errands.ask(self._server.agreement, then=came, failed=self._failed, owner="agreement")

    def showed(self, **shown: Any) -> None:
        """Keeps what the reader had before their eyes: ``map``, ``opacity``, ``threshold``."""
        if self.case is not None:
            self.case.shown.update(shown)

    def _send_skip(self) -> None:
        """Tells the server the oldest skip that it has not heard of; told twice it is one."""
        self._skips = tuple(skip for skip in self._skips if skip[1] == self.connection.reader)
        if not self._skips or self.connection.state != "on" or self._clock() < self._skip_at \
                or self._errands.under_way("skip"):
            return
        skip = self._skips[0]

        def told(_: dict[str, Any]) -> None:
            self._skips = tuple(other for other in self._skips if other is not skip)
            self._send_skip()
            self._refresh()

        def failed(error: ServerError) -> None:
            if error.kind in ("unreachable", "timeout", "busy"):
                self._skip_at = self._clock() + 1.0
            else:
                self._skips = tuple(other for other in self._skips if other is not skip)
            self._failed(error)

        self._errands.ask(self._server.skip, *skip, then=told, failed=failed, owner="skip", in_turn=True)

    def _seek(self, *, anew: bool = False) -> None:
        if anew:    # what was asked before may answer with the very case that is done now
            self._errands.drop("next")
        self.seeking = "entropy" if self.page.order in LISTINGS else self.page.order
        self._go_on()
        self._mark("case")

    def _go_on(self) -> None:
        """Asks for the next case; not before the last answer was sent, or the same case would come."""
        if self.seeking and self.connection.state == "on" and not self._errands.under_way("next") \
                and not self._outbox.untried(self.connection):
            self._errands.ask(self._server.next_case, self.seeking, self.connection.reader,
                              then=self._came, failed=self._came_not, owner="next", in_turn=True)

    def _came(self, answer: dict[str, Any]) -> None:
        uid, wanted, self.seeking = answer.get("id"), bool(self.seeking), ""
        self._mark("case")
        if uid is None:
            self._say(answer.get("message", "Nothing is left to read."), "info")
        elif self.case is not None and self.case.uid == uid:
            self._say("This is the next case already: answer or skip it.", "info")
        elif not wanted or any(entry.uid == uid for entry in self._outbox.pending):
            self._errands.ask(self._server.release, uid, self.connection.reader, in_turn=True)
            if wanted:
                self._say("The next case is one whose answer still waits to be sent. "
                          "Open another from the worklist.", "warning")
        else:
            self._leave()
            case = self._fresh(uid)
            self._take_stored(case, answer.get("prediction") or None)
            self._held(case, answer.get("lease_expires", ""))
            self._show(case)

    def _came_not(self, error: ServerError) -> None:
        if error.kind not in ("unreachable", "timeout"):
            self.seeking = ""   # else it is asked for again when the server is back
        self._failed(error)
        self._mark("case")

    def _show(self, case: Case) -> None:
        self.case = case
        case.map_kind = case.map_kind or (self.connection.maps[0] if self.connection.maps else "")
        self._mark("case", "picture", "heat")
        self._fetch(case)

    def _leave(self) -> None:
        """Forgets the open case; what was asked for it is called off, and unread it is given back."""
        case, self.case = self.case, None
        if case is not None:
            self._errands.drop(case)
            if case.leased:
                self._errands.ask(self._server.release, case.uid, self.connection.reader, in_turn=True)
            self._mark("case", "picture", "heat")

    def _hold(self) -> None:
        """Leases the open case, or renews its lease."""
        case = self.case

        def refused(error: ServerError) -> None:
            if error.kind in ("taken", "refused"):
                self._leave()
            self._failed(error)

        self._errands.ask(self._server.lease, case.uid, self.connection.reader, owner=case, about="lease",
                          then=lambda answer: self._held(case, answer.get("expires", "")), failed=refused,
                          in_turn=True)
        case.leased = True   # also when the answer is lost, there may be a lease to give back
        case.renew_at = self._clock() + LEASE_S / 2

    def _held(self, case: Case, expires: str) -> None:
        """Renews at half time; within bounds, as two machines' clocks need not agree."""
        try:
            left = datetime.fromisoformat(expires).timestamp() - time.time()
        except ValueError:
            left = LEASE_S
        case.leased, case.renew_at = True, self._clock() + min(max(left, 60.0), LEASE_S) / 2
