"""Eight clients that take and give back timers without pause; some of them hang."""

from __future__ import annotations

import random

from faults.fleet import Fleet, FleetWorker, eventually, native_is_built

__all__ = ["CLIENTS", "Load"]

CLIENTS = 8
# Deadlines are this much above what their blocks take, in seconds: some pass while no server lives.
SPARE = "(0.1, 2.0)"


class Load:
    """Keeps ``CLIENTS`` workers of ``fleet`` busy, of every kind of client there is."""

    def __init__(self, fleet: Fleet, seconds: tuple[float, float] = (0.5, 4.0)) -> None:
        self._fleet = fleet
        self._seconds = seconds
        self._kinds = ["python", "version 1", "native" if native_is_built() else "python"]
        self._running: list[FleetWorker] = []
        self._started = 0

    def keep_up(self) -> None:
        """Replace those that have ended."""
        self._running = [worker for worker in self._running if worker.died_at is None]
        while len(self._running) < CLIENTS:
            self._running.append(self._start())

    def finish(self) -> None:
        """Wait until all that do not hang have ended by themselves."""
        eventually(
            lambda: all(worker.slate.hangs or not worker.is_alive() for worker in self._running),
            "the load ends",
        )

    def _start(self) -> FleetWorker:
        self._started += 1
        takes = random.uniform(*self._seconds)
        code = f"pairs({takes}, spare={SPARE})"
        if self._started % 2:
            code += f"\nhang({random.uniform(0.1, 1.5)})"
        return self._fleet.start(code, client=self._kinds[self._started % len(self._kinds)])
