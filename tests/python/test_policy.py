"""What a server does on request: report only, warn, reap trees, hold the deadlines of the stopped.

The rules run on a virtual clock; what concerns processes runs with real ones, which these tests
start themselves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, EventList, StartWorker, eventually
from test_file_server import HANG, record, write_line
from test_timers import SERVER, VirtualProcess, World

import filetimer as timer
from filetimer.server import descendants as descendants_module
from filetimer.server.events import EventReporter
from filetimer.server.policy import Policy
from filetimer.server.process import Listed, ProcessHandle, all_processes, open_process
from filetimer.server.stopped import LOOK, StoppedWorkers
from filetimer.server.timers import Host, Now, TimerTable
from filetimer.server.watchdog import Watchdog
from filetimer.wire.decoder import Record


def world_with(**policy: Any) -> World:
    world = World()
    world.table = TimerTable(SERVER, world.processes.get, world, Policy(**policy))
    return world


@contextmanager
def serving(path: str, events: EventList, **policy: Any) -> Iterator[timer.FileTimerServer]:
    server = timer.FileTimerServer(path, "test", on_event=events, **policy)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class TestReportOnly:
    def test_every_expiry_is_reported_and_the_other_timers_stay(self) -> None:
        world = world_with(report_only=True)
        world.acquire(10, scope="a")
        world.acquire(20, scope="b", signal=15)
        assert world.run_to(30) == ["10: 11 a report", "20: 11 b report"]

    def test_nobody_is_signalled_and_the_event_says_so(
        self, fifo_path: str, events: EventList, sleeper: subprocess.Popen[str]
    ) -> None:
        with serving(fifo_path, events, report_only=True, kill_after=0.01, reap_tree=True):
            write_line(fifo_path, record(sleeper.pid, scope="a"))
            write_line(fifo_path, record(sleeper.pid, 0.1, scope="b"))
            first, second = events.wait_for("timer expired", 2)
        assert sleeper.poll() is None
        assert (first.scope_id, second.scope_id) == ("a", "b")
        assert (first.signal, first.detail) == (0, "SIGKILL was not sent")
        assert {event.name for event in events} == {
            "watchdog started",
            "timer expired",
            "watchdog stopped",
        }


class TestWarnAfter:
    @pytest.mark.parametrize(
        ("warn_after", "at"),
        [(0.25, 2.5), (0.99, 9.9), (1, 1.0), (9.5, 9.5), (10, None), (60, None)],
    )
    def test_a_fraction_below_one_and_seconds_from_one_on(
        self, warn_after: float, at: float | None
    ) -> None:
        world = world_with(warn_after=warn_after)
        world.acquire_v2(10)
        assert world.table.next_warning() == at

    def test_each_timer_is_overdue_once_and_only_while_it_lives(self) -> None:
        world = world_with(warn_after=0.5)
        world.acquire_v2(10, scope="slow")
        world.acquire_v2(10, scope="quick")
        world.release(scope="quick")
        assert world.table.overdue(4.9) == []
        assert [timer.scope_id for timer in world.table.overdue(5.0)] == ["slow"]
        assert world.table.overdue(9.0) == []
        assert world.run_to(10) == ["10: 11 slow signal 9"]

    def test_nothing_is_overdue_that_has_expired(self) -> None:
        world = world_with(warn_after=0.5)
        world.acquire_v2(10)
        world.run_to(10)
        assert world.table.overdue(10) == []

    def test_an_event_tells_before_the_deadline(
        self, fifo_path: str, events: EventList, sleeper: subprocess.Popen[str]
    ) -> None:
        with serving(fifo_path, events, warn_after=0.001):
            write_line(fifo_path, record(sleeper.pid, 60, scope="slow"))
            (overdue,) = events.wait_for("timer overdue")
        assert (overdue.pid, overdue.scope_id) == (sleeper.pid, "slow")
        assert overdue.detail is not None
        assert overdue.detail.endswith("s before its deadline")
        assert sleeper.poll() is None

    @pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
    def test_a_value_that_makes_no_sense_is_refused(self, value: float) -> None:
        with pytest.raises(ValueError, match="warn_after must be"):
            Policy(warn_after=value)


class TestKillAfter:
    @pytest.mark.parametrize("value", [-1, float("inf"), float("nan")])
    def test_a_value_that_makes_no_sense_is_refused(self, value: float) -> None:
        with pytest.raises(ValueError, match="kill_after must be"):
            Policy(kill_after=value)


FAMILY = """
    import subprocess, sys, time, filetimer as timer
    nap = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, time; "
         f"print(subprocess.Popen({nap!r}).pid, flush=True); time.sleep(600)"],
        stdout=subprocess.PIPE, text=True, start_new_session=True)
    print(child.pid, child.stdout.readline().strip(), flush=True)
    sys.stdin.readline()
    timer.configure_from_env()
    with timer.expires(0.05, scope="stuck"):
        time.sleep(600)
"""


@pytest.fixture
def family(start_worker: StartWorker) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A worker that hangs when it reads a line; the pids of its child and grandchild."""
    worker = start_worker(FAMILY)
    assert worker.stdout is not None
    pids = [int(pid) for pid in worker.stdout.readline().split()]
    handles = [os.pidfd_open(pid) for pid in pids]
    yield worker, pids
    for handle in handles:
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(handle)


def runs(pid: int) -> bool:
    process = open_process(pid)
    if process is None:
        return False
    process.close()
    return not process.zombie


def hang(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin is not None
    worker.stdin.write("\n")
    worker.stdin.flush()


class TestReapTree:
    def test_descendants_go_with_the_worker(
        self, fifo_path: str, events: EventList, family: Any, sleeper: subprocess.Popen[str]
    ) -> None:
        worker, pids = family
        with serving(fifo_path, events, reap_tree=True):
            hang(worker)
            assert worker.wait(PATIENCE) == -signal.SIGKILL
            eventually(lambda: not any(map(runs, pids)))
            (kill,) = events.wait_for("kill worker process")
        assert kill.detail == "and 2 descendants"
        assert sleeper.poll() is None  # a sibling of the worker

    def test_they_stay_unless_it_is_asked_for(
        self, fifo_path: str, events: EventList, family: Any
    ) -> None:
        worker, pids = family
        with serving(fifo_path, events):
            hang(worker)
            assert worker.wait(PATIENCE) == -signal.SIGKILL
            events.wait_for("worker died")
        assert all(map(runs, pids))

    def test_a_descendant_that_outlives_the_signal_is_killed_after_a_while(
        self, fifo_path: str, events: EventList, start_worker: StartWorker
    ) -> None:
        worker = start_worker(
            """
            import signal, subprocess, sys, time, filetimer as timer
            child = subprocess.Popen([sys.executable, "-c",
                "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
                "print('deaf', flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
            child.stdout.readline()
            print(child.pid, flush=True)
            timer.configure_from_env(signal=signal.SIGTERM)
            with timer.expires(0.05, scope="stuck"):
                time.sleep(600)
            """
        )
        with serving(fifo_path, events, reap_tree=True, kill_after=0.3):
            assert worker.stdout is not None
            child = int(worker.stdout.readline())
            assert worker.wait(PATIENCE) == -signal.SIGTERM
            eventually(lambda: not runs(child))

    def test_the_server_and_those_that_it_descends_from_are_spared(self) -> None:
        """A worker that has started its server: the server lives, and so does its parent."""
        me, parent = os.getpid(), 70_000_001
        processes = {
            me: Listed(parent, parent, 5),
            parent: Listed(70_000_000, 70_000_000, 4),
            70_000_000: Listed(1, 70_000_000, 3),  # the worker
            70_000_002: Listed(parent, 70_000_002, 6),
            70_000_003: Listed(1, 70_000_000, 6),  # in its group; its parent is gone
            70_000_004: Listed(1, 70_000_004, 6),  # a stranger
        }
        worker = ProcessHandle(70_000_000, pidfd=None)
        assert descendants_module._family(worker, processes) == [70_000_002, 70_000_003]

    def test_a_worker_that_is_gone_has_no_descendants(self, sleeper: subprocess.Popen[str]) -> None:
        process = open_process(sleeper.pid)
        assert process is not None
        assert sleeper.pid in all_processes()
        assert descendants_module.descendants(process) == []
        sleeper.kill()
        sleeper.wait(PATIENCE)
        assert descendants_module.descendants(process) == []
        process.close()


class StoppableProcess(VirtualProcess):
    letter = "S"

    __hash__ = object.__hash__

    def state(self) -> str:
        return self.letter


class TestHoldStopped:
    def hold(self, world: World, stopped: StoppedWorkers, at: float) -> bool:
        world.at = at
        return stopped.hold(world.table, at)  # type: ignore[arg-type]

    def test_deadlines_move_by_the_time_that_a_worker_is_stopped(self) -> None:
        world, stopped = World(), StoppedWorkers(EventReporter())
        process = world.processes[11] = StoppableProcess(11)
        world.processes[12] = StoppableProcess(12)
        world.acquire_v2(2)
        world.acquire_v2(2, pid=12)
        assert not self.hold(world, stopped, 0.0)
        process.letter = "T"
        assert self.hold(world, stopped, LOOK)
        assert self.hold(world, stopped, 5 * LOOK)
        process.letter = "S"
        assert self.hold(world, stopped, 6 * LOOK)  # the time up to this look counts as stopped
        assert not self.hold(world, stopped, 7 * LOOK)
        moved = 2 + 6 * LOOK
        assert world.run_to(moved - 0.01) == [f"{7 * LOOK:g}: 12 a signal 9"]
        assert world.run_to(moved) == [f"{moved:g}: 11 a signal 9"]

    @pytest.mark.parametrize("letter", ["S", "T"])
    def test_time_without_timers_is_not_held(self, letter: str) -> None:
        process = StoppableProcess(50)
        process.start_time = None
        watchdog: Any = Watchdog(Host(1), EventReporter(), policy=Policy(hold_stopped=True))
        watchdog.table._open_process = lambda pid: process

        def go(at: float, *records: Record) -> None:
            watchdog.receive(records, Now(at, at))
            watchdog.enforce(at)

        go(0.0, Record(1, 50, "a", 10.0, 9))
        process.letter = "T"
        go(LOOK)
        assert watchdog.table.next_deadline() > 10.0
        process.letter = letter
        go(1.5 * LOOK, Record(1, 50, "a", -1.0, 0))
        go(3600.0, Record(1, 50, "b", 3610.0, 9))  # nobody looked for an hour
        process.letter = "S"
        go(3600.0 + LOOK)
        go(3600.0 + 2 * LOOK)
        assert watchdog.table.next_deadline() <= 3610.0 + 2 * LOOK

    def test_a_worker_that_is_stopped_for_long_never_expires(self) -> None:
        world, stopped = World(), StoppedWorkers(EventReporter())
        process = world.processes[11] = StoppableProcess(11)
        process.letter = "t"
        world.acquire_v2(0.1)
        for _ in range(1000):
            at = stopped.next_look(world.table)
            assert at is not None
            self.hold(world, stopped, max(at, world.at))
            assert world.table.expire(world.at) == []
        assert world.at > 100

    def test_the_stopped_lives_and_is_reaped_after_it_goes_on(
        self, fifo_path: str, events: EventList, sleeper: subprocess.Popen[str]
    ) -> None:
        with serving(fifo_path, events, hold_stopped=True):
            sleeper.send_signal(signal.SIGSTOP)
            eventually(lambda: state_of(sleeper.pid) == "T")
            write_line(fifo_path, record(sleeper.pid, 0.2))
            (held,) = events.wait_for("worker held")
            time.sleep(1.0)
            assert events.named("timer expired") == []
            assert sleeper.poll() is None
            sleeper.send_signal(signal.SIGCONT)
            assert sleeper.wait(PATIENCE) == -signal.SIGKILL
        assert (held.pid, held.detail) == (sleeper.pid, "it is stopped")

    def test_a_worker_that_is_not_stopped_is_reaped(
        self, fifo_path: str, events: EventList, start_worker: StartWorker
    ) -> None:
        with serving(fifo_path, events, hold_stopped=True):
            assert start_worker(HANG).wait(PATIENCE) == -signal.SIGKILL
        assert events.named("worker held") == []

    def test_without_it_a_stopped_worker_is_reaped(
        self, fifo_path: str, events: EventList, sleeper: subprocess.Popen[str]
    ) -> None:
        with serving(fifo_path, events):
            sleeper.send_signal(signal.SIGSTOP)
            write_line(fifo_path, record(sleeper.pid, 0.1))
            assert sleeper.wait(PATIENCE) == -signal.SIGKILL


class TestWithEvidence:
    """A signal that is held back for evidence (SPEC S-19) beside each of the policies."""

    def test_report_only_collects_none(
        self, fifo_path: str, events: EventList, sleeper: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        directory = tmp_path / "evidence"
        with serving(fifo_path, events, report_only=True, evidence=str(directory)):
            write_line(fifo_path, record(sleeper.pid))
            events.wait_for("timer expired")
            time.sleep(0.5)
        assert sleeper.poll() is None
        assert not directory.exists()

    def test_descendants_go_when_the_evidence_is_complete(
        self, fifo_path: str, events: EventList, family: Any, tmp_path: Path
    ) -> None:
        worker, pids = family
        with serving(fifo_path, events, reap_tree=True, evidence=str(tmp_path / "evidence")):
            hang(worker)
            assert worker.wait(PATIENCE) == -signal.SIGKILL
            eventually(lambda: not any(map(runs, pids)))
            (kill,) = events.wait_for("kill worker process")
        assert kill.detail == "and 2 descendants"
        assert kill.evidence is not None
        assert os.path.exists(kill.evidence)

    def test_a_worker_that_is_stopped_while_its_signal_is_held_is_reaped_all_the_same(
        self, fifo_path: str, events: EventList, sleeper: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        """No record takes a held signal back, and no stop puts it off: the time is bounded."""
        directory = str(tmp_path / "evidence")
        with serving(
            fifo_path, events, hold_stopped=True, evidence=directory, evidence_budget=2.0
        ) as server:
            server._watchdog.holding._collector.finished = dict  # type: ignore
            write_line(fifo_path, record(sleeper.pid))
            events.wait_for("timer expired")
            sleeper.send_signal(signal.SIGSTOP)
            assert sleeper.wait(PATIENCE) == -signal.SIGKILL
            (kill,) = events.wait_for("kill worker process")
        assert events.named("worker held") == []
        assert kill.late is not None
        assert kill.late >= 2.0  # the budget, and no more than what a busy machine adds


def state_of(pid: int) -> str | None:
    process = open_process(pid)
    if process is None:
        return None
    try:
        return process.state()
    finally:
        process.close()
