"""Clocks that jump during a timer.

The clock of this machine is not touched: server and workers are told another time (``seams``).
"""

from __future__ import annotations

import time
from pathlib import Path

from faults.fault import Fault, Result, Scale
from faults.fleet import GATE, Fleet, bare_server

HOUR = 3600.0  # seconds
_TIMER = f"""{GATE}
timer = begin(1.5)
say("taken")
input()
{{then}}
"""


def stepped(scale: Scale) -> Result:
    """+1 h and -1 h, while timers of version 2 and of version 1 are out, and before others."""
    result = Result(note="as server and workers are told; versions 1 and 2")
    clock = Path("clock").absolute()
    clock.write_text("0")
    clocks = {"FAULTS_CLOCK": str(clock)}
    with bare_server("timers", result, environment=clocks) as server:
        for _ in range(scale.pick(5, 1)):
            for step in (HOUR, 0.0, -HOUR, 0.0):
                _step_during(clock, step, clocks, result)
                told = [event["time"] - time.time() for event in server.told()]
                stepped = abs(told[-1] - step) < HOUR / 2
                result.check(stepped, f"the server's clock was not stepped by {step:g} s")
    return result


def _step_during(clock: Path, step: float, clocks: dict[str, str], result: Result) -> None:
    with Fleet("timers") as fleet:
        for client in ("python", "version 1"):
            for then in ("end(timer)\nidle()", "slate.hangs = 1\nidle()"):
                fleet.start(_TIMER.format(then=then), client=client, **clocks)
        fleet.go()
        for worker in fleet.workers:
            worker.hear("taken")
        fleet.await_applied()  # version 1 is to be received by the clock it was written by
        _set(clock, step)
        result.injected += 1
        for worker in fleet.workers:
            worker.tell()
        for client in ("python", "version 1"):  # and timers of the new time
            fleet.start("pairs(0.3)\nhang(0.3)", client=client, **clocks)
        fleet.judge(result)


def _set(clock: Path, step: float) -> None:
    new = clock.with_suffix(".new")
    new.write_text(str(step))
    new.rename(clock)


FAULTS = [Fault("wall clock stepped by +1 h and -1 h during timers", stepped)]
