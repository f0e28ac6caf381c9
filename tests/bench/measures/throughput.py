"""Records a second, from the first write to an empty pipe, with a journal; nothing may be lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bench.bed import folder, has_torch, scheduled, server, worker
from bench.samples import Effort, ratios, spread
from bench.table import Row, Target

WRITERS = (1, 8, 64)
KEPT = 100  # timers that each writer leaves armed
NOTE = (
    "Writers in C that keep the FIFO open, so that both servers read as fast as they can; torch's "
    "own open and close it for each record. torch's server takes nothing in before its writers "
    "have all closed it, which is counted. Writers and server share the cores."
)


class Flood(NamedTuple):
    rate: float  # records a second
    cpu: float  # the server's, in seconds a record
    wrong: int  # records that were refused, or that are missing in the end


def rows(effort: Effort) -> Iterator[Row]:
    for writers in WRITERS:
        floods: dict[str, list[Flood]] = {"ours": [], "torch": []}
        for _ in range(effort(5, 1)):
            for kind in floods if has_torch() else ("ours",):
                floods[kind].append(_flood(kind, writers, effort(400_000, 80_000)))
        ours, torchs = floods["ours"], floods["torch"]
        targets = [Target(sum(it.wrong for it in ours), " refused or lost", at_most=0, digits=0)]
        if torchs:
            ratio = ratios([it.rate for it in ours], [it.rate for it in torchs]).median
            targets.insert(0, Target(ratio, "x faster", at_least=5.0, digits=1))
        yield Row(
            f"records/s until drained, {writers} writer{'s' * (writers > 1)}",
            _text(ours),
            f"torch: {_text(torchs)}" if torchs else "",
            tuple(targets),
            NOTE,
        )


def _flood(kind: str, writers: int, records: int) -> Flood:
    each = records // writers
    records = each * writers
    with (
        folder() as where,
        server(kind, where) as it,
        worker(where, "flood", it.path, "ours", KEPT, each, writers) as flood,
    ):
        flood.tell()
        flood.hear()  # all are armed
        it.wait_until_drained()
        before, _ = scheduled(it.pid)
        flood.tell()
        first, _, refused = map(float, flood.hear().split())
        drained = it.wait_until_drained()
        if kind == "torch":
            flood.close()
            drained = it.wait_for_timers(KEPT * writers)
        live, rejected = it.timers()
        wrong = int(refused) + rejected + abs(live - KEPT * writers)
        cpu = (scheduled(it.pid)[0] - before) / records
        return Flood(records / (drained - first), cpu, wrong)


def _text(floods: list[Flood]) -> str:
    rate = spread([flood.rate for flood in floods])
    cpu = spread([flood.cpu for flood in floods])
    return (
        f"{rate.median / 1e3:.0f}k ({rate.lower / 1e3:.0f}k to {rate.upper / 1e3:.0f}k), "
        f"{cpu.median * 1e6:.2f} us of CPU a record"
    )
