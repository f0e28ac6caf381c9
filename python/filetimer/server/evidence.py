"""Evidence: starts a collector for workers that are about to be signalled, and hears its result.

A collector is a process (``filetimer.evidence``) with a thread here that waits for it, so that the
server's loop never does.  Workers that expire within :data:`JOIN` seconds share one, since it looks
at the whole group; a later one gets a collector of its own, so that one that hangs holds up none
but the workers that started it.  A collector that overruns is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from filetimer.runtime import runtime_directory, stacks_directory
from filetimer.server.findings import NO_FINDINGS, Findings
from filetimer.server.process import ProcessHandle
from filetimer.server.timers import Expiry, Worker, deadline_of
from filetimer.wire.decoder import UNSET, Record

__all__ = ["DEFAULT_BUDGET", "Evidence"]

DEFAULT_BUDGET = 3.0  # seconds
JOIN = 0.25  # seconds in which further expiries share a collector
MAX_TIMERS = 32  # of one worker, in a report
MAX_REPORTS = 100  # in the directory; the oldest go
COLLECTOR = (sys.executable, "-m", "filetimer.evidence")


class Evidence:
    """A ``server.holding.Collector``.

    Args:
        directory: where reports go; made when there is one.
        budget: seconds by which a signal may be late for it.
        run_id: the job; ``fifo`` the server's path: for the report.
        wake: called, mostly in another thread, when something was completed.
        journal: the path of the server's journal, if it keeps one.
        command: what collects.
        gpu: whether to ask the CUDA driver of a hung worker for a core dump.
        degraded: told what is lacking when nothing could be collected, in the server's thread.
    """

    def __init__(
        self,
        directory: str,
        budget: float,
        run_id: str,
        fifo: str,
        wake: Callable[[], None],
        journal: Callable[[], str | None],
        command: tuple[str, ...] = COLLECTOR,
        gpu: bool = False,
        degraded: Callable[[str, str], None] = lambda code, detail: None,
    ) -> None:
        if not budget > 0:
            raise ValueError(f"evidence_budget must be a positive number of seconds: {budget!r}")
        self.budget = budget
        self._directory = os.path.abspath(directory)
        self._run_id, self._fifo, self._journal = run_id, os.path.abspath(fifo), journal
        self._wake = wake
        self._command = command
        self._gpu = gpu
        self._degraded = degraded
        self._incidents: list[_Incident] = []
        self._count = 0

    def begin(
        self, expiry: Expiry[ProcessHandle], group: list[Worker[ProcessHandle]], now: float
    ) -> None:
        """Collect, for a worker that is about to be signalled, among all that are known."""
        latest = self._incidents[-1] if self._incidents else None
        if latest is not None and not latest.ended and now - latest.begun < JOIN:
            latest.pids.add(expiry.worker.pid)
            return
        incident = _Incident(expiry.worker.pid, now, self.budget)
        self._incidents.append(incident)
        task = self._task(expiry, group, now)
        thread = threading.Thread(
            target=self._collect,
            args=(incident, self._command, task),
            name="filetimer-evidence",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as error:  # the limit on threads
            self._end(incident, error)

    def finished(self) -> dict[int, Findings]:
        """By pid, what was completed since the last call."""
        found: dict[int, Findings] = {}
        for incident in [incident for incident in self._incidents if incident.ended]:
            self._incidents.remove(incident)
            if incident.problem is not None:
                self._degraded("evidence", incident.problem)
            found |= {pid: incident.findings(pid) for pid in incident.pids}
        return found

    def give_up(self, pid: int) -> Findings:
        """The budget of this worker is over; what there is so far."""
        for incident in self._incidents:
            if pid in incident.pids:
                incident.pids.discard(pid)
                if not incident.pids:
                    incident.kill()
                return incident.findings(pid)
        return NO_FINDINGS

    def close(self) -> None:
        """End all that is still being collected."""
        for incident in self._incidents:
            incident.kill()

    def _task(
        self, expiry: Expiry[ProcessHandle], group: list[Worker[ProcessHandle]], now: float
    ) -> dict[str, Any]:
        self._count += 1
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        own = expiry.worker
        return {
            "directory": self._directory,
            "stem": f"hang-{stamp}-{os.getpid()}-{self._count}",
            "run_id": self._run_id,
            "fifo": self._fifo,
            "journal": self._journal(),
            "stacks": stacks_directory(self._fifo, runtime_directory()),
            "server": os.getpid(),
            "until": now + self.budget,
            "gpu": self._gpu,
            "group": [
                _describe(own, [*expiry.timers, *own.timers.values()], expired=True),
                *(
                    _describe(worker, list(worker.timers.values()), expired=False)
                    for worker in group
                    if worker is not own
                ),
            ],
        }

    # In a thread for each incident.

    def _collect(self, incident: _Incident, command: tuple[str, ...], task: dict[str, Any]) -> None:
        try:
            _prune(self._directory)
            incident.run(command, json.dumps(task).encode("ascii") + b"\n")
        except Exception as error:  # the worker is signalled, whatever happens here
            self._end(incident, error)
        else:
            self._end(incident)

    # In either.

    def _end(self, incident: _Incident, error: Exception | None = None) -> None:
        if error is not None:
            incident.problem = f"no evidence was collected: {error}"
        incident.ended = True
        self._wake()


class _Incident:
    """One collector, the workers that wait for it, and what it has said so far."""

    def __init__(self, pid: int, begun: float, budget: float) -> None:
        self.pids = {pid}
        self.begun = begun
        self.ended = False
        self.problem: str | None = None  # why it could not be run
        self._budget = budget
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._said: dict[str, Any] = {}

    def run(self, command: tuple[str, ...], task: bytes) -> None:
        """Run the collector to its end, which comes when the budget is over at the latest."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._process = process
        overrun = threading.Timer(max(0.0, self.begun + self._budget - time.monotonic()), self.kill)
        overrun.daemon = True
        overrun.start()
        if self._killed:
            process.kill()
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(task)
                process.stdin.flush()
                for line in process.stdout:
                    self._said = json.loads(line)
            except BrokenPipeError:
                pass  # it ended at once
            finally:
                overrun.cancel()
                process.kill()  # it has said all that it will say

    def kill(self) -> None:
        """End the collector; from any thread."""
        self._killed = True
        if self._process is not None:
            self._process.kill()

    def findings(self, pid: int) -> Findings:
        """What is known of this worker by now."""
        said = self._said
        report, where = said.get("report"), said.get("where", {}).get(str(pid))
        return Findings(report, where, None if report else said.get("problem") or self._why_not())

    def _why_not(self) -> str:
        if self.problem is not None:
            return self.problem
        if not self.ended or self._killed:
            return f"no evidence: its collector took longer than {self._budget:g} s"
        return "no evidence: its collector failed"


def _describe(
    worker: Worker[ProcessHandle], timers: list[Record], *, expired: bool
) -> dict[str, Any]:
    return {
        "pid": worker.pid,
        "start_time": worker.start_time,
        "expired": expired,
        "timers": [
            {
                "scope_id": timer.scope_id,
                "token": None if timer.token is UNSET else timer.token,
                "deadline": deadline_of(timer),
                "signal": timer.signal,
                "attributes": None if timer.attributes is UNSET else timer.attributes,
            }
            for timer in timers[:MAX_TIMERS]
        ],
    }


def _prune(directory: str) -> None:
    """Remove the oldest reports, and nothing else, so that the directory stays bounded."""
    if not os.path.isdir(directory):
        return
    names = os.listdir(directory)
    stems = {n.rpartition(".")[0] for n in names if n.startswith("hang-") and n.endswith(".txt")}
    for stem in sorted(stems)[: max(0, len(stems) - MAX_REPORTS + 1)]:
        for suffix in (".txt", ".json"):
            path = os.path.join(directory, stem + suffix)
            with contextlib.suppress(OSError):
                if os.lstat(path).st_uid == os.geteuid():
                    os.unlink(path)
