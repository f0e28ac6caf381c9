"""Holding a signal back while evidence is collected: briefly, and surely not for ever (SPEC S-19).

A worker whose signal is due is *held*: the timer that decided is set aside, and a timer of the
server's own stands in the table instead, due when the budget is over.  So the table's rules do the
rest: the loop wakes in time, the worker's exit ends it, the journal brings it back after a crash.
No record can release that timer.  The signal is sent when the evidence is complete, or when the
timer is due, whichever comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from filetimer.server.findings import NO_FINDINGS, Findings
from filetimer.server.journal import timer_lines
from filetimer.server.process import ProcessHandle
from filetimer.server.timers import HELD_TOKEN, Expiry, TimerTable, Worker
from filetimer.wire.decoder import UNSET, Record

__all__ = ["Collector", "Holding", "Kill"]


class Collector(Protocol):
    """Collects evidence beside the loop; none of these waits."""

    budget: float

    def begin(
        self, expiry: Expiry[ProcessHandle], group: list[Worker[ProcessHandle]], now: float
    ) -> None:
        """Collect, for a worker that is about to be signalled, among all that are known."""

    def finished(self) -> dict[int, Findings]:
        """By pid, what was completed since the last call."""

    def give_up(self, pid: int) -> Findings:
        """The budget of this worker is over; what there is so far."""

    def close(self) -> None:
        """End all that is still being collected."""


class Kill(NamedTuple):
    """A signal that is due now, and the evidence that was waited for."""

    process: ProcessHandle
    timer: Record
    findings: Findings


@dataclass
class _Held:
    worker: Worker[ProcessHandle]
    decisive: Record
    stand_in: Record


class Holding:
    """The workers whose signals are held back.  Without a collector, none ever is."""

    def __init__(self, table: TimerTable[ProcessHandle], collector: Collector | None) -> None:
        self._table = table
        self._collector = collector
        self._held: dict[int, _Held] = {}
        self._notes: list[bytes] = []

    @property
    def is_holding(self) -> bool:
        """Whether a signal is held back."""
        return bool(self._held)

    def hold(self, expiry: Expiry[ProcessHandle], now: float) -> bool:
        """Hold the signal of this expiry back, if that is to be; whether it is."""
        if self._collector is None or expiry.decisive is None:
            return False
        held = self._of(expiry.worker)
        if held is None:
            held = self._begin(self._collector, expiry, now)
        self._table.set_own(held.worker, held.stand_in)  # an expiry clears all timers
        return True

    def due(self, expiries: list[Expiry[ProcessHandle]]) -> list[Kill]:
        """The signals that are to be sent now; takes the stand-ins out of ``expiries``."""
        kills: list[Kill] = []
        for i, expiry in reversed(list(enumerate(expiries))):
            stand_in = next((t for t in expiry.timers if t.token == HELD_TOKEN), None)
            if stand_in is not None:
                kills.append(self._overdue(expiry.worker, stand_in))
                others = [timer for timer in expiry.timers if timer is not stand_in]
                expiries[i : i + 1] = [Expiry(expiry.worker, others, None)] if others else []
        # What is completed as its budget ends is overdue: only once is it to be killed.
        return kills + self._completed()

    def take_notes(self) -> bytes:
        """The records of what was held and let go since the last call, for the journal."""
        notes, self._notes = b"".join(self._notes), []
        return notes

    def close(self) -> list[Kill]:
        """End all collecting; the signals that are still due."""
        if self._collector is None:
            return []
        kills = [
            self._let_go(held, self._collector.give_up(pid))
            for pid, held in self._held.items()
            if self._table.workers.get(pid) is held.worker
        ]
        self._held.clear()
        self._collector.close()
        return kills

    def _begin(self, collector: Collector, expiry: Expiry[ProcessHandle], now: float) -> _Held:
        decisive = expiry.decisive
        assert decisive is not None  # hold() has looked
        stand_in = msgspec.structs.replace(
            decisive, token=HELD_TOKEN, deadline=now + collector.budget
        )
        held = self._held[expiry.worker.pid] = _Held(expiry.worker, decisive, stand_in)
        self._notes.append(timer_lines(expiry.worker, [stand_in]))
        collector.begin(expiry, list(self._table.workers.values()), now)
        return held

    def _of(self, worker: Worker[ProcessHandle]) -> _Held | None:
        held = self._held.get(worker.pid)
        return held if held is not None and held.worker is worker else None

    def _completed(self) -> list[Kill]:
        kills = []
        for pid, findings in self._collector.finished().items() if self._collector else ():
            held = self._held.pop(pid, None)
            if held is not None and self._table.workers.get(pid) is held.worker:
                self._table.clear(pid)  # SPEC S-8
                kills.append(self._let_go(held, findings))
        return kills

    def _overdue(self, worker: Worker[ProcessHandle], stand_in: Record) -> Kill:
        held = self._of(worker)
        if held is None or self._collector is None:  # a server that died had held it
            timer = msgspec.structs.replace(stand_in, token=UNSET)  # which one, it did not say
            return Kill(worker.process, timer, NO_FINDINGS)
        del self._held[worker.pid]
        return self._let_go(held, self._collector.give_up(worker.pid))

    def _let_go(self, held: _Held, findings: Findings) -> Kill:
        release = msgspec.structs.replace(held.stand_in, expiration_time=-1.0)
        self._notes.append(timer_lines(held.worker, [release]))
        return Kill(held.worker.process, held.decisive, findings)
