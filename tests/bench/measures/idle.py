"""A server with ten thousand live timers and nothing to do."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.bed import folder, has_torch, scheduled, server, worker
from bench.samples import Effort
from bench.table import Row, Target

TIMERS = 10_000
BEAT = 10.0  # seconds: max_interval, the progress beat


def rows(effort: Effort) -> Iterator[Row]:
    seconds = effort(10, 2)
    ours_cpu, ours_waits = _idle("ours", seconds)
    torchs = ""
    if has_torch():
        cpu, waits = _idle("torch", seconds)
        torchs = f"torch at 0.1 s: {cpu:.2%} of a core, {waits} wake-ups"
    yield Row(
        f"idle with {TIMERS:,} live timers for {seconds} s",
        f"{ours_cpu:.4%} of a core, {ours_waits} wake-ups",
        torchs,
        (
            # A beat may fall into the time, and another one at its edge.
            Target(ours_waits, " wake-ups", at_most=seconds / BEAT + 1, digits=0),
            Target(ours_cpu * 100, " % CPU", at_most=0.1, digits=3),
        ),
    )


def _idle(kind: str, seconds: float) -> tuple[float, int]:
    """Share of a core, and wake-ups of all threads."""
    with (
        folder() as where,
        server(kind, where) as it,
        worker(where, "flood", it.path, kind, TIMERS, 0, 1) as writer,
    ):
        writer.tell()
        writer.hear()
        it.wait_for_timers(TIMERS)
        time.sleep(0.5)  # what came with the last record is over
        cpu, waits = scheduled(it.pid)
        time.sleep(seconds)
        cpu_after, waits_after = scheduled(it.pid)
        return (cpu_after - cpu) / seconds, waits_after - waits
