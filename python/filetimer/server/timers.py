"""The timer table: every rule of SPEC section 6 about timers, with time as an argument.

``apply`` takes in records in order, ``expire`` says what is due, ``next_deadline`` when to look
again.  No clock is read, no system call made: processes are looked up through ``open_process``,
so that the table runs on a virtual clock and against virtual processes in tests, in the
conformance driver, and over the journal of a server that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec

from filetimer.server.deadlines import Deadlines, Key
from filetimer.server.policy import Policy
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

HELD_TOKEN = -1
"""The token of a timer that the server sets itself: when a held-back signal is due at the latest.

No record can name it: the tokens of records are not negative (SPEC R-3).
"""

# SPEC X-3: valid records, too, must not fill the memory.
MAX_TIMERS = 250_000
MAX_TIMERS_OF_WORKER = 10_000

_DEFAULT = Policy()


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


class Expiry(Generic[P]):
    """What is due for one worker: its expired timers, earliest first.

    ``decisive`` is the timer whose signal is sent; None where all are report-only.  ``dropped``
    are the timers that go with the worker: kept, so that a signal need not wait for their freeing.
    """

    __slots__ = ("decisive", "dropped", "timers", "worker")

    def __init__(
        self,
        worker: Worker[P],
        timers: list[Record],
        decisive: Record | None,
        dropped: dict[Key, Record] | None = None,
    ) -> None:
        self.worker = worker
        self.timers = timers
        self.decisive = decisive
        self.dropped = dropped


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
        policy: whether timers only report, and when they are overdue.
        too_young: whether a process began after the records that are being applied were written;
            asked where a record itself does not say which process it comes from.
    """

    def __init__(
        self,
        host: Host,
        open_process: Callable[[int], P | None],
        observer: Observer[P],
        policy: Policy = _DEFAULT,
        too_young: Callable[[P], bool] | None = None,
    ) -> None:
        self.workers: dict[int, Worker[P]] = {}
        self._host = host
        self._open_process = open_process
        self._observer = observer
        self._deadlines = Deadlines(self._is_set)
        self._warnings = Deadlines(self._is_set)
        self._report_only, self._warn_after = policy.report_only, policy.warn_after
        self._too_young = too_young
        self._batch: Now | None = None  # the receipt that is being applied
        self._strangers: dict[int, P] = {}  # who was refused in it; let go of
        self._count = 0
        self._max_timers = MAX_TIMERS

    def apply(self, records: Iterable[Record], now: Now) -> None:
        """Let records take effect, in order (SPEC S-1).  ``now`` is when they were received."""
        # Whatever a server does for every record is in this loop: each call would show.
        workers, pid_ns, schedule = self.workers, self._host.pid_ns, self._deadlines.add
        for record in records:
            worker = workers.get(record.pid)
            release = record.expiration_time < 0.0  # SPEC R-9
            if worker is None or not (
                # Most records say who they are from in full.
                (record.start_time == worker.start_time and record.pid_ns == pid_ns)
                or self._is_from(record, worker)
            ):
                # SPEC S-4, S-12: such a release matches none
                worker = None if release else self._admit(record, now)
                if worker is None:
                    continue
            token = record.token
            key = record.scope_id if token is UNSET else (record.scope_id, token)
            timers = worker.timers
            if release:
                if timers.pop(key, None) is not None:  # SPEC S-4
                    self._count -= 1
                continue
            if record.deadline is UNSET:  # SPEC S-5
                record.deadline = now.monotonic + (record.expiration_time - now.wall)
            new = key not in timers
            if new and (len(timers) >= MAX_TIMERS_OF_WORKER or self._count >= self._max_timers):
                self._observer.refused(record, "limit")
                continue
            timers[key] = record  # SPEC S-3
            self._count += new
            schedule((record.deadline, record, timers, key))
            if self._warn_after is not None:
                self._schedule_warning(worker, key, now.monotonic)

    def next_deadline(self) -> float | None:
        """The earliest deadline, in monotonic seconds; None without timers."""
        return self._deadlines.next()

    def next_worker(self) -> Worker[P] | None:
        """Whose deadline that is."""
        timer = self._deadlines.first()
        return None if timer is None else self.workers[timer.pid]

    def next_warning(self) -> float | None:
        """When the next timer is overdue; None: none is foreseen."""
        return self._warnings.next()

    def overdue(self, monotonic: float) -> list[Record]:
        """The timers that have become overdue by ``monotonic``, each once (SPEC S-21)."""
        found = []
        while (timer := self._warnings.pop(monotonic)) is not None:
            found.append(timer)
        return found

    def expire(self, monotonic: float) -> list[Expiry[P]]:
        """Remove what has expired by ``monotonic`` seconds (SPEC S-6), grouped by worker."""
        due: dict[int, list[Record]] = {}
        while (record := self._deadlines.pop(monotonic)) is not None:
            del self.workers[record.pid].timers[_key(record)]
            self._count -= 1
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
        return list(self._drop_timers(worker).values())

    def set_own(self, worker: Worker[P], timer: Record) -> None:
        """Set a timer of the server's own; its token is ``HELD_TOKEN``."""
        key = _key(timer)
        self._count += key not in worker.timers
        worker.timers[key] = timer
        self._deadlines.add((deadline_of(timer), timer, worker.timers, key))

    def postpone(self, worker: Worker[P], seconds: float, not_before: float) -> None:
        """Move all deadlines of a worker by so much, and at least to ``not_before``."""
        for key, timer in worker.timers.items():
            deadline = max(deadline_of(timer) + seconds, not_before)
            moved = msgspec.structs.replace(timer, deadline=deadline)
            worker.timers[key] = moved
            self._deadlines.add((deadline, moved, worker.timers, key))

    def stop_growing(self) -> None:
        """Take no more timers than there are: there is no memory for them."""
        self._max_timers = self._count

    def adopt(self, worker: Worker[P], monotonic: float) -> None:
        """Take a worker over from another table, with its timers, at this time."""
        if worker.pid in self.workers:
            worker.process.close()
            return
        self.workers[worker.pid] = worker
        self._count += len(worker.timers)
        for key, timer in worker.timers.items():
            self._deadlines.add((deadline_of(timer), timer, worker.timers, key))
            self._schedule_warning(worker, key, monotonic)

    def forget(self, worker: Worker[P]) -> None:
        """Remove a worker that has exited, and its timers (SPEC S-10)."""
        if self.workers.get(worker.pid) is worker:
            del self.workers[worker.pid]
            self._drop_timers(worker)
            worker.process.close()

    def _schedule_warning(self, worker: Worker[P], key: Key, received: float) -> None:
        warn_after, timer = self._warn_after, worker.timers[key]
        if warn_after is not None:
            allowed = deadline_of(timer) - received
            seconds = warn_after * allowed if warn_after < 1 else warn_after
            if 0 < seconds < allowed:
                self._warnings.add((received + seconds, timer, worker.timers, key))

    def _drop_timers(self, worker: Worker[P]) -> dict[Key, Record]:
        dropped, worker.timers = worker.timers, {}
        self._count -= len(dropped)
        return dropped

    def _is_from(self, record: Record, worker: Worker[P]) -> bool:
        """Whether the record comes from this very process, as far as it says (SPEC S-12)."""
        start_time, pid_ns = record.start_time, record.pid_ns
        return (start_time is UNSET or start_time == (worker.start_time or start_time)) and (
            pid_ns is UNSET or pid_ns == (self._host.pid_ns or pid_ns)
        )

    def _admit(self, record: Record, now: Now) -> Worker[P] | None:
        """Establish who acquires (SPEC S-11), or refuse."""
        reason, process = self._objection(record), None
        if reason is None:
            reason, process = self._find(record, now)
        if reason is not None:
            self._observer.refused(record, reason)
        if process is None:
            return None
        predecessor = self.workers.get(record.pid)
        if predecessor is not None:  # SPEC S-12: the pid was recycled
            self._observer.exited(predecessor, now)
            self.forget(predecessor)
        worker = self.workers[record.pid] = Worker(process)
        self._observer.admitted(worker)
        return worker

    def _find(self, record: Record, now: Now) -> tuple[str | None, P | None]:
        """The process that acquires, or why it may not."""
        if now is not self._batch:
            self._batch, self._strangers = now, {}
        stranger = self._strangers.get(record.pid)
        if stranger is not None and (reason := self._objection_to(stranger, record)) is not None:
            return reason, None
        try:
            process = self._open_process(record.pid)
        except OSError:
            return "unidentified", None
        if process is None:
            return "no_process", None
        reason = self._objection_to(process, record)
        if reason is None:
            return None, process
        process.close()
        # All records of a batch were written before this look-up, so who is a stranger to one
        # of them by its time or user stays so: a flood of such records is one look-up.
        self._strangers[record.pid] = process
        return reason, None

    # The reasons of SPEC S-11, in their order; the first that applies is reported.

    def _objection(self, record: Record) -> str | None:
        """What speaks against the record itself."""
        host = self._host
        if record.pid == 1:
            return "init"
        if record.pid == host.pid:
            return "self"  # SPEC S-13
        if _differs(host.pid_ns, record.pid_ns):
            return "foreign_pid_ns"
        return None

    def _objection_to(self, process: P, record: Record) -> str | None:
        """What speaks against its process."""
        host = self._host
        if process.zombie:
            return "zombie"
        if _differs(process.start_time, record.start_time):
            return "start_time"
        if record.start_time is UNSET and self._too_young is not None and self._too_young(process):
            return "no_process"  # the one that wrote it is gone
        if host.uid is not None and process.uid not in (None, host.uid):
            return "foreign_uid"
        if host.time_ns is not None and process.time_ns not in (None, host.time_ns):
            return "foreign_time_ns"
        return None

    def _expiry(self, worker: Worker[P], timers: list[Record]) -> Expiry[P]:
        # SPEC S-8: of several, the earliest with a signal decides; the heap gave them in order.
        decisive = next((timer for timer in timers if timer.signal > 0), None)
        if self._report_only:  # SPEC S-20
            decisive = None
        dropped = None if decisive is None else self._drop_timers(worker)
        return Expiry(worker, timers, decisive, dropped)

    def _is_set(self, record: Record) -> bool:
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
