"""``HeldServer``: a timer server in a process of its own, and the pipe in this one.

This process does nothing but hold both ends of the FIFO and look after the server.  While the pipe
is held, no record in it is lost and no client sees an error; a server that dies, whatever killed
it, is replaced by one that takes its timers over from the journal, still armed.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from filetimer.server import events
from filetimer.server.events import Event
from filetimer.server.evidence import DEFAULT_BUDGET
from filetimer.server.fifo import HeldFifo
from filetimer.server.journal import BOUND

__all__ = ["HeldServer", "ServerOptions"]

logger = logging.getLogger("filetimer")

SETTLE = 2.0  # seconds to wait for a server to answer
STOP = 5.0  # seconds for a server to end by itself
SHORT_LIFE = 1.0  # seconds: a server that lives no longer is replaced with a pause in between
PAUSE = 0.1  # seconds; twice as long each time, if it did not even begin to serve
LONGEST_PAUSE = 5.0  # seconds


@dataclass(frozen=True)
class ServerOptions:
    """Those options of ``FileTimerServer`` that can be given to another process."""

    run_id: str
    max_interval: float = 10.0
    kill_after: float | None = None
    report_only: bool = False
    warn_after: float | None = None
    reap_tree: bool = False
    hold_stopped: bool = False
    journal_size: int = BOUND
    keep_journal: str | None = None
    evidence: str | None = None
    evidence_budget: float = DEFAULT_BUDGET
    gpu_core_dump: bool = False


class HeldServer:
    """Serves ``path`` until :meth:`stop`.

    Args:
        path: of the FIFO.
        options: for the server.
        on_event: called with every event, in a thread of this object.
    """

    def __init__(
        self, path: str, options: ServerOptions, on_event: Callable[[Event], None]
    ) -> None:
        self._path = path
        self._on_event = on_event
        self._options = {**asdict(options), "file_path": os.path.abspath(path)}
        self._holder = self._own_holder = uuid.uuid4().hex
        self._fifo: HeldFifo | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._spawning = threading.Lock()
        self._answers = threading.Condition()
        self._ready = False  # the first one serves
        self._served = False  # this one has served
        self._error: OSError | None = None
        self._settled = -1
        self._words = itertools.count()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Hold the FIFO and start the server; returns when it serves.  Raises as that does."""
        self._fifo = HeldFifo(self._path)
        try:
            self._spawn()
            self._thread = threading.Thread(target=self._look_after, name="filetimer-server")
            self._thread.start()
            with self._answers:
                self._answers.wait_for(lambda: self._ready or self._error or self._ended())
            if not self._ready:
                raise self._error or OSError("the timer server ended before it was ready")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server; let go of the FIFO, and remove it if it was made here."""
        self._stopping.set()
        process = self._process
        if process is not None:
            _close_input(process)
            try:
                process.wait(STOP)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._fifo is not None:
            self._fifo.close()

    def settle(self) -> None:
        """Wait until the events of what the server has done by now were handed over."""
        word = next(self._words)
        process = self._process
        if process is None or process.stdin is None:
            return
        try:
            process.stdin.write(b"%d\n" % word)
            process.stdin.flush()
        except (OSError, ValueError):
            return  # it died; its successor tells what is left to tell
        with self._answers:
            self._answers.wait_for(lambda: self._settled >= word or self._ended(), SETTLE)

    def pids(self) -> set[int]:
        """The process of the server."""
        with self._spawning:
            return set() if self._process is None else {self._process.pid}

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _spawn(self) -> None:
        arguments = json.dumps({**self._options, "holder": self._holder})
        self._served = False
        with self._spawning:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "filetimer.server", arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # a Ctrl-C is for us
            )

    # In the thread.

    def _look_after(self) -> None:
        """Listen to the server; replace it when it dies."""
        pause = 0.0
        while True:
            born = time.monotonic()
            self._listen()
            status = self._process.wait() if self._process is not None else 0
            with self._answers:
                self._answers.notify_all()
            if self._stopping.is_set() or not self._ready:
                return
            pause = _next_pause(pause, time.monotonic() - born, self._served)
            self._tell_death(status, pause)
            if self._stopping.wait(pause):
                return
            self._spawn()

    def _listen(self) -> None:
        process = self._process
        if process is None or process.stdout is None:
            return
        for line in process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # half a line: it died while it wrote
            self._hear(message)
        process.stdout.close()
        _close_input(process)

    def _hear(self, message: dict[str, Any]) -> None:
        if "event" in message:
            event = Event.from_dict(message["event"])
            self._see_journal(event)
            self._tell(event)
            return
        with self._answers:
            if "ready" in message:
                self._ready = self._served = True
            elif "error" in message:
                self._error = OSError(*message["error"])
            elif "settled" in message:
                self._settled = int(message["settled"])
            self._answers.notify_all()

    def _see_journal(self, event: Event) -> None:
        """A journal that its server gave up, and perhaps could not remove, must not be armed."""
        if event.code != "journal":
            return
        if event.name == events.DEGRADED:
            self._holder = uuid.uuid4().hex
        elif event.name == events.MENDED:
            self._holder = self._own_holder

    def _tell(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:  # a full disk under --events, for one
            logger.exception("an event callback raised; the server goes on")

    def _tell_death(self, status: int, pause: float) -> None:
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        detail = f"it ended {how}; another takes its timers over"
        if self._error is not None:
            detail += f" (the last attempt: {self._error.strerror})"
            self._error = None
        if pause:
            detail += f" in {pause:g} s"
        self._tell(Event(events.SERVER_DIED, detail=detail, time=time.time()))


def _next_pause(pause: float, lived: float, served: bool) -> float:
    """Seconds before the next server: none, unless they die as soon as they are born.

    Clients wait for a second, once the pipe is full: servers that do serve are replaced sooner.
    """
    if lived > SHORT_LIFE:
        return 0.0
    return PAUSE if served else min(max(PAUSE, 2 * pause), LONGEST_PAUSE)


def _close_input(process: subprocess.Popen[bytes]) -> None:
    try:
        if process.stdin is not None:
            process.stdin.close()
    except OSError:
        pass  # it is gone, with what was not flushed
