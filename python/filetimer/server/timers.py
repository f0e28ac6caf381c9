"""The timer table: every rule of SPEC section 6 about timers, with time as an argument.

``apply`` takes in records in order, ``expire`` says what is due, ``next_deadline`` when to look
again.  No clock is read, no system call made: processes are looked up through ``open_process``,
so that the table runs on a virtual clock and against virtual processes in tests, in the
conformance driver, and over the journal of a server that is gone.

Most timers are released long before they expire, many within the chunk of records that acquired
them.  So a timer enters the heap only when somebody asks for the next deadline, and a released or
replaced one stays in the heap until it surfaces or the heap is rebuilt.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from filetimer.wire.decoder import UNSET, Record

__all__ = [
    "HELD_TOKEN",
    "Expiry",
    "Host",
    "Now",
    "Observer",
    "Process",
    "TimerTable",
    "Worker",
    "deadline_of",
]

Key = str | tuple[str, int]
"""Within a worker: the scope, or the scope and the token (SPEC S-2)."""

HELD_TOKEN = 2**53 - 1
"""The token of a timer that the server sets itself: when a held-back signal is due at the latest.

Clients count up from a random start of 52 bits, or draw 53 of them (SPEC C-8): none has it.
"""

MIN_REBUILD = 1024  # heap entries below which a rebuild is not worth it


class Now(NamedTuple):
    """One instant, on both clocks, in seconds."""

    monotonic: float
    wall: float


class Process(Protocol):
    """What the table must know of a process; ``server.process`` finds it out."""

    pid: int
    start_time: int | None
    uid: int | None
    time_ns: int | None
    zombie: bool

    def close(self) -> None:
        """Let go of the process."""


P = TypeVar("P", bound=Process)


class Host(NamedTuple):
    """Who the server is: what SPEC S-11 compares workers with.  None: unknown, not compared."""

    pid: int
    uid: int | None = None
    pid_ns: int | None = None
    time_ns: int | None = None


class Worker(Generic[P]):
    """A known process and its timers, by key."""

    __slots__ = ("pid", "process", "start_time", "timers")

    def __init__(self, process: P) -> None:
        self.pid = process.pid
        self.process = process
        self.start_time = process.start_time
        self.timers: dict[Key, Record] = {}


@dataclass(frozen=True)
class Expiry(Generic[P]):
    """What is due for one worker: its expired timers, earliest first.

    ``decisive`` is the timer whose signal is sent; None where all are report-only.
    """

    worker: Worker[P]
    timers: list[Record]
    decisive: Record | None


class Observer(Protocol[P]):
    """What the table tells while it applies records."""

    def admitted(self, worker: Worker[P]) -> None:
        """A worker acquired its first timer."""

    def refused(self, record: Record, reason: str) -> None:
        """An acquire was refused, for a reason of SPEC S-11."""

    def exited(self, worker: Worker[P], now: Now) -> None:
        """A worker is about to be forgotten: another process has its pid (SPEC S-12)."""


class TimerTable(Generic[P]):
    """The timers of all workers.

    Args:
        host: the server's identity.
        open_process: finds a process by pid; None where there is none.
        observer: is told who comes, who goes and who is refused.
    """

    def __init__(
        self,
        host: Host,
        open_process: Callable[[int], P | None],
        observer: Observer[P],
    ) -> None:
        self.workers: dict[int, Worker[P]] = {}
        self._host = host
        self._open_process = open_process
        self._observer = observer
        self._fresh: list[Record] = []  # acquired, not yet in the heap
        self._heap: list[tuple[float, int, Record]] = []  # by deadline, then by arrival
        self._arrivals = 0
        self._rebuild_at = MIN_REBUILD

    def apply(self, record: Record, now: Now) -> None:
        """Let one record take effect (SPEC S-1).  ``now`` is when it was received."""
        worker = self.workers.get(record.pid)
        if worker is None or not self._is_from(record, worker):
            if record.expiration_time < 0:
                return  # SPEC S-4, S-12: it matches none
            worker = self._admit(record, now)
            if worker is None:
                return
        key = record.scope_id if record.token is UNSET else (record.scope_id, record.token)
        if record.expiration_time < 0:  # SPEC R-9
            worker.timers.pop(key, None)  # SPEC S-4
            return
        if record.deadline is UNSET:  # SPEC S-5
            record.deadline = now.monotonic + (record.expiration_time - now.wall)
        worker.timers[key] = record  # SPEC S-3
        self._fresh.append(record)

    def next_deadline(self) -> float | None:
        """The earliest deadline, in monotonic seconds; None without timers."""
        self._settle()
        heap = self._heap
        while heap and not self._is_live(heap[0][2]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def expire(self, monotonic: float) -> list[Expiry[P]]:
        """Remove what has expired by ``monotonic`` seconds (SPEC S-6), grouped by worker."""
        due: dict[int, list[Record]] = {}
        while (deadline := self.next_deadline()) is not None and deadline <= monotonic:
            record = heapq.heappop(self._heap)[2]
            del self.workers[record.pid].timers[_key(record)]
            due.setdefault(record.pid, []).append(record)
        return [self._expiry(self.workers[pid], timers) for pid, timers in due.items()]

    def expired_by(self, monotonic: float) -> dict[int, list[Record]]:
        """What ``expire`` would remove, without removing it."""
        found: dict[int, list[Record]] = {}
        for record in self.live_timers():
            if deadline_of(record) <= monotonic:
                found.setdefault(record.pid, []).append(record)
        return found

    def live_timers(self) -> Iterator[Record]:
        """Every timer that is set."""
        for worker in self.workers.values():
            yield from worker.timers.values()

    def clear(self, pid: int) -> list[Record]:
        """Remove all timers of a worker; it stays known.  Returns them."""
        worker = self.workers.get(pid)
        if worker is None:
            return []
        timers = list(worker.timers.values())
        worker.timers.clear()
        return timers

    def set_own(self, worker: Worker[P], timer: Record) -> None:
        """Set a timer of the server's own; its token is ``HELD_TOKEN``."""
        worker.timers[_key(timer)] = timer
        self._fresh.append(timer)

    def adopt(self, worker: Worker[P]) -> None:
        """Take a worker over from another table, with its timers."""
        if worker.pid in self.workers:
            worker.process.close()
            return
        self.workers[worker.pid] = worker
        self._fresh += worker.timers.values()

    def forget(self, worker: Worker[P]) -> None:
        """Remove a worker that has exited, and its timers (SPEC S-10)."""
        if self.workers.get(worker.pid) is worker:
            del self.workers[worker.pid]
            worker.process.close()

    def _is_from(self, record: Record, worker: Worker[P]) -> bool:
        """Whether the record comes from this very process, as far as it says (SPEC S-12)."""
        start_time, pid_ns = record.start_time, record.pid_ns
        return (start_time is UNSET or start_time == (worker.start_time or start_time)) and (
            pid_ns is UNSET or pid_ns == (self._host.pid_ns or pid_ns)
        )

    def _admit(self, record: Record, now: Now) -> Worker[P] | None:
        """Establish who acquires (SPEC S-11), or refuse."""
        reason, process = self._identify(record)
        if process is None or reason is not None:
            if process is not None:
                process.close()
            self._observer.refused(record, reason or "no_process")
            return None
        predecessor = self.workers.get(record.pid)
        if predecessor is not None:  # SPEC S-12: the pid was recycled
            self._observer.exited(predecessor, now)
            self.forget(predecessor)
        worker = self.workers[record.pid] = Worker(process)
        self._observer.admitted(worker)
        return worker

    def _identify(self, record: Record) -> tuple[str | None, P | None]:
        """The first reason of the table in SPEC S-11 that applies, and the process."""
        host = self._host
        if record.pid == 1:
            return "init", None
        if record.pid == host.pid:
            return "self", None  # SPEC S-13
        if _differs(host.pid_ns, record.pid_ns):
            return "foreign_pid_ns", None
        process = self._open_process(record.pid)
        if process is None:
            return "no_process", None
        if process.zombie:
            return "zombie", process
        if _differs(process.start_time, record.start_time):
            return "start_time", process
        if host.uid is not None and process.uid not in (None, host.uid):
            return "foreign_uid", process
        if host.time_ns is not None and process.time_ns not in (None, host.time_ns):
            return "foreign_time_ns", process
        return None, process

    def _expiry(self, worker: Worker[P], timers: list[Record]) -> Expiry[P]:
        # SPEC S-8: of several, the earliest with a signal decides; the heap gave them in order.
        decisive = next((timer for timer in timers if timer.signal > 0), None)
        if decisive is not None:
            worker.timers.clear()
        return Expiry(worker, timers, decisive)

    def _settle(self) -> None:
        """Move fresh timers that still live into the heap; rebuild it when dead ones dominate."""
        fresh, self._fresh = self._fresh, []
        for record in fresh:
            if self._is_live(record):
                self._arrivals += 1
                heapq.heappush(self._heap, (deadline_of(record), self._arrivals, record))
        if len(self._heap) > self._rebuild_at:
            self._heap = [entry for entry in self._heap if self._is_live(entry[2])]
            heapq.heapify(self._heap)
            self._rebuild_at = max(MIN_REBUILD, 2 * len(self._heap))

    def _is_live(self, record: Record) -> bool:
        worker = self.workers.get(record.pid)
        return worker is not None and worker.timers.get(_key(record)) is record


def _key(record: Record) -> Key:
    return record.scope_id if record.token is UNSET else (record.scope_id, record.token)


def deadline_of(record: Record) -> float:
    """The deadline of a timer in the table, in monotonic seconds."""
    assert record.deadline is not UNSET  # set when it was applied
    return record.deadline


def _differs(known: int | None, said: object) -> bool:
    return known is not None and said is not UNSET and said != known
