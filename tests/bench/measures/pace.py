"""What a record costs its writer and the server, by how often one comes; and that kills are on time

A waiting reader is woken by every record, and the writer pays for the wake-up; the server rests a
moment between reads while records come fast.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.bed import folder, scheduled, server, worker
from bench.measures.death import watched, watching
from bench.samples import Effort, spread
from bench.table import Row, Target

INTERVALS = (20e-6, 200e-6, 1e-3, 10e-3)  # seconds
ON_TIME = 1.0  # milliseconds at the median, while records come


def rows(effort: Effort) -> Iterator[Row]:
    seconds = effort(6, 2)
    with folder() as where, server("ours", where) as ours, watching(where) as watcher:
        for interval in INTERVALS:
            records = int(seconds / interval)
            with worker(where, "pace", ours.path, "ours", interval, records) as writer:
                before, _ = scheduled(ours.pid)
                writer.tell()
                late = []
                for _ in range(effort(12, 4)):  # 0.2 s each: while the writer writes
                    with worker(where, "victim", ours.path, "ours", 1, 0, 0.2) as victim:
                        late.append(watched(watcher, victim))
                median, p99 = map(float, writer.hear().split())
                cpu = (scheduled(ours.pid)[0] - before) / records
            lateness = spread(late)
            yield Row(
                f"one record every {_text(interval)}",
                f"writer {median * 1e6:.2f} us (p99 {p99 * 1e6:.1f}), server {cpu * 1e6:.2f} us",
                f"kills meanwhile: {lateness.text('ms')} after the deadline",
                (Target(lateness.median * 1e3, " ms late", at_most=ON_TIME),),
            )


def _text(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.0f} ms"
