"""Reads journals: the one reader behind every view of a server in another process.

A journal is read while its server writes it, or after the server died.  Either way a reader gets
the timers that the server had, by applying the same records to the same table; it costs the server
nothing.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from typing import Any

from filetimer.runtime import journal_path, runtime_directory
from filetimer.server.journal import Chunk, read_journal
from filetimer.server.recovery import replay_table
from filetimer.server.sweep import is_alive
from filetimer.server.timers import Host, Now, deadline_of
from filetimer.wire.decoder import Record

__all__ = ["ServerView", "find_journals", "view_server"]


@dataclass(frozen=True)
class ServerView:
    """A server as its journal shows it."""

    path: str
    run_id: str
    pid: int
    alive: bool
    timers: list[Record]


def find_journals(fifo_path: str | None = None) -> list[str]:
    """The journals of this user's servers, or that of the one at ``fifo_path``, if it has one."""
    directory = runtime_directory()
    if fifo_path is None:
        return sorted(glob.glob(os.path.join(glob.escape(directory), "*.journal")))
    path = journal_path(fifo_path, directory)
    return [path] if os.path.exists(path) else []


def view_server(journal: str, now: Now) -> ServerView:
    """The server that writes this journal, and the timers of its workers that still run."""
    header, chunks = read_journal(journal, now)
    timers = _replay(chunks, now, header)
    server = header["server"]
    return ServerView(header["path"], header["run_id"], server["pid"], is_alive(header), timers)


def _replay(chunks: list[Chunk], now: Now, header: dict[str, Any]) -> list[Record]:
    server = header["server"]
    host = Host(server["pid"], server.get("uid"), server.get("pid_ns"), server.get("time_ns"))
    table = replay_table(host, chunks)[0]
    table.expire(now.monotonic)
    timers = sorted(table.live_timers(), key=deadline_of)
    for worker in list(table.workers.values()):
        table.forget(worker)
    return timers
