"""Servers that die by SIGKILL: no timer is lost, and nobody pays for it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from faults.fault import Fault, Result, Scale
from faults.fleet import (
    GATE,
    PATIENCE,
    Fleet,
    FleetWorker,
    ServerProcess,
    eventually,
    serve,
    server_children,
    start_bare,
    stop,
)
from faults.load import CLIENTS, Load
from faults.slate import Slate

SEAMS = [
    "after the read",
    "before the commit",
    "after the commit",
    "after applying",
    "before compaction's rename",
    "after compaction's rename",
    "before the signal",
    "after the signal",
]


def at_random(scale: Scale) -> Result:
    """Under ``filetimer serve``, at any instant, also while it starts."""
    result = Result()
    with serve("timers", result) as server, Fleet("timers") as fleet:
        load = Load(fleet)
        for _ in range(scale.pick(100, 6)):
            load.keep_up()
            _rest(load, random.uniform(0.3, 1.7))
            server.kill_and_wait()
            result.injected += 1
        _finish(load, fleet, result)
    return result


def at_each_seam(scale: Scale) -> Result:
    """At chosen instructions, once for each round."""
    result = Result()
    seam = Path("seam").absolute()
    with (
        serve("timers", result, FAULTS_SEAM=str(seam)) as server,
        Fleet("timers") as fleet,
    ):
        load = Load(fleet)
        for name in SEAMS * scale.pick(5, 1):
            load.keep_up()
            _rest(load, 1.0)  # a server that dies younger is replaced with a pause
            before = server.pid
            Path("seam.new").write_text(name)
            os.rename("seam.new", seam)
            _until(load, lambda before=before: server.pid != before, f"it dies {name}")
            result.check(not seam.exists(), f"it did not die {name}")
            result.injected += 1
        _finish(load, fleet, result)
    result.note = ", ".join(SEAMS) if not scale.quick else f"{len(SEAMS)} seams"
    return result


def _rest(load: Load, seconds: float) -> None:
    until = time.monotonic() + seconds
    _until(load, lambda: time.monotonic() > until, "")


def _until(load: Load, condition, what: str) -> None:
    def holds() -> bool:
        load.keep_up()
        return condition()

    eventually(holds, what)


def _finish(load: Load, fleet: Fleet, result: Result) -> None:
    load.finish()
    fleet.judge(result)


JOB = """
import os
os.environ["FAULTS_SLATE"] = "slate-" + os.environ["RANK"] + "-" + os.environ[
    "FILETIMER_RESTART_COUNT"]
from faults.slate import Slate
Slate(os.environ["FAULTS_SLATE"], create=True)
from faults.worker import *
pairs({seconds}, spare=(1.5, 3.0))
if os.environ["RANK"] + os.environ["FILETIMER_RESTART_COUNT"] == "00":
    hang(0.7)
"""
RANKS = 4


def under_run(scale: Scale) -> Result:
    """Under ``filetimer run``: the job restarts once, because of a rank that really hangs."""
    result = Result()
    for turn in range(scale.pick(3, 1)):
        Path(f"job-{turn}").mkdir()
        _one_job(Path(f"job-{turn}"), 4 if scale.quick else 6, result)
    return result


def _one_job(directory: Path, seconds: float, result: Result) -> None:
    command = ["-m", "filetimer", "run", "--workers", str(RANKS), "--max-restarts", "1"]
    code = JOB.format(seconds=seconds)
    with open(directory / "output", "wb") as output:
        job = subprocess.Popen(
            [sys.executable, *command, "--no-evidence", "--", sys.executable, "-c", code],
            cwd=directory,
            stdout=output,
            stderr=output,
        )
    hung = directory / "slate-0-0"
    eventually(lambda: _pid_on(hung), "the job starts")
    pidfd = os.pidfd_open(_pid_on(hung))  # once it hangs, it may be gone before we look
    for _ in range(2):
        time.sleep(random.uniform(0.5, seconds / 2.5))
        _kill_server_of(job.pid, result)
    slate = Slate(str(hung))
    eventually(lambda: slate.hangs and slate.armed, "rank 0 hangs")
    if random.random() < 0.5:
        _kill_server_of(job.pid, result)  # while the timer that matters is out
    try:
        _see_reaped(pidfd, slate, result)
    finally:
        os.close(pidfd)
    status = job.wait(PATIENCE + seconds)
    said = (directory / "output").read_text()
    result.check(status == 0, f"the job ended with {status}: {said[-300:]}")
    result.check("restart 1 of 1" in said, f"the group was not restarted: {said[-300:]}")
    result.timers += sum(int(Slate(str(path)).acquired) for path in directory.glob("slate-*"))
    failed = sum(int(Slate(str(path)).failed) for path in directory.glob("slate-*"))
    result.check(not failed, f"{failed} calls of clients failed")
    finished = len(list(directory.glob("slate-*-1")))
    result.check(finished == RANKS, f"{finished} of {RANKS} ranks were started again")


def _pid_on(slate: Path) -> int:
    """The pid of the worker whose slate this is; 0 as long as it has not written it there."""
    return int(Slate(str(slate)).pid) if slate.exists() and slate.stat().st_size else 0


def _kill_server_of(parent: int, result: Result) -> None:
    eventually(lambda: server_children(parent), "a server")
    os.kill(server_children(parent)[0], signal.SIGKILL)
    result.injected += 1


def _see_reaped(pidfd: int, slate: Slate, result: Result) -> None:
    import select

    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(PATIENCE * 1000):
        result.lose("the hung rank of a job lives on")
        return
    late = time.monotonic() - slate.deadline
    if late < 0:
        result.blame(f"the hung rank was reaped {-late:.3f} s early")
    result.saw_lateness(late)


def while_out(scale: Scale) -> Result:
    """While timers are out that will not be touched again: only the journal knows of them."""
    result = Result()
    with serve("timers", result) as server:
        for _ in range(scale.pick(10, 2)):
            with Fleet("timers") as fleet:
                for number in range(CLIENTS):
                    client = ("python", "version 1")[number % 2]
                    code = f"{GATE}hang(1.2)" if number < 4 else _FINISHES
                    fleet.start(code, client=client)
                fleet.go()
                for worker in fleet.workers:
                    worker.hear("hangs")
                fleet.await_read()
                server.kill_and_wait()
                result.injected += 1
                fleet.judge(result)
    return result


_FINISHES = f"""{GATE}
timer = begin(1.2)
say("hangs")
time.sleep(random.uniform(0.1, 0.7))
end(timer)
idle()
"""


def in_the_first_pass(scale: Scale) -> Result:
    """A server dies, and its successor does at a seam, before it acted on what was due by then."""
    result = Result(note=f"each of {len(SEAMS)} seams")
    seam = Path("seam").absolute()
    with serve("timers", result, FAULTS_SEAM=str(seam)) as server:
        for name in SEAMS * scale.pick(2, 1):
            with Fleet("timers") as fleet:
                for client in ("python", "version 1"):
                    fleet.start(f"{GATE}hang(1.0)", client=client)
                    fleet.start(_FINISHES.replace("1.2", "1.0"), client=client)
                fleet.go()
                for worker in fleet.workers:
                    worker.hear("hangs")
                time.sleep(0.02)
                stop(server.process.pid)  # no successor for now
                os.kill(server.pid, signal.SIGKILL)
                time.sleep(1.05)  # what was taken is due, or given back
                fleet.start("pairs(1)")
                Path("seam.new").write_text(name)
                os.rename("seam.new", seam)
                os.kill(server.process.pid, signal.SIGCONT)
                eventually(lambda: not seam.exists(), f"the successor dies {name}")
                result.injected += 1
                fleet.judge(result)
    return result


def bare(scale: Scale) -> Result:
    """Started again by hand: what it had only reports, until it is acquired again.

    Of three workers with a timer out, one gives it back while no server lives, one takes it again
    from the next server and hangs, and one keeps it: nobody may be killed for that one.
    """
    result = Result()
    for turn in range(scale.pick(10, 2)):
        path = f"timers-{turn}"
        first = start_bare(path)
        with Fleet(path) as fleet:
            released = fleet.start(_KEEP.format(then="end(timer)\nidle()"), must_live=True)
            again = fleet.start(_KEEP.format(then="hang(0.3)"))
            kept = fleet.start(_KEEP.format(then="idle()"), must_live=True)
            fleet.go()
            for worker in fleet.workers:
                worker.hear("taken")
            fleet.await_read()  # else the next server would, and take them for new ones
            first.die()
            result.injected += 1
            released.tell()
            second = start_bare(path)
            result.check(second.said("server recovered", "report_only"), "nothing was recovered")
            again.tell()
            _report_of(second, kept, result)
            fleet.judge(result)
        second.stop(result)
    return result


_KEEP = f"""{GATE}
timer = begin(1.5, "kept")
say("taken")
input()
{{then}}
"""


def _report_of(server: ServerProcess, kept: FleetWorker, result: Result) -> None:
    try:
        eventually(lambda: server.said("timer expired", f'"pid": {kept.pid}'), "a report", 10)
    except TimeoutError:
        result.breach("the timer that it took over was not reported")


FAULTS = [
    Fault(f"server killed at random, {CLIENTS} clients, `filetimer serve`", at_random, 600),
    Fault(f"server killed at each seam, {CLIENTS} clients, `filetimer serve`", at_each_seam, 300),
    Fault("server killed while timers are out, `filetimer serve`", while_out),
    Fault("server killed, and its successor in its first pass", in_the_first_pass, 240),
    Fault(f"server killed, {RANKS} ranks, `filetimer run`", under_run, 300),
    Fault("bare server killed and started by hand", bare, 120),
]
