"""The watchdog: applies what was received and acts on what is due.  Both servers drive it.

It joins the timer table, the reaper and the reporter, and knows nothing of pipes and queues.  One
pass of a server is: ``receive``, then ``process_exited`` for those that have, then ``enforce``.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import resource
import time
from collections.abc import Callable, Iterable, Sequence

from filetimer import debug_info_logging
from filetimer.server import events
from filetimer.server.backlog import Backlog
from filetimer.server.events import EventReporter, describe_signal
from filetimer.server.holding import Collector, Holding, Kill
from filetimer.server.journal import event_line
from filetimer.server.policy import Policy
from filetimer.server.process import TICK, ProcessHandle, open_process, started_at
from filetimer.server.reaper import Outcome, Reaper, timer_fields
from filetimer.server.stopped import StoppedWorkers
from filetimer.server.timers import Expiry, Host, Now, TimerTable, Worker, deadline_of
from filetimer.wire.decoder import Garbage, Record, Rejection

__all__ = ["Watchdog"]

logger = logging.getLogger("filetimer")

DEFAULT = Policy()
NEVER = float("inf")


def _nothing(process: ProcessHandle) -> None:
    pass


def _nothing_before(process: ProcessHandle, timer: Record) -> None:
    pass


class Watchdog:
    """Times are monotonic seconds unless they are a ``Now``.

    Args:
        host: the server's identity.
        reporter: receives the events.
        run_id: the job, for ``log_debug_info_for_expired_timers``.
        policy: what becomes of stuck workers.
        watch: called with the process of every worker that is admitted.
        unwatch: called before that process is let go of.
        before_signal: called right before a worker is signalled, with the timer that decides.
            It delays the kill, so it must be quick; what it raises is logged.
        collector: looks at a worker before it is signalled; None: signal at once.
        clock: tells the monotonic time of a signal; None: it is that of the pass.
    """

    def __init__(
        self,
        host: Host,
        reporter: EventReporter,
        run_id: str = "none",
        policy: Policy = DEFAULT,
        watch: Callable[[ProcessHandle], None] = _nothing,
        unwatch: Callable[[ProcessHandle], None] = _nothing,
        before_signal: Callable[[ProcessHandle, Record], None] = _nothing_before,
        collector: Collector | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.table: TimerTable[ProcessHandle] = TimerTable(
            host, self._open, self, policy, self._is_too_young
        )
        self.reaper = Reaper(reporter, policy)
        self.holding = Holding(self.table, collector)
        self._reporter = reporter
        self._report = reporter.report
        self._run_id = run_id
        self._policy = policy
        self._stopped = StoppedWorkers(reporter) if policy.hold_stopped else None
        self._backlog = Backlog()
        self._watch, self._unwatch = watch, unwatch
        self._before_signal = before_signal
        self._clock = clock
        self._written_by: Callable[[], float] = lambda: float("inf")
        self._deadlines_moved = False

    @property
    def is_behind(self) -> bool:
        """Whether so many rejections wait for their report that more should wait in the pipe."""
        return self._backlog.is_full

    def receive(
        self,
        results: Sequence[Record | Rejection | Garbage],
        now: Now,
        written_by: Callable[[Now], float] = lambda now: now.monotonic,
    ) -> None:
        """Apply records in order.  Rejections are reported by ``enforce``, after the kills.

        ``written_by`` tells by when, in monotonic seconds, the records had been written.  If this
        fails for want of memory, it may be called again with the same results.
        """
        self._written_by = lambda: written_by(now)
        records = [result for result in results if result.__class__ is Record]
        self.table.apply(records, now)
        if len(records) < len(results):
            self._backlog.add([result for result in results if not isinstance(result, Record)])

    def is_due(self, monotonic: float) -> bool:
        """Whether ``enforce`` has somebody to reap."""
        return self.next_due() <= monotonic

    def rehearse(self) -> None:
        """Do to the worker that is due next what will be done to it, with a signal that is none.

        So all of that is in the caches when it is needed: a worker is dead 0.03 ms sooner.
        """
        worker = self.table.next_worker()
        if worker is not None:
            with contextlib.suppress(OSError):
                if worker.process.is_alive():
                    worker.process.send_signal(0)

    def enforce(self, monotonic: float) -> bool:
        """Reap every worker that has a timer due; then say so.  Whether there was any."""
        # Most passes end here: whatever is done below, one of these three must have foreseen.
        if min(self.next_due(), self.next_chore()) > monotonic and not self.holding.is_holding:
            return False
        if self._stopped is not None and self._stopped.hold(self.table, monotonic):
            self._deadlines_moved = True
        expiries = self.table.expire(monotonic)
        kills = self.holding.due(expiries)
        outcomes = [self._reap(expiry, monotonic) for expiry in expiries]
        self._kill(kills, monotonic)
        if kills or any(outcomes):
            _yield_core()
        for expiry, outcome in zip(expiries, outcomes, strict=True):
            self._report_expiry(expiry, outcome, monotonic)
        self.reaper.tick(monotonic)
        for timer in self.table.overdue(monotonic):
            self._report(
                events.TIMER_OVERDUE, **timer_fields(timer), detail=_left(timer, monotonic)
            )
        if self._reporter.is_flooded:
            for code, count in self._backlog.tally_slice().items():
                self._reporter.withhold(events.RECORD_REJECTED, code, count)
        else:
            self._report_rejections(self._backlog.take_slice())
        self._reporter.flush(monotonic)
        return bool(expiries or kills)

    def take_notes(self) -> bytes:
        """What happened since the last call, as lines for the journal."""
        events = self._reporter.take_unwritten()
        return self.holding.take_notes() + b"".join(event_line(e.to_dict()) for e in events)

    def take_deadlines_moved(self) -> bool:
        """Whether deadlines were moved, since the last call, without a record that says so."""
        moved, self._deadlines_moved = self._deadlines_moved, False
        return moved

    def next_due(self) -> float:
        """When ``enforce`` has somebody to reap; infinity: never, as far as is known."""
        deadline, step = self.table.next_deadline(), self.reaper.next_deadline()
        if deadline is None or (step is not None and step < deadline):
            deadline = step
        return NEVER if deadline is None else deadline

    def next_chore(self) -> float:
        """When ``enforce`` has something else to do, in which a millisecond does not matter."""
        if self._backlog:
            return 0.0
        warning, flush = self.table.next_warning(), self._reporter.next_flush
        chore = NEVER if warning is None else warning
        if flush is not None and flush < chore:
            chore = flush
        if self._stopped is not None:
            look = self._stopped.next_look(self.table)
            chore = chore if look is None else min(chore, look)
        return chore

    def out_of_memory(self) -> None:
        """Go on with the timers that there are."""
        self.table.stop_growing()
        self._reporter.degraded("memory", "out of memory: it keeps its timers and takes no more")

    def process_exited(self, process: ProcessHandle, now: Now) -> None:
        """A known worker has exited: its timers go (SPEC S-10)."""
        worker = self.table.workers.get(process.pid)
        if worker is not None and worker.process is process:
            self.exited(worker, now)
            self.table.forget(worker)

    def forget_dead(self, processes: Iterable[ProcessHandle], now: Now) -> None:
        """Look at these workers: for where no pidfd tells of exits."""
        for process in list(processes):
            with contextlib.suppress(OSError):  # it cannot be looked at: the next time, then
                if not process.is_alive():
                    self.process_exited(process, now)

    def close(self) -> None:
        """Send what was held back, report what is left to report, and let go of all workers."""
        self._kill(self.holding.close(), time.monotonic())
        self._report_rejections(self._backlog.take_all())
        self._reporter.flush(float("inf"))
        self.reaper.close()
        for worker in list(self.table.workers.values()):
            self._unwatch(worker.process)
            self.table.forget(worker)

    def _open(self, pid: int) -> ProcessHandle | None:
        """Find a worker; keep half of the descriptors for the program that we are a part of."""
        allowed = len(self.table.workers) < _file_limit() // 2
        try:
            process = open_process(pid, allowed)
        except OSError as error:
            self._reporter.degraded("descriptors", f"a worker cannot be looked at: {error}")
            raise
        if not allowed or (process is not None and process.no_pidfd is not None):
            self._reporter.degraded(
                "descriptors",
                "too few open files are allowed to hold every worker by a pidfd: some are told "
                "apart by their start times, and looked at from time to time",
            )
        return process

    def _is_too_young(self, process: ProcessHandle) -> bool:
        return started_at(process) > self._written_by() + TICK

    # What the table tells (timers.Observer).

    def admitted(self, worker: Worker[ProcessHandle]) -> None:
        self._watch(worker.process)

    def refused(self, record: Record, reason: str) -> None:
        self._report(events.TIMER_REFUSED, code=reason, **timer_fields(record))

    def exited(self, worker: Worker[ProcessHandle], now: Now) -> None:
        killed = self.reaper.on_exit(worker.process, now.monotonic)
        if not killed and worker.timers:
            scopes = sorted({timer.scope_id for timer in worker.timers.values()})
            self._report(
                events.WORKER_EXITED, pid=worker.pid, detail=f"with timers in {', '.join(scopes)}"
            )
        self._unwatch(worker.process)

    def _reap(self, expiry: Expiry[ProcessHandle], monotonic: float) -> Outcome | None:
        if expiry.decisive is None:
            return None  # SPEC S-9
        if self.holding.hold(expiry, monotonic):
            return None  # SPEC S-19
        return self._signal(expiry.worker.process, expiry.decisive, monotonic)

    def _kill(self, kills: list[Kill], monotonic: float) -> None:
        ended = [self._signal(kill.process, kill.timer, monotonic) for kill in kills]
        for kill, outcome in zip(kills, ended, strict=True):
            self.reaper.report(kill.timer, outcome, kill.findings)

    def _signal(self, process: ProcessHandle, timer: Record, monotonic: float) -> Outcome:
        try:
            self._before_signal(process, timer)
        except Exception:
            logger.exception("what was to be done before a kill failed; the kill goes on")
        # What had to be read first took its time, and so did the signals before this one.
        now = monotonic if self._clock is None else self._clock()
        return self.reaper.signal(process, timer, now)

    def _report_expiry(
        self, expiry: Expiry[ProcessHandle], outcome: Outcome | None, monotonic: float
    ) -> None:
        for timer in expiry.timers:  # SPEC S-8: each of them
            signum, detail = timer.signal, None
            if self._policy.report_only and signum > 0:
                signum, detail = 0, f"{describe_signal(timer.signal)} was not sent"
            self._report(
                events.TIMER_EXPIRED, **timer_fields(timer, signum, monotonic), detail=detail
            )
        self._call_debug_hook(expiry)
        if outcome is not None and expiry.decisive is not None:
            self.reaper.report(expiry.decisive, outcome)

    def _call_debug_hook(self, expiry: Expiry[ProcessHandle]) -> None:
        scopes = [timer.scope_id for timer in expiry.timers]
        try:
            debug_info_logging.log_debug_info_for_expired_timers(
                self._run_id, {expiry.worker.pid: scopes}
            )
        except Exception:  # users replace it
            logger.exception("log_debug_info_for_expired_timers raised; the server goes on")

    def _report_rejections(self, rejected: Iterable[tuple[Rejection, int]]) -> None:
        for bad, count in rejected:  # SPEC F-6
            self._report(
                events.RECORD_REJECTED,
                code=bad.code,
                count=count if count > 1 else None,
                detail=functools.partial(_in_words, bad),
            )


def _yield_core() -> None:
    """Let those who were signalled run before we go on.

    The kernel may have them wait for this very core: a third of a millisecond, measured.
    """
    if hasattr(os, "sched_yield"):
        os.sched_yield()


def _in_words(bad: Rejection) -> str:
    return f"{bad.detail}; the line begins {bad.line!r}"


def _left(timer: Record, monotonic: float) -> str:
    return f"{max(0.0, deadline_of(timer) - monotonic):.3f} s before its deadline"


def _file_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
