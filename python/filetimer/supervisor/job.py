"""``Job``: a timer server and the worker groups that run under it, one attempt after the other.

The server is a child of this process, which holds the pipe: a server that dies is replaced by one
that knows the same timers.  An attempt fails when one worker fails; the whole group is then
stopped, and restarted while there are restarts left, whatever made it fail: torchrun's rule.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from filetimer.client.environment import PATH_VARIABLES
from filetimer.server import events
from filetimer.server.events import Event, describe_attributes, describe_lateness, describe_signal
from filetimer.server.journal import JournalError
from filetimer.supervisor.children import adopt_orphans
from filetimer.supervisor.group import Worker, WorkerGroup
from filetimer.supervisor.held_server import HeldServer, ServerOptions
from filetimer.supervisor.kept import Started, add_started
from filetimer.supervisor.relay import Relay
from filetimer.supervisor.signals import ENDINGS, WaitedSignals

__all__ = ["REAPED", "CannotServe", "Job", "Plan"]

logger = logging.getLogger("filetimer")

REAPED = 124  # exit status when the last attempt ended by reaping, as that of timeout(1)
MAX_NOTES = 100  # events of an attempt that are told; --events has them all

_TOLD = frozenset(
    {
        events.RECORD_REJECTED,
        events.TIMER_REFUSED,
        events.KILL_FAILED,
        events.KILL_ESCALATED,
        events.WORKER_UNKILLABLE,
        events.DEGRADED,
        events.RECOVERED,
        events.SERVER_DIED,
        events.TIMER_OVERDUE,
        events.WORKER_HELD,
        events.MENDED,
    }
)


class CannotServe(Exception):
    """The server could not be started; ``reason`` is why."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True)
class Plan:
    """What to run.

    ``kill_after`` is in seconds, from any signal that asks to SIGKILL.  ``server`` are further
    fields of ``ServerOptions``.
    """

    command: list[str]
    path: str
    workers: int = 1
    max_restarts: int = 0
    kill_after: float = 5.0
    on_event: Callable[[Event], None] | None = None
    server: Mapping[str, Any] = field(default_factory=dict)  # more of its options


class Job:
    """Runs a plan.  Make it and run it in the main thread."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._group: WorkerGroup | None = None
        self._killed: dict[int, int | None] = {}  # rank by pid, of what was reaped in this attempt
        self._stuck = False  # something outlives SIGKILL, so that its end may never come
        self._notes = 0
        self._started: list[Started] = []  # for the history that is kept

    def run(self) -> int:
        """Run all attempts; return the job's exit status.

        Raises, with nothing left behind, CannotServe when the path cannot be served, and OSError
        when the workers cannot be started; its ``filename`` is the command if that is to blame.
        """
        adopt_orphans()
        with WaitedSignals((*ENDINGS, signal.SIGCHLD)) as self._signals:
            self._relay = Relay()
            options = ServerOptions(
                f"run-{os.getpid()}", kill_after=self._plan.kill_after, **self._plan.server
            )
            server = HeldServer(self._plan.path, options, self._on_event)
            try:
                _start(server)
                return self._attempts(server)
            finally:
                server.stop()
                self._add_ranks(options)
                self._relay.close(2.0)

    def _attempts(self, server: HeldServer) -> int:
        for restart in range(self._plan.max_restarts + 1):
            if restart:
                self._say(f"restarting the group (restart {restart} of {self._plan.max_restarts})")
            status, again = self._attempt(server, restart)
            if not again:
                break
        return status

    def _attempt(self, server: HeldServer, restart: int) -> tuple[int, bool]:
        """Run the group once: its status, and whether another attempt may follow."""
        plan, port = self._plan, str(_free_port())
        self._killed, self._notes, self._stuck = {}, 0, False
        self._group = group = WorkerGroup(
            plan.command,
            lambda rank: self._environment(rank, restart, port),
            plan.workers,
            self._relay,
            self._signals,
            server.pids,
        )
        stop_signal: int = signal.SIGTERM
        gone = False
        try:
            group.start()
            self._tell_started(group.workers, restart)
            status, ending = self._watch(group, server)
            stop_signal = ending or stop_signal
        finally:
            gone = group.stop(stop_signal, plan.kill_after)
            group.close()
        if not gone:
            self._say("a process of the group outlives SIGKILL: it sticks in the kernel")
        again = status != 0 and ending is None and gone  # what it holds, others would wait for
        if again and group.asked_to_end is not None:
            return 128 + group.asked_to_end, False
        return status, again

    def _tell_started(self, workers: list[Worker], restart: int) -> None:
        for worker in workers:
            event = Event(
                events.WORKER_STARTED,
                pid=worker.pid,
                rank=worker.rank,
                restart=restart,
                time=worker.started.wall,
            )
            if self._plan.server.get("keep_journal") is not None:
                self._started.append(Started(worker.started, event))
            if self._plan.on_event is not None:
                try:
                    self._plan.on_event(event)
                except Exception:  # a full disk under --events, for one
                    logger.exception("an event callback raised; the job goes on")

    def _add_ranks(self, options: ServerOptions) -> None:
        """The records do not say them, and the server does not know them."""
        if options.keep_journal is not None:
            try:
                add_started(options.keep_journal, options.run_id, self._started)
            except (OSError, JournalError) as error:
                self._say(f"the history that is kept lacks the ranks: {error}")

    def _watch(self, group: WorkerGroup, server: HeldServer) -> tuple[int, int | None]:
        """Wait for the group's result: its status, and the signal that asked us to end."""
        running = len(group.workers)
        while running:
            info = self._signals.wait()
            if info is not None and info.si_signo != signal.SIGCHLD:
                self._say(f"{describe_signal(info.si_signo)}: stopping the group")
                return 128 + info.si_signo, info.si_signo
            if self._stuck:
                return REAPED, None
            for worker in group.see_ended():
                # Waits for the pass of the server that may have reaped it: what that did is in
                # self._killed afterwards.
                server.settle()
                if worker.status or worker.pid in self._killed:
                    return self._failure(worker), None
                running -= 1
        return 0, None

    def _failure(self, worker: Worker) -> int:
        """The group's status after its first failure."""
        if self._killed:
            return REAPED  # also where a peer of the reaped worker was the first to be gone
        status = worker.status or 0
        how = describe_signal(status - 128) if status > 128 else f"status {status}"
        self._say(f"rank {worker.rank} (pid {worker.pid}) ended with {how}")
        return status

    def _environment(self, rank: int, restart: int, port: str) -> Mapping[str, str]:
        own = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": self._plan.workers,
            "LOCAL_WORLD_SIZE": self._plan.workers,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "FILETIMER_RESTART_COUNT": restart,
            "TORCHELASTIC_RESTART_COUNT": restart,
            "TORCHELASTIC_MAX_RESTARTS": self._plan.max_restarts,
            **dict.fromkeys(PATH_VARIABLES, os.path.abspath(self._plan.path)),
        }
        # What a reaped worker printed must not be lost with it.
        return {
            "PYTHONUNBUFFERED": "1",
            **os.environ,
            **{name: str(value) for name, value in own.items()},
        }

    def _say(self, text: str) -> None:
        self._relay.say(f"filetimer: {text}")

    # In the thread that listens to the server.

    def _on_event(self, event: Event) -> None:
        if event.name == events.KILL_WORKER and event.pid is not None:
            self._say(_reaped(event, self._note_killed(event.pid)))
            if event.where is not None:
                self._say(f"  it hung in {event.where}")
        elif event.name in _TOLD or _is_report(event):
            self._note(event)
        if event.name == events.WORKER_UNKILLABLE:
            self._stuck = True
            os.kill(os.getpid(), signal.SIGCHLD)  # wakes the main thread
        if self._plan.on_event is not None:
            self._plan.on_event(event)

    def _note_killed(self, pid: int) -> int | None:
        """The rank of what was killed; None where it is not known."""
        try:
            rank = self._group.rank_of(pid) if self._group is not None else None
        except ProcessLookupError:
            rank = None  # a process that some worker had started, and gone already
        else:
            if rank is None:
                return None  # another job's, at a path that is shared
        self._killed[pid] = rank
        return rank

    def _note(self, event: Event) -> None:
        self._notes += 1
        if self._notes <= MAX_NOTES:  # SPEC X-2
            self._say(event.describe())
        elif self._notes == MAX_NOTES + 1:
            self._say("more such events are not shown")


def _start(server: HeldServer) -> None:
    try:
        server.start()
    except OSError as error:
        raise CannotServe(error) from error


def _reaped(event: Event, rank: int | None) -> str:
    who = f"pid {event.pid}" if rank is None else f"rank {rank} (pid {event.pid})"
    given = f" ({describe_attributes(event.attributes)})" if event.attributes else ""
    line = (
        f"{who} was reaped in scope {event.scope_id!r}{given}, "
        f"{describe_lateness(event.late or 0.0)} ({describe_signal(event.signal or 0)})"
    )
    if event.evidence is not None:
        line += f"; evidence in {event.evidence}"
    elif event.detail is not None:
        line += f"; {event.detail}"
    return line


def _is_report(event: Event) -> bool:
    """Whether a timer expired that asks for no signal: its report is all there is (SPEC S-9)."""
    return event.name == events.TIMER_EXPIRED and (event.signal or 0) <= 0


def _free_port() -> int:
    """A port that is free now, for MASTER_PORT."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
