"""``EventFile``: writes events to a file as JSON lines, for programs to read."""

from __future__ import annotations

import json
import os

from filetimer.server.events import Event

__all__ = ["EventFile"]


class EventFile:
    """Appends every event that it is called with to ``path``: one JSON object a line.

    Each line is one unbuffered write, so that a reader sees it at once and several writers may
    share the file.  Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)

    def __call__(self, event: Event) -> None:
        """Write one event.  Raises OSError, for instance on a full disk."""
        os.write(self._fd, json.dumps(event.to_dict()).encode("ascii") + b"\n")

    def close(self) -> None:
        """Close the file.  May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
