"""`Topics`: who listens is told what changed, once, when a change is complete."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Listener = Callable[[frozenset], None]


def tells(method: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a method of `Topics` tell its listeners at its end, not while things are half done."""
    @functools.wraps(method)
    def told(self: Topics, *args: Any, **keywords: Any) -> Any:
        self._depth += 1
        try:
            return method(self, *args, **keywords)
        finally:
            self._depth -= 1
            if not self._depth:
                self._tell()

    return told


class Topics:
    """Something whose changes have names."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._marked: set[str] = set()
        self._depth = 0

    def listen(self, listener: Listener) -> None:
        """Has the listener called with the names of what changed, after each change."""
        self._listeners.append(listener)

    def _mark(self, *topics: str) -> None:
        self._marked.update(topics)

    def _tell(self) -> None:
        topics, self._marked = frozenset(self._marked), set()
        if topics:
            for listener in self._listeners:
                listener(topics)
