"""``EventFile``: writes events to a file as JSON lines, for programs to read (protocol/events.md).

The file may be rotated at any time, by renaming it: the next event finds that out and opens a new
one.  A program that rotates can also ask for that at once (:meth:`EventFile.reopen`).
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading

from filetimer.server.events import Event

__all__ = ["VERSION", "EventFile"]

VERSION = 1  # of the lines: changes only if a name or a field goes, or comes to mean another thing


class EventFile:
    """Appends every event that it is called with to ``path``: one JSON object a line.

    Each line is one unbuffered write, so that a reader sees it at once and several writers may
    share the file.  Any thread may call it.  Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._lock = threading.Lock()
        self._torn = False
        self._fd = self._open()

    def __call__(self, event: Event) -> None:
        """Write one event.  Raises OSError, for instance on a full disk."""
        line = json.dumps({"v": VERSION, **event.to_dict()}).encode("ascii") + b"\n"
        with self._lock:
            if self._was_renamed():
                try:
                    self._reopen()
                except OSError:
                    pass  # better in a file with another name than nowhere
            self._write(line)

    def reopen(self) -> None:
        """Write to whatever is at the path from now on.

        Raises OSError when that cannot be opened; events then go on to the file of before.
        """
        with self._lock:
            self._reopen()

    def close(self) -> None:
        """Close the file.  May be called again."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.open(self._path, flags, 0o600)

    def _reopen(self) -> None:
        old, self._fd = self._fd, self._open()
        self._torn = False
        if old >= 0:
            os.close(old)

    def _write(self, line: bytes) -> None:
        if self._torn:
            line = b"\n" + line  # half a line must not swallow this one
        written = os.write(self._fd, line)
        self._torn = written < len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)

    def _was_renamed(self) -> bool:
        here = os.fstat(self._fd)
        if not stat.S_ISREG(here.st_mode):
            return False
        try:
            return not os.path.samestat(here, os.stat(self._path))
        except OSError:
            return True
