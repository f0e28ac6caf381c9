"""A server under garbage without end, and at the limits of its process."""

from __future__ import annotations

import errno
import signal
import subprocess

import pytest
from support import PATIENCE, EventList, StartWorker, eventually
from test_file_server import HANG, record, write_line
from test_timers import World

import filetimer as timer
from filetimer.server import process as process_module
from filetimer.server import timers as timers_module
from filetimer.server.events import MAX_SINGLE, EventReporter

REJECTED = "record rejected"


class TestFlood:
    """SPEC X-1 and X-2."""

    def test_events_are_few_and_all_are_counted(self) -> None:
        events = EventList()
        reporter = EventReporter(on_event=events)
        for _ in range(5000):
            reporter.report(REJECTED, code="syntax")
        reporter.report("timer expired", pid=5)  # what matters is never withheld
        reporter.flush(float("inf"))
        assert reporter.counts[REJECTED, "syntax"] == 5000
        told = events.named(REJECTED)
        # The window may have ended in the middle once, or on a slow machine a few times more.
        assert MAX_SINGLE < len(told) <= 2000
        assert sum(event.count or 1 for event in told) == 5000
        assert len(events.named("timer expired")) == 1
        assert reporter.next_flush is None

    def test_a_worker_is_reaped_while_garbage_is_written(
        self, fifo_path: str, events: EventList, start_worker: StartWorker
    ) -> None:
        """And every line is counted, whether it was told by itself or not."""
        server = timer.FileTimerServer(fifo_path, "test", on_event=events)
        server.start()
        writer = start_worker(
            """
            import os, select, sys
            fd = os.open(sys.argv[1], os.O_WRONLY)
            lines = b"garbage\\n" * 512
            written = 0
            print("writing", flush=True)
            while not select.select([0], [], [], 0)[0]:
                written += os.write(fd, lines)
            print(written // 8, flush=True)
            """,
            fifo_path,
        )
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == "writing\n"
        assert start_worker(HANG).wait(PATIENCE) == -signal.SIGKILL
        writer.stdin.write("x")
        writer.stdin.flush()
        written = int(writer.stdout.readline())

        def rejected() -> int:
            return sum(n for (name, _), n in list(server.counts.items()) if name == REJECTED)

        eventually(lambda: rejected() >= written)  # a backlog is worked off pass by pass
        server.run_once()
        assert rejected() == written
        told = events.named(REJECTED)
        assert sum(event.count or 1 for event in told) == written


class TestTimers:
    """Valid records, too, must not fill the memory (SPEC X-1)."""

    def test_of_one_worker_beyond_the_limit_are_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timers_module, "MAX_TIMERS_OF_WORKER", 3)
        world = World()
        for token in range(4):
            world.acquire(10, token=token)
        world.acquire(5, token=0)  # one that it has may be moved
        world.acquire(10, pid=12)
        assert world.log == ["admitted 11", "refused 11 limit", "admitted 12"]
        world.release(token=1)
        world.acquire(10, token=4)
        assert world.log[3:] == []

    def test_without_memory_those_that_there_are_stay(self) -> None:
        world = World()
        world.acquire(10)
        world.table.stop_growing()
        world.acquire(10, scope="b")
        assert world.log == ["admitted 11", "refused 11 limit"]
        assert world.run_to(10) == ["10: 11 a signal 9"]


SERVER_AT_THE_LIMIT = """
import os, resource, sys
import filetimer as timer
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
def tell(event):
    if event.name in ("server degraded", "worker died", "timer refused"):
        print(event.name, event.code, event.pid, flush=True)
server = timer.FileTimerServer(sys.argv[1], "test", on_event=tell)
server.start()
fill = []
try:
    while True:
        fill.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
print("full", flush=True)
sys.stdin.readline()
server.stop()
"""


class TestDescriptors:
    def test_at_the_limit_workers_are_reaped(
        self, fifo_path: str, start_worker: StartWorker, sleeper: subprocess.Popen[str]
    ) -> None:
        server = start_worker(SERVER_AT_THE_LIMIT, fifo_path)
        assert server.stdout is not None
        assert server.stdout.readline() == "full\n"
        write_line(fifo_path, record(sleeper.pid, 0.2))
        assert sleeper.wait(PATIENCE) == -signal.SIGKILL
        told = [server.stdout.readline() for _ in range(2)]
        assert told == ["server degraded descriptors None\n", f"worker died None {sleeper.pid}\n"]

    def test_a_worker_that_cannot_be_looked_at_is_neither_dead_nor_signalled(
        self, sleeper: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process = process_module.open_process(sleeper.pid, pidfd_allowed=False)
        assert process is not None
        assert process.is_alive()

        def fail(path: str) -> bytes:
            raise OSError(errno.ENFILE, "too many")

        with monkeypatch.context() as patch:
            patch.setattr(process_module, "read_file", fail)
            with pytest.raises(OSError, match="too many"):
                process.is_alive()
            with pytest.raises(OSError, match="too many"):
                process.send_signal(signal.SIGKILL)
        assert sleeper.poll() is None
