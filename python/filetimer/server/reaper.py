"""Signals a stuck worker, confirms its death, and escalates when it lives on (SPEC S-8, S-14)."""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass, field
from typing import NamedTuple

from filetimer.server import events
from filetimer.server.descendants import descendants
from filetimer.server.events import EventReporter
from filetimer.server.findings import NO_FINDINGS, Findings
from filetimer.server.policy import Policy
from filetimer.server.process import ProcessHandle
from filetimer.server.timers import HELD_TOKEN, deadline_of
from filetimer.wire.decoder import UNSET, Record

__all__ = ["Reaper", "timer_fields"]

UNKILLABLE_AFTER = 5.0  # seconds after SIGKILL


@dataclass
class _Dying:
    """A worker that was signalled and whose death is not confirmed yet."""

    process: ProcessHandle
    timer: Record
    signum: int
    next_step: float | None  # monotonic seconds; None: nothing but its death is awaited
    family: list[ProcessHandle] = field(default_factory=list)  # descendants that were signalled


class Outcome(NamedTuple):
    """What came of a signal: the event to report, why, and when, in monotonic seconds."""

    event: str
    detail: str | None
    at: float


class Reaper:
    """Reaps workers.  Times are monotonic seconds.

    Args:
        reporter: receives every step.
        policy: says whether and when it escalates, and whether descendants go with a worker.
    """

    def __init__(self, reporter: EventReporter, policy: Policy) -> None:
        self._report = reporter.report
        self._kill_after = policy.kill_after
        self._reap_tree = policy.reap_tree
        self._orphans: list[tuple[float, list[ProcessHandle]]] = []  # by when they get SIGKILL
        self._dying: dict[int, _Dying] = {}

    def signal(self, process: ProcessHandle, timer: Record, now: float) -> Outcome:
        """Send the timer's signal, and say what came of it; :meth:`report` tells the world."""
        try:
            if not process.is_alive():  # a zombie takes signals without complaint
                raise ProcessLookupError
            family = self._family(process)
            process.send_signal(timer.signal)
        except ProcessLookupError:
            return Outcome(events.WORKER_EXITED, "gone before it was signalled", now)
        except OSError as error:
            return Outcome(events.KILL_FAILED, str(error), now)
        _signal_all(family, timer.signal)
        self._await_death(process, timer, now, family)
        detail = f"and {len(family)} descendants" if family else None
        return Outcome(events.KILL_WORKER, detail, now)

    def report(self, timer: Record, outcome: Outcome, findings: Findings = NO_FINDINGS) -> None:
        """Report a signal: apart from sending it, so that a slow log delays no other kill."""
        fields = timer_fields(timer, timer.signal, outcome.at)
        evidence, where, problem = findings
        detail = "; ".join(filter(None, (outcome.detail, problem))) or None
        self._report(outcome.event, **fields, detail=detail, evidence=evidence, where=where)

    def next_deadline(self) -> float | None:
        """When ``tick`` has something to do; None: not foreseen."""
        if not self._dying and not self._orphans:
            return None
        steps = [dying.next_step for dying in self._dying.values() if dying.next_step is not None]
        steps += [at for at, _ in self._orphans]
        return min(steps, default=None)

    def tick(self, now: float) -> None:
        """Escalate what is due."""
        for dying in list(self._dying.values()):
            if dying.next_step is not None and dying.next_step <= now:
                self._step(dying, now)
        for at, family in [orphans for orphans in self._orphans if orphans[0] <= now]:
            self._orphans.remove((at, family))
            _signal_all(family, signals.SIGKILL)
            _let_go(family)

    def close(self) -> None:
        """Let go of all descendants."""
        for dying in self._dying.values():
            _let_go(dying.family)
        for _, family in self._orphans:
            _let_go(family)
        self._dying.clear()
        self._orphans.clear()

    def on_exit(self, process: ProcessHandle, now: float) -> bool:
        """A process has exited.  True if it was one of ours to die, and its death is reported."""
        dying = self._dying.get(process.pid)
        if dying is None or dying.process is not process:
            return False
        del self._dying[process.pid]
        self._report(events.WORKER_DIED, **timer_fields(dying.timer, dying.signum, now))
        if dying.signum != signals.SIGKILL and self._kill_after is not None and dying.family:
            self._orphans.append((dying.next_step or now, dying.family))  # they may live on
        else:
            _let_go(dying.family)
        return True

    def _family(self, process: ProcessHandle) -> list[ProcessHandle]:
        if not self._reap_tree:
            return []
        try:
            return descendants(process)
        except OSError as error:
            self._report(events.DEGRADED, code="descendants", detail=f"not found: {error}")
            return []

    def _await_death(
        self, process: ProcessHandle, timer: Record, now: float, family: list[ProcessHandle]
    ) -> None:
        dying = self._dying.get(process.pid)
        if dying is not None and dying.process is process:
            dying.family += family
            if dying.next_step is not None:
                return  # signalled before: the first signal's patience counts
            family = dying.family
        next_step = self._next_step(timer.signal, now)
        self._dying[process.pid] = _Dying(process, timer, timer.signal, next_step, family)

    def _next_step(self, signum: int, now: float) -> float | None:
        if signum == signals.SIGKILL:
            return now + UNKILLABLE_AFTER
        return None if self._kill_after is None else now + self._kill_after

    def _step(self, dying: _Dying, now: float) -> None:
        if _is_dead(dying.process):
            dying.next_step = None  # its exit event is on its way
            return
        if dying.signum == signals.SIGKILL:
            state = dying.process.state()
            self._report(
                events.WORKER_UNKILLABLE,
                **timer_fields(dying.timer, dying.signum, now),
                detail=f"state {state}: it will die when the kernel lets go of it",
            )
            dying.next_step = None
            return
        self._escalate(dying, now)

    def _escalate(self, dying: _Dying, now: float) -> None:
        dying.signum = int(signals.SIGKILL)  # SPEC S-14
        dying.next_step = self._next_step(dying.signum, now)
        fields = timer_fields(dying.timer, dying.signum, now)
        try:
            dying.process.send_signal(dying.signum)
            self._report(events.KILL_ESCALATED, **fields)
            _signal_all(dying.family, dying.signum)
        except ProcessLookupError:
            dying.next_step = None
        except OSError as error:
            dying.next_step = None
            self._report(events.KILL_FAILED, **fields, detail=str(error))


def _is_dead(process: ProcessHandle) -> bool:
    try:
        return not process.is_alive()
    except OSError:  # it cannot be looked at
        return False


def _signal_all(family: list[ProcessHandle], signum: int) -> None:
    for process in family:
        try:
            process.send_signal(signum)
        except OSError:
            pass  # it is gone


def _let_go(family: list[ProcessHandle]) -> None:
    for process in family:
        process.close()


def timer_fields(
    timer: Record, signum: int | None = None, now: float | None = None
) -> dict[str, object]:
    """The fields of an event about this timer; ``now``, in monotonic seconds, makes it late."""
    return {
        "pid": timer.pid,
        "scope_id": timer.scope_id,
        "token": None if timer.token in (UNSET, HELD_TOKEN) else timer.token,
        "expiration_time": timer.expiration_time,
        "signal": signum,
        "late": None if now is None else now - deadline_of(timer),
        "attributes": None if timer.attributes is UNSET else timer.attributes,
    }
