"""From a deadline to the death of the worker, as a third process sees it through a pidfd.

Beside it: what a program in C takes that is awake at the deadline and does nothing but signal.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.bed import DrainedFifo, Process, Server, compiled, folder, has_torch, server, worker
from bench.samples import Effort, Spread, spread
from bench.table import Row, Target

# Seconds.  torch's server polls every 0.1: no phase may be favoured, and so many deaths are better
# spread evenly (by the golden ratio) than at random, where the median of a few is off by a sixth.
AFTER, PHASES = 0.2, 0.1
GOLDEN = 0.6180339887
QUIET = 1.0  # milliseconds: where the bare signal's p99 is above, the machine is what is measured
BIG = 2 << 30
FREEING = (
    "The worker's code stops about 20 us after the signal; what comes then is the kernel's freeing "
    "of its memory, which no server can hasten."
)


def rows(effort: Effort) -> Iterator[Row]:
    size = BIG if _memory_available() > 1.5 * BIG else BIG // 8
    small: dict[int, list[float]] = {1: [], 1000: []}
    big, bare, torch_small, torch_big = [], [], [], []
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(folder())
        watcher = stack.enter_context(watching(where))
        killer = stack.enter_context(Process(compiled("worker.c", where), "kill"))
        fifo = DrainedFifo(where / "nobody reads this")
        ours = stack.enter_context(server("ours", where))
        torch_death = stack.enter_context(_torch_deaths(where, watcher)) if has_torch() else None
        for i in range(effort(100, 6)):
            for timers, samples in small.items():
                samples.append(_death(where, watcher, ours, timers, 0))
            bare.append(_bare_death(where, watcher, killer, fifo))
            if torch_death and i % 2 == 0:
                torch_small.append(torch_death(1, 0))
        for i in range(effort(9, 2)):
            big.append(_death(where, watcher, ours, 1, size))
            if torch_death and i % 2 == 0:
                torch_big.append(torch_death(1, size))
    torchs = spread(torch_small) if torch_small else None
    least = spread(bare)
    quiet = least.p99 * 1e3 <= QUIET
    limit = f"a signal from C, and nothing else: {least.text('ms')}, p99 {least.p99 * 1e3:.3g} ms"
    if not quiet:
        limit += ": not a quiet machine"
    for timers, samples in small.items():
        ours_ = spread(samples)
        yield Row(
            f"deadline to death, small worker, {timers} live timer{'s' * (timers > 1)}",
            f"{ours_.text('ms')}, p99 {ours_.p99 * 1e3:.3g} ms",
            f"torch, 1 timer: {torchs.text('ms')}; {limit}" if torchs else limit,
            _targets(ours_, torchs, quiet),
        )
    yield Row(
        f"deadline to death, worker of {size / (1 << 30):g} GiB",
        spread(big).text("ms"),
        f"torch: {spread(torch_big).text('ms')}" if torch_big else "",
        (),
        FREEING,
    )


def _targets(ours: Spread, torchs: Spread | None, quiet: bool) -> tuple[Target, ...]:
    sooner = torchs.median / ours.median if torchs else None
    return (
        *([Target(sooner, "x sooner", at_least=100, digits=0)] if sooner else []),
        Target(ours.median * 1e3, " ms", at_most=0.4),
        *([Target(ours.p99 * 1e3, " ms at p99", at_most=1.0)] if quiet else []),
    )


def _death(where: Path, watcher: Process, ours: Server, timers: int, size: int) -> float:
    with worker(where, "victim", ours.path, "ours", timers, size, _after()) as victim:
        return watched(watcher, victim)


def _bare_death(where: Path, watcher: Process, killer: Process, fifo: DrainedFifo) -> float:
    with worker(where, "victim", Path(fifo.path), "ours", 1, 0, _after()) as victim:
        return watched(watcher, victim, killer)


def _after() -> float:
    return AFTER + PHASES * (next(_deaths) * GOLDEN % 1)


_deaths = itertools.count()


def watching(where: Path) -> Process:
    """The process that sees others die."""
    return Process(compiled("worker.c", where), "watch")


def watched(watcher: Process, victim: Process, killer: Process | None = None) -> float:
    """Seconds from the deadline of a victim to its death, by a server's hand or a killer's."""
    watcher.tell(str(victim.pid))
    watcher.hear()
    victim.tell()
    deadline = float(victim.hear())
    if killer is not None:
        killer.tell(f"{victim.pid} {deadline:.6f}")
    return float(watcher.hear()) - deadline


class _torch_deaths:
    """A process that has imported torch, and forks a server for each death."""

    def __init__(self, where: Path, watcher: Process) -> None:
        self._where, self._watcher = where, watcher
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
            took = watched(self._watcher, victim)
        self._server.hear()  # it has killed itself
        return took


def _memory_available() -> int:
    text = Path("/proc/meminfo").read_text().partition("MemAvailable:")[2]
    return int(text.split()[0]) * 1024
