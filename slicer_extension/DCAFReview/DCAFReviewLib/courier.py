"""`Courier`: runs what takes long in threads, and hands the replies to whoever comes to collect them.

The threads touch nothing but the function they are given: no Qt and no MRML, which belong to the main
thread. They are daemons, so that an answer that never comes keeps no application open.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .call import Call, ServerError


@dataclass(frozen=True)
class Reply:
    """What became of a piece of work: its value, or the error it ended with."""

    ticket: int
    value: Any = None
    error: Exception | None = None


class Courier:
    """A few threads that fetch; used from one thread.

    Args:
        threads: How many pieces of work may be under way at once.
    """

    def __init__(self, threads: int = 3) -> None:
        self._tickets = itertools.count(1)
        self._open: dict[int, Call] = {}
        self._work: queue.SimpleQueue = queue.SimpleQueue()
        self._replies: queue.SimpleQueue = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=f"DCAF courier {number}", daemon=True)
                         for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def ask(self, function: Callable[..., Any], *args: Any, **keywords: Any) -> int:
        """Has the function called in a thread; `collect` gives its reply under the number returned.

        Raises:
            RuntimeError: When the courier is closed.
        """
        if not self._threads:
            raise RuntimeError("courier: need an open one, got one that is closed.")
        ticket, call = next(self._tickets), Call()
        self._open[ticket] = call
        self._work.put((ticket, call, function, args, keywords))
        return ticket

    def collect(self) -> list[Reply]:
        """The replies that came since the last time, in their order; never waits."""
        replies = []
        while True:
            try:
                reply = self._replies.get_nowait()
            except queue.Empty:
                return replies
            if self._open.pop(reply.ticket, None) is not None:
                replies.append(reply)

    def cancel(self, ticket: int) -> None:
        """Drops a piece of work: its reply never appears, its connection is closed."""
        call = self._open.pop(ticket, None)
        if call is not None:
            call.cancel()

    def close(self, wait_s: float = 0.0) -> None:
        """Ends the threads; no reply appears any more.

        Args:
            wait_s: What was asked is given this long to be done, then it is cancelled.
        """
        threads, self._threads = self._threads, []
        for _ in threads:
            self._work.put(None)
        deadline = time.monotonic() + wait_s
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        for ticket in list(self._open):
            self.cancel(ticket)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            ticket, call, function, args, keywords = work
            with call:
                try:
                    if call.cancelled:
                        raise ServerError("cancelled", "request: cancelled.")
                    reply = Reply(ticket, function(*args, **keywords))
                except Exception as error:   # whatever it is, it belongs to the one who asked
                    reply = Reply(ticket, error=error)
            self._replies.put(reply)
            del work, function, args, keywords, reply   # an idle thread keeps no picture alive
