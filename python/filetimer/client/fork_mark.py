"""Whether this is still the process that it was: asked before every record, so it must be cheap.

A page that the kernel wipes in the child of every fork and clone (MADV_WIPEONFORK, Linux 4.14)
tells, in a tenth of the time that getpid takes, and of children whose makers told Python nothing.
"""

from __future__ import annotations

import mmap
import os
from typing import Protocol

__all__ = ["ForkMark", "new_fork_mark"]

_MADV_WIPEONFORK = 18
_NO_ADVICE = -1


class ForkMark(Protocol):
    def __getitem__(self, index: int, /) -> int:
        """At 0: 1 in the process that made the mark, 0 in its children."""


def new_fork_mark() -> ForkMark:
    """A mark of this process."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (AttributeError, OSError, ValueError):
        return _PidMark()
    if _takes_any_advice(page):
        return _PidMark()
    page[0] = 1
    return page


def _takes_any_advice(page: mmap.mmap) -> bool:
    """Some emulators of Linux take every advice and follow none."""
    try:
        page.madvise(_NO_ADVICE)
    except OSError:
        return False
    return True


class _PidMark:
    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, index: int, /) -> int:
        return int(self._pid == os.getpid())
