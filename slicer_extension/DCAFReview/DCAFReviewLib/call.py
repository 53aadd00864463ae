"""`Call`: work that another thread may end, and `ServerError`: how work with the server ends badly."""

from __future__ import annotations

import socket
import threading


class ServerError(Exception):
    """A request that has no good answer; its text is one sentence to show, without token, path or UID.

    Args:
        kind: ``unreachable``, ``timeout``, ``cancelled``, ``not_allowed`` (401, 403), ``taken`` (409),
            ``busy`` (429), ``refused`` (other 4xx), ``failed`` (5xx) or ``not_dcaf`` (an answer that is
            not the server's).
        sentence: What happened and what to do.
        status: Of HTTP; 0 when there was none.
    """

    def __init__(self, kind: str, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.status = status


class Call:
    """A piece of work that another thread may end; the thread that does it enters it.

    Requests made inside belong to it: `cancel` closes their connection, and they end as a
    `ServerError` of kind ``cancelled``.
    """

    _here = threading.local()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.cancelled = False

    def __enter__(self) -> Call:
        Call._here.call = self
        return self

    def __exit__(self, *_: object) -> None:
        Call._here.call = None

    @staticmethod
    def current() -> Call:
        """The one this thread is in; a fresh one that nobody can cancel outside of any."""
        return getattr(Call._here, "call", None) or Call()

    def cancel(self) -> None:
        """Ends the work; from any thread, at any time."""
        with self._lock:
            self.cancelled = True
            if self._socket is not None:
                _hang_up(self._socket)

    def hold(self, connected: socket.socket | None) -> None:
        """Puts a connection under `cancel`; None takes it out again.

        Raises:
            ServerError: Cancelled already.
        """
        with self._lock:
            self._socket = connected
            if connected is not None and self.cancelled:
                raise ServerError("cancelled", "request: cancelled.")


def _hang_up(connected: socket.socket) -> None:
    """Wakes whoever reads or writes on it; they close it. Below TLS: its own goodbye would wait."""
    try:
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
    except OSError:   # it was over at this moment
        pass
