"""`Ahead`: the case that most likely comes next is fetched while the reader looks at the open one.

It holds no lease and is never shown as it is: the server says which case comes, and only when it is this one
what was fetched is used. Who has read it meanwhile is asked for when it is opened. What fails here is not
told, since nobody has asked for it; the case asks again when it is opened.
"""

from __future__ import annotations

from collections.abc import Callable

from .outbox import Outbox
from .parts import Parts
from .state import Case, Page, short_name

LISTINGS = ("case", "label", "score")
"""Orders to look a case up by; by every other the server hands out cases."""


class Ahead(Parts):
    """Fetching before it is asked for; what a session is made of besides lies in `Cases` and `Session`."""

    page: Page
    case: Case | None
    seeking: str   # the order of the next case while one is asked for; else empty
    read_first: bool
    _clock: Callable[[], float]
    _has_local: Callable[[str], bool]
    _map_kind: str
    _outbox: Outbox

    def _look_ahead(self) -> None:
        """Fetches the case that most likely comes next, once everything of the open one is there."""
        case = self.case
        if case is None or not case.stored or case.awaited or self.seeking or self.page.busy:
            return
        uid = self._likely_next()
        if uid == (self.ahead and self.ahead.uid):
            return
        self._drop_ahead()
        if uid is not None:
            self.ahead = self._case_of(uid)
            self.ahead.map_kind = case.map_kind
            self._fetch(self.ahead)

    def _likely_next(self) -> str | None:
        """The first case of the page that the server may hand out; None when the page does not tell."""
        page, case = self.page, self.case
        if page.order in LISTINGS or page.descending is not None or page.offset or page.label \
                or page.status not in ("unread", "all"):
            return None
        waiting = {entry.uid for entry in self._outbox.pending}
        return next((item["uid"] for item in page.items if item["status"] == "unread"
                     and item["uid"] != case.uid and item["uid"] not in waiting), None)

    def _fresh(self, uid: str) -> Case:
        """A case of the store, newly opened; with what was fetched ahead when it is that one."""
        case = self.ahead
        if case is None or case.uid != uid or self._of_another_model(case.kept_document):
            self._drop_ahead()
            case = self._case_of(uid)
        self.ahead = None
        case.opened, case.revealed, case.map_kind = self._clock(), not self.read_first, self._map_kind
        return case

    def _case_of(self, uid: str) -> Case:
        return Case(uid, short_name(uid), True, self._clock(), self._clock, local=self._has_local(uid))

    def _drop_ahead(self) -> None:
        case, self.ahead = self.ahead, None
        if case is not None:
            self._errands.drop(case)
