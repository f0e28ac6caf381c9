"""The watchdog: applies what was received and acts on what is due.  Both servers drive it.

It joins the timer table, the reaper and the reporter, and knows nothing of pipes and queues.  One
pass of a server is: ``receive``, then ``process_exited`` for those that have, then ``enforce``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from filetimer import debug_info_logging
from filetimer.server import events
from filetimer.server.events import EventReporter
from filetimer.server.holding import Collector, Holding, Kill
from filetimer.server.journal import event_line
from filetimer.server.process import ProcessHandle, open_process
from filetimer.server.reaper import Outcome, Reaper, timer_fields
from filetimer.server.timers import Expiry, Host, Now, TimerTable, Worker
from filetimer.wire.decoder import Record, Rejection

__all__ = ["Watchdog"]

logger = logging.getLogger("filetimer")


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
        kill_after: see :class:`Reaper`.
        watch: called with the process of every worker that is admitted.
        unwatch: called before that process is let go of.
        before_signal: called right before a worker is signalled, with the timer that decides.
            It delays the kill, so it must be quick; what it raises is logged.
        collector: looks at a worker before it is signalled; None: signal at once.
    """

    def __init__(
        self,
        host: Host,
        reporter: EventReporter,
        run_id: str = "none",
        kill_after: float | None = None,
        watch: Callable[[ProcessHandle], None] = _nothing,
        unwatch: Callable[[ProcessHandle], None] = _nothing,
        before_signal: Callable[[ProcessHandle, Record], None] = _nothing_before,
        collector: Collector | None = None,
    ) -> None:
        self.table: TimerTable[ProcessHandle] = TimerTable(host, open_process, self)
        self.reaper = Reaper(reporter, kill_after)
        self.holding = Holding(self.table, collector)
        self._reporter = reporter
        self._report = reporter.report
        self._run_id = run_id
        self._rejections: list[Rejection] = []
        self._watch, self._unwatch = watch, unwatch
        self._before_signal = before_signal

    def receive(self, results: Iterable[Record | Rejection], now: Now) -> None:
        """Apply records in order.  Rejections are reported by ``enforce``, after the kills."""
        apply, reject = self.table.apply, self._rejections.append
        for result in results:
            if isinstance(result, Record):
                apply(result, now)
            else:
                reject(result)

    def enforce(self, monotonic: float) -> bool:
        """Reap every worker that has a timer due; then say so.  Whether there was any."""
        expiries = self.table.expire(monotonic)
        kills = self.holding.due(expiries)
        outcomes = [self._reap(expiry, monotonic) for expiry in expiries]
        self._kill(kills, monotonic)
        for expiry, outcome in zip(expiries, outcomes, strict=True):
            self._report_expiry(expiry, outcome, monotonic)
        self.reaper.tick(monotonic)
        self._report_rejections()
        return bool(expiries or kills)

    def take_notes(self) -> bytes:
        """What happened since the last call, as lines for the journal."""
        events = self._reporter.take_unwritten()
        return self.holding.take_notes() + b"".join(event_line(e.to_dict()) for e in events)

    def next_deadline(self) -> float | None:
        """When ``enforce`` has something to do next; None: not foreseen."""
        known = [self.table.next_deadline(), self.reaper.next_deadline()]
        return min((deadline for deadline in known if deadline is not None), default=None)

    def process_exited(self, process: ProcessHandle, now: Now) -> None:
        """A known worker has exited: its timers go (SPEC S-10)."""
        worker = self.table.workers.get(process.pid)
        if worker is not None and worker.process is process:
            self.exited(worker, now)
            self.table.forget(worker)

    def forget_dead(self, now: Now) -> None:
        """Look at every worker: for where no pidfd tells of exits."""
        for worker in list(self.table.workers.values()):
            if not worker.process.is_alive():
                self.process_exited(worker.process, now)

    def close(self) -> None:
        """Let go of all workers."""
        self._kill(self.holding.close(), time.monotonic())
        for worker in list(self.table.workers.values()):
            self._unwatch(worker.process)
            self.table.forget(worker)

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
            self.reaper.report(kill.timer, outcome, monotonic, kill.findings)

    def _signal(self, process: ProcessHandle, timer: Record, monotonic: float) -> Outcome:
        try:
            self._before_signal(process, timer)
        except Exception:
            logger.exception("what was to be done before a kill failed; the kill goes on")
        return self.reaper.signal(process, timer, monotonic)

    def _report_expiry(
        self, expiry: Expiry[ProcessHandle], outcome: Outcome | None, monotonic: float
    ) -> None:
        for timer in expiry.timers:  # SPEC S-8: each of them
            self._report(events.TIMER_EXPIRED, **timer_fields(timer, timer.signal, monotonic))
        self._call_debug_hook(expiry)
        if outcome is not None and expiry.decisive is not None:
            self.reaper.report(expiry.decisive, outcome, monotonic)

    def _call_debug_hook(self, expiry: Expiry[ProcessHandle]) -> None:
        scopes = [timer.scope_id for timer in expiry.timers]
        try:
            debug_info_logging.log_debug_info_for_expired_timers(
                self._run_id, {expiry.worker.pid: scopes}
            )
        except Exception:  # users replace it
            logger.exception("log_debug_info_for_expired_timers raised; the server goes on")

    def _report_rejections(self) -> None:
        rejections, self._rejections = self._rejections, []
        for code, detail, line in rejections:  # SPEC F-6
            self._report(
                events.RECORD_REJECTED, code=code, detail=f"{detail}; the line begins {line!r}"
            )
