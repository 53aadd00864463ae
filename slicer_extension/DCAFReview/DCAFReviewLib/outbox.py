"""`Outbox`: brings the journal's annotations to the server, one at a time, until it has each.

Oldest first, and one that the server fails at stands back for the others, but two of the same image keep
their order: the later one supersedes.
"""

from __future__ import annotations

from collections.abc import Callable

from .journal import Entry, Journal
from .state import Connection

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0
LOOK_AGAIN_S = 5.0


class Outbox:
    """What waits, what was refused, and when to try again.

    Args:
        journal: Where annotations are kept.
        clock: Seconds.
    """

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock
        self._delay = FIRST_RETRY_S
        self._not_before = self._look_at = 0.0
        self._tries: dict[str, int] = {}
        self.pending: tuple[Entry, ...] = ()
        self.refused: tuple[Entry, ...] = ()

    def look(self, url: str) -> bool:
        """Reads the journal again; whether anything changed since the last time."""
        before = self.pending, self.refused
        self.pending = tuple(self._journal.pending(url)) if url else ()
        self.refused = tuple(entry for entry in self._journal.refused() if entry.server_url == url)
        self._look_at = self._clock() + LOOK_AGAIN_S
        return before != (self.pending, self.refused)

    def stale(self) -> bool:
        """Whether it is time to look for what another process has done."""
        return self._clock() >= self._look_at

    def ours(self, connection: Connection) -> tuple[Entry, ...]:
        """What may be sent now: with tokens only what this very reader has said."""
        return tuple(entry for entry in self.pending
                     if not connection.tokens or entry.document.get("reader") == connection.reader)

    def untried(self, connection: Connection) -> bool:
        """Whether something waits that was not even tried since the server answers."""
        return any(entry.key not in self._tries for entry in self.ours(connection))

    def due(self, connection: Connection) -> Entry | None:
        """The annotation to send now, if any."""
        first: dict[str, Entry] = {}
        for entry in self.ours(connection):
            first.setdefault(entry.uid, entry)
        if not first or self._clock() < self._not_before:
            return None
        return min(first.values(), key=lambda entry: self._tries.get(entry.key, 0))

    def later(self, entry: Entry) -> None:
        """The server could not take it: a longer pause each time."""
        self._tries[entry.key] = self._tries.get(entry.key, 0) + 1
        self._not_before = self._clock() + self._delay
        self._delay = min(self._delay * 2, LAST_RETRY_S)

    def now(self) -> None:
        """The server answers: no pause any more."""
        self._not_before, self._delay = 0.0, FIRST_RETRY_S

    def afresh(self) -> None:
        """A new connection: everything is tried again."""
        self._tries.clear()
        self.now()
