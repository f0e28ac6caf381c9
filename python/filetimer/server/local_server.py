"""``LocalTimerServer``: serves the clients that put requests on a ``multiprocessing`` queue."""

from __future__ import annotations

import collections
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from filetimer.api import RequestQueue, TimerRequest, TimerServer
from filetimer.server import events
from filetimer.server.events import Event, EventReporter
from filetimer.server.loop import ServerLoop, read_clocks
from filetimer.server.policy import Policy
from filetimer.server.process import ProcessHandle, this_host
from filetimer.server.timers import Now, Worker
from filetimer.server.watchdog import Watchdog
from filetimer.wire.decoder import Received, Record, Rejection, checked_record

__all__ = ["LocalTimerServer", "MultiprocessingRequestQueue"]

logger = logging.getLogger("filetimer")

PUMP_INTERVAL = 0.5  # seconds between a pump thread's looks at whether it shall end


class MultiprocessingRequestQueue(RequestQueue):
    """A ``multiprocessing`` queue as the queue of a :class:`TimerServer` of your own."""

    def __init__(self, mp_queue: Any) -> None:
        super().__init__()
        self._mp_queue = mp_queue

    def size(self) -> int:
        """The approximate number of requests that wait; 1 where the system cannot tell."""
        try:
            return int(self._mp_queue.qsize())
        except NotImplementedError:  # macOS
            return 1

    def get(self, size: int, timeout: float) -> list[TimerRequest]:
        """Up to ``size`` requests; waits at most ``timeout`` seconds, for the first one."""
        requests: list[TimerRequest] = []
        try:
            while len(requests) < size:
                block = not requests and timeout > 0
                requests.append(self._mp_queue.get(block, timeout if block else None))
        except queue.Empty:
            pass
        return requests


class LocalTimerServer(TimerServer):
    """Reaps (SIGKILL) the workers whose timers expire.

    Args:
        mp_queue: the ``multiprocessing`` queue that the clients were given.
        max_interval: longest sleep of the loop, in seconds.  It does not delay kills.
        daemon: whether the thread lets the interpreter exit without :meth:`stop`.
        on_event: called with every :class:`~filetimer.server.events.Event`.
        report_only: report every expiry, and signal nobody: to watch before you trust.
        warn_after: report a timer as overdue before it expires: below 1, after that fraction of
            the time that it allows; from 1 on, after so many seconds.
        reap_tree: signal a stuck worker's descendants with it.
        hold_stopped: while a worker is stopped, by SIGSTOP or a debugger, its deadlines wait.
    """

    def __init__(
        self,
        mp_queue: Any,
        max_interval: float = 60,
        daemon: bool = True,
        *,
        on_event: Callable[[Event], None] | None = None,
        report_only: bool = False,
        warn_after: float | None = None,
        reap_tree: bool = False,
        hold_stopped: bool = False,
    ) -> None:
        super().__init__(MultiprocessingRequestQueue(mp_queue), max_interval, daemon)
        self._mp_queue = mp_queue
        self._reporter = EventReporter(on_event=on_event)
        self._lock = threading.RLock()
        self._watchdog = Watchdog(
            this_host(),
            self._reporter,
            policy=Policy(None, report_only, warn_after, reap_tree, hold_stopped),
            watch=self._watch,
            unwatch=self._unwatch,
            clock=time.monotonic,
        )
        self._loop: ServerLoop | None = None

    def start(self) -> None:
        """Start the thread.  Raises RuntimeError if it runs already."""
        if self._watchdog_thread is None:
            self._loop = ServerLoop(_QueueSource(self._mp_queue), self._lock, self._max_interval)
        super().start()
        self._reporter.report(events.WATCHDOG_STARTED)

    def stop(self) -> None:
        """End the thread, at once."""
        if self._watchdog_thread is None:
            return
        if self._loop is not None:
            self._loop.stop()
        super().stop()
        self._reporter.report(events.WATCHDOG_STOPPED)

    def register_timers(self, timer_requests: list[TimerRequest]) -> None:
        """Take in requests, in order."""
        with self._lock:
            self._watchdog.receive(list(map(_to_record, timer_requests)), read_clocks())
        if self._loop is not None:
            self._loop.wake()

    def clear_timers(self, worker_ids: set[int]) -> None:
        """Forget all timers of these workers."""
        with self._lock:
            for pid in worker_ids:
                self._watchdog.table.clear(pid)

    def get_expired_timers(self, deadline: float) -> dict[Any, list[TimerRequest]]:
        """By pid, the timers that expire by ``deadline`` (Unix seconds)."""
        with self._lock:
            now = read_clocks()
            expired = self._watchdog.table.expired_by(now.monotonic + (deadline - now.wall))
        return {
            pid: [TimerRequest(pid, t.scope_id, t.expiration_time) for t in timers]
            for pid, timers in expired.items()
        }

    def _reap_worker(self, worker_id: int) -> bool:
        with self._lock:
            worker = self._watchdog.table.workers.get(worker_id)
            try:
                if worker is not None and worker.process.is_alive():
                    worker.process.send_signal(signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has just ended
            except OSError:  # it cannot be looked at, or may not be signalled
                logger.exception("pid %s was not reaped", worker_id)
                return False
        return True

    def _watchdog_loop(self) -> None:
        assert self._loop is not None  # start() made it
        self._loop.run(self._watchdog)

    def _watch(self, process: ProcessHandle) -> None:
        if self._loop is not None:
            self._loop.watch(process)

    def _unwatch(self, process: ProcessHandle) -> None:
        if self._loop is not None:
            self._loop.unwatch(process)


class _QueueSource:
    """What the loop waits for and reads.

    A queue of this host is a pipe, and the loop waits for that.  A manager's queue is a proxy:
    a thread empties it and rings a pipe.
    """

    def __init__(self, mp_queue: Any) -> None:
        self._requests = MultiprocessingRequestQueue(mp_queue)
        self._pump: _Pump | None = None
        reader = getattr(mp_queue, "_reader", None)
        if reader is not None:
            self._fd: int = reader.fileno()
        else:
            self._pump = _Pump(mp_queue)
            self._fd = self._pump.bell

    def fileno(self) -> int:
        return self._fd

    def receive(self, now: Now, urgent: bool) -> Received:
        if self._pump is not None:
            return list(map(_to_record, self._pump.take()))
        # SPEC S-7: all that is there, and no more than that.
        return list(map(_to_record, self._requests.get(max(1, self._requests.size()), 0)))

    def acted(self, now: Now, notes: bytes) -> None:
        pass  # nothing is written down

    def written_by(self, now: Now) -> float:
        return float("inf")  # a queue does not tell

    def keep(self, workers: Iterable[Worker[ProcessHandle]], now: Now, moved: bool = False) -> None:
        pass

    def close(self) -> None:
        if self._pump is not None:
            self._pump.close()


class _Pump:
    """A thread that empties a queue without a descriptor, and rings a pipe."""

    def __init__(self, mp_queue: Any) -> None:
        self._queue = mp_queue
        self._requests: collections.deque[TimerRequest] = collections.deque()
        self.bell, self._ring = os.pipe()
        os.set_blocking(self.bell, False)
        os.set_blocking(self._ring, False)
        self._closed = False
        threading.Thread(target=self._run, name="filetimer-queue", daemon=True).start()

    def take(self) -> list[TimerRequest]:
        try:
            os.read(self.bell, 4096)
        except BlockingIOError:
            pass
        return [self._requests.popleft() for _ in range(len(self._requests))]

    def close(self) -> None:
        self._closed = True  # the thread closes the pipe: it alone knows when it is done with it

    def _run(self) -> None:
        try:
            while not self._closed:
                try:
                    self._requests.append(self._queue.get(True, PUMP_INTERVAL))
                    os.write(self._ring, b"!")
                except (queue.Empty, BlockingIOError):
                    continue
        except (EOFError, OSError):
            pass  # the manager is gone
        finally:
            os.close(self.bell)
            os.close(self._ring)


def _to_record(request: TimerRequest) -> Record | Rejection:
    """Any request with torch's three attributes will do, a pickled one of torch's too."""
    fields = {
        "version": 1,
        "pid": request.worker_id,
        "scope_id": request.scope_id,
        "expiration_time": request.expiration_time,
        "signal": int(signal.SIGKILL),
    }
    for name in ("deadline", "start_time", "pid_ns", "token"):
        value = getattr(request, name, None)
        if value is not None:
            fields[name] = value
    return checked_record(fields)
