"""What a job adds to the history that its server has left: which process was which rank.

It is added when the server is gone, so that it costs the server nothing, and is there whatever of
the history was dropped meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from filetimer.server.events import Event
from filetimer.server.journal import boot_id, chunk_line, event_line, split_header
from filetimer.server.timers import Now

__all__ = ["Started", "add_started"]

MAX_HEADER = 1 << 20  # bytes: what has a longer first line is something else


class Started(NamedTuple):
    """A worker's start: when, and the event that says so."""

    at: Now
    event: Event


def add_started(path: str, run_id: str, started: Iterable[Started]) -> None:
    """Append these to the history that the server of this run has left at ``path``, if it has.

    A file of another run, which this one could not replace, stays as it is.  Raises OSError when
    it cannot be written, JournalError when it is something else.
    """
    if not os.path.isfile(path):
        return  # the server had none, ended in another way, or wrote into a pipe
    with open(path, "r+b") as file:
        header, _ = split_header(file.readline(MAX_HEADER), path)
        if (header["run_id"], header["boot_id"]) == (run_id, boot_id()):
            file.seek(0, os.SEEK_END)
            file.write(b"".join(map(_chunk, started)))


def _chunk(started: Started) -> bytes:
    line = event_line(started.event.to_dict())
    return chunk_line(len(line), started.at, own=True) + line
