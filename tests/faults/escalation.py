"""Workers that do not die of the first signal, and servers that may only watch."""

from __future__ import annotations

import signal
import time

from faults.fault import Fault, Result, Scale
from faults.fleet import Fleet, bare_server, eventually, serve

KILL_AFTER = 0.5  # seconds


def deaf(scale: Scale) -> Result:
    """SIGTERM is ignored: SIGKILL follows."""
    result = Result(note=f"`--kill-after {KILL_AFTER:g}`, which counts as lateness")
    with (
        serve("timers", result, "--kill-after", str(KILL_AFTER)) as server,
        Fleet("timers") as fleet,
    ):
        for _ in range(scale.pick(20, 4)):
            fleet.start(
                "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nhang(0.3)",
                FAULTS_SIGNAL=str(int(signal.SIGTERM)),
            )
            result.injected += 1
        fleet.judge(result)
        for worker in fleet.workers:
            status = worker.process.poll()
            result.check(status == -signal.SIGKILL, f"ended by {status}, not by SIGKILL")
            if worker.died_at is not None and worker.died_at - worker.slate.deadline < KILL_AFTER:
                result.blame("SIGKILL came before the patience was over")
        result.check(server.said("kill escalated"), "no word of the escalation")
    return result


def tree(scale: Scale) -> Result:
    """``--reap-tree``: children of a hung worker die with it, those of its peer live."""
    result = Result()
    with serve("timers", result, "--reap-tree"), Fleet("timers") as fleet:
        turns = scale.pick(6, 2)
        for _ in range(turns):
            fleet.start(_FAMILY + "hang(0.5)")
            fleet.start(_FAMILY + "idle()", must_live=True)
            result.injected += 1
        children = [_child(worker) for worker in fleet.workers]
        fleet.judge(result)
        for worker, child in zip(fleet.workers, children, strict=True):
            if worker.must_live:
                if not _runs(child):
                    result.blame("the child of a worker that did not hang was killed")
            else:
                _see_gone(child, result)
    return result


_FAMILY = """
import subprocess
null = subprocess.DEVNULL
child = subprocess.Popen(["sleep", "600"], stdin=null, stdout=null, stderr=null)
say(str(child.pid))
"""


def _child(worker) -> int:
    return int(worker.process.stdout.readline())


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _see_gone(pid: int, result: Result) -> None:
    try:
        eventually(lambda: not _runs(pid), "the child goes", 5)
    except TimeoutError:
        result.lose("the child of a reaped worker lives on")


def report_only(scale: Scale) -> Result:
    """``report_only``: nobody is signalled, everything is said."""
    result = Result()
    with bare_server("timers", result, report_only=True) as server, Fleet("timers") as fleet:
        for _ in range(scale.pick(10, 3)):
            fleet.start("hang(0.2)", must_live=True)
            result.injected += 1
        for worker in fleet.workers:
            worker.hear("hangs")
        time.sleep(1.0)
        fleet.judge(result)
        for worker in fleet.workers:
            said = server.said("timer expired", f'"pid": {worker.pid},')
            result.check(said, "an expiry was not reported")
    return result


FAULTS = [
    Fault("worker that ignores SIGTERM", deaf),
    Fault("worker with children, `--reap-tree`", tree),
    Fault("hung worker under `--report-only`", report_only),
]
