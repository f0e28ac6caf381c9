"""Reads journals: the one reader behind every view of a server in another process.

A journal is read while its server writes it, or after the server died.  Either way a reader gets
the timers that the server had, by applying the same records to the same table; it costs the server
nothing.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from filetimer.runtime import journal_path, runtime_directory
from filetimer.server.journal import CHUNK_LINE, FORMAT, boot_id
from filetimer.server.process import ProcessHandle, open_process, read_stat
from filetimer.server.timers import Host, Now, TimerTable, Worker
from filetimer.wire.decoder import LineDecoder, Record

__all__ = ["Chunk", "JournalError", "ServerView", "find_journals", "read_journal", "view_server"]


class JournalError(ValueError):
    """The file is not a journal that this version can read."""


@dataclass(frozen=True)
class Chunk:
    """Bytes that a server received at one instant."""

    now: Now
    data: bytes


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


def read_journal(path: str, now: Now) -> tuple[dict[str, Any], Iterator[Chunk]]:
    """The header and the chunks of a journal.

    ``now`` stands in for the receipt time of a last chunk whose server died while it wrote.
    Raises JournalError, and OSError when the file is gone.
    """
    with open(path, "rb") as file:
        content = file.read()
    first, newline, rest = content.partition(b"\n")
    try:
        header = json.loads(first)
        if header["journal"] != FORMAT or not newline:
            raise ValueError(f"format {header['journal']}")
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(f"{path} is not a timer journal that can be read: {error}") from None
    return header, _chunks(rest, now)


def view_server(journal: str, now: Now) -> ServerView:
    """The server that writes this journal, and the timers of its workers that still run."""
    header, chunks = read_journal(journal, now)
    timers = _replay(chunks, now, header)
    server = header["server"]
    return ServerView(header["path"], header["run_id"], server["pid"], is_alive(header), timers)


def is_alive(header: dict[str, Any]) -> bool:
    """Whether the server that wrote this header still runs."""
    stat = read_stat(header["server"]["pid"])
    return (
        header["boot_id"] == boot_id()
        and stat is not None
        and stat[0] not in "ZX"
        and stat[1] == header["server"].get("start_time", stat[1])
    )


def _chunks(rest: bytes, now: Now) -> Iterator[Chunk]:
    position = 0
    while position < len(rest):
        line = rest[position : position + CHUNK_LINE]
        position += CHUNK_LINE
        try:
            meta = json.loads(line)
            length, received = meta["chunk"], Now(meta["monotonic"], meta["wall"])
        except ValueError:  # its server died, or has not come to writing it yet
            length, received = len(rest) - position, now
        yield Chunk(received, rest[position : position + length])
        position += length


class _Silent:
    """An observer of a replayed table: the server has reported all this before."""

    def admitted(self, worker: Worker[ProcessHandle]) -> None:
        pass

    def refused(self, record: Record, reason: str) -> None:
        pass

    def exited(self, worker: Worker[ProcessHandle], now: Now) -> None:
        pass


def _replay(chunks: Iterator[Chunk], now: Now, header: dict[str, Any]) -> list[Record]:
    server = header["server"]
    host = Host(server["pid"], server.get("uid"), server.get("pid_ns"), server.get("time_ns"))
    table: TimerTable[ProcessHandle] = TimerTable(host, open_process, _Silent())
    decoder = LineDecoder()
    for chunk in chunks:  # as the server did: first apply, then act
        for result in decoder.feed(chunk.data):
            if isinstance(result, Record):
                table.apply(result, chunk.now)
        table.expire(chunk.now.monotonic)
    timers = sorted(table.live_timers(), key=lambda timer: timer.deadline or 0.0)
    for worker in list(table.workers.values()):
        table.forget(worker)
    return timers
