"""A clock that shows what this process does, on a machine that has other things to do as well."""

from __future__ import annotations

import time
from pathlib import Path

TASKS = Path("/proc/self/task")


def own_s() -> float:
    """Seconds, standing still while a thread of this process is ready to run and another has the core.

    What a thread waits for itself (a lock, a disk, an answer) counts, and so does what it computes. Linux
    tells the waiting for a core in ``schedstat`` (its second number, nanoseconds); elsewhere it is not known,
    and the clock is an ordinary one.
    """
    waited_ns = 0
    for task in TASKS.glob("*/schedstat"):
        try:
            waited_ns += int(task.read_text().split()[1])
        except (OSError, IndexError, ValueError):    # the thread ended meanwhile
            continue
    return time.monotonic() - waited_ns / 1e9
