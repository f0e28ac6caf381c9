"""Reads journals: the one reader behind every view of a server in another process.

A journal is read while its server writes it, or after the server died.  Either way it costs the
server nothing.  There are two things to get from it:

* :func:`view_server`: the timers that the server has now, by applying the same records to the same
  table, with a look at which workers still run;
* :class:`History`: what happened, as far back as the journal goes: every acquire with its end
  (a :class:`Span`), and the server's own events.  It looks at nothing but the journal.

:class:`Follower` feeds a history from a journal that still grows.  A journal holds between one and
two bounds of records (``--journal-size``): a history that was followed knows more than one that is
read at the end.  The views themselves are in ``filetimer.views``.
"""

from __future__ import annotations

import glob
import json
import os
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import msgspec

from filetimer.runtime import journal_path, runtime_directory
from filetimer.server import events
from filetimer.server.events import Event
from filetimer.server.journal import (
    CHUNK_LINE,
    Chunk,
    chunks_of,
    old_path,
    own_events,
    read_history,
    read_journal,
    split_header,
)
from filetimer.server.process import read_stat
from filetimer.server.recovery import replay_table
from filetimer.server.sweep import is_alive
from filetimer.server.timers import HELD_TOKEN, Host, Now, deadline_of
from filetimer.wire.decoder import UNSET, LineDecoder, Record, Rejection

__all__ = [
    "Follower",
    "History",
    "Noted",
    "ServerView",
    "Span",
    "WorkerId",
    "find_journals",
    "is_alive",
    "load_history",
    "runs",
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
    timers = [_shown(timer) for timer in table.live_timers()]
    for worker in list(table.workers.values()):
        table.forget(worker)
    return sorted(timers, key=deadline_of)


def _shown(timer: Record) -> Record:
    """A signal that is held back looks like a plain timer of the scope that asked for it."""
    return msgspec.structs.replace(timer, token=UNSET) if timer.token == HELD_TOKEN else timer


class WorkerId(NamedTuple):
    """A process; the start time tells it from another with the same pid, where it is known."""

    pid: int
    start_time: int | None


def runs(worker: WorkerId) -> bool:
    """Whether this very process still runs, as far as that is known."""
    stat = read_stat(worker.pid)
    return stat is not None and stat[0] not in "ZX" and worker.start_time in (None, stat[1])


@dataclass(slots=True)
class Span:
    """One acquire and what became of it.  Times are monotonic seconds.

    ``how`` it ended: ``released``; ``renewed`` by another acquire of the same timer, which is a
    span of its own; ``expired`` while the worker lived on; ``killed``; ``exited`` with its worker;
    ``lost`` when the server, or its successor, no longer had it; ``open`` while it has not ended.
    ``cut``: it was open when the history begins, so that it began earlier than ``begin`` says.
    """

    worker: WorkerId
    scope_id: str
    token: int | None
    signal: int
    begin: float
    deadline: float
    end: float | None = None
    how: str = "open"
    nth: int | None = 0
    """How many spans this worker had in this scope before; None where the history is cut."""
    cut: bool = False
    attributes: dict[str, Any] | None = None
    """What its worker said of it (SPEC R-12)."""

    @property
    def allowed(self) -> float:
        """The time that it was given, in seconds."""
        return self.deadline - self.begin

    @property
    def completed(self) -> bool:
        """Whether the worker itself came to the end of it."""
        return self.how in ("released", "renewed")

    @property
    def headroom(self) -> float:
        """What was left of the time allowed when it ended, as a share of it; negative when late."""
        left = self.deadline - (self.begin if self.end is None else self.end)
        return left / self.allowed if self.allowed > 0 else -1.0

    def duration(self, now: float) -> float:
        """How long it took, or has taken so far."""
        return (now if self.end is None else self.end) - self.begin


def is_whole(chunk: Chunk) -> bool:
    """Whether it is all there: the server's own lines may be read while they are being written."""
    return not chunk.own or not chunk.data or chunk.data.endswith(b"\n")


class Noted(NamedTuple):
    """An event that the server wrote down, and when, in monotonic seconds."""

    at: float
    event: Event


MAX_SCOPES_COUNTED = 100_000  # pairs of worker and scope: scopes are what clients make of them
RATE_WINDOW = 10.0  # seconds over which the rate of records is known


@dataclass
class History:
    """What a journal tells.  ``feed`` it chunks in order.

    ``spans`` are those that have ended, by their end; ``open`` those that have not; ``events``
    what the server noted; ``started`` which workers `filetimer run` started, with their ranks, in
    a history that it kept; ``rejected`` lines that were no records and acquires that were refused,
    by code.  :meth:`take` keeps the memory bounded.  ``wall - monotonic`` of the last chunk is
    ``to_wall``.

    ``complete``: the server's first records are in it.  Where they are not, nobody knows which
    spans of a worker are its first ones, unless the worker is seen to be younger than the history.
    """

    complete: bool = True
    spans: list[Span] = field(default_factory=list)
    events: list[Noted] = field(default_factory=list)
    started: list[Noted] = field(default_factory=list)
    open: dict[tuple[WorkerId, str, int | None], Span] = field(default_factory=dict)
    records: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first: float | None = None
    last: float = 0.0
    to_wall: float = 0.0

    def __post_init__(self) -> None:
        self._decoder = LineDecoder()
        self._ids: dict[int, WorkerId] = {}
        self._seen: dict[tuple[WorkerId, str], int] = {}
        self._recent: deque[tuple[float, int]] = deque()

    def feed(self, chunk: Chunk) -> None:
        """Take in one chunk."""
        now = chunk.now.monotonic
        self.first = now if self.first is None else self.first
        if now >= self.last:  # what a job adds at the end says of itself when it was
            self.last, self.to_wall = now, chunk.now.wall - now
        if chunk.own:
            if not is_whole(chunk):
                return
            for fields in own_events(chunk):
                self._apply_event(Event.from_dict(fields), now)
            return
        if chunk.start:
            self._decoder = LineDecoder()
            self._reconcile(self._decoder.feed(chunk.data), chunk.now)
            return
        before = self.records
        for result in self._decoder.feed(chunk.data):
            if not isinstance(result, Record):
                self.rejected[result.code] += 1
            else:
                self.records += 1
                self._apply(result, chunk.now)
        self._note_rate(now, self.records - before)

    def take(self) -> tuple[list[Span], list[Noted]]:
        """The spans that have ended and the events since the last call; they are forgotten here."""
        taken = self.spans, self.events
        self.spans, self.events = [], []
        return taken

    def rate(self, now: float) -> float:
        """Records a second, over the last :data:`RATE_WINDOW` seconds before ``now``."""
        came = sum(count for at, count in self._recent if at > now - RATE_WINDOW)
        known = now - (now if self.first is None else self.first)
        return came / min(RATE_WINDOW, max(known, 1.0))

    def open_spans(self) -> list[Span]:
        """Those that have not ended, by deadline."""
        return sorted(self.open.values(), key=lambda span: span.deadline)

    def _note_rate(self, now: float, count: int) -> None:
        self._recent.append((now, count))
        while self._recent[0][0] < now - RATE_WINDOW:
            self._recent.popleft()

    def _reconcile(self, state: list[Record | Rejection], now: Now) -> None:
        """A file begins with all timers that the server has."""
        has = set()
        for record in state:
            if isinstance(record, Record):
                key = self._key_of(record)
                has.add(key)
                known = self.open.get(key)
                if known is None or not _is_same(known, record):
                    self._apply(record, now)
                    self.open[key].cut = True
        for key in self.open.keys() - has:
            self._end(self.open.pop(key), "lost", now.monotonic)

    def _key_of(self, record: Record) -> tuple[WorkerId, str, int | None]:
        token = None if record.token is UNSET else record.token
        return self._worker_of(record), record.scope_id, token

    def _apply(self, record: Record, now: Now) -> None:
        key = self._key_of(record)
        before = self.open.pop(key, None)
        if before is not None:
            self._end(before, "released" if record.expiration_time < 0 else "renewed", now[0])
        if record.expiration_time < 0:
            return
        if record.deadline is UNSET:  # SPEC S-5
            record.deadline = now.monotonic + (record.expiration_time - now.wall)
        worker, scope_id, token = key
        self.open[key] = Span(
            worker,
            scope_id,
            token,
            record.signal,
            now.monotonic,
            record.deadline,
            nth=self._count(worker, scope_id),
            attributes=None if record.attributes is UNSET else record.attributes,
        )

    def _count(self, worker: WorkerId, scope_id: str) -> int | None:
        count = self._seen.pop((worker, scope_id), 0)  # the last one that came stands last
        self._seen[worker, scope_id] = count + 1
        if len(self._seen) > MAX_SCOPES_COUNTED:
            del self._seen[next(iter(self._seen))]
        return count if self.complete or self._is_younger(worker) else None

    def _is_younger(self, worker: WorkerId) -> bool:
        """Whether a worker started after the history begins."""
        if worker.start_time is None or self.first is None:
            return False
        # Start times include suspensions of the host, this clock does not; such hosts do not sleep.
        return worker.start_time / os.sysconf("SC_CLK_TCK") > self.first

    def _worker_of(self, record: Record) -> WorkerId:
        known = self._ids.get(record.pid)
        said = None if record.start_time is UNSET else record.start_time
        if known is None or (said is not None and known.start_time not in (None, said)):
            known = self._ids[record.pid] = WorkerId(record.pid, said)
        return known

    def _apply_event(self, event: Event, now: float) -> None:
        if event.name == events.WORKER_STARTED:
            self.started.append(Noted(now, event))
            return
        self.events.append(Noted(now, event))
        if event.name == events.TIMER_REFUSED:
            self.rejected[event.code or "?"] += 1
        if event.name == events.TIMER_EXPIRED and event.pid is not None:
            worker = self._ids.get(event.pid)
            key = worker, event.scope_id, event.token
            span = self.open.pop(key, None)  # type: ignore[arg-type]
            if span is not None:
                self._end(span, "killed" if (event.signal or 0) > 0 else "expired", now)
        how = _ENDS_ALL.get(event.name)
        if how is not None:
            for key in [key for key in self.open if key[0].pid == event.pid]:
                self._end(self.open.pop(key), how, now)
        if event.name == events.TIMER_REFUSED:  # it set no timer
            for key in [key for key in self.open if key[0].pid == event.pid]:
                if key[1:] == (event.scope_id, event.token):
                    del self.open[key]

    def _end(self, span: Span, how: str, now: float) -> None:
        span.how, span.end = how, now
        self.spans.append(span)


def _is_same(span: Span, record: Record) -> bool:
    """Whether this record of the state is that span: clocks are written down to a microsecond."""
    return abs(span.deadline - deadline_of(record)) < 1e-3


_ENDS_ALL = {
    events.KILL_WORKER: "killed",
    events.WORKER_DIED: "killed",
    events.WORKER_EXITED: "exited",
}


def load_history(journal: str, now: Now) -> tuple[dict[str, Any], History]:
    """The header of a journal, or of a file that was kept of one, and all that it tells.

    Raises OSError, JournalError.
    """
    header, chunks = read_history(journal, now)
    return header, feed(History(_is_complete(_first_header(journal), chunks)), chunks)


def _first_header(journal: str) -> dict[str, Any]:
    """The header of the file that the history begins with."""
    for path in (old_path(journal), journal):
        try:
            with open(path, "rb") as file:
                header: dict[str, Any] = json.loads(file.readline())
                return header
        except (OSError, ValueError):  # no such file; replaced just now
            continue
    return {}


def _is_complete(header: dict[str, Any], chunks: list[Chunk]) -> bool:
    """Whether what follows this header is what its server received first.

    A server's first file begins when the server does; one that replaced another begins later.
    """
    began = header.get("monotonic")
    return bool(chunks) and began is not None and chunks[0].now.monotonic - began < 1e-3


def feed(history: History, chunks: Iterable[Chunk]) -> History:
    """Feed all these chunks; the history."""
    for chunk in chunks:
        history.feed(chunk)
    return history


class Follower:
    """Feeds a history from a journal that is being written, whenever :meth:`poll` is called.

    Only what is new is read.  A server that is replaced goes on in the same journal.  What was
    written and replaced twice between two polls is missed.
    """

    def __init__(self, journal: str) -> None:
        self.history = History()
        self.header: dict[str, Any] = {}
        self._path = journal
        self._file: bytes | None = None  # what it begins with: inode numbers are given out again
        self._position = 0

    def poll(self, now: Now) -> None:
        """Take in what is new.  Raises OSError when the journal is gone, JournalError."""
        with open(self._path, "rb") as file:
            beginning = _beginning(file)
            if beginning != self._file:
                self._finish_old_file(now)
                self._file, self._position = beginning, 0
            self._take(file, now)
        self.header, _ = split_header(beginning, self._path)

    def _finish_old_file(self, now: Now) -> None:
        """Take in the rest of the file that was being followed, or all of the one before."""
        try:
            with open(old_path(self._path), "rb") as file:
                if _beginning(file) != self._file:
                    self._position = 0
                self._take(file, now)
        except FileNotFoundError:
            return

    def _take(self, file: BinaryIO, now: Now) -> None:
        file.seek(0)
        first_line = file.readline()
        header, _ = split_header(first_line, self._path)
        at_start = self._position == 0
        self._position = self._position or len(first_line)
        file.seek(self._position)
        for chunk in chunks_of(file.read(), now):
            # The last chunk may be half written: it is taken when another is behind it, or when
            # its own line says when it was received.
            if chunk.now is now or not is_whole(chunk):
                return
            if self.history.first is None:
                self.history.complete = _is_complete(header, [chunk])
            self.history.feed(chunk._replace(start=at_start))
            at_start = False
            self._position += CHUNK_LINE + len(chunk.data)


def _beginning(file: BinaryIO) -> bytes:
    """What tells a journal's file from the next: its header and when it was begun."""
    return file.readline() + file.read(CHUNK_LINE)
