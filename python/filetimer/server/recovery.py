"""Recovery: what a server that died had, from its journal.

Every chunk that the predecessor took from the pipe is in its journal, so replaying the journal into
an empty table gives the table that it had, or would have had after its last pass.  Three things can
have changed since, and each is looked at: the host may have booted (no timer survives that), a
worker may have exited and its pid been given away, and, if nobody held the pipe open in between, a
release may have been lost with it.  In that last case nobody may be killed on what is left.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from filetimer.server.journal import (
    Chunk,
    JournalError,
    boot_id,
    own_records,
    read_journal,
)
from filetimer.server.process import TICK, ProcessHandle, open_process, started_at
from filetimer.server.timers import Host, Now, TimerTable, Worker
from filetimer.wire.decoder import LineDecoder, Record, Rejection

__all__ = ["Recovered", "disarm", "recover", "replay_table"]


class Recovered(NamedTuple):
    """The timers of a dead server, and whether they may still kill."""

    workers: list[Worker[ProcessHandle]]
    unfinished: bytes
    armed: bool


def recover(journal: str, fifo_path: str, holder: str | None, host: Host, now: Now) -> Recovered:
    """What the server that wrote this journal had; nothing when it has nothing to say.

    ``holder``: who has held the pipe open.  The timers are armed only if it is the one that held
    it for the predecessor; else they report only, until they are acquired again.
    """
    nothing = Recovered([], b"", armed=True)
    try:
        header, chunks = read_journal(journal, now)
    except (OSError, JournalError):
        return nothing
    if header["boot_id"] != boot_id() or header["path"] != fifo_path:
        return nothing
    table, decoder = replay_table(host, chunks, _written_at(journal, now))
    armed = holder is not None and header["holder"] == holder
    if not armed:
        disarm(table)
    return Recovered(list(table.workers.values()), decoder.unfinished, armed)


def disarm(table: TimerTable[ProcessHandle]) -> None:
    """Let these timers only report, until they are acquired again."""
    for timer in table.live_timers():
        timer.signal = min(timer.signal, 0)


def _written_at(journal: str, now: Now) -> float:
    """When the journal was written to last, in monotonic seconds: its server lived until then."""
    try:
        return now.monotonic - (now.wall - os.stat(journal).st_mtime)
    except OSError:
        return now.monotonic


def replay_table(
    host: Host, chunks: Sequence[Chunk], ended: float = float("inf")
) -> tuple[TimerTable[ProcessHandle], LineDecoder]:
    """The table and the decoder that a server had after these chunks.

    Workers that have exited are not in it, nor, where a record does not tell its process's start
    time, processes that started after it was read: those have a recycled pid.  A chunk was read
    before the next one's time, and the last one before ``ended``.
    """
    read_by = ended

    def too_young(process: ProcessHandle) -> bool:
        return started_at(process) > read_by + TICK

    table: TimerTable[ProcessHandle] = TimerTable(
        host, open_process, _Silent(), too_young=too_young
    )
    decoder = LineDecoder()
    for i, chunk in enumerate(chunks):
        received = chunk.now
        next_at = chunks[i + 1].now.monotonic if i + 1 < len(chunks) else ended
        read_by = max(received.monotonic, next_at)  # whatever became of the wall clock since
        # A pass is: receive, apply, act.  That the journal goes on proves that it was completed;
        # after the last chunk the server may have died before it acted, so that is still to do.
        results: Sequence[Record | Rejection]
        if chunk.own:
            table.expire(received.monotonic)
            results = own_records(chunk)
        else:
            results = decoder.feed(chunk.data)
        table.apply([result for result in results if isinstance(result, Record)], received)
        # The state that a file begins with was not acted on yet: its server may have taken it over
        # with timers that were due, and have died in its first pass.
        if i + 1 < len(chunks) and not chunk.own and not chunk.start:
            table.expire(received.monotonic)
    return table, decoder


class _Silent:
    """An observer of a replay: the server has reported all this before."""

    def admitted(self, worker: Worker[ProcessHandle]) -> None:
        pass

    def refused(self, record: Record, reason: str) -> None:
        pass

    def exited(self, worker: Worker[ProcessHandle], now: Now) -> None:
        pass
