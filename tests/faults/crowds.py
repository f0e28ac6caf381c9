"""Floods of bytes, and many timers and workers at once: rows for ``flood`` and ``many``."""

from __future__ import annotations

from functools import partial

from faults import flood, many
from faults.fault import Fault, Result, Scale


def flooded(kind: str, scale: Scale) -> Result:
    """One writer fills the pipe without pause while other workers hang."""
    found = flood.measure(kind, scale.pick(40, 6))
    kills = int(found["kills"])
    result = Result(injected=1, timers=kills, lost=int(found["lost"]), wrong=int(found["early"]))
    if kills:
        result.saw_lateness(found["worst_ms"] / 1000)
    result.note = f"median {found['median_ms']:.1f} ms; server {found['server_mb']:.0f} MB"
    if found["undelivered"]:
        result.note += f"; {found['undelivered']:.0f} acquires failed, and said so"
    return result


def blocks(scale: Scale) -> Result:
    """Blocks that end before their deadlines, from eight processes."""
    found = many.million_blocks(scale.pick(1_000_000, 20_000), 8)
    count = int(found["blocks"])
    result = Result(injected=count, timers=count, wrong=int(found["wrong"]))
    result.check(not found["refused"], f"{found['refused']:.0f} records were refused")
    result.check(not found["left"], f"{found['left']:.0f} timers were left")
    # Such a block's release was written after its deadline: its process did not run.
    result.note = f"{found['late']:.0f} ended late by their own clock; no verdict on these"
    return result


def exits(scale: Scale) -> Result:
    """All workers of a job exit in one instant, just as another one's deadline comes."""
    found = many.exit_at_once(scale.pick(1000, 40), 10)
    result = Result(injected=int(found["workers"]), timers=int(found["timers"]) + 1)
    result.wrong, result.lost = int(found["killed"]), int(found["lost"])
    result.check(found["seen"] == found["workers"], "not all exits were seen")
    result.saw_lateness(found["late_ms"] / 1000)
    result.note = f"all exits seen after {found['seen_ms']:.0f} ms"
    return result


def virtual_exits(scale: Scale) -> Result:
    """The same with processes that are made up, but for which all is real, from the bytes on."""
    found = many.virtual_exit_at_once(scale.pick(10_000, 1000), 10)
    result = Result(injected=int(found["workers"]), timers=int(found["timers"]))
    result.wrong = int(found["killed"])
    result.check(not found["left"], f"{found['left']:.0f} timers were left")
    result.note = f"set in {found['set_ms']:.0f} ms, gone in {found['exit_ms']:.0f} ms"
    return result


FAULTS = [
    *(
        Fault(f"flood: {kind}", partial(flooded, kind), alone=True)
        for kind in flood.KINDS
        if kind != "none"
    ),
    Fault("`expires` blocks that end in time, eight processes", blocks, limit=600),
    Fault("all workers exit at once, ten timers each", exits, alone=True),
    Fault("the same with made-up processes", virtual_exits, alone=True),
]
