"""Workers that are stopped, by SIGSTOP or a debugger: their deadlines wait (SPEC S-22).

A stopped process does nothing, and so cannot be late by its own fault.  No event tells of the stop
of a process that is not our child, so the workers are looked at: every ``LOOK`` seconds, and before
a deadline is acted on.  Deadlines move by the time between two looks of which either found the
worker stopped.  So no stopped time counts that is longer than ``LOOK``, and a worker that is truly
stuck is reaped at most twice ``LOOK`` later for every stop.
"""

from __future__ import annotations

from filetimer.server import events
from filetimer.server.events import EventReporter
from filetimer.server.process import ProcessHandle
from filetimer.server.timers import HELD_TOKEN, TimerTable, Worker

__all__ = ["StoppedWorkers"]

LOOK = 0.5  # seconds
STATES = ("T", "t")  # stopped by a signal; by a tracer


class StoppedWorkers:
    """Holds the deadlines of stopped workers in ``table``.  Times are monotonic seconds."""

    def __init__(self, reporter: EventReporter) -> None:
        self._report = reporter.report
        self._last_look: float | None = None
        self._stopped: set[ProcessHandle] = set()

    def next_look(self, table: TimerTable[ProcessHandle]) -> float | None:
        """When to call :meth:`hold` again; None without timers."""
        if table.next_deadline() is None:
            # That there were none is to be noticed: while nobody looks, nobody is stopped.
            return None if self._last_look is None else 0.0
        return 0.0 if self._last_look is None else self._last_look + LOOK

    def hold(self, table: TimerTable[ProcessHandle], now: float) -> bool:
        """Look, if it is time; whether deadlines were moved."""
        first = table.next_deadline()
        if first is None:
            self._last_look = None
            self._stopped.clear()
            return False
        last = now - LOOK if self._last_look is None else self._last_look
        if now < last + LOOK and now < first:
            return False
        self._last_look = now
        return self._move(table, now, now - last)

    def _move(self, table: TimerTable[ProcessHandle], now: float, elapsed: float) -> bool:
        before, self._stopped = self._stopped, set()
        for worker in table.workers.values():
            process = worker.process
            if not worker.timers:
                continue
            if process.state() in STATES and not _is_held(worker):
                self._stopped.add(process)
                if process not in before:
                    self._report(events.WORKER_HELD, pid=process.pid, detail="it is stopped")
                table.postpone(worker, elapsed, now + LOOK)
            elif process in before:
                table.postpone(worker, elapsed, now)
        return bool(before or self._stopped)


def _is_held(worker: Worker[ProcessHandle]) -> bool:
    """Whether its signal is due already: what collects evidence may have to stop it (SPEC S-19)."""
    return any(timer.token == HELD_TOKEN for timer in worker.timers.values())
