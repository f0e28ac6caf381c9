"""Reads journals: the one reader behind every view of a server in another process.

A journal is read while its server writes it, or after the server died.  Either way it costs the
server nothing.  There are two things to get from it:

* :func:`view_server`: the timers that the server has now, by applying the same records to the same
  table, with a look at which workers still run;
* :class:`History`: what happened, as far back as the journal goes: every acquire with its end
  (a :class:`Span`), and the server's own events.  It looks at nothing but the journal.

:class:`Follower` feeds a history from a journal that still grows.  A journal holds between one and
two bounds of records (``--journal-size``): a history that was followed knows more than one that is
read at the end.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from filetimer.runtime import journal_path, runtime_directory
from filetimer.server import events
from filetimer.server.events import Event
from filetimer.server.journal import (
    Chunk,
    old_path,
    own_events,
    own_timers,
    read_history,
    read_journal,
)
from filetimer.server.recovery import replay_table
from filetimer.server.sweep import is_alive
from filetimer.server.timers import HELD_TOKEN, Host, Now, deadline_of
from filetimer.wire.decoder import UNSET, LineDecoder, Record

__all__ = [
    "Follower",
    "History",
    "ServerView",
    "Span",
    "WorkerId",
    "find_journals",
    "load_history",
    "view_server",
]


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


class WorkerId(NamedTuple):
    """A process; the start time tells it from another with the same pid, where it is known."""

    pid: int
    start_time: int | None


@dataclass(slots=True)
class Span:
    """One acquire and what became of it.  Times are monotonic seconds.

    ``how`` it ended: ``released``; ``renewed`` by another acquire of the same timer, which is a
    span of its own; ``expired`` while the worker lived on; ``killed``; ``exited`` with its worker;
    ``open`` while it has not.
    """

    worker: WorkerId
    scope_id: str
    token: int | None
    signal: int
    begin: float
    deadline: float
    end: float | None = None
    how: str = "open"
    nth: int = 0
    """How many spans this worker had in this scope before."""

    @property
    def allowed(self) -> float:
        """The time that it was given, in seconds."""
        return self.deadline - self.begin

    @property
    def completed(self) -> bool:
        """Whether the worker itself came to the end of it."""
        return self.how in ("released", "renewed")

    def duration(self, now: float) -> float:
        """How long it took, or has taken so far."""
        return (now if self.end is None else self.end) - self.begin


@dataclass
class History:
    """What a journal tells.  ``feed`` it chunks in order.

    ``spans`` are those that have ended, by their end; ``open`` those that have not; ``events``
    what the server noted.  A caller that takes out what it has seen keeps the memory bounded.
    ``wall - monotonic`` of the last chunk is ``to_wall``.
    """

    spans: list[Span] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    open: dict[tuple[WorkerId, str, int | None], Span] = field(default_factory=dict)
    records: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first: float | None = None
    last: float = 0.0
    to_wall: float = 0.0

    def __post_init__(self) -> None:
        self._decoder = LineDecoder()
        self._ids: dict[int, WorkerId] = {}
        self._seen: Counter[tuple[WorkerId, str]] = Counter()

    def feed(self, chunk: Chunk) -> None:
        """Take in one chunk."""
        now = chunk.now.monotonic
        self.first = now if self.first is None else self.first
        self.last, self.to_wall = now, chunk.now.wall - now
        if chunk.own:
            for fields in own_events(chunk):
                self._apply_event(Event.from_dict(fields), now)
            return
        if chunk.start:
            self._decoder = LineDecoder()
        results = self._decoder.feed(chunk.data)
        for result in own_timers(results) if chunk.start else results:
            if not isinstance(result, Record):
                self.rejected[result.code] += 1
            elif result.token != HELD_TOKEN and not (chunk.start and self._knows(result)):
                self.records += not chunk.start
                self._apply(result, chunk.now)

    def open_spans(self) -> list[Span]:
        """Those that have not ended, by deadline."""
        return sorted(self.open.values(), key=lambda span: span.deadline)

    def _apply(self, record: Record, now: Now) -> None:
        worker, token = self._worker_of(record), record.token
        key = worker, record.scope_id, None if token is UNSET else token
        before = self.open.pop(key, None)
        if before is not None:
            self._end(before, "released" if record.expiration_time < 0 else "renewed", now[0])
        if record.expiration_time < 0:
            return
        if record.deadline is UNSET:  # SPEC S-5
            record.deadline = now.monotonic + (record.expiration_time - now.wall)
        nth = self._seen[worker, record.scope_id]
        self._seen[worker, record.scope_id] += 1
        self.open[key] = Span(
            worker, record.scope_id, key[2], record.signal, now[0], record.deadline, nth=nth
        )

    def _knows(self, record: Record) -> bool:
        """Whether a record of the state, at the start of a file, is known from the file before."""
        token = None if record.token is UNSET else record.token
        span = self.open.get((self._worker_of(record), record.scope_id, token))
        return span is not None and record.deadline == span.deadline

    def _worker_of(self, record: Record) -> WorkerId:
        known = self._ids.get(record.pid)
        said = None if record.start_time is UNSET else record.start_time
        if known is None or (said is not None and known.start_time not in (None, said)):
            known = self._ids[record.pid] = WorkerId(record.pid, said)
        return known

    def _apply_event(self, event: Event, now: float) -> None:
        self.events.append(event)
        if event.name == events.TIMER_EXPIRED and event.pid is not None:
            worker = self._ids.get(event.pid)
            key = worker, event.scope_id, event.token
            span = self.open.pop(key, None)  # type: ignore[arg-type]
            if span is not None:
                self._end(span, "killed" if span.signal > 0 else "expired", now)
        how = _ENDS_ALL.get(event.name)
        if how is not None:
            for key in [key for key in self.open if key[0].pid == event.pid]:
                self._end(self.open.pop(key), how, now)
        if event.name in (events.TIMER_REFUSED, events.WORKER_DIED, events.WORKER_EXITED):
            self._forget_refused(event)

    def _forget_refused(self, event: Event) -> None:
        """A refused acquire set no timer, and what has exited has none."""
        for key in [key for key in self.open if key[0].pid == event.pid]:
            if event.name != events.TIMER_REFUSED or key[1:] == (event.scope_id, event.token):
                del self.open[key]

    def _end(self, span: Span, how: str, now: float) -> None:
        span.how, span.end = how, now
        self.spans.append(span)


_ENDS_ALL = {
    events.KILL_WORKER: "killed",
    events.WORKER_DIED: "killed",
    events.WORKER_EXITED: "exited",
}


def load_history(journal: str, now: Now) -> tuple[dict[str, Any], History]:
    """The header of a journal, or of a file that was kept of one, and all that it tells."""
    header, chunks = read_history(journal, now)
    return header, feed(History(), chunks)


def feed(history: History, chunks: Iterable[Chunk]) -> History:
    """Feed all these chunks; the history."""
    for chunk in chunks:
        history.feed(chunk)
    return history


class Follower:
    """Feeds a history from a journal that is being written, whenever :meth:`poll` is called.

    A server that is replaced goes on in the same journal.  What was written and replaced twice
    between two polls is missed.
    """

    def __init__(self, journal: str) -> None:
        self.history = History()
        self.header: dict[str, Any] = {}
        self._path = journal
        self._file: tuple[int, int] | None = None
        self._position = 0

    def poll(self, now: Now) -> None:
        """Take in what is new.  Raises OSError when the journal is gone, JournalError."""
        status = os.stat(self._path)
        file = status.st_dev, status.st_ino
        if file != self._file:
            self._finish_old_file(now)
            self._position = 0
        self.header, chunks = read_journal(self._path, now)
        self._take(chunks, now)
        self._file = file

    def _finish_old_file(self, now: Now) -> None:
        """Take in the rest of the file that was being followed, or all of the one before."""
        old = old_path(self._path)
        try:
            status = os.stat(old)
            _, chunks = read_journal(old, now)
        except FileNotFoundError:
            return
        if self._file not in (None, (status.st_dev, status.st_ino)):
            self._position = 0
        self._take(chunks, now)

    def _take(self, chunks: list[Chunk], now: Now) -> None:
        # The last chunk may be half written: it is taken when another is behind it, or when its
        # own line says when it was received.
        complete = [chunk for chunk in chunks if chunk.now is not now]
        for chunk in complete[self._position :]:
            self.history.feed(chunk)
        self._position = len(complete)
