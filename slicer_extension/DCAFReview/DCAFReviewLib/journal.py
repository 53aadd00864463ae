"""`Journal`: annotations that the server has not acknowledged, kept on disk until it has.

One file per annotation, ``TIME-KEY.json``: written whole beside its place, forced to the disk, then moved
there. So a kill at any byte leaves either the whole annotation or none of it, nothing that was there before
is ever touched, and several processes share the folder without a lock. A file that cannot be read (a disk
that lied) is left where it is and not sent. Images are not kept here, and no token is.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

_REFUSED = ".refused"


@dataclass(frozen=True)
class Entry:
    """An annotation that waits.

    Args:
        key: The annotation's own number; the server stores it once, however often it is sent.
        server_url: The server it is for.
        uid: The image.
        document: The annotation as it is sent.
        added: When, seconds since 1970.
        why: Why the server refused it; empty while it waits.
    """

    key: str
    server_url: str
    uid: str = field(repr=False)
    document: dict[str, Any] = field(repr=False)
    added: float
    why: str = ""


class Journal:
    """The annotations in a folder, oldest first.

    Args:
        folder: Made when it is not there, for this account alone.

    Raises:
        OSError: When it cannot be made, here; when the disk fails, in every method.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._known: dict[str, Entry | None] = {}   # by file name: what a name holds never changes
        self._last_ns = 0

    def add(self, server_url: str, uid: str, document: dict[str, Any]) -> str:
        """Keeps an annotation; when this returns it is on the disk.

        Returns:
            Its ``key``, which is put into the document when it has none.
        """
        key = str(uuid.UUID(document["key"])) if "key" in document else str(uuid.uuid4())
        self._last_ns = max(time.time_ns(), self._last_ns + 1)   # two in one tick keep their order
        entry = Entry(key, server_url, uid, {**document, "key": key}, self._last_ns / 1e9)
        self._write(f"{self._last_ns:020d}-{key}.json", entry)
        return key

    def pending(self, server_url: str) -> list[Entry]:
        """What waits for this server, oldest first."""
        return [entry for name, entry in self._entries()
                if entry.server_url == server_url and not name.endswith(f"{_REFUSED}.json")]

    def refused(self) -> list[Entry]:
        """What a server refused, oldest first; it stays until it is dismissed."""
        return [entry for name, entry in self._entries() if name.endswith(f"{_REFUSED}.json")]

    def settle(self, key: str) -> None:
        """The server has it: it is no longer needed here. Not being there is fine."""
        for name in self._names(key):
            (self._folder / name).unlink(missing_ok=True)
        self._sync()

    def refuse(self, key: str, why: str) -> None:
        """The server will never take it: it is kept apart, with the reason."""
        for name in self._names(key):
            entry = self._entry(name)
            if entry is not None and not entry.why:
                self._write(name.replace(".json", f"{_REFUSED}.json"),
                            replace(entry, why=why or "The server gave no reason."))
                (self._folder / name).unlink(missing_ok=True)
        self._sync()

    def dismiss(self, key: str) -> None:
        """Forgets an annotation that was refused."""
        for name in self._names(key):
            if name.endswith(f"{_REFUSED}.json"):
                (self._folder / name).unlink(missing_ok=True)
        self._sync()

    def _entries(self) -> list[tuple[str, Entry]]:
        names = self._names()
        self._known = {name: self._known[name] for name in names if name in self._known}
        found = [(name, self._entry(name)) for name in names]
        refused = {entry.key for name, entry in found if entry is not None and entry.why}
        # a kill between the two steps of `refuse` leaves both files: the later one counts
        return [(name, entry) for name, entry in found
                if entry is not None and (entry.why or entry.key not in refused)]

    def _names(self, key: str = "") -> list[str]:
        return sorted(name for name in os.listdir(self._folder) if name.endswith(".json") and key in name)

    def _entry(self, name: str) -> Entry | None:
        """What a file holds; None when it is damaged, or another process took it away at this moment."""
        if name not in self._known:
            try:
                entry = Entry(**json.loads((self._folder / name).read_text(encoding="utf-8")))
                self._known[name] = entry if isinstance(entry.document, dict) else None
            except FileNotFoundError:
                return None
            except (ValueError, TypeError):
                self._known[name] = None
        return self._known[name]

    def _write(self, name: str, entry: Entry) -> None:
        draft = self._folder / f".{name}.{uuid.uuid4().hex}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(asdict(entry), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self._folder / name)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        self._sync()

    def _sync(self) -> None:
        """Forces the folder's own entries to the disk, where a folder can be opened for that."""
        if os.name == "posix":
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
