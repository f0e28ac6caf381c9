"""The loop of both servers: wait, receive, see who exited, enforce.

One wait covers it all: records, exits of known workers, the next deadline, a wake-up to stop.
Idle means asleep; ``max_interval`` bounds the sleep only so that progress can be seen.
"""

from __future__ import annotations

import itertools
import logging
import mmap
import threading
import time
from collections.abc import Iterable
from typing import Protocol

from filetimer import memory
from filetimer.server.process import ProcessHandle
from filetimer.server.timers import Now, Worker
from filetimer.server.waiter import AWAKE, Waiter, minimise_timer_slack
from filetimer.server.watchdog import Watchdog
from filetimer.wire.decoder import Received

__all__ = ["ServerLoop", "Source", "read_clocks"]

logger = logging.getLogger("filetimer")

# A reader that takes every record at once is woken by every record, and the writers pay for that.
# So what comes first waits a moment for more, unless the pass just before found many.
REST = 0.001  # seconds
MANY = 100  # records: in another moment, some writers might fill the pipe

DEATH_POLL = 0.25  # seconds between looks at workers that no pidfd watches
MOST_EXITS = 100  # that are worked off in one pass: some milliseconds by which it may delay a kill
BALLAST = 16 << 20  # bytes that are given up when memory runs out, so that there is some to go on

FAULT_PAUSE = 0.1  # seconds: a pass that keeps failing must not spin


def read_clocks() -> Now:
    """Now, on both clocks."""
    return Now(time.monotonic(), time.time())


class Source(Protocol):
    """Where records come from."""

    def fileno(self) -> int:
        """The descriptor that can be read when something has come."""

    def receive(self, now: Now, urgent: bool) -> Received:
        """All that has come, and, if it is ``urgent``, no more.  ``now`` is when it is received."""

    def written_by(self, now: Now) -> float:
        """By when, in monotonic seconds, what was received had been written."""

    def acted(self, now: Now, notes: bytes) -> None:
        """What was due at ``now`` was acted on; ``notes`` are lines for the journal."""

    def keep(self, workers: Iterable[Worker[ProcessHandle]], now: Now, moved: bool = False) -> None:
        """These workers, with their timers, are all that matters of what was received so far.

        ``moved``: deadlines are other than what was received says.
        """

    def close(self) -> None:
        """Let go of it."""


class ServerLoop:
    """Feeds what ``source`` receives to one watchdog.  ``lock`` is held during every pass."""

    def __init__(self, source: Source, lock: threading.RLock, max_interval: float) -> None:
        self.last_progress = time.time()
        self._source = source
        self._lock = lock
        self._max_interval = max_interval
        self._waiter = Waiter(source.fileno())
        self._watched: dict[int, ProcessHandle] = {}  # by pidfd
        self._unwatched: set[ProcessHandle] = set()  # looked at from time to time
        self._next_look = 0.0
        self._unapplied: tuple[Received, Now] | None = None
        self._short = False  # of memory, in the pass before
        self._ballast: mmap.mmap | None = memory.reserve(BALLAST)
        self._busy = False  # too many records come to rest
        self._stopping = False

    def run(self, watchdog: Watchdog) -> None:
        """Serve until :meth:`stop`; then close everything."""
        minimise_timer_slack()
        try:
            while not self._stopping:
                try:
                    self.serve_once(watchdog)
                except MemoryError:
                    self._short, self._ballast = True, None
                    watchdog.out_of_memory()
                    time.sleep(FAULT_PAUSE)
                except Exception:
                    logger.exception("a pass of the timer server failed; it goes on")
                    time.sleep(FAULT_PAUSE)
        finally:
            self.close(watchdog)

    def serve_once(self, watchdog: Watchdog) -> None:
        """Wait, and make a pass."""
        with self._lock:
            deadline, chore = watchdog.next_due(), watchdog.next_chore()
        start = time.monotonic()
        beat = start + self._max_interval
        look = self._next_look if self._unwatched else beat
        ready = self._waiter.wait(min(beat, look, chore), deadline)
        if self._source.fileno() in ready:
            now = time.monotonic()
            rest = min(REST, min(deadline - AWAKE, chore) - now)
            busy = self._busy and now - start < REST
            if rest > 0 and not busy:  # to sleep for no time at all takes a tenth of a millisecond
                time.sleep(rest)
        with self._lock:
            if 0 < deadline - time.monotonic() < AWAKE:
                watchdog.rehearse()
            self.serve_pass(watchdog, ready)

    def serve_pass(self, watchdog: Watchdog, ready: set[int], read: bool = False) -> None:
        """Act on what has happened by now.

        ``ready``: descriptors that can be read.  ``read``: whether to read what has come even if
        that could wait.
        """
        now = read_clocks()
        # SPEC S-7: `now` comes first.  Whatever was released by then is received below.
        urgent = watchdog.is_due(now.monotonic + AWAKE)
        # SPEC X-1: a flood of garbage waits for us, not we for it.
        if urgent or read or not watchdog.is_behind:
            self._receive(watchdog, now, urgent)
        self._see_exits(watchdog, ready, now)
        acted = watchdog.enforce(now.monotonic)
        notes = watchdog.take_notes()
        if acted or notes:
            self._source.acted(now, notes)
        moved = watchdog.take_deadlines_moved()
        self._source.keep(watchdog.table.workers.values(), now, moved)
        self.last_progress = now.wall

    def _receive(self, watchdog: Watchdog, now: Now, urgent: bool) -> None:
        """Apply all that has come.  What memory did not suffice for is applied the next time."""
        if self._unapplied is not None:
            watchdog.receive(*self._unapplied)
        self._unapplied = None
        # A pass without memory leaves some undecoded, some in the journal: they precede the pipe.
        for _ in range(3 if self._short else 1):
            results = self._source.receive(now, urgent)
            if results:
                self._unapplied = results, now
                watchdog.receive(results, now, self._source.written_by)
                self._unapplied = None
        self._short = False
        self._busy = len(results) >= MANY

    def watch(self, process: ProcessHandle) -> None:
        """Have ``watchdog.process_exited`` called when this process ends."""
        try:
            if process.pidfd is None:
                raise OSError("no pidfd")
            self._waiter.register(process.pidfd)
            self._watched[process.pidfd] = process
        except OSError:
            self._unwatched.add(process)

    def unwatch(self, process: ProcessHandle) -> None:
        """Undo :meth:`watch`.  A pidfd stays readable after the exit, so this must happen."""
        self._unwatched.discard(process)
        if process.pidfd is not None and self._watched.pop(process.pidfd, None) is not None:
            self._waiter.unregister(process.pidfd)

    def wake(self) -> None:
        """Make a pass soon; from any thread."""
        self._waiter.wake()

    def stop(self) -> None:
        """End ``run``; from any thread."""
        self._stopping = True
        self._waiter.wake()

    def close(self, watchdog: Watchdog) -> None:
        """Let go of everything."""
        with self._lock:
            watchdog.close()
            self._source.acted(read_clocks(), watchdog.take_notes())  # what that has done
            self._source.close()
            self._waiter.close()

    def _see_exits(self, watchdog: Watchdog, ready: set[int], now: Now) -> None:
        # A whole job may exit at once; the next pass, which comes at once, sees the others.
        for fd in itertools.islice(ready & self._watched.keys(), MOST_EXITS):
            process = self._watched[fd]
            if not process.is_alive():  # since the wait, the descriptor may have become another's
                watchdog.process_exited(process, now)
        if self._unwatched and now.monotonic >= self._next_look:
            watchdog.forget_dead(self._unwatched, now)
            cost = time.monotonic() - now.monotonic
            self._next_look = now.monotonic + max(DEATH_POLL, 20 * cost)
