"""``FileTimerServer``: serves the clients that write records to a FIFO."""

from __future__ import annotations

import atexit
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable

from filetimer.requests import FileTimerRequest
from filetimer.server import events
from filetimer.server.events import Event, EventReporter, LogEvent
from filetimer.server.evidence import DEFAULT_BUDGET, Evidence
from filetimer.server.fifo import ServerFifo
from filetimer.server.fifo_source import FifoSource
from filetimer.server.journal import BOUND
from filetimer.server.loop import ServerLoop, read_clocks
from filetimer.server.policy import Policy
from filetimer.server.process import ProcessHandle, open_process, this_host
from filetimer.server.spare import keep_spare
from filetimer.server.watchdog import Watchdog
from filetimer.wire.decoder import Record, Rejection, checked_record

__all__ = ["FileTimerServer"]


class FileTimerServer:
    """Reaps the workers whose timers expire.  The signature is torch's; the rest is keyword-only.

    Args:
        file_path: where to make the FIFO.  A FIFO of this user that is there already is used, and
            left there; anything else is refused.
        run_id: names the job in logs.
        max_interval: longest sleep of the loop in seconds: how often ``get_last_progress_time``
            moves.  It does not delay kills; those are on time.
        daemon: whether the thread lets the interpreter exit without :meth:`stop`.
        log_event: called with torch's four event names and the request that they are about.
        on_event: called with every :class:`~filetimer.server.events.Event`.
        kill_after: seconds after which a worker that outlives its signal is sent SIGKILL;
            None, as in torch: never.
        report_only: report every expiry, and signal nobody: to watch before you trust.
        warn_after: report a timer as overdue before it expires: below 1, after that fraction of
            the time that it allows; from 1 on, after so many seconds.
        reap_tree: signal a stuck worker's descendants, and its process group if it leads one, with
            it, so that a data loader's processes keep no memory and no GPU.
        hold_stopped: while a worker is stopped, by SIGSTOP or a debugger, its deadlines wait.
        journal: whether to keep what is received in a file of the runtime directory, so that
            ``filetimer list`` can see the timers, and a server that is started again at the same
            path after this one was killed takes them over.
        holder: names the process that holds both ends of the FIFO open around this server's life.
            Timers that were taken over stay armed only if their server had the same holder; else
            they only report until they are acquired again, since a release may have been lost.
        journal_size: bytes at which the journal is replaced.  Readers have between one and two
            times as much of history: at 4 MiB, 19,000 to 38,000 records.
        keep_journal: a file in which to leave that history at the end, for ``filetimer report``,
            ``suggest`` and ``trace``.
        evidence: a directory for reports of what a hung worker was doing; None: no such reports.
            They are made before the signal, by a process of its own.
        evidence_budget: how many seconds the signal may be held back for that, at most (SPEC
            S-19).  The signal is sent whatever comes of the evidence.
        gpu_core_dump: have the CUDA driver of a hung worker dump its GPU's state, as part of the
            evidence.  The worker must run with CUDA_ENABLE_USER_TRIGGERED_COREDUMP=1.

    The callbacks run in the server's thread and should return soon.  One that raises is logged.
    """

    def __init__(
        self,
        file_path: str,
        run_id: str,
        max_interval: float = 10,
        daemon: bool = True,
        log_event: LogEvent | None = None,
        *,
        on_event: Callable[[Event], None] | None = None,
        kill_after: float | None = None,
        report_only: bool = False,
        warn_after: float | None = None,
        reap_tree: bool = False,
        hold_stopped: bool = False,
        journal: bool = True,
        holder: str | None = None,
        journal_size: int = BOUND,
        keep_journal: str | None = None,
        evidence: str | None = None,
        evidence_budget: float = DEFAULT_BUDGET,
        gpu_core_dump: bool = False,
    ) -> None:
        if not max_interval > 0:
            raise ValueError(f"max_interval must be a positive number of seconds: {max_interval!r}")
        self._file_path = os.fspath(file_path)
        self._max_interval = max_interval
        self._daemon = daemon
        self._run_id = run_id
        self._journal = journal
        self._holder = holder
        self._reporter = EventReporter(log_event, on_event)
        self._lock = threading.RLock()  # held by the loop's passes and by the public methods
        self._journal_size, self._keep_journal = journal_size, keep_journal
        self._source: FifoSource | None = None
        self._loop: ServerLoop | None = None
        collector = None
        if evidence is not None:
            collector = Evidence(
                evidence,
                evidence_budget,
                run_id,
                self._file_path,
                self._wake,
                self._journal_path,
                gpu=gpu_core_dump,
                degraded=self._reporter.degraded,
            )
        policy = Policy(kill_after, report_only, warn_after, reap_tree, hold_stopped)
        self._watchdog = Watchdog(
            this_host(),
            self._reporter,
            run_id,
            policy,
            self._watch,
            self._unwatch,
            self._before_signal,
            collector,
            time.monotonic,
        )
        self._thread: threading.Thread | None = None
        self._stop_at_exit = functools.partial(_stop_if_there, weakref.ref(self))

    @property
    def counts(self) -> dict[tuple[str, str | None], int]:
        """How often each event was reported, by its name and code."""
        return dict(self._reporter.counts)

    def start(self) -> None:
        """Make the FIFO and serve it in a thread; returns when clients can connect.

        Raises FileExistsError, BlockingIOError or another OSError when the path cannot be served
        (see :class:`~filetimer.server.fifo.ServerFifo`), RuntimeError when this server runs.
        """
        if self._thread is not None:
            raise RuntimeError("this FileTimerServer was started before; stop() it first")
        keep_spare()
        source = self._source = FifoSource(
            ServerFifo(self._file_path), self._reporter, self._journal_size, self._keep_journal
        )
        if self._journal:
            now = read_clocks()
            for worker in source.open_journal(self._run_id, self._holder, now):
                self._watchdog.table.adopt(worker, now.monotonic)
        loop = ServerLoop(source, self._lock, self._max_interval)
        thread = threading.Thread(
            target=loop.run, args=(self._watchdog,), name="filetimer-watchdog", daemon=self._daemon
        )
        with self._lock:
            self._loop = loop
            for worker in self._watchdog.table.workers.values():  # from before the start
                loop.watch(worker.process)
        try:
            thread.start()
        except RuntimeError:  # the limit on threads
            self._loop = None
            loop.close(self._watchdog)
            raise
        self._thread = thread
        atexit.register(self._stop_at_exit)  # a daemon thread is cut off; the FIFO must go before
        self._reporter.report(events.WATCHDOG_STARTED)

    def stop(self) -> None:
        """Stop serving, at once, and remove the FIFO that was made.  May be called again."""
        thread, loop = self._thread, self._loop
        self._thread = None
        if thread is None or loop is None:
            return
        atexit.unregister(self._stop_at_exit)
        loop.stop()
        if thread is not threading.current_thread():
            thread.join()
            self._loop = None
        self._reporter.report(events.WATCHDOG_STOPPED)

    def run_once(self) -> None:
        """Act on what is in the FIFO and on what is due now, then stop."""
        if self._thread is None:
            self.start()
        if self._loop is not None:
            with self._lock:
                self._loop.serve_pass(self._watchdog, set(), read=True)
        self.stop()

    def settle(self) -> None:
        """Wait until the pass in progress is over, and its events were reported."""
        with self._lock:
            pass

    def register_timers(self, timer_requests: list[FileTimerRequest]) -> None:
        """Take in requests as if their records had arrived in the FIFO."""
        with self._lock:
            self._watchdog.receive(list(map(_to_record, timer_requests)), read_clocks())
        self._wake()  # the next deadline may have changed

    def clear_timers(self, worker_pids: set[int]) -> None:
        """Forget all timers of these workers."""
        with self._lock:
            for pid in worker_pids:
                self._watchdog.table.clear(pid)

    def get_expired_timers(self, deadline: float) -> dict[int, list[FileTimerRequest]]:
        """By pid, the timers that expire by ``deadline`` (Unix seconds)."""
        with self._lock:
            now = read_clocks()
            expired = self._watchdog.table.expired_by(now.monotonic + (deadline - now.wall))
            return {pid: list(map(_to_request, timers)) for pid, timers in expired.items()}

    @staticmethod
    def is_process_running(pid: int) -> bool:
        """Whether a process with this pid runs; a zombie does not."""
        process = open_process(pid) if pid > 0 else None
        if process is None:
            return False
        process.close()
        return not process.zombie

    def get_last_progress_time(self) -> int:
        """When the loop last made a pass, in Unix seconds; now, before the start."""
        return int(time.time() if self._loop is None else self._loop.last_progress)

    def _wake(self) -> None:
        if self._loop is not None:
            self._loop.wake()

    def _journal_path(self) -> str | None:
        return None if self._source is None else self._source.journal

    def _watch(self, process: ProcessHandle) -> None:
        if self._loop is not None:
            self._loop.watch(process)

    def _unwatch(self, process: ProcessHandle) -> None:
        if self._loop is not None:
            self._loop.unwatch(process)

    def _before_signal(self, process: ProcessHandle, timer: Record) -> None:
        """A worker is about to be signalled; it may be gone an instant later.  Must be quick."""


def _to_record(request: FileTimerRequest) -> Record | Rejection:
    return checked_record(
        {
            "version": request.version,
            "pid": request.worker_id,
            "scope_id": request.scope_id,
            "expiration_time": request.expiration_time,
            "signal": int(request.signal),
        }
    )


def _to_request(timer: Record) -> FileTimerRequest:
    return FileTimerRequest(timer.pid, timer.scope_id, timer.expiration_time, timer.signal)


def _stop_if_there(server: weakref.ref[FileTimerServer]) -> None:
    alive = server()
    if alive is not None:
        alive.stop()
