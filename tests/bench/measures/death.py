"""From a deadline to the death of the worker, as a third process sees it through a pidfd."""

from __future__ import annotations

import contextlib
import os
import random
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.bed import Process, Server, folder, has_torch, server, worker
from bench.samples import Effort, Spread, spread
from bench.table import Row, Target

AFTER, PHASES = 0.2, 0.1  # seconds: torch's server polls every 0.1, and no phase may be favoured
BIG = 2 << 30
FREEING = (
    "The worker's code stops about 20 us after the signal; what comes then is the kernel's freeing "
    "of its memory, which no server can hasten."
)


def rows(effort: Effort) -> Iterator[Row]:
    size = BIG if _memory_available() > 1.5 * BIG else BIG // 8
    small: dict[int, list[float]] = {1: [], 1000: []}
    big, torch_small, torch_big = [], [], []
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(folder())
        ours = stack.enter_context(server("ours", where))
        torch_death = stack.enter_context(_torch_deaths(where)) if has_torch() else None
        for i in range(effort(100, 12)):
            for timers, samples in small.items():
                samples.append(_death(where, ours, timers, 0))
            if torch_death and i % 5 == 0:
                torch_small.append(torch_death(1, 0))
        for i in range(effort(9, 2)):
            big.append(_death(where, ours, 1, size))
            if torch_death and i % 2 == 0:
                torch_big.append(torch_death(1, size))
    torchs = spread(torch_small) if torch_small else None
    for timers, samples in small.items():
        ours_ = spread(samples)
        yield Row(
            f"deadline to death, small worker, {timers} live timer{'s' * (timers > 1)}",
            f"{ours_.text('ms')}, p99 {ours_.p99 * 1e3:.3g} ms",
            f"torch, 1 timer: {torchs.text('ms')}" if torchs else "",
            _targets(ours_, torchs),
        )
    yield Row(
        f"deadline to death, worker of {size / (1 << 30):g} GiB",
        spread(big).text("ms"),
        f"torch: {spread(torch_big).text('ms')}" if torch_big else "",
        (),
        FREEING,
    )


def _targets(ours: Spread, torchs: Spread | None) -> tuple[Target, ...]:
    sooner = torchs.median / ours.median if torchs else None
    return (
        *([Target(sooner, "x sooner", at_least=100, digits=0)] if sooner else []),
        Target(ours.median * 1e3, " ms", at_most=0.4),
        Target(ours.p99 * 1e3, " ms at p99", at_most=1.0),
    )


def _death(where: Path, ours: Server, timers: int, size: int) -> float:
    with worker(where, "victim", ours.path, "ours", timers, size, _after()) as victim:
        return watched(victim)


def _after() -> float:
    return AFTER + random.uniform(0, PHASES)


def watched(victim: Process) -> float:
    """Seconds from the deadline of a victim to its death."""
    pidfd = os.pidfd_open(victim.pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        victim.tell()
        deadline = float(victim.hear())
        if not poller.poll(60_000):
            raise TimeoutError("the server did not kill")
        return time.monotonic() - deadline
    finally:
        os.close(pidfd)


class _torch_deaths:
    """A process that has imported torch, and forks a server for each death."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._server = Server("torch-each", where / "none")
        self._number = 0

    def __enter__(self) -> Callable[[int, int], float]:
        return self._death

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _death(self, timers: int, size: int) -> float:
        self._number += 1
        path = self._where / f"torch-{self._number}"
        self._server.tell(str(path))
        self._server.hear()
        with worker(self._where, "victim", path, "torch", timers, size, _after()) as victim:
            took = watched(victim)
        self._server.hear()  # it has killed itself
        return took


def _memory_available() -> int:
    text = Path("/proc/meminfo").read_text().partition("MemAvailable:")[2]
    return int(text.split()[0]) * 1024
