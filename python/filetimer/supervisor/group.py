"""``WorkerGroup``: one attempt of all workers; they start, run and end together.

Each worker leads a session of its own, so that it can be ended with all that it started.  The
zombies of workers that have ended are kept until the group is closed: their process groups' ids
cannot be reused before.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from filetimer.server.loop import read_clocks
from filetimer.server.timers import Now
from filetimer.supervisor.children import Child, Listed, children, processes, signal_group, wait_for
from filetimer.supervisor.relay import Relay
from filetimer.supervisor.signals import WaitedSignals

__all__ = ["Worker", "WorkerGroup"]

LOOK = 0.05  # seconds between looks at what is left of a group that is stopped
KILL_PATIENCE = 5.0  # seconds for the processes of a group to die of SIGKILL
DRAIN = 2.0  # seconds to write a group's last output


@dataclass
class Worker:
    """One worker.  ``status`` is its exit status, 128+n for signal n; None while it runs."""

    rank: int
    pid: int
    started: Now
    status: int | None = None


class WorkerGroup:
    """The workers of one attempt.

    Args:
        command: what every worker runs.
        environment_of: the environment of the worker of a rank.
        size: how many workers.
        relay: gets their output.
        signals: where the end of a child is waited for; with SIGCHLD.
        kept: the pids of children of this process that are none of the group's business.
    """

    def __init__(
        self,
        command: list[str],
        environment_of: Callable[[int], Mapping[str, str]],
        size: int,
        relay: Relay,
        signals: WaitedSignals,
        kept: Callable[[], set[int]],
    ) -> None:
        self._kept = kept
        self._command, self._environment_of, self._size = command, environment_of, size
        self._relay, self._signals = relay, signals
        self.workers: list[Worker] = []
        self.asked_to_end: int | None = None  # the signal that came while the group was stopped

    def start(self) -> None:
        """Start all workers.  Raises OSError when the command cannot be run: close the group."""
        for rank in range(self._size):
            self._start(rank)

    def see_ended(self) -> list[Worker]:
        """The workers that have ended since the last call.  Reaps adopted orphans, too."""
        ended = []
        for worker in self.workers:
            if worker.status is None:
                worker.status = wait_for(worker.pid, block=False, keep=True)
                if worker.status is not None:
                    ended.append(worker)
        for orphan in self._orphans():
            if not orphan.runs:
                wait_for(orphan.pid, block=False)
        return ended

    def stop(self, signum: int, grace: float) -> bool:
        """Send ``signum`` to all that the workers started, and SIGKILL after ``grace`` seconds.

        A signal that asks us to end meanwhile cuts the grace short, and is kept in
        ``asked_to_end``.  Returns whether nothing runs any more: a process in an uninterruptible
        system call may outlive SIGKILL.
        """
        if not self._anything_runs():
            return True
        self._signal_all(signum)
        if self._gone_within(grace, impatient=True):
            return True
        give_up = time.monotonic() + KILL_PATIENCE
        while time.monotonic() < give_up:
            self._signal_all(signal.SIGKILL)  # again and again: orphans come to us one by one
            if self._gone_within(LOOK):
                return True
        return False

    def close(self) -> None:
        """Let the workers' output out, and wait for their zombies.  Stop the group first."""
        self._relay.drain(DRAIN)
        for worker in self.workers:
            if worker.status is not None:
                wait_for(worker.pid, block=False)
        self.workers.clear()

    def rank_of(self, pid: int) -> int | None:
        """The rank of the worker that is this process, or that started it; None: a stranger.

        Raises ProcessLookupError when the process is gone, and was no worker itself.
        """
        leaders = {worker.pid: worker.rank for worker in list(self.workers)}
        return leaders[pid] if pid in leaders else leaders.get(os.getsid(pid))

    def _start(self, rank: int) -> None:
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        now = read_clocks()
        try:
            child = Child(
                self._command,
                self._environment_of(rank),
                descriptors={0: nothing, 1: out_end, 2: err_end},
                mask=self._signals.outer_mask,
                new_session=True,
            )
        finally:
            for fd in (out_end, err_end, nothing):
                os.close(fd)
            self._relay.add(out, f"[{rank}] ", 1)
            self._relay.add(err, f"[{rank}] ", 2)
        self.workers.append(Worker(rank, child.pid, now))
        try:
            child.started()
        except OSError:
            self.workers.pop()  # it never ran, and was waited for
            raise

    def _signal_all(self, signum: int) -> None:
        for worker in self.workers:
            signal_group(worker.pid, signum)
        for orphan in self._orphans():
            if orphan.runs:
                os.kill(orphan.pid, signum)

    def _orphans(self) -> list[Listed]:
        """Our children that are neither workers nor kept: what workers left behind."""
        listed = children()
        others = {worker.pid for worker in self.workers} | self._kept()  # asked for after listing
        return [child for child in listed if child.pid not in others]

    def _gone_within(self, seconds: float, impatient: bool = False) -> bool:
        until = time.monotonic() + seconds
        while self._anything_runs():
            left = until - time.monotonic()
            if left <= 0:
                return False
            info = self._signals.wait(min(left, LOOK))
            if info is not None and info.si_signo != signal.SIGCHLD:
                self.asked_to_end = info.si_signo
                if impatient:
                    return False
        return True

    def _anything_runs(self) -> bool:
        self.see_ended()
        if any(worker.status is None for worker in self.workers):
            return True
        own, me = {worker.pid for worker in self.workers}, os.getpid()
        listed = [process for process in processes() if process.runs and process.pid not in own]
        kept = self._kept()
        return any(
            process.session in own or (process.parent == me and process.pid not in kept)
            for process in listed
        )
