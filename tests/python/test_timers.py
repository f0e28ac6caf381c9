"""The timer table on a virtual clock, against virtual processes.  Cases read as stories."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from filetimer.server.timers import Host, Now, TimerTable, Worker
from filetimer.wire.decoder import Record

SERVER = Host(pid=900, uid=1000, pid_ns=7, time_ns=8)
WALL = 1_767_225_600.0  # Unix time at monotonic 0


@dataclass
class VirtualProcess:
    pid: int
    start_time: int | None = 50
    uid: int | None = 1000
    time_ns: int | None = 8
    zombie: bool = False
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@dataclass
class World:
    """A table with its surroundings; ``log`` is what happened, in words."""

    processes: dict[int, VirtualProcess] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    wall_step: float = 0.0
    at: float = 0.0

    def __post_init__(self) -> None:
        self.table: TimerTable[VirtualProcess] = TimerTable(SERVER, self.processes.get, self)
        for pid in (11, 12):
            self.processes[pid] = VirtualProcess(pid)

    def now(self) -> Now:
        return Now(self.at, WALL + self.at + self.wall_step)

    def acquire(self, after: float, pid: int = 11, scope: str = "a", **fields: Any) -> None:
        fields.setdefault("signal", 9)
        fields.setdefault("expiration_time", self.now().wall + after)
        self.table.apply([Record(1, pid, scope, **fields)], self.now())

    def acquire_v2(self, after: float, pid: int = 11, scope: str = "a", **fields: Any) -> None:
        self.acquire(after, pid, scope, deadline=self.at + after, **fields)

    def release(self, pid: int = 11, scope: str = "a", **fields: Any) -> None:
        self.table.apply([Record(1, pid, scope, -1.0, 0, **fields)], self.now())

    def run_to(self, monotonic: float) -> list[str]:
        """Go to this instant as a server does, waking at each deadline; what happened then."""
        del self.log[:]
        while (deadline := self.table.next_deadline()) is not None and deadline <= monotonic:
            self.at = max(self.at, deadline)
            self.expire()
        self.at = monotonic
        self.expire()
        return self.log

    def expire(self) -> None:
        for expiry in self.table.expire(self.at):
            scopes = "+".join(timer.scope_id for timer in expiry.timers)
            action = "report" if expiry.decisive is None else f"signal {expiry.decisive.signal}"
            self.log.append(f"{self.at:g}: {expiry.worker.pid} {scopes} {action}")

    def exit(self, pid: int) -> None:
        del self.processes[pid]
        worker = self.table.workers.get(pid)
        if worker is not None:
            self.table.forget(worker)

    def admitted(self, worker: Worker[VirtualProcess]) -> None:
        self.log.append(f"admitted {worker.pid}")

    def refused(self, record: Record, reason: str) -> None:
        self.log.append(f"refused {record.pid} {reason}")

    def exited(self, worker: Worker[VirtualProcess], now: Now) -> None:
        self.log.append(f"exited {worker.pid}")


@pytest.fixture
def world() -> World:
    return World()


def test_an_acquire_expires_when_its_deadline_is_reached_not_before(world: World) -> None:
    world.acquire_v2(10)
    assert world.run_to(9.999999) == []
    assert world.run_to(10) == ["10: 11 a signal 9"]  # SPEC S-6: less than or equal
    assert world.run_to(1000) == []


def test_a_release_takes_the_timer_back(world: World) -> None:
    world.acquire(10)
    world.release()
    assert world.run_to(1000) == []


def test_a_release_that_matches_nothing_does_nothing(world: World) -> None:
    world.release()
    world.acquire(10)
    world.release(scope="b")
    world.release(pid=12)
    assert world.run_to(1000) == ["10: 11 a signal 9"]


def test_an_acquire_replaces_deadline_and_signal_of_its_key(world: World) -> None:
    world.acquire(10)
    world.acquire(20, signal=15)
    assert world.run_to(1000) == ["20: 11 a signal 15"]


def test_a_later_acquire_may_bring_the_deadline_forward(world: World) -> None:
    world.acquire(20)
    world.acquire(10)
    assert world.run_to(1000) == ["10: 11 a signal 9"]


def test_tokens_are_keys_of_their_own(world: World) -> None:
    """SPEC S-2."""
    world.acquire(10, token=1)
    world.acquire(20, token=2)
    world.acquire(30)
    world.release(token=1)
    world.release()
    world.release(token=3)
    assert world.run_to(1000) == ["20: 11 a signal 9"]


def test_token_zero_is_a_token(world: World) -> None:
    world.acquire(10, token=0)
    world.release()
    assert world.run_to(1000) == ["10: 11 a signal 9"]


def test_an_inner_timer_does_not_hide_the_outer(world: World) -> None:
    world.acquire(10, scope="outer")
    world.acquire(100, scope="inner")
    assert world.run_to(10) == ["10: 11 outer signal 9"]


def test_an_expiry_with_a_signal_clears_all_timers_of_the_worker_only(world: World) -> None:
    """SPEC S-8."""
    world.acquire(10)
    world.acquire(20, scope="b")
    world.acquire(20, pid=12)
    assert world.run_to(1000) == ["10: 11 a signal 9", "20: 12 a signal 9"]


def test_of_several_due_the_earliest_with_a_signal_decides_and_all_are_told(world: World) -> None:
    world.acquire(12, scope="late", signal=9)
    world.acquire(11, scope="early", signal=15)
    world.acquire(10, scope="mute", signal=0)
    world.at = 50
    world.expire()
    assert world.log[-1] == "50: 11 mute+early+late signal 15"


def test_equal_deadlines_go_by_arrival(world: World) -> None:
    world.acquire_v2(10, scope="first", signal=15)
    world.acquire_v2(10, scope="second", signal=9)
    assert world.run_to(10) == ["10: 11 first+second signal 15"]


@pytest.mark.parametrize("signal", [0, -1, -9])
def test_report_only_timers_are_removed_and_the_others_stay(world: World, signal: int) -> None:
    """SPEC S-9."""
    world.acquire(10, signal=signal)
    world.acquire(20, scope="b")
    assert world.run_to(15) == ["10: 11 a report"]
    assert world.run_to(1000) == ["20: 11 b signal 9"]


def test_an_acquire_that_arrives_expired_is_acted_on_at_once(world: World) -> None:
    world.at = 100
    world.acquire(-50)
    assert world.run_to(100) == ["100: 11 a signal 9"]


def test_a_worker_may_acquire_again_after_its_signal(world: World) -> None:
    world.acquire(10, signal=15)
    world.run_to(10)
    world.acquire(5)
    assert world.run_to(1000) == ["15: 11 a signal 9"]


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_a_stepped_wall_clock_moves_no_timer(world: World, step: float) -> None:
    """SPEC S-5: for version 1, the time is converted once, at receipt."""
    world.acquire(10)
    world.acquire_v2(10, pid=12)
    world.wall_step = step
    assert world.run_to(9.9) == []
    assert world.run_to(1000) == ["10: 11 a signal 9", "10: 12 a signal 9"]


def test_deadline_wins_over_expiration_time(world: World) -> None:
    world.acquire(3600, deadline=5.0)
    assert world.run_to(1000) == ["5: 11 a signal 9"]


def test_a_worker_that_exits_takes_its_timers_along(world: World) -> None:
    """SPEC S-10."""
    world.acquire(10)
    process = world.processes[11]
    world.exit(11)
    assert world.run_to(1000) == []
    assert process.closed


def test_a_recycled_pid_does_not_inherit_timers(world: World) -> None:
    """SPEC S-12: the new process says that it started later."""
    world.acquire(10, start_time=50)
    world.processes[11] = VirtualProcess(11, start_time=60)
    world.acquire(30, start_time=60, scope="new")
    assert "exited 11" in world.log
    assert world.run_to(1000) == ["30: 11 new signal 9"]


def test_a_late_record_of_a_dead_process_does_not_touch_its_successor(world: World) -> None:
    world.acquire(10, start_time=50)
    world.processes[11] = VirtualProcess(11, start_time=60)
    world.acquire(30, start_time=60)
    world.release(start_time=50)
    world.acquire(5, start_time=50)
    assert world.log[-1] == "refused 11 start_time"
    assert world.run_to(1000) == ["30: 11 a signal 9"]


def test_a_release_from_another_namespace_is_ignored(world: World) -> None:
    world.acquire(10, pid_ns=7)
    world.release(pid_ns=99)
    assert world.run_to(1000) == ["10: 11 a signal 9"]


@pytest.mark.parametrize(
    ("reason", "process", "fields"),
    [
        ("init", VirtualProcess(1), {"pid": 1}),
        ("self", VirtualProcess(900), {"pid": 900}),
        ("foreign_pid_ns", VirtualProcess(13), {"pid_ns": 99}),
        ("no_process", None, {}),
        ("zombie", VirtualProcess(13, zombie=True), {}),
        ("start_time", VirtualProcess(13, start_time=51), {"start_time": 50}),
        ("foreign_uid", VirtualProcess(13, uid=1001), {}),
        ("foreign_time_ns", VirtualProcess(13, time_ns=99), {}),
        # The first reason of the table is the one that is told.
        ("foreign_pid_ns", None, {"pid_ns": 99, "start_time": 1}),
        ("zombie", VirtualProcess(13, zombie=True, uid=5), {"start_time": 1}),
    ],
)
def test_refusals(
    world: World, reason: str, process: VirtualProcess | None, fields: dict[str, int]
) -> None:
    """SPEC S-11: nothing is armed, nothing is kept open."""
    pid = fields.get("pid", 13)
    if process is not None:
        world.processes[pid] = process
    world.acquire(10, **{"pid": 13, **fields})
    assert world.log == [f"refused {pid} {reason}"]
    assert world.run_to(1000) == []
    assert world.table.workers == {}
    assert process is None or process.closed or reason in ("init", "self", "foreign_pid_ns")


def test_what_is_unknown_is_not_compared(world: World) -> None:
    world.processes[13] = VirtualProcess(13, start_time=None, uid=None, time_ns=None)
    world.acquire(10, pid=13, start_time=5)
    assert world.run_to(1000) == ["10: 13 a signal 9"]


def test_many_pairs_do_not_grow_the_heap(world: World) -> None:
    for i in range(20_000):
        world.acquire(1000, token=i)
        world.table.next_deadline()
        world.release(token=i)
    assert len(world.table._deadlines._heap) < 3000


def test_against_a_naive_model() -> None:
    """Random stories give what a table without a heap gives."""
    for seed in range(200):
        rng = random.Random(seed)
        world, model = World(), dict[tuple[int, str, int | None], tuple[float, int]]()
        for _ in range(60):
            world.at += rng.choice([0, 0.5, 1])
            pid, scope = rng.choice([11, 12]), rng.choice("ab")
            token = rng.choice([None, 1, 2])
            fields = {} if token is None else {"token": token}
            action = rng.random()
            if action < 0.5:
                after, signal = rng.randint(0, 8), rng.choice([9, 15, 0])
                world.acquire_v2(after, pid, scope, signal=signal, **fields)
                model[pid, scope, token] = (world.at + after, signal)
            elif action < 0.8:
                world.release(pid, scope, **fields)
                model.pop((pid, scope, token), None)
            else:
                expected = {key: timer for key, timer in model.items() if timer[0] <= world.at}
                got = world.table.expire(world.at)
                assert sorted(t.deadline for e in got for t in e.timers) == sorted(
                    deadline for deadline, _ in expected.values()
                )
                killed = {e.worker.pid for e in got if e.decisive is not None}
                assert killed == {pid for (pid, _, _), (_, sig) in expected.items() if sig > 0}
                model = {
                    key: timer
                    for key, timer in model.items()
                    if key not in expected and key[0] not in killed
                }
