"""A spare descriptor: what a server must read from /proc, it can read at the limit, too.

At the limit on open files a server could not even tell whether a pid is still its worker's, and so
could neither kill nor refuse.  So one descriptor is kept, and given up for a moment where it is
needed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading

__all__ = ["OUT_OF_DESCRIPTORS", "keep_spare", "read_file"]

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_lock = threading.Lock()
_spare = -1


def keep_spare() -> None:
    """Have a descriptor to spare from now on.  Raises OSError where there is none."""
    global _spare
    with _lock:
        if _spare < 0:
            _spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def read_file(path: str) -> bytes:
    """The content of a small file of /proc.  Raises OSError."""
    try:
        return _read(path)
    except OSError as error:
        if error.errno not in OUT_OF_DESCRIPTORS:
            raise
    return _read_with_spare(path)


def _read_with_spare(path: str) -> bytes:
    global _spare
    with _lock:
        if _spare >= 0:
            os.close(_spare)
            _spare = -1
        try:
            return _read(path)
        finally:
            with contextlib.suppress(OSError):  # another thread was faster: the next time, then
                _spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
