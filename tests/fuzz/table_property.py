"""What must hold for the timer table, whatever happens to it (``check``).

The bytes are a program: receive a record, let time pass, expire, end or recycle a process.  It is
run on the table and on a model that says SPEC section 6 in the plainest way, as a list of timers.

T-1  Table and model report the same, in the same order: who is admitted, who is refused and why,
     who has exited (SPEC S-1, S-11, S-12).
T-2  ``expire`` names exactly the workers with a due timer, each with all its due timers, earliest
     first, and the decisive one (SPEC S-6, S-8, S-9).  So no due timer is lost, and no worker is
     named without one.
T-3  ``next_deadline`` is the earliest deadline there is (so that a server does not oversleep), and
     nothing that is due is left after ``expire``.
T-4  The timers that are set are the model's.
T-5  The processes held open are those of the known workers: none leaks, none is let go of early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

from filetimer.server import deadlines
from filetimer.server.timers import Expiry, Host, Now, TimerTable, Worker, deadline_of
from filetimer.wire.decoder import UNSET, Record

T = TypeVar("T")

SERVER = Host(pid=900, uid=1000, pid_ns=7, time_ns=8)
PIDS = (11, 12, 13, 1, 900, 404)  # 404 is nobody
WALL = 1_767_225_600.0  # Unix time at monotonic 0
SMALL_REBUILD = 4  # so that short programs rebuild the heap, too
START = 50  # start time of the first processes


@dataclass
class FakeProcess:
    """A process; each look at it gives a handle, as ``open_process`` does."""

    pid: int
    start_time: int | None = START
    uid: int | None = 1000
    time_ns: int | None = 8
    zombie: bool = False
    closed: bool = False

    def close(self) -> None:
        assert not self.closed, "T-5: closed twice"
        self.closed = True

    def handle(self) -> FakeProcess:
        return FakeProcess(self.pid, self.start_time, self.uid, self.time_ns, self.zombie)


Timer = tuple[int, str, Any, float, int]  # pid, scope, token or UNSET, deadline, signal


class Model:
    """SPEC section 6 as a list."""

    def __init__(self, processes: dict[int, FakeProcess], log: list[str]) -> None:
        self.processes, self.log = processes, log
        self.known: dict[int, int | None] = {}  # worker: its start time
        self.timers: list[Timer] = []

    def apply(self, record: Record, now: Now) -> None:
        release = record.expiration_time < 0
        if not self.is_from_known(record) and (release or not self.admit(record)):
            return
        self.timers = [t for t in self.timers if t[:3] != key(record)]
        if not release:
            deadline = record.deadline
            if deadline is UNSET:
                deadline = now.monotonic + (record.expiration_time - now.wall)
            self.timers.append((*key(record), deadline, record.signal))

    def is_from_known(self, record: Record) -> bool:
        if record.pid not in self.known:
            return False
        known = self.known[record.pid]
        return (
            record.start_time is UNSET or known is None or record.start_time == known
        ) and record.pid_ns in (UNSET, SERVER.pid_ns)

    def admit(self, record: Record) -> bool:
        reason = self.refusal(record)
        if reason:
            self.log.append(f"refused {record.pid} {reason}")
            return False
        if record.pid in self.known:
            self.log.append(f"exited {record.pid}")
            self.forget(record.pid)
        self.known[record.pid] = self.processes[record.pid].start_time
        self.log.append(f"admitted {record.pid}")
        return True

    def refusal(self, record: Record) -> str | None:
        """The table of SPEC S-11, row by row."""
        process = self.processes.get(record.pid)
        if record.pid == 1:
            return "init"
        if record.pid == SERVER.pid:
            return "self"
        if record.pid_ns not in (UNSET, SERVER.pid_ns):
            return "foreign_pid_ns"
        if process is None:
            return "no_process"
        if process.zombie:
            return "zombie"
        if record.start_time is not UNSET and process.start_time not in (None, record.start_time):
            return "start_time"
        if process.uid not in (None, SERVER.uid):
            return "foreign_uid"
        if process.time_ns not in (None, SERVER.time_ns):
            return "foreign_time_ns"
        return None

    def forget(self, pid: int) -> None:
        self.known.pop(pid, None)
        self.clear(pid)

    def clear(self, pid: int) -> None:
        self.timers = [t for t in self.timers if t[0] != pid]

    def next_deadline(self) -> float | None:
        return min((t[3] for t in self.timers), default=None)

    def expire(self, monotonic: float) -> dict[int, tuple[list[Timer], Timer | None]]:
        """By worker, in the order of their first due timers: what is due, and what decides."""
        due = sorted((t for t in self.timers if t[3] <= monotonic), key=lambda t: t[3])
        self.timers = [t for t in self.timers if t not in due]
        found: dict[int, tuple[list[Timer], Timer | None]] = {}
        for pid in dict.fromkeys(t[0] for t in due):
            mine = [t for t in due if t[0] == pid]
            decisive = next((t for t in mine if t[4] > 0), None)
            if decisive is not None:
                self.clear(pid)
            found[pid] = (mine, decisive)
        return found


def key(record: Record) -> tuple[int, str, Any]:
    return (record.pid, record.scope_id, record.token)


def timer(record: Record) -> Timer:
    return (*key(record), deadline_of(record), record.signal)


class Run:
    """One program on table and model.  The table tells it what happens."""

    def __init__(self, program: bytes) -> None:
        self.program, self.at = program, 0
        self.processes = {pid: FakeProcess(pid) for pid in (1, 11, 12, 13, 900)}
        self.handles: list[FakeProcess] = []
        self.table_log: list[str] = []
        self.model_log: list[str] = []
        self.monotonic, self.wall_step = 0.0, 0.0
        self.model = Model(self.processes, self.model_log)
        with mock.patch.object(deadlines, "MIN_REBUILD", SMALL_REBUILD):
            self.table: TimerTable[FakeProcess] = TimerTable(SERVER, self.open, self)

    # What the table asks and tells.

    def open(self, pid: int) -> FakeProcess | None:
        if pid not in self.processes:
            return None
        self.handles.append(self.processes[pid].handle())
        return self.handles[-1]

    def admitted(self, worker: Worker[FakeProcess]) -> None:
        self.table_log.append(f"admitted {worker.pid}")

    def refused(self, record: Record, reason: str) -> None:
        self.table_log.append(f"refused {record.pid} {reason}")

    def exited(self, worker: Worker[FakeProcess], now: Now) -> None:
        self.table_log.append(f"exited {worker.pid}")

    # The program.

    def number(self) -> int:
        """The next byte; 0 after the end."""
        self.at += 1
        return self.program[self.at - 1] if self.at <= len(self.program) else 0

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.number() % len(choices)]

    def run(self) -> None:
        with mock.patch.object(deadlines, "MIN_REBUILD", SMALL_REBUILD):
            while self.at < len(self.program):
                self.pick(STEPS)(self)
                assert self.table_log == self.model_log, "T-1"
        self.check_timers()
        self.sleep_long()
        assert self.table.next_deadline() is None, "T-3: something was left behind"

    def now(self) -> Now:
        return Now(self.monotonic, WALL + self.monotonic + self.wall_step)

    def acquire(self) -> None:
        now = self.now()
        after = self.pick((0, 1, 1, 2, 3, 5, 8, 100, -1, -100))
        record = self.record(now.wall + after, self.pick((9, 9, 15, 64, 0, -1)))
        if self.number() % 2:
            record.deadline = max(0.0, now.monotonic + after)
        self.receive(record)

    def release(self) -> None:
        self.receive(self.record(-1.0, self.pick((0, 9))))

    def record(self, expiration_time: float, signal: int) -> Record:
        pid = self.pick(PIDS)
        return Record(
            2,
            pid,
            self.pick(("a", "b", "c")),
            expiration_time,
            signal,
            start_time=self.pick((UNSET, UNSET, START, START + 1, START + 2)),
            pid_ns=self.pick((UNSET, UNSET, 7, 6)),
            token=self.pick((UNSET, UNSET, 0, 1)),
        )

    def receive(self, record: Record) -> None:
        self.model.apply(record, self.now())  # first: the table completes the record
        self.table.apply([record], self.now())

    def sleep(self) -> None:
        self.monotonic += self.pick((0, 0.5, 1, 1, 2, 5, 50))
        self.expire()

    def sleep_long(self) -> None:
        self.monotonic += 1000.0
        self.expire()

    def step_wall_clock(self) -> None:
        self.wall_step += self.pick((3600.0, -3600.0, 1.0, -1.0))

    def expire(self) -> None:
        got = {e.worker.pid: _told(e) for e in self.table.expire(self.monotonic)}
        want = self.model.expire(self.monotonic)
        assert list(got.items()) == list(want.items()), ("T-2", got, want)
        self.look()
        deadline = self.table.next_deadline()
        assert deadline is None or deadline > self.monotonic, "T-3"

    def look(self) -> None:
        assert self.table.next_deadline() == self.model.next_deadline(), "T-3"

    def check_timers(self) -> None:
        assert sorted(map(timer, self.table.live_timers()), key=str) == sorted(
            self.model.timers, key=str
        ), "T-4"
        held = [handle for handle in self.handles if not handle.closed]
        known = [worker.process for worker in self.table.workers.values()]
        assert sorted(map(id, held)) == sorted(map(id, known)), "T-5"

    def look_ahead(self) -> None:
        """What ``get_expired_timers`` asks: it must change nothing."""
        limit = self.monotonic + self.pick((0, 1, 10))
        found = self.table.expired_by(limit)
        got = sorted((timer(t) for due in found.values() for t in due), key=str)
        assert got == sorted((t for t in self.model.timers if t[3] <= limit), key=str), "T-4"

    def clear(self) -> None:
        pid = self.pick(PIDS)
        self.table.clear(pid)
        self.model.clear(pid)

    def exit_seen(self) -> None:
        """A process ends, and the server hears of it (SPEC S-10)."""
        pid = self.pick((11, 12, 13))
        self.processes.pop(pid, None)
        worker = self.table.workers.get(pid)
        if worker is not None:
            self.table.forget(worker)
        self.model.forget(pid)

    def exit_unseen(self) -> None:
        self.processes.pop(self.pick((11, 12, 13)), None)

    def start(self) -> None:
        """A new process, perhaps with the pid of one of which the server still knows."""
        pid = self.pick((11, 12, 13))
        self.processes[pid] = FakeProcess(
            pid,
            start_time=self.pick((START, START + 1, START + 2, None)),
            uid=self.pick((1000, 1000, 1000, 1001, None)),
            time_ns=self.pick((8, 8, 8, 9, None)),
            zombie=self.pick((False, False, False, True)),
        )


STEPS = (
    Run.acquire,
    Run.acquire,
    Run.acquire,
    Run.release,
    Run.sleep,
    Run.sleep,
    Run.expire,
    Run.look,
    Run.check_timers,
    Run.look_ahead,
    Run.clear,
    Run.step_wall_clock,
    Run.exit_seen,
    Run.exit_unseen,
    Run.start,
)


def _told(expiry: Expiry[FakeProcess]) -> tuple[list[Timer], Timer | None]:
    decisive = None if expiry.decisive is None else timer(expiry.decisive)
    return [timer(t) for t in expiry.timers], decisive


def check(program: bytes) -> None:
    """Raises AssertionError, or whatever the table raises, if one of the above does not hold."""
    Run(program).run()
