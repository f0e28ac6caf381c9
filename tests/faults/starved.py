"""Servers and workers that are stopped, or starved: kills are late, never wrong."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from faults.fault import Fault, Result, Scale
from faults.fleet import GATE, Fleet, FleetWorker, bare_server, eventually, serve, stop
from faults.load import Load

STOPPED = 1.0  # seconds, which is longer than the deadlines below
BURNERS = 8  # on however many processors there are


def server_stopped(scale: Scale) -> Result:
    """SIGSTOP until all deadlines have passed; half of the timers are given back meanwhile."""
    result = Result(note=f"for {STOPPED:g} s, which counts as lateness")
    with serve("timers", result) as server:
        for _ in range(scale.pick(10, 2)):
            with Fleet("timers") as fleet:
                for number in range(8):
                    kind = ("python", "version 1")[number % 2]
                    then = "end(timer)\nidle()" if number < 4 else "slate.hangs = 1\nidle()"
                    fleet.start(_TAKE.format(then=then), client=kind)
                pid = server.pid
                fleet.go()
                for worker in fleet.workers:
                    worker.hear("taken")
                time.sleep(random.uniform(0, 0.1))
                stop(pid)
                result.injected += 1
                time.sleep(STOPPED)
                os.kill(pid, signal.SIGCONT)
                fleet.judge(result)
    return result


_TAKE = f"""{GATE}
timer = begin(0.6)
say("taken")
time.sleep(0.3)
{{then}}
"""


def holder_stopped(scale: Scale) -> Result:
    """The process that holds the pipe is stopped: its server goes on without it."""
    result = Result()
    with serve("timers", result) as server:
        for _ in range(scale.pick(6, 2)):
            with Fleet("timers") as fleet:
                os.kill(server.process.pid, signal.SIGSTOP)
                result.injected += 1
                for _ in range(4):
                    fleet.start("pairs(0.3)\nhang(0.2)")
                    fleet.start("pairs(0.5)\nidle()", must_live=True)
                eventually(lambda fleet=fleet: _settled(fleet), "they hang")
                fleet.judge(result)
                os.kill(server.process.pid, signal.SIGCONT)
    return result


def _settled(fleet: Fleet) -> bool:
    return all(worker.slate.hangs or worker.must_live for worker in fleet.workers)


def starved(scale: Scale) -> Result:
    """The server has the least priority, and every processor is burning."""
    result = Result(injected=1, note=f"nice 19 beside {BURNERS} burners")
    with (
        serve("timers", result, prefix=("nice", "-n", "19")),
        Fleet("timers") as fleet,
        _burning(BURNERS),
    ):
        load = Load(fleet, scale.pick((1.0, 4.0), (0.5, 1.5)))
        until = time.monotonic() + scale.pick(25, 4)
        while time.monotonic() < until:
            load.keep_up()
            time.sleep(0.01)
        load.finish()
        fleet.judge(result)
    return result


@contextlib.contextmanager
def _burning(count: int) -> Iterator[None]:
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def worker_stopped(scale: Scale) -> Result:
    """As documented: a stopped worker's deadlines go on, and it is reaped."""
    result = Result()
    with serve("timers", result), Fleet("timers") as fleet:
        for _ in range(scale.pick(10, 3)):
            worker = fleet.start("hang(0.8)")
            worker.hear("hangs")
            os.kill(worker.pid, signal.SIGSTOP)
            result.injected += 1
        fleet.judge(result)
    return result


def worker_held(scale: Scale) -> Result:
    """With ``--hold-stopped`` its deadlines wait; when it goes on, they count again."""
    result = Result(note="lateness without the time that it was stopped")
    with bare_server("timers", result, hold_stopped=True) as server:
        for _ in range(scale.pick(6, 1)):
            with Fleet("timers") as fleet:
                finishes = [fleet.start(_HELD.format(then="input()\nend(timer)")) for _ in range(3)]
                hangs = [fleet.start(_HELD.format(then="idle()")) for _ in range(3)]
                fleet.go()
                for worker in fleet.workers:
                    worker.hear("taken")
                _stop_for(2.5, fleet.workers, result)
                for worker in finishes:
                    worker.slate.deadline += 1.5  # at least: a look at them is every half second
                    worker.tell()
                for worker in hangs:
                    worker.slate.deadline += 1.5
                    worker.slate.hangs = 1
                fleet.judge(result)
                for worker in finishes:
                    ended = worker.process.poll()
                    result.check(ended == 0, f"a worker that was stopped ended with {ended}")
        result.check(server.said("worker held"), "no word of it")
    return result


_HELD = f"""{GATE}
timer = begin(1.5)
say("taken")
{{then}}
"""


def _stop_for(seconds: float, workers: list[FleetWorker], result: Result) -> None:
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)
        result.injected += 1
    time.sleep(seconds)
    for worker in workers:
        result.check(worker.is_alive(), "a worker died while it was stopped")
        os.kill(worker.pid, signal.SIGCONT)


FAULTS = [
    Fault("server stopped by SIGSTOP past deadlines, releases meanwhile", server_stopped, 240),
    Fault("`filetimer serve` itself stopped, its server not", holder_stopped, 120),
    Fault("server starved of the processor", starved, 240),
    Fault("worker stopped by SIGSTOP", worker_stopped),
    Fault("worker stopped by SIGSTOP under `--hold-stopped`", worker_held),
]
