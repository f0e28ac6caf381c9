"""A server is killed with SIGKILL, at chosen instructions, and another takes over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import PATIENCE, EventList, StartWorker, eventually
from test_file_server import record, write_line

import filetimer as timer
from filetimer.replay import find_journals
from filetimer.server import recovery
from filetimer.server.journal import Chunk
from filetimer.server.loop import read_clocks
from filetimer.server.process import this_host
from filetimer.supervisor import held_server

# A server that kills itself with SIGKILL the first time a seam is passed after "go" was read.
DYING_SERVER = """
import os, signal, sys, threading
import filetimer as timer
from filetimer.server import journal, reaper, watchdog

path, seam, holder = sys.argv[1:]
armed = threading.Event()

def die_around(owner, name, before=False):
    original = getattr(owner, name)
    def dying(*arguments, **keywords):
        if armed.is_set() and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **keywords)
        if armed.is_set():
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, dying)

if seam == "after the read":
    die_around(journal.os, "pread")
elif seam == "before the commit":
    die_around(journal.os, "pwrite", before=True)
elif seam == "after the commit":
    die_around(journal.Journal, "take")
elif seam == "after applying":
    die_around(watchdog.Watchdog, "receive")
elif seam == "before compaction's rename":
    die_around(journal.os, "rename", before=True)
elif seam == "after compaction's rename":
    die_around(journal.os, "rename")
elif seam == "before the signal":
    die_around(reaper.Reaper, "signal", before=True)
elif seam == "after the signal":
    die_around(reaper.Reaper, "signal")

server = timer.FileTimerServer(path, "doomed", holder=holder or None)
server.start()
print("ready", flush=True)
for line in sys.stdin:
    if line == "compact soon\\n":
        server._loop._source._journal._limit = 0
    armed.set()
    print("armed", flush=True)
"""

StartServer = Callable[[str, str], "subprocess.Popen[str]"]


@pytest.fixture
def start_dying(fifo_path: str) -> Iterator[StartServer]:
    started: list[subprocess.Popen[str]] = []

    def start(seam: str, holder: str) -> subprocess.Popen[str]:
        server = subprocess.Popen(
            [sys.executable, "-c", DYING_SERVER, fifo_path, seam, holder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        return server

    yield start
    for server in started:
        if server.poll() is None:
            server.kill()
        server.communicate()


@pytest.fixture
def held(fifo_path: str) -> Iterator[int]:
    """Both ends of the FIFO, as `filetimer serve` holds them around its server's life."""
    os.mkfifo(fifo_path, 0o600)
    fd = os.open(fifo_path, os.O_RDWR | os.O_NONBLOCK)
    yield fd
    os.close(fd)


def arm(server: subprocess.Popen[str], words: str = "go") -> None:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(words + "\n")
    server.stdin.flush()
    assert server.stdout.readline() == "armed\n"


def killed(server: subprocess.Popen[str]) -> bool:
    return server.wait(PATIENCE) == -signal.SIGKILL


def successor(fifo_path: str, events: EventList, holder: str | None) -> timer.FileTimerServer:
    server = timer.FileTimerServer(fifo_path, "next", on_event=events, holder=holder)
    server.start()
    return server


@pytest.mark.parametrize(
    "seam",
    [
        "after the read",
        "before the commit",
        "after the commit",
        "after applying",
        "before compaction's rename",
        "after compaction's rename",
    ],
)
def test_nothing_that_was_read_is_lost(
    held: int,
    fifo_path: str,
    events: EventList,
    start_dying: StartServer,
    start_worker: StartWorker,
    seam: str,
) -> None:
    """Of four workers, two are released: one before the death, one in the chunk that it dies of."""
    sleep = "import time; time.sleep(600)"
    early, late, spared, stuck = (start_worker(sleep) for _ in range(4))
    dying = start_dying(seam, "holder")
    write_line(
        fifo_path,
        b"".join(record(worker.pid, 3, sig=9) for worker in (early, late, spared, stuck)),
    )
    write_line(fifo_path, record(early.pid, expiration_time=-1))
    half = record(spared.pid, expiration_time=-1)
    eventually(lambda: _journal_ends_with(b"-1}\n") or _journal_has(early.pid, 2))
    arm(dying, "compact soon" if "compaction" in seam else "go")
    write_line(fifo_path, record(late.pid, expiration_time=-1) + half[:40])
    assert killed(dying)
    write_line(fifo_path, half[40:])  # what the pipe got while no server was there

    server = successor(fifo_path, events, "holder")
    try:
        (recovered,) = events.named("server recovered")
        assert recovered.code == "armed"
        assert stuck.wait(PATIENCE) == -signal.SIGKILL
        time.sleep(0.5)
        assert [worker.poll() for worker in (early, late, spared)] == [None] * 3
        assert events.named("record rejected") == []
    finally:
        server.stop()


def _journal_text() -> bytes:
    journals = find_journals()
    return Path(journals[0]).read_bytes() if journals else b""


def _journal_ends_with(end: bytes) -> bool:
    return _journal_text().endswith(end)


def _journal_has(pid: int, times: int) -> bool:
    return _journal_text().count(b'"pid": %d,' % pid) >= times


def test_a_kill_that_was_due_survives_a_successor_that_dies_in_its_first_pass(
    sleeper: subprocess.Popen[str],
) -> None:
    """It had taken a chunk, and not acted yet on what its predecessor had left it."""
    now = read_clocks()
    due = record(sleeper.pid, -1.0)
    chunks = [Chunk(now, due, start=True), Chunk(now, b"garbage\n")]
    table, _ = recovery.replay_table(this_host(), chunks)
    assert [timer.pid for timer in table.live_timers()] == [sleeper.pid]
    table, _ = recovery.replay_table(this_host(), [*chunks, Chunk(now, b"garbage\n")])
    assert list(table.live_timers()) == []  # the pass of the second chunk was completed


@pytest.mark.parametrize("seam", ["before the signal", "after the signal"])
def test_a_kill_that_was_due_happens(
    held: int,
    fifo_path: str,
    events: EventList,
    start_dying: StartServer,
    sleeper: subprocess.Popen[str],
    seam: str,
) -> None:
    dying = start_dying(seam, "holder")
    arm(dying)
    write_line(fifo_path, record(sleeper.pid, 0.2))
    assert killed(dying)
    server = successor(fifo_path, events, "holder")
    assert sleeper.wait(PATIENCE) == -signal.SIGKILL
    server.stop()


def test_without_a_holder_timers_only_report_until_they_are_acquired_again(
    fifo_path: str,
    events: EventList,
    start_dying: StartServer,
    start_worker: StartWorker,
) -> None:
    stuck, again = start_worker("import time; time.sleep(600)"), start_worker("input()")
    dying = start_dying("", "")
    write_line(fifo_path, record(stuck.pid, 2.5) + record(again.pid, 2.5))
    eventually(lambda: _journal_has(again.pid, 1))
    dying.kill()
    assert killed(dying)
    server = successor(fifo_path, events, None)
    (recovered,) = events.named("server recovered")
    assert recovered.code == "report_only"
    write_line(fifo_path, record(again.pid, 1))
    assert again.wait(PATIENCE) == -signal.SIGKILL
    eventually(lambda: stuck.pid in [event.pid for event in events.named("timer expired")])
    assert stuck.poll() is None
    server.stop()


def test_another_holder_is_no_holder(
    held: int,
    fifo_path: str,
    events: EventList,
    start_dying: StartServer,
    sleeper: subprocess.Popen[str],
) -> None:
    dying = start_dying("", "first")
    write_line(fifo_path, record(sleeper.pid, 60))
    eventually(lambda: _journal_has(sleeper.pid, 1))
    dying.kill()
    assert killed(dying)
    server = successor(fifo_path, events, "second")
    assert [event.code for event in events.named("server recovered")] == ["report_only"]
    server.stop()


class TestTheJournalOfAnotherTime:
    """Journals that are edited by hand, to stand for what cannot be waited for."""

    @pytest.fixture
    def edit(
        self, held: int, fifo_path: str, start_dying: StartServer, sleeper: subprocess.Popen[str]
    ) -> Callable[[bytes, bytes], None]:
        dying = start_dying("", "holder")
        write_line(fifo_path, record(sleeper.pid, 60))
        eventually(lambda: _journal_has(sleeper.pid, 1))
        dying.kill()
        killed(dying)

        def replace(old: bytes, new: bytes) -> None:
            (journal,) = find_journals()
            content = Path(journal).read_bytes()
            assert old in content
            Path(journal).write_bytes(content.replace(old, new))

        return replace

    def restored(self, fifo_path: str, events: EventList) -> bool:
        server = successor(fifo_path, events, "holder")
        server.stop()
        return bool(events.named("server recovered"))

    def test_unedited(
        self, edit: Callable[[bytes, bytes], None], fifo_path: str, events: EventList
    ) -> None:
        assert self.restored(fifo_path, events)

    def test_another_boot(
        self, edit: Callable[[bytes, bytes], None], fifo_path: str, events: EventList
    ) -> None:
        edit(recovery.boot_id().encode(), b"0" * 36)
        assert not self.restored(fifo_path, events)

    def test_a_journal_that_is_damaged(
        self, edit: Callable[[bytes, bytes], None], fifo_path: str, events: EventList
    ) -> None:
        edit(b'{"journal"', b'\xff\x00journal"')
        assert not self.restored(fifo_path, events)

    def test_a_recycled_pid_of_a_version_1_record(
        self,
        edit: Callable[[bytes, bytes], None],
        fifo_path: str,
        events: EventList,
        monkeypatch: pytest.MonkeyPatch,
        sleeper: subprocess.Popen[str],
    ) -> None:
        """The process with that pid started after the record was received: it is another."""
        monkeypatch.setattr(recovery, "started_at", lambda process: time.monotonic() + 1)
        assert not self.restored(fifo_path, events)
        assert sleeper.poll() is None


def test_a_process_says_when_it_started(start_worker: StartWorker) -> None:
    from filetimer.server.process import open_process, started_at

    before = time.monotonic()
    worker = start_worker("import time; time.sleep(600)")
    after = time.monotonic()
    process = open_process(worker.pid)
    assert process is not None
    assert before - recovery.TICK <= started_at(process) <= after + recovery.TICK
    process.close()


def test_a_clean_stop_leaves_nothing_to_recover(
    fifo_path: str, events: EventList, sleeper: subprocess.Popen[str]
) -> None:
    first = successor(fifo_path, events, None)
    write_line(fifo_path, record(sleeper.pid, 60))
    eventually(lambda: _journal_has(sleeper.pid, 1))
    first.stop()
    second = successor(fifo_path, events, None)
    assert events.named("server recovered") == []
    second.stop()


def test_the_snapshot_of_a_compaction_is_valid_records(
    held: int, fifo_path: str, sleeper: subprocess.Popen[str]
) -> None:
    server = timer.FileTimerServer(fifo_path, "x", holder="h")
    server.start()
    assert server._loop is not None
    server._loop._source._journal._limit = 0  # type: ignore[attr-defined]
    write_line(fifo_path, record(sleeper.pid, 60, 'a\n"é'))
    eventually(lambda: b'"deadline"' in _journal_text())
    last = [line for line in _journal_text().splitlines() if b'"scope_id"' in line][-1]
    assert json.loads(last)["scope_id"] == 'a\n"é'
    server.stop()


@pytest.mark.parametrize(
    ("pause", "lived", "served", "following"),
    [
        (0.4, 2.0, True, 0.0),
        (0.0, 0.5, True, 0.1),
        (0.1, 0.5, True, 0.1),  # clients wait for a second only, once the pipe is full
        (0.0, 0.5, False, 0.1),
        (0.1, 0.5, False, 0.2),
        (4.0, 0.5, False, 5.0),
    ],
)
def test_servers_that_die_young_are_replaced_after_a_pause(
    pause: float, lived: float, served: bool, following: float
) -> None:
    """Longer each time, if they do not even begin to serve.  Seconds."""
    assert held_server._next_pause(pause, lived, served) == following
