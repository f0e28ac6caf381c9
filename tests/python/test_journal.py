"""The journal and its reader: what a server has, seen from another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import PATIENCE, StartWorker, eventually
from test_file_server import record, write_line

import filetimer as timer
from filetimer.replay import find_journals, view_server
from filetimer.server import sweep as sweep_module
from filetimer.server.journal import (
    CHUNK_LINE,
    Journal,
    JournalError,
    State,
    chunk_line,
    event_line,
    journal_header,
    own_events,
    read_history,
    read_journal,
)
from filetimer.server.loop import read_clocks
from filetimer.server.process import read_stat
from filetimer.server.sweep import sweep
from filetimer.server.timers import Now, Worker
from filetimer.wire.decoder import Record


def live_scopes(path: str) -> list[str]:
    (journal,) = find_journals(path)
    return [record.scope_id for record in view_server(journal, read_clocks()).timers]


def test_live_timers_are_seen_from_outside(
    server: timer.FileTimerServer, sleeper: subprocess.Popen[str]
) -> None:
    path = server._file_path
    write_line(path, record(sleeper.pid, 60, "later") + record(sleeper.pid, 30, "sooner"))
    eventually(lambda: live_scopes(path) == ["sooner", "later"])
    write_line(path, record(sleeper.pid, scope="sooner", expiration_time=-1))
    eventually(lambda: live_scopes(path) == ["later"])
    (journal,) = find_journals()
    view = view_server(journal, read_clocks())
    assert (view.path, view.run_id, view.pid, view.alive) == (path, "test", os.getpid(), True)


def test_the_timers_of_a_worker_that_is_gone_are_not_shown(
    server: timer.FileTimerServer, sleeper: subprocess.Popen[str]
) -> None:
    path = server._file_path
    write_line(path, record(sleeper.pid, 60))
    eventually(lambda: live_scopes(path) == ["s"])
    sleeper.kill()
    sleeper.wait()
    assert live_scopes(path) == []


def test_an_expiry_clears_the_workers_other_timers_in_the_replay_too(
    server: timer.FileTimerServer, start_worker: StartWorker
) -> None:
    """The signal is one that the worker survives."""
    worker = start_worker(
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    path = server._file_path
    write_line(path, record(worker.pid, 60, "other") + record(worker.pid, 1.5, "due", sig=15))
    eventually(lambda: live_scopes(path) == ["due", "other"])
    eventually(lambda: live_scopes(path) == [])


def test_a_stop_removes_the_journal(fifo_path: str) -> None:
    server = timer.FileTimerServer(fifo_path, "test")
    server.start()
    assert len(find_journals()) == 1
    server.stop()
    assert find_journals() == []


def test_without_a_journal(fifo_path: str, start_worker: StartWorker) -> None:
    server = timer.FileTimerServer(fifo_path, "test", journal=False)
    server.start()
    assert find_journals() == []
    worker = start_worker("""
        import time, filetimer as timer
        timer.configure_from_env()
        with timer.expires(0.1): time.sleep(600)
    """)
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    server.stop()


def test_the_journal_of_a_killed_server_stays_readable(
    fifo_path: str, sleeper: subprocess.Popen[str]
) -> None:
    code = "import sys, time, filetimer as t; t.FileTimerServer(sys.argv[1], 'x').start(); "
    killed = subprocess.Popen([sys.executable, "-c", code + "time.sleep(600)", fifo_path])
    eventually(lambda: find_journals(fifo_path))
    write_line(fifo_path, record(sleeper.pid, 60))
    eventually(lambda: live_scopes(fifo_path) == ["s"])
    killed.kill()
    killed.wait()
    (journal,) = find_journals(fifo_path)
    view = view_server(journal, read_clocks())
    assert not view.alive
    assert [timer.scope_id for timer in view.timers] == ["s"]


class TestTheFile:
    NOW = Now(100.0, 1_767_225_700.0)
    HEADER = journal_header("/p", "run", NOW, pid=5)

    @pytest.fixture
    def pipe(self, tmp_path: Path) -> str:
        os.mkfifo(tmp_path / "pipe")
        return str(tmp_path / "pipe")

    def test_chunks_come_back_with_their_times(self, tmp_path: Path, pipe: str) -> None:
        fd = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        journal = Journal(str(tmp_path / "j"), self.HEADER, State(), self.NOW)
        chunks = [b"one\ntwo", b' half\n{"chunk": 3}\n', b"\0" * CHUNK_LINE]
        for i, chunk in enumerate(chunks):
            os.write(fd, chunk)
            assert journal.take(fd, 1 << 16, Now(100.0 + i, 0.0)) == chunk
        with pytest.raises(BlockingIOError):
            journal.take(fd, 1 << 16, self.NOW)
        journal.note(b"", Now(200.0, 0.0))
        header, read = read_journal(journal.path, self.NOW)
        assert header["run_id"] == "run"
        assert [(chunk.now.monotonic, chunk.data) for chunk in read[1:]] == [
            *[(100.0 + i, chunk) for i, chunk in enumerate(chunks)],
            (200.0, b""),
        ]
        journal.close()
        journal.close()
        assert not os.path.exists(journal.path)
        os.close(fd)

    def test_a_chunk_whose_line_was_not_written_runs_to_the_end(self, tmp_path: Path) -> None:
        """What is there when a server dies between its two writes."""
        path = tmp_path / "j"
        first = chunk_line(4, Now(1.0, 2.0)) + b"abc\n"
        path.write_bytes(self.HEADER + first + b"\0" * CHUNK_LINE + b"def\ngh")
        _, read = read_journal(str(path), self.NOW)
        assert [(c.now, c.data) for c in read] == [
            (Now(1.0, 2.0), b"abc\n"),
            (self.NOW, b"def\ngh"),
        ]

    def test_compaction_keeps_live_timers_and_says_whose_they_are(self, tmp_path: Path) -> None:
        class Process:
            pid, start_time, uid, time_ns, zombie = 7, 55, 0, 1, False

            def close(self) -> None:
                pass

        worker: Worker[Process] = Worker(Process())
        worker.timers["s"] = Record(1, 7, "s", 5.0, 9, deadline=105.0)
        journal = Journal(str(tmp_path / "j"), self.HEADER, State(), self.NOW)
        journal.compact(State([worker], b"half"), self.NOW)
        _, read = read_journal(journal.path, self.NOW)
        (chunk,) = read
        assert b'"start_time":55' in chunk.data
        assert b'"deadline":105.0' in chunk.data
        assert chunk.data.endswith(b"}\nhalf")
        assert not journal.is_full
        assert sorted(os.listdir(tmp_path)) == ["j", "j.old"]
        assert oct(os.stat(journal.path).st_mode) == oct(0o100600)
        journal.close()

    def test_the_history_goes_on_over_a_compaction(self, tmp_path: Path, pipe: str) -> None:
        fd = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        journal = Journal(str(tmp_path / "j"), self.HEADER, State(), self.NOW)
        os.write(fd, b"one\n")
        journal.take(fd, 1 << 16, self.NOW)
        journal.compact(State(), self.NOW)
        journal.note(event_line({"name": "timer expired"}), Now(101.0, 0.0))
        _, chunks = read_history(journal.path, self.NOW)
        assert [(c.data, c.own, c.start) for c in chunks] == [
            (b"", False, True),
            (b"one\n", False, False),
            (b"", False, True),
            (b'{"event": {"name": "timer expired"}}\n', True, False),
        ]
        assert own_events(chunks[-1]) == [{"name": "timer expired"}]
        kept = str(tmp_path / "kept")
        journal.close(keep=kept)
        assert read_history(kept, self.NOW)[1] == chunks
        assert sorted(os.listdir(tmp_path)) == ["kept", "pipe"]
        os.close(fd)

    def test_a_full_disk_leaves_the_bytes_in_the_pipe(self, tmp_path: Path, pipe: str) -> None:
        fd = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        journal = Journal(str(tmp_path / "j"), self.HEADER, State(), self.NOW)
        journal._fd, real = os.open("/dev/full", os.O_RDWR), journal._fd
        os.write(fd, b"precious\n")
        with pytest.raises(OSError, match=r".*"):
            journal.take(fd, 1 << 16, self.NOW)
        assert os.read(fd, 100) == b"precious\n"
        os.close(real)
        journal.close()
        os.close(fd)

    @pytest.mark.parametrize(
        "content", [b"", b"\n", b"{}\n", b"[]\n", b'{"journal": 99}\n', b"\xff\n"]
    )
    def test_what_is_no_journal(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "j").write_bytes(content)
        with pytest.raises(JournalError, match="not a timer journal"):
            read_journal(str(tmp_path / "j"), self.NOW)

    def test_a_runtime_directory_that_others_may_write_to_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from filetimer.runtime import runtime_directory

        (tmp_path / "open").mkdir(mode=0o777)
        (tmp_path / "open").chmod(0o777)
        monkeypatch.setenv("FILETIMER_RUNTIME_DIR", str(tmp_path / "open"))
        with pytest.raises(PermissionError, match="only you"):
            runtime_directory(create=True)


def test_many_records_are_compacted_while_they_are_served(
    server: timer.FileTimerServer, sleeper: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server._loop is not None
    journal = server._loop._source._journal  # type: ignore[attr-defined]
    journal._limit = journal._bound = 20_000
    write_line(server._file_path, record(sleeper.pid, 600, "kept"))
    client = timer.FileTimerClient(server._file_path, signal=0)
    for _ in range(500):
        with timer.expires(60, client=client):
            pass
    eventually(lambda: live_scopes(server._file_path) == ["kept"])
    eventually(lambda: os.path.getsize(journal.path) < 100_000)  # it may be about to


def test_seconds_left_can_be_told(
    server: timer.FileTimerServer, sleeper: subprocess.Popen[str]
) -> None:
    write_line(server._file_path, record(sleeper.pid, 60))
    eventually(lambda: live_scopes(server._file_path))
    (journal,) = find_journals()
    (shown,) = view_server(journal, read_clocks()).timers
    assert 0 < shown.deadline - time.monotonic() <= 60  # type: ignore[operator]


class TestSweep:
    """Journals that nobody will come back for go when another server starts."""

    @staticmethod
    def leave(directory: Path, name: str, path: str, **server: object) -> Path:
        """A journal of a server that is not there any more, unless ``server`` says so."""
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait(PATIENCE)
        pid_ns = os.stat("/proc/self/ns/pid").st_ino
        # A start time that no process has: the pid may have been given away.
        fields = {"pid": ended.pid, "start_time": 1, "pid_ns": pid_ns, **server}
        directory.mkdir(mode=0o700, exist_ok=True)
        journal = directory / f"{name}.journal"
        journal.write_bytes(journal_header(path, "test", read_clocks(), **fields))
        return journal

    def test_of_a_dead_server_whose_pipe_is_gone(self, tmp_path: Path) -> None:
        directory = tmp_path / "runtime"
        stale = self.leave(directory, "stale", str(tmp_path / "gone"))
        with_pipe = self.leave(directory, "with-pipe", str(tmp_path / "there"))
        os.mkfifo(tmp_path / "there")
        stat = read_stat(os.getpid())
        assert stat is not None
        alive = self.leave(
            directory, "alive", str(tmp_path / "gone"), pid=os.getpid(), start_time=stat[1]
        )
        elsewhere = self.leave(directory, "elsewhere", str(tmp_path / "gone"), pid_ns=1)
        garbage = directory / "garbage.journal"
        garbage.write_bytes(b"\0 no journal\n")
        link = directory / "link.journal"
        link.symlink_to(stale)
        server = timer.FileTimerServer(str(tmp_path / "timers"), "test")
        server.start()
        server.stop()
        assert not stale.exists()
        left = {with_pipe.name, alive.name, elsewhere.name, garbage.name, link.name}
        assert {path.name for path in directory.iterdir()} == left

    def test_of_what_a_server_left_in_the_middle_of_a_step(self, tmp_path: Path) -> None:
        for name in ("old.journal.tmp", "old.journal.stale", "new.journal.tmp"):
            (tmp_path / name).write_bytes(b"")
            if name.startswith("old"):
                os.utime(tmp_path / name, (0, 0))
        sweep(str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["new.journal.tmp"]

    def test_a_journal_that_was_begun_meanwhile_is_put_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the look and the removal a server replaces the file."""
        stale = self.leave(tmp_path, "stale", str(tmp_path / "gone"))
        stat = read_stat(os.getpid())
        assert stat is not None
        rename = os.rename

        def late(source: str, target: str) -> None:
            self.leave(tmp_path, "stale", "/gone", pid=os.getpid(), start_time=stat[1])
            rename(source, target)

        monkeypatch.setattr(sweep_module.os, "rename", late)
        sweep(str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == [stale.name]
        assert read_journal(str(stale), read_clocks())[0]["server"]["pid"] == os.getpid()
