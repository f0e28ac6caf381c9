"""A page that a worker shares with its test: what it has promised, at every instant.

The test believes neither the server nor its events: it looks at this page and at the worker's exit
status.  Times are in seconds of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import mmap
import os

__all__ = ["Slate"]

_NAMES = ("armed", "deadline", "hangs", "acquired", "failed", "late", "pid")


def _field(number: int) -> property:
    def get(self: Slate) -> float:
        return self._view[number]

    def put(self: Slate, value: float) -> None:
        self._view[number] = value

    return property(get, put)


class Slate:
    """The numbers of one worker.

    ``armed``: whether it has a timer out.  ``deadline``: of the earliest one.  ``hangs``: whether
    it will never release it.  ``acquired``: timers so far.  ``failed``: calls of the client that
    raised.  ``late``: releases that came back after their deadline: whatever the reason, be it the
    machine or a full pipe, the worker may be reaped for those.
    """

    SIZE = 4096

    def __init__(self, path: str, *, create: bool = False) -> None:
        fd = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0), 0o666)
        try:
            if create:
                os.ftruncate(fd, self.SIZE)
            self._view = memoryview(mmap.mmap(fd, self.SIZE)).cast("d")
        finally:
            os.close(fd)

    armed, deadline, hangs, acquired, failed, late, pid = map(_field, range(len(_NAMES)))
