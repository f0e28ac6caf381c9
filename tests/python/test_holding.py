"""Signals that are held back (SPEC S-19), on a virtual clock and with a virtual collector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support import EventList

from filetimer.server.events import EventReporter
from filetimer.server.findings import NO_FINDINGS, Findings
from filetimer.server.journal import Journal, State, own_records, read_journal
from filetimer.server.timers import HELD_TOKEN, Host, Now
from filetimer.server.watchdog import Watchdog
from filetimer.wire.decoder import Record, Rejection, judge_line

BUDGET = 3.0
FINDINGS = Findings("/evidence/report.txt", "read (libc.so.6)")


class VirtualProcess:
    pidfd = None
    start_time = None
    uid = None
    time_ns = None
    zombie = False

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.signals: list[int] = []

    def send_signal(self, signum: int) -> None:
        self.signals.append(signum)

    def is_alive(self) -> bool:
        return True

    def state(self) -> str:
        return "S"

    def close(self) -> None:
        pass


class VirtualCollector:
    """Completes when it is told to."""

    budget = BUDGET

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.given_up: list[int] = []
        self.complete: dict[int, Findings] = {}

    def begin(self, expiry: Any, group: Any, now: float) -> None:
        self.begun.append(expiry.worker.pid)

    def finished(self) -> dict[int, Findings]:
        complete, self.complete = self.complete, {}
        return complete

    def give_up(self, pid: int) -> Findings:
        self.given_up.append(pid)
        return self.complete.get(pid, NO_FINDINGS)

    def close(self) -> None:
        pass


class World:
    def __init__(self, *pids: int) -> None:
        self.processes = {pid: VirtualProcess(pid) for pid in pids}
        self.events = EventList()
        self.collector = VirtualCollector()
        self.watchdog = Watchdog(
            Host(pid=1000), EventReporter(on_event=self.events), collector=self.collector
        )
        self.watchdog.table._open_process = self.processes.get  # type: ignore[assignment]

    def acquire(self, pid: int, deadline: float, scope: str = "step", signal: int = 9) -> None:
        record = Record(2, pid, scope, deadline, signal, deadline=deadline)
        self.watchdog.receive([record], Now(0.0, 0.0))

    def release(self, pid: int, scope: str = "step") -> None:
        self.watchdog.receive([Record(2, pid, scope, -1.0, 0)], Now(0.0, 0.0))

    def enforce(self, at: float) -> None:
        self.watchdog.enforce(at)

    def kills(self) -> list[tuple[int | None, str | None, str | None]]:
        named = self.events.named("kill worker process")
        return [(event.pid, event.scope_id, event.where) for event in named]


def test_the_signal_waits_for_the_evidence() -> None:
    world = World(50)
    world.acquire(50, 10.0)
    world.enforce(10.0)
    world.enforce(11.0)
    assert (world.collector.begun, world.processes[50].signals) == ([50], [])
    world.collector.complete = {50: FINDINGS}
    world.enforce(11.5)
    assert world.processes[50].signals == [9]
    assert world.kills() == [(50, "step", "read (libc.so.6)")]
    world.enforce(20.0)
    assert world.processes[50].signals == [9]


def test_the_signal_waits_no_longer_than_the_budget() -> None:
    world = World(50)
    world.acquire(50, 10.0)
    world.enforce(10.0)
    assert world.watchdog.next_due() == 10.0 + BUDGET
    world.enforce(10.0 + BUDGET)
    assert (world.collector.given_up, world.processes[50].signals) == ([50], [9])
    world.collector.complete = {50: FINDINGS}  # late
    world.enforce(20.0)
    assert world.processes[50].signals == [9]


def test_evidence_that_is_complete_in_the_pass_in_which_the_budget_ends() -> None:
    """One signal, one event, and what was found is not lost."""
    world = World(50)
    world.acquire(50, 10.0)
    world.enforce(10.0)
    world.collector.complete = {50: FINDINGS}
    world.enforce(10.0 + BUDGET)
    world.enforce(20.0)
    assert world.processes[50].signals == [9]
    assert world.kills() == [(50, "step", "read (libc.so.6)")]


def test_of_two_one_is_overdue_and_the_other_complete() -> None:
    world = World(50, 51)
    world.acquire(50, 10.0)
    world.acquire(51, 12.0)
    world.enforce(10.0)
    world.enforce(12.0)
    world.collector.complete = {51: FINDINGS}
    world.enforce(10.0 + BUDGET)
    assert [world.processes[pid].signals for pid in (50, 51)] == [[9], [9]]
    assert sorted(world.kills(), key=str) == [
        (50, "step", None), (51, "step", "read (libc.so.6)"),
    ]  # fmt: skip


def test_no_record_takes_the_signal_back() -> None:
    world = World(50)
    world.acquire(50, 10.0)
    world.enforce(10.0)
    world.release(50)
    world.acquire(50, 1000.0, "next")
    world.enforce(10.0 + BUDGET)
    assert world.processes[50].signals == [9]
    assert world.kills() == [(50, "step", None)]


def test_timers_that_expire_meanwhile_begin_no_second_collection() -> None:
    world = World(50)
    world.acquire(50, 10.0)
    world.enforce(10.0)
    world.acquire(50, 11.0, "next")
    world.enforce(11.0)
    assert world.collector.begun == [50]
    world.enforce(10.0 + BUDGET)
    assert world.kills() == [(50, "step", None)]


def test_a_client_with_the_largest_token_is_a_client() -> None:
    """The server's own timers have one that no record can carry."""
    world = World(50, 51)
    for pid, signal in ((50, 15), (51, 0)):
        record = Record(2, pid, "step", 10.0, signal, deadline=10.0, token=2**53 - 1)
        world.watchdog.receive([record], Now(0.0, 0.0))
    world.enforce(10.0)
    assert [event.pid for event in world.events.named("timer expired")] == [50, 51]
    assert (world.collector.begun, world.processes[51].signals) == ([50], [])
    world.release(50)
    world.enforce(10.0 + BUDGET)
    assert [world.processes[pid].signals for pid in (50, 51)] == [[15], []]


def test_a_timer_that_only_reports_is_not_held() -> None:
    world = World(50)
    world.acquire(50, 10.0, signal=0)
    world.enforce(10.0)
    assert world.collector.begun == []
    assert [event.scope_id for event in world.events.named("timer expired")] == ["step"]


def test_no_record_can_name_what_is_held() -> None:
    record = {"version": 2, "pid": 50, "scope_id": "step", "expiration_time": -1.0, "signal": 0}
    (verdict,) = judge_line(json.dumps(record | {"token": HELD_TOKEN}).encode())
    assert isinstance(verdict, Rejection)


def test_a_compacted_journal_keeps_what_is_held(tmp_path: Path) -> None:
    world = World(50, 51)
    world.acquire(50, 10.0)
    world.acquire(51, 60.0)
    world.enforce(10.0)
    path, now = str(tmp_path / "journal"), Now(10.0, 10.0)
    journal = Journal(path, b'{"journal": 2}\n', State(), now)
    journal.compact(State(world.watchdog.table.workers.values(), b"half a li"), now)
    received, own = read_journal(path, now)[1]
    assert (received.own, own.own) == (False, True)
    assert received.data.endswith(b"half a li")
    assert b'"pid":51' in received.data
    assert b'"pid":50' not in received.data
    (stand_in,) = own_records(own)
    assert (stand_in.pid, stand_in.token, stand_in.deadline) == (50, HELD_TOKEN, 10.0 + BUDGET)
