"""Records a second, from the first write to an empty pipe, with a journal; nothing may be lost."""

from __future__ import annotations

from collections.abc import Iterator

from bench.bed import folder, has_torch, server, worker
from bench.samples import Effort, ratios, spread
from bench.table import Row, Target

WRITERS = (1, 8, 64)
KEPT = 100  # timers that each writer leaves armed
AT_ONCE = (
    "The writers are in C. Those of torch's server open and close the FIFO for each record, as its "
    "own client does: while a writer keeps it open that server acts on no timer."
)


def rows(effort: Effort) -> Iterator[Row]:
    for writers in WRITERS:
        sides: dict[str, list[float]] = {"ours": [], "torch": []}
        wrong = 0
        for _ in range(effort(5, 2)):
            for kind in sides if has_torch() else ("ours",):
                rate, lost = _flood(kind, writers, effort(400_000, 120_000))
                sides[kind].append(rate)
                wrong += lost if kind == "ours" else 0
        ours, torchs = sides["ours"], sides["torch"]
        faster = (
            [Target(ratios(ours, torchs).median, "x faster", at_least=5.0, digits=1)]
            if torchs
            else []
        )
        yield Row(
            f"records/s until drained, {writers} writer{'s' * (writers > 1)}",
            _text(ours),
            f"torch: {_text(torchs)}" if torchs else "",
            (*faster, Target(wrong, " refused or lost", at_most=0, digits=0)),
            AT_ONCE,
        )


def _flood(kind: str, writers: int, records: int) -> tuple[float, int]:
    """Records a second, and how many were refused, or are missing in the end."""
    each = records // writers
    with (
        folder() as where,
        server(kind, where) as it,
        worker(where, "flood", it.path, kind, KEPT, each, writers) as flood,
    ):
        flood.tell()
        flood.hear()  # all are armed
        it.wait_for_timers(KEPT * writers)
        flood.tell()
        first, _, refused = map(float, flood.hear().split())
        drained = it.wait_until_drained()
        live, rejected = it.timers()  # asked after the last record was read
        missing = abs(live - KEPT * writers)
        return each * writers / (drained - first), int(refused) + rejected + missing


def _text(rates: list[float]) -> str:
    of = spread(rates)
    return f"{of.median / 1e3:.0f}k ({of.lower / 1e3:.0f}k to {of.upper / 1e3:.0f}k)"
