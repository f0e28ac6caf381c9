"""CPU time of the server for a record, by the number of timers that are live."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench.bed import folder, holders, scheduled, server, worker
from bench.samples import Effort, ratios, spread
from bench.table import Row, Target

LIVE = (10, 1_000, 100_000)
SLOWER = 1.3


def rows(effort: Effort) -> Iterator[Row]:
    records = effort(200_000, 60_000)
    took: dict[int, list[float]] = {live: [] for live in LIVE}
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(folder())
        for _ in range(effort(7, 2)):
            for live in LIVE:
                with (
                    server("ours", where) as ours,
                    holders(where, ours, "ours", live),
                    worker(where, "flood", ours.path, "ours", 0, records, 1) as flood,
                ):
                    ours.wait_for_timers(live)
                    flood.tell()
                    flood.hear()
                    before, _ = scheduled(ours.pid)
                    flood.tell()
                    flood.hear()
                    ours.wait_until_drained()
                    took[live].append((scheduled(ours.pid)[0] - before) / records)
    for live in LIVE:
        ratio = ratios(took[live], took[LIVE[0]])
        yield Row(
            f"server's CPU for a record, {live:,} live timers",
            spread(took[live]).text("us"),
            "itself with 10" if live != LIVE[0] else "",
            (Target(ratio.median, "x", at_most=SLOWER),) if live == LIVE[-1] else (),
        )
