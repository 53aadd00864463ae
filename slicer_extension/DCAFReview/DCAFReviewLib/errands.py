"""`Errands`: which reply belongs to what.

An errand has an owner (the open case, the page, ...). Dropping the owner drops its errands, so that an
answer that comes late finds nobody and changes nothing. Errands that change who holds a case go *in turn*,
one after the other, in the order they were asked: a lease given back must not overtake the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .call import ServerError
from .courier import Courier, Reply


@dataclass(eq=False)
class _Errand:
    work: Callable[[], int]
    then: Callable[[Any], None]
    failed: Callable[[ServerError], None]
    owner: object
    about: str
    in_turn: bool


def ignore(_: object) -> None:
    """What to do with a reply that nobody waits for."""


class Errands:
    """Work for a courier, each with what to do when it is done; used from one thread.

    Args:
        courier: Who runs.
    """

    def __init__(self, courier: Courier) -> None:
        self._courier = courier
        self._open: dict[int, _Errand] = {}
        self._waiting: deque[_Errand] = deque()
        self._arrived: deque[Reply] = deque()
        self._turn: int | None = None

    def ask(self, function: Callable[..., Any], *args: Any, then: Callable[[Any], None] = ignore,
            failed: Callable[[ServerError], None] = ignore, owner: object = None, about: str = "",
            in_turn: bool = False, **keywords: Any) -> None:
        """Has a function called in a thread.

        Args:
            function: Called with the other arguments.
            args: For the function.
            then: Called with its value, in `collect`.
            failed: Called with its `ServerError`, in `collect`.
            owner: Who wants it; see `drop`.
            about: What it is about, to tell an owner's errands apart.
            in_turn: After those asked in turn before; once asked it is done, also without its owner.
            keywords: For the function.
        """
        errand = _Errand(lambda: self._courier.ask(function, *args, **keywords), then, failed, owner, about,
                         in_turn)
        if in_turn:
            self._waiting.append(errand)
            self._advance()
        else:
            self._open[errand.work()] = errand

    def drop(self, owner: object, about: str = "") -> None:
        """Forgets an owner's errands, all or those about one thing; what goes in turn is done, unheard."""
        for ticket, errand in list(self._open.items()):
            if errand.owner is owner and about in ("", errand.about):
                if errand.in_turn:
                    errand.then = errand.failed = ignore
                else:
                    del self._open[ticket]
                    self._courier.cancel(ticket)
        for errand in self._waiting:
            if errand.owner is owner and about in ("", errand.about):
                errand.then = errand.failed = ignore

    def drop_all(self) -> None:
        """Forgets everything, also what goes in turn."""
        for ticket in list(self._open):
            self._courier.cancel(ticket)
        self._open.clear()
        self._waiting.clear()
        self._turn = None

    def under_way(self, owner: object, about: str = "") -> bool:
        """Whether an errand of the owner is out or waits for its turn."""
        return any(errand.owner is owner and about in ("", errand.about)
                   for errand in (*self._open.values(), *self._waiting))

    def collect(self) -> None:
        """Does what is to be done with the replies that came; an error of ours is raised."""
        self._arrived.extend(self._courier.collect())
        while self._arrived:
            reply = self._arrived.popleft()
            errand = self._open.pop(reply.ticket, None)
            if reply.ticket == self._turn:
                self._turn = None
                self._advance()
            if errand is None:
                continue
            if reply.error is None:
                errand.then(reply.value)
            elif isinstance(reply.error, ServerError):
                errand.failed(reply.error)
            else:
                raise reply.error

    def _advance(self) -> None:
        if self._turn is None and self._waiting:
            errand = self._waiting.popleft()
            self._turn = errand.work()
            self._open[self._turn] = errand
