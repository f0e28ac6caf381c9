"""Signals that are held back for evidence, on a virtual clock and with a virtual collector."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_timers import VirtualProcess, World

from filetimer.server.findings import NO_FINDINGS, Findings
from filetimer.server.holding import Holding
from filetimer.server.journal import Journal, State, own_records, read_journal
from filetimer.server.timers import HELD_TOKEN, Expiry, Worker
from filetimer.wire.decoder import Rejection, judge_line

BUDGET = 3.0
FOUND = Findings("report.txt", "f (file.py:1)")


class VirtualCollector:
    """Collects for as long as the test likes; ``complete`` says that a worker's is done."""

    budget = BUDGET

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.complete: dict[int, Findings] = {}

    def begin(
        self, expiry: Expiry[VirtualProcess], group: list[Worker[VirtualProcess]], now: float
    ) -> None:
        self.begun.append(expiry.worker.pid)

    def finished(self) -> dict[int, Findings]:
        complete, self.complete = self.complete, {}
        return complete

    def give_up(self, pid: int) -> Findings:
        return NO_FINDINGS

    def close(self) -> None:
        pass


class HoldingWorld(World):
    """A world whose passes hold signals back, as the watchdog's do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.collector = VirtualCollector()
        self.holding = Holding(self.table, self.collector)  # type: ignore[arg-type]

    def expire(self) -> None:
        expiries = self.table.expire(self.at)
        kills = self.holding.due(expiries)  # type: ignore[arg-type]
        for expiry in expiries:
            if expiry.decisive is not None:
                assert self.holding.hold(expiry, self.at)  # type: ignore[arg-type]
        for kill in kills:
            self.log.append(f"{self.at:g}: kill {kill.process.pid} {kill.findings.where}")


@pytest.fixture
def world() -> HoldingWorld:
    return HoldingWorld()


def test_the_signal_goes_when_the_budget_is_over(world: HoldingWorld) -> None:
    world.acquire(5)
    assert world.run_to(7.9) == []
    assert world.run_to(20) == ["8: kill 11 None"]
    assert world.collector.begun == [11]


def test_the_signal_goes_when_the_evidence_is_complete(world: HoldingWorld) -> None:
    world.acquire(5)
    world.run_to(6)
    world.collector.complete = {11: FOUND}
    assert world.run_to(6.5) == ["6.5: kill 11 f (file.py:1)"]
    assert world.run_to(20) == []


def test_evidence_that_is_complete_as_the_budget_ends_is_no_second_signal(
    world: HoldingWorld,
) -> None:
    world.acquire(5)
    world.run_to(6)
    world.collector.complete = {11: FOUND}
    assert world.run_to(8) == ["8: kill 11 None"]
    assert world.run_to(20) == []


def test_no_record_can_name_what_is_held(world: HoldingWorld) -> None:
    """SPEC S-19: not even one of the same scope, and not one that knows the token."""
    world.acquire(5)
    world.run_to(6)
    world.release()
    world.release(token=2**53 - 1)
    record = {"version": 2, "pid": 11, "scope_id": "a", "expiration_time": -1.0, "signal": 0}
    (verdict,) = judge_line(json.dumps(record | {"token": HELD_TOKEN}).encode())
    assert isinstance(verdict, Rejection)
    assert world.run_to(20) == ["8: kill 11 None"]


def test_a_compacted_journal_keeps_what_is_held(world: HoldingWorld, tmp_path: Path) -> None:
    world.acquire(5)
    world.acquire(60, pid=12)
    world.run_to(6)
    path = str(tmp_path / "journal")
    header = b'{"journal": 2}\n'
    Journal(path, header, State(), world.now()).compact(
        State(world.table.workers.values(), b"half a li"), world.now()
    )
    received, own = read_journal(path, world.now())[1]
    assert (received.own, own.own) == (False, True)
    assert received.data.endswith(b"half a li")
    assert b'"pid": 12' in received.data
    assert b'"pid": 11' not in received.data
    (stand_in,) = own_records(own)
    assert (stand_in.pid, stand_in.token, stand_in.deadline) == (11, HELD_TOKEN, 8.0)
