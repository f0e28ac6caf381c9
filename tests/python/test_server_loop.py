"""When a server's loop sleeps, and for how long: on a virtual clock, with a virtual kernel."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from filetimer.server import loop as loop_module
from filetimer.server import waiter as waiter_module
from filetimer.server.events import EventReporter
from filetimer.server.fifo import LARGE, SMALL, ServerFifo
from filetimer.server.fifo_source import FifoSource
from filetimer.server.loop import MANY, REST, ServerLoop, read_clocks
from filetimer.server.timers import Host, Now
from filetimer.server.waiter import AWAKE, PRECISE, Waiter
from filetimer.server.watchdog import Watchdog
from filetimer.wire.decoder import Record

FOREVER = float("inf")
MOMENT = 1e-6  # seconds that everything takes: else a virtual clock would stand still


class VirtualClock:
    """The ``time`` of the modules under test, and the kernel's poll."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.ready: list[int] = []
        self.ready_after = 0.0

    def monotonic(self) -> float:
        self.now += MOMENT
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += seconds

    def poll(self, milliseconds: int) -> list[tuple[int, int]]:
        """Late by what it likes, below a millisecond."""
        if self.ready:
            self.now += self.ready_after
        else:
            self.now += (milliseconds + 0.9 * (milliseconds > 0)) / 1000
        return [(fd, 1) for fd in self.ready]

    def register(self, fd: int, events: int) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    clock = VirtualClock()
    monkeypatch.setattr(waiter_module, "time", clock)
    monkeypatch.setattr(waiter_module, "_new_poller", lambda: clock)
    monkeypatch.setattr(waiter_module, "_new_epoll", lambda: None)
    monkeypatch.setattr(loop_module, "time", clock)
    return clock


@pytest.fixture
def waiter(clock: VirtualClock) -> Iterable[Waiter]:
    waiter = Waiter(99)
    yield waiter
    waiter.close()


@pytest.mark.parametrize("after", [0.0001, 0.0015, 0.003, 0.01, 1.2345, 500.0])
def test_it_is_awake_before_the_deadline_and_on_time(
    clock: VirtualClock, waiter: Waiter, after: float
) -> None:
    deadline = clock.now + after
    moments = []
    while clock.now < deadline:
        waiter.wait(FOREVER, deadline)
        moments.append(clock.now)
    assert clock.now - deadline < 5 * MOMENT
    if after > AWAKE:  # the passes of the last half of a millisecond keep the caches warm
        first_awake = next(moment for moment in moments if deadline - moment <= AWAKE)
        assert deadline - first_awake > AWAKE - 5 * MOMENT
        assert moments.index(first_awake) <= 3


def test_what_is_not_urgent_may_be_a_little_late(clock: VirtualClock, waiter: Waiter) -> None:
    until = clock.now + 1.0
    waiter.wait(until, FOREVER)
    assert until <= clock.now < until + 2 * PRECISE
    assert clock.slept == []


class OneChunk:
    """A source whose descriptor is always ready; it has these records, once."""

    def __init__(self, records: list[Record]) -> None:
        self.received: list[Record] = records

    def fileno(self) -> int:
        return 99

    def receive(self, now: Now, urgent: bool) -> list[Record]:
        received, self.received = self.received, []
        return received

    def acted(self, *_: object) -> None:
        pass

    def keep(self, *_: object) -> None:
        pass

    def written_by(self, now: Now) -> float:
        return now.monotonic

    def close(self) -> None:
        pass


def loop_of(records: int) -> tuple[ServerLoop, Watchdog]:
    source: Any = OneChunk([Record(1, 77, "a", -1.0, 0)] * records)
    return ServerLoop(source, threading.RLock(), 10.0), Watchdog(Host(1), EventReporter())


def test_what_comes_first_waits_a_moment_for_more(clock: VirtualClock) -> None:
    loop, watchdog = loop_of(MANY - 1)
    clock.ready = [99]
    loop.serve_once(watchdog)
    loop.serve_once(watchdog)
    loop.close(watchdog)
    assert clock.slept == [REST, REST]


def test_nothing_waits_while_much_comes(clock: VirtualClock) -> None:
    loop, watchdog = loop_of(MANY)
    clock.ready = [99]
    for _ in range(3):
        loop.serve_once(watchdog)
    loop.close(watchdog)
    assert clock.slept == [REST, REST]  # before the many, and after they were over


def test_what_comes_long_after_many_waits_again(clock: VirtualClock) -> None:
    loop, watchdog = loop_of(MANY)
    clock.ready = [99]
    loop.serve_once(watchdog)
    clock.ready_after = 2 * REST
    loop.serve_once(watchdog)
    loop.close(watchdog)
    assert clock.slept == [REST, REST]


def test_no_rest_goes_beyond_a_deadline(clock: VirtualClock) -> None:
    loop, watchdog = loop_of(0)
    deadline = clock.now + 0.0022
    watchdog.next_due = lambda: deadline  # type: ignore[method-assign]
    clock.ready = [99]
    loop.serve_once(watchdog)
    clock.now = deadline - AWAKE / 2
    loop.serve_once(watchdog)
    loop.close(watchdog)
    assert clock.slept == [REST]


class Victim:
    """A process, if need be with a descriptor as its pidfd."""

    uid = time_ns = no_pidfd = None
    zombie = False

    def __init__(
        self, pid: int, log: list[str], start_time: int | None = None, pidfd: int | None = None
    ) -> None:
        self.pid, self._log = pid, log
        self.start_time, self.pidfd = start_time, pidfd

    def is_alive(self) -> bool:
        return self.pidfd is None or not select.select([self.pidfd], [], [], 0)[0]

    def send_signal(self, signum: int) -> None:
        self._log.append(f"signal {signum} to {self.pid}")

    def close(self) -> None:
        if self.pidfd is not None:
            os.close(self.pidfd)


def test_a_signal_is_rehearsed_with_one_that_is_none(clock: VirtualClock) -> None:
    log: list[str] = []
    loop, watchdog = loop_of(0)
    watchdog.table._open_process = lambda pid: Victim(pid, log)  # type: ignore[assignment,return-value]
    deadline = clock.now + 1.0
    watchdog.receive([Record(1, 50, "a", 0.0, 9, deadline=deadline)], Now(clock.now, 0.0))
    while clock.now < deadline - AWAKE:
        assert log == []
        loop.serve_once(watchdog)
    while clock.now < deadline:
        loop.serve_once(watchdog)
    loop.serve_once(watchdog)
    loop.close(watchdog)
    assert set(log) == {"signal 0 to 50", "signal 9 to 50"}
    assert log.index("signal 9 to 50") == len(log) - 1


def test_the_signalled_run_before_they_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr("os.sched_yield", lambda: log.append("yield"))
    watchdog: Any = Watchdog(Host(1), EventReporter(None, lambda event: log.append(event.name)))
    watchdog.table._open_process = lambda pid: Victim(pid, log)
    now = Now(10.0, 20.0)
    watchdog.receive([Record(1, pid, "a", 21.0, 9) for pid in (50, 51)], now)
    watchdog.enforce(10.5)
    assert log == []
    watchdog.enforce(11.0)
    assert log[:3] == ["signal 9 to 50", "signal 9 to 51", "yield"]
    assert log[3:] == ["timer expired", "kill worker process"] * 2


def test_an_exit_is_that_of_its_process_though_the_descriptor_is_another_s_now() -> None:
    """One batch: a recycled pid closes the pidfd of the dead, the next worker's gets its number."""
    source: Any = OneChunk([])
    alive, end_of_alive = os.pipe()
    source.fileno = lambda: alive
    loop = ServerLoop(source, threading.RLock(), 10.0)
    log: list[str] = []
    watchdog: Any = Watchdog(
        Host(1), EventReporter(None, lambda e: log.append(f"{e.name} {e.pid}")),
        watch=loop.watch, unwatch=loop.unwatch,
    )  # fmt: skip
    exited, end_of_exited = os.pipe()
    alive, _ = os.pipe()
    found: dict[int, tuple[int, int]] = {50: (1, exited)}
    watchdog.table._open_process = lambda pid: Victim(
        pid, log, found[pid][0], os.dup(found[pid][1])
    )

    def serve(ready: set[int], *starts: tuple[int, int]) -> None:
        source.received = [
            Record(2, pid, "a", 0.0, 9, deadline=1e9, start_time=start) for pid, start in starts
        ]
        loop.serve_pass(watchdog, ready)

    serve(set(), (50, 1))
    os.write(end_of_exited, b"x")
    ready = loop._waiter.wait(FOREVER, FOREVER)
    found = {50: (2, alive), 51: (3, alive)}
    serve(ready, (50, 2), (51, 3))
    assert sorted(watchdog.table.workers) == [50, 51]
    assert log == ["worker exited 50"]
    loop.close(watchdog)
    for end in (alive, end_of_alive, exited, end_of_exited):
        os.close(end)


linux = pytest.mark.skipif(sys.platform != "linux", reason="pipes have one size elsewhere")


@linux
def test_a_pipe_is_as_large_as_it_can_be_read_soon(tmp_path: Path) -> None:
    fifo = ServerFifo(str(tmp_path / "timers"))
    try:
        assert fifo.capacity == LARGE
        fifo.fit(1000, 1.0)  # few bytes: that they took long says nothing
        fifo.resize()
        assert fifo.capacity == LARGE
        fifo.fit(LARGE, 0.1)
        fifo.resize()
        assert fifo.capacity == SMALL
        assert fifo.is_small
        fifo.fit(SMALL, 0.0001)
        fifo.resize()
        assert fifo.capacity == LARGE
    finally:
        fifo.close()


@linux
def test_a_source_tells_its_pipe_what_reading_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [0.0]
    monkeypatch.setattr("filetimer.server.fifo_source.time.thread_time", lambda: seconds[0])
    fifo = ServerFifo(str(tmp_path / "timers"))
    source = FifoSource(fifo, EventReporter())
    sizes = []
    for took in (0.001, 0.1, 0.1, 0.0001, 0.0001):
        os.write(fifo.fd, b"x" * SMALL)
        now = read_clocks()
        source.receive(now, urgent=False)
        sizes.append(fifo.capacity)
        seconds[0] += took
        source.keep([], now)
    source.close()
    assert sizes == [LARGE, LARGE, SMALL, SMALL, LARGE]


@linux
def test_a_full_pipe_shrinks_when_it_is_read(tmp_path: Path) -> None:
    fifo = ServerFifo(str(tmp_path / "timers"))
    try:
        os.write(fifo.fd, b"x" * LARGE)
        fifo.fit(LARGE, 0.1)
        fifo.resize()
        assert fifo.capacity == LARGE  # nothing was lost
        assert len(fifo.read()) == LARGE
        fifo.resize()
        assert fifo.capacity == SMALL
    finally:
        fifo.close()


def test_a_pipe_tells_when_it_was_written_unless_the_wall_clock_is_set_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "timers")
    source = FifoSource(ServerFifo(path), EventReporter())
    now = read_clocks()
    source.receive(now, urgent=False)
    os.utime(path, (now.wall - 5, now.wall - 5))
    assert source.written_by(now) == pytest.approx(now.monotonic - 5, abs=0.01)
    set_back = now.wall - 3600
    os.utime(path, (set_back, set_back))
    monkeypatch.setattr("filetimer.server.fifo_source.time.time", lambda: set_back)
    assert source.written_by(now) == FOREVER
    source.close()
