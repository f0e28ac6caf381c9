"""``FileTimerServer`` with real pipes and real processes, which these tests start themselves."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, EventList, StartWorker, census, eventually
from test_decoder import REJECTED

import filetimer as timer
from filetimer.server import process as process_module
from filetimer.server import watchdog as watchdog_module

HANG = """
    import time, filetimer as timer
    timer.configure_from_env()
    with timer.expires(0.2, scope="stuck"):
        time.sleep(600)
"""


def write_line(path: str, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def record(pid: int, after: float = 0.0, scope: str = "s", sig: int = 9, **more: Any) -> bytes:
    fields = {
        "version": 1,
        "pid": pid,
        "scope_id": scope,
        "expiration_time": time.time() + after,
        "signal": sig,
        **more,
    }
    return json.dumps(fields).encode() + b"\n"


def test_a_hung_worker_is_killed_after_its_deadline(
    server: timer.FileTimerServer, events: EventList, start_worker: StartWorker
) -> None:
    worker = start_worker(HANG)
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    (died,) = events.wait_for("worker died")
    assert [event.name for event in events] == [
        "watchdog started",
        "timer expired",
        "kill worker process",
        "worker died",
    ]
    assert (died.pid, died.scope_id, died.signal) == (worker.pid, "stuck", 9)
    assert died.late is not None
    assert died.late >= 0


def test_a_worker_that_releases_in_time_lives(
    server: timer.FileTimerServer, events: EventList, start_worker: StartWorker
) -> None:
    worker = start_worker("""
        import time, filetimer as timer
        timer.configure_from_env()
        with timer.expires(1.5):
            pass
        time.sleep(2)
    """)
    assert worker.wait(PATIENCE) == 0
    assert events.named("timer expired") == []


@pytest.mark.parametrize("name", REJECTED)
def test_a_bad_line_between_two_good_ones(
    server: timer.FileTimerServer,
    events: EventList,
    sleeper: subprocess.Popen[str],
    name: str,
) -> None:
    """Every good record acts, the bad one is one event with its code, the server lives."""
    bad, code = REJECTED[name]
    good = [record(sleeper.pid, scope=scope, sig=0) for scope in ("before", "after")]
    reader = os.open(server._file_path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(reader, good[0] + bad + b"\n" + good[1])
    os.close(reader)
    eventually(lambda: {e.scope_id for e in events.named("timer expired")} >= {"before", "after"})
    events.wait_for("record rejected")  # it is told last, after the expiries of the same pass
    server.settle()
    assert [event.code for event in events.named("record rejected")] == [code]
    assert sleeper.poll() is None


def test_version_1_and_version_2_are_served_alike(
    server: timer.FileTimerServer, events: EventList, start_worker: StartWorker
) -> None:
    worker = start_worker("""
        import os, time, filetimer as timer
        client = timer.FileTimerClient(os.environ["FILETIMER_PATH"], version=1)
        with timer.expires(0.2, client=client):
            time.sleep(600)
    """)
    assert worker.wait(PATIENCE) == -signal.SIGKILL


def test_the_signal_of_the_client_is_sent(
    server: timer.FileTimerServer, start_worker: StartWorker
) -> None:
    worker = start_worker("""
        import os, signal, time, filetimer as timer
        client = timer.FileTimerClient(os.environ["FILETIMER_PATH"], signal=signal.SIGTERM)
        with timer.expires(0.1, client=client):
            time.sleep(600)
    """)
    assert worker.wait(PATIENCE) == -signal.SIGTERM


def test_a_report_only_timer_kills_nobody(
    server: timer.FileTimerServer, events: EventList, sleeper: subprocess.Popen[str]
) -> None:
    """SPEC S-9."""
    write_line(server._file_path, record(sleeper.pid, sig=0))
    events.wait_for("timer expired")
    assert events.named("kill worker process") == []
    assert sleeper.poll() is None


def test_a_hang_that_holds_the_gil_is_reaped(
    server: timer.FileTimerServer, start_worker: StartWorker
) -> None:
    worker = start_worker("""
        import ctypes, filetimer as timer
        timer.configure_from_env()
        with timer.expires(0.2):
            ctypes.PyDLL(None).pause()
    """)
    assert worker.wait(PATIENCE) == -signal.SIGKILL


def test_a_worker_that_ignores_its_signal_is_killed_after_kill_after(
    fifo_path: str, events: EventList, start_worker: StartWorker
) -> None:
    """SPEC S-14."""
    server = timer.FileTimerServer(fifo_path, "test", on_event=events, kill_after=0.2)
    server.start()
    worker = start_worker("""
        import os, signal, time, filetimer as timer
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        client = timer.FileTimerClient(os.environ["FILETIMER_PATH"], signal=signal.SIGTERM)
        with timer.expires(0.1, client=client):
            time.sleep(600)
    """)
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    events.wait_for("worker died")
    names = [event.name for event in events][1:]
    assert names == ["timer expired", "kill worker process", "kill escalated", "worker died"]
    server.stop()


class TestWhoMayBeReaped:
    """SPEC S-11, S-13.  Strangers are tested with the kill seam replaced."""

    @pytest.fixture(autouse=True)
    def _no_kill(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*arguments: object) -> None:
            raise AssertionError(f"a signal would have been sent: {arguments}")

        monkeypatch.setattr(process_module, "_pidfd_send_signal", refuse)
        monkeypatch.setattr(process_module.os, "kill", refuse)

    def refusal(self, server: timer.FileTimerServer, events: EventList, line: bytes) -> str | None:
        write_line(server._file_path, line)
        eventually(lambda: events.named("timer refused") or events.named("record rejected"))
        time.sleep(0.05)
        assert events.named("kill worker process") == events.named("timer expired") == []
        return (events.named("timer refused") + events.named("record rejected"))[0].code

    def test_init(self, server: timer.FileTimerServer, events: EventList) -> None:
        assert self.refusal(server, events, record(1)) == "init"

    def test_the_server_itself(self, server: timer.FileTimerServer, events: EventList) -> None:
        assert self.refusal(server, events, record(os.getpid())) == "self"

    @pytest.mark.parametrize("pid", [0, -1, -os.getpid()])
    def test_process_groups(
        self, server: timer.FileTimerServer, events: EventList, pid: int
    ) -> None:
        assert self.refusal(server, events, record(pid)) == "bad_pid"

    def test_a_process_of_another_user(
        self, server: timer.FileTimerServer, events: EventList
    ) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to start a process of another user")
        stranger = subprocess.Popen(["sleep", "600"], user=12345)
        try:
            assert self.refusal(server, events, record(stranger.pid)) == "foreign_uid"
        finally:
            # The seam is replaced in this process, so another one ends it.
            subprocess.run(["kill", "-9", str(stranger.pid)], check=True)
            stranger.wait()

    def test_a_recycled_pid(
        self,
        server: timer.FileTimerServer,
        events: EventList,
        sleeper: subprocess.Popen[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        line = record(sleeper.pid, start_time=1)
        assert self.refusal(server, events, line) == "start_time"
        monkeypatch.undo()

    def test_a_foreign_pid_namespace(
        self,
        server: timer.FileTimerServer,
        events: EventList,
        sleeper: subprocess.Popen[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        assert self.refusal(server, events, record(sleeper.pid, pid_ns=5)) == "foreign_pid_ns"
        monkeypatch.undo()

    def test_a_worker_that_died_before_its_record_was_read(
        self, server: timer.FileTimerServer, events: EventList
    ) -> None:
        gone = subprocess.Popen(["true"])
        gone.wait()
        assert self.refusal(server, events, record(gone.pid)) == "no_process"

    def test_a_zombie(self, server: timer.FileTimerServer, events: EventList) -> None:
        zombie = subprocess.Popen(["true"])
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        assert self.refusal(server, events, record(zombie.pid)) == "zombie"
        zombie.wait()

    def test_a_recycled_pid_of_version_1(
        self,
        server: timer.FileTimerServer,
        events: EventList,
        sleeper: subprocess.Popen[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The process began after the pipe was written to: also for a server's first record."""
        monkeypatch.setattr(watchdog_module, "started_at", lambda process: time.monotonic() + 1)
        assert self.refusal(server, events, record(sleeper.pid)) == "no_process"
        monkeypatch.undo()

    def test_a_thread_is_not_a_worker(
        self,
        server: timer.FileTimerServer,
        events: EventList,
        start_worker: StartWorker,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        worker = start_worker("""
            import threading, time
            thread = threading.Thread(target=time.sleep, args=(600,), daemon=True)
            thread.start()
            print(thread.native_id, flush=True)
            time.sleep(600)
        """)
        assert worker.stdout is not None
        tid = int(worker.stdout.readline())
        assert self.refusal(server, events, record(tid)) == "no_process"
        monkeypatch.undo()


def test_a_worker_that_exits_with_timers_is_told_and_forgotten(
    server: timer.FileTimerServer, events: EventList, start_worker: StartWorker
) -> None:
    worker = start_worker("""
        import os, time, filetimer as timer
        client = timer.FileTimerClient(os.environ["FILETIMER_PATH"])
        client.acquire("left", time.time() + 60)
        input()
    """)
    eventually(lambda: worker.pid in server.get_expired_timers(time.time() + 120))
    worker.communicate("exit, now that the server has read the record\n", PATIENCE)
    (exited,) = events.wait_for("worker exited")
    assert exited.pid == worker.pid
    assert "left" in (exited.detail or "")
    assert server.get_expired_timers(time.time() + 120) == {}
    assert events.named("timer expired") == []


def test_callbacks_that_raise_change_nothing_and_are_counted(
    fifo_path: str, start_worker: StartWorker
) -> None:
    def bad(*arguments: object) -> None:
        raise ValueError("callback")

    server = timer.FileTimerServer(fifo_path, "test", log_event=bad, on_event=bad)
    server.start()
    try:
        assert start_worker(HANG).wait(PATIENCE) == -signal.SIGKILL
        eventually(lambda: server.counts.get(("callback failed", "log_event"), 0) >= 3)
        assert server.counts["callback failed", "on_event"] >= 3
    finally:
        server.stop()


def test_a_log_event_that_raises_is_an_event(fifo_path: str, events: EventList) -> None:
    def bad(*arguments: object) -> None:
        raise ValueError("no space left")

    server = timer.FileTimerServer(fifo_path, "test", log_event=bad, on_event=events)
    server.start()
    server.stop()
    failures = [(event.code, event.detail) for event in events.named("callback failed")]
    assert failures == [("log_event", "ValueError: no space left")] * 2


def test_log_event_gets_torchs_names_and_the_request(
    fifo_path: str, start_worker: StartWorker
) -> None:
    got: list[tuple[str, timer.FileTimerRequest | None]] = []
    server = timer.FileTimerServer(fifo_path, "test", log_event=lambda *event: got.append(event))
    server.start()
    worker = start_worker(HANG)
    worker.wait(PATIENCE)
    server.stop()
    names = ["watchdog started", "timer expired", "kill worker process", "watchdog stopped"]
    assert [name for name, _ in got] == names
    assert got[0][1] is got[3][1] is None
    request = got[2][1]
    assert isinstance(request, timer.FileTimerRequest)
    assert (request.worker_pid, request.scope_id, request.signal) == (worker.pid, "stuck", 9)


def test_the_debug_hook_is_called_and_may_raise(
    server: timer.FileTimerServer, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[int, list[str]]]] = []

    def hook(run_id: str, expired: dict[int, list[str]]) -> None:
        calls.append((run_id, expired))
        raise ValueError("hook")

    monkeypatch.setattr(timer.debug_info_logging, "log_debug_info_for_expired_timers", hook)
    worker = start_worker(HANG)
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    eventually(lambda: calls)
    assert calls == [("test", {worker.pid: ["stuck"]})]


class TestLifeCycle:
    def test_stop_with_and_without_clients_leaves_nothing(self, fifo_path: str) -> None:
        before = census()
        for daemon in (True, False):
            for clients in (0, 1):
                server = timer.FileTimerServer(fifo_path, "test", daemon=daemon)
                server.start()
                if clients:
                    client = timer.FileTimerClient(fifo_path, signal=0)
                    client.close()
                server.stop()
                server.stop()
                assert not os.path.exists(fifo_path)
        assert census() == before

    def test_stop_does_not_wait_for_max_interval(self, fifo_path: str) -> None:
        server = timer.FileTimerServer(fifo_path, "test", max_interval=3600)
        server.start()
        time.sleep(0.05)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 60

    def test_a_server_can_be_started_again(self, fifo_path: str, start_worker: StartWorker) -> None:
        server = timer.FileTimerServer(fifo_path, "test")
        for _ in range(2):
            server.start()
            assert start_worker(HANG).wait(PATIENCE) == -signal.SIGKILL
            server.stop()

    def test_starting_twice_is_an_error(self, server: timer.FileTimerServer) -> None:
        with pytest.raises(RuntimeError, match="stop"):
            server.start()

    def test_a_process_that_forgets_to_stop_leaves_no_fifo(self, fifo_path: str) -> None:
        code = "import sys, filetimer; filetimer.FileTimerServer(sys.argv[1], 'x').start()"
        subprocess.run([sys.executable, "-c", code, fifo_path], check=True, timeout=60)
        assert not os.path.exists(fifo_path)

    def test_stop_from_a_callback(self, fifo_path: str, start_worker: StartWorker) -> None:
        server: timer.FileTimerServer

        def stop(event: timer.Event) -> None:
            if event.name == "worker died":
                server.stop()

        server = timer.FileTimerServer(fifo_path, "test", on_event=stop)
        server.start()
        start_worker(HANG)
        eventually(lambda: not os.path.exists(fifo_path))

    @pytest.mark.parametrize("interval", [0, -1, float("nan")])
    def test_max_interval_is_checked(self, fifo_path: str, interval: float) -> None:
        with pytest.raises(ValueError, match="max_interval"):
            timer.FileTimerServer(fifo_path, "test", interval)

    def test_a_huge_max_interval_is_fine(self, fifo_path: str, start_worker: StartWorker) -> None:
        server = timer.FileTimerServer(fifo_path, "test", max_interval=1e12)
        server.start()
        assert start_worker(HANG).wait(PATIENCE) == -signal.SIGKILL
        server.stop()

    def test_progress_moves_while_idle(self, fifo_path: str) -> None:
        server = timer.FileTimerServer(fifo_path, "test", max_interval=0.1)
        server.start()
        first = server.get_last_progress_time()
        assert isinstance(first, int)
        eventually(lambda: server.get_last_progress_time() > first)
        server.stop()

    def test_run_once_acts_on_what_is_there_and_stops(
        self, fifo_path: str, events: EventList, sleeper: subprocess.Popen[str]
    ) -> None:
        server = timer.FileTimerServer(fifo_path, "test", on_event=events)
        server.register_timers([timer.FileTimerRequest(sleeper.pid, "s", time.time() - 1, 9)])
        server.run_once()
        assert sleeper.wait(PATIENCE) == -signal.SIGKILL
        assert not os.path.exists(fifo_path)
        assert threading.active_count() == 1


class TestPublicMethods:
    def test_register_get_and_clear(
        self, server: timer.FileTimerServer, events: EventList, sleeper: subprocess.Popen[str]
    ) -> None:
        request = timer.FileTimerRequest(sleeper.pid, "s", time.time() + 60, 9)
        server.register_timers([request])
        assert server.get_expired_timers(time.time()) == {}
        expired = server.get_expired_timers(time.time() + 120)
        assert expired == {sleeper.pid: [request]}
        server.clear_timers({sleeper.pid, 999_999})
        assert server.get_expired_timers(time.time() + 120) == {}

    def test_a_registered_timer_wakes_a_sleeping_server(
        self, server: timer.FileTimerServer, sleeper: subprocess.Popen[str]
    ) -> None:
        time.sleep(0.1)
        server.register_timers([timer.FileTimerRequest(sleeper.pid, "s", time.time() + 0.1, 9)])
        assert sleeper.wait(PATIENCE) == -signal.SIGKILL

    def test_a_release_request(
        self, server: timer.FileTimerServer, sleeper: subprocess.Popen[str]
    ) -> None:
        server.register_timers(
            [
                timer.FileTimerRequest(sleeper.pid, "s", time.time() + 60, 9),
                timer.FileTimerRequest(sleeper.pid, "s", -1, 0),
            ]
        )
        assert server.get_expired_timers(time.time() + 120) == {}

    def test_is_process_running(self, server: timer.FileTimerServer) -> None:
        process = subprocess.Popen(["sleep", "600"])
        assert server.is_process_running(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not server.is_process_running(process.pid)  # a zombie
        process.wait()
        assert not server.is_process_running(process.pid)
        assert not server.is_process_running(-1)


class TestThePath:
    """SPEC S-15 to S-18."""

    @pytest.mark.parametrize("kind", ["file", "directory", "symlink to a file", "symlink to fifo"])
    def test_anything_else_is_refused_and_left_alone(
        self, fifo_path: str, tmp_path: Path, kind: str
    ) -> None:
        target = tmp_path / "target"
        if kind == "file":
            Path(fifo_path).write_text("precious")
        elif kind == "directory":
            os.mkdir(fifo_path)
        elif kind == "symlink to a file":
            target.write_text("precious")
            os.symlink(target, fifo_path)
        else:
            os.mkfifo(target)
            os.symlink(target, fifo_path)
        before = os.lstat(fifo_path)
        with pytest.raises(FileExistsError, match="not a FIFO"):
            timer.FileTimerServer(fifo_path, "test").start()
        assert os.lstat(fifo_path).st_ino == before.st_ino
        assert kind != "file" or Path(fifo_path).read_text() == "precious"

    def test_a_fifo_of_another_user_is_refused(self, fifo_path: str) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to make a FIFO of another user")
        os.mkfifo(fifo_path)
        os.chown(fifo_path, 12345, -1)
        with pytest.raises(FileExistsError, match="belongs to uid 12345"):
            timer.FileTimerServer(fifo_path, "test").start()

    def test_a_second_server_is_refused_and_the_first_goes_on(
        self, server: timer.FileTimerServer, start_worker: StartWorker
    ) -> None:
        with pytest.raises(BlockingIOError, match="another server"):
            timer.FileTimerServer(server._file_path, "second").start()
        assert start_worker(HANG).wait(PATIENCE) == -signal.SIGKILL

    def test_a_second_server_is_refused_from_another_process(
        self, server: timer.FileTimerServer
    ) -> None:
        code = "import sys, filetimer; filetimer.FileTimerServer(sys.argv[1], 'x').start()"
        second = subprocess.run(
            [sys.executable, "-c", code, server._file_path], capture_output=True, timeout=60
        )
        assert b"another server" in second.stderr
        assert os.path.exists(server._file_path)

    def test_a_forked_child_does_not_keep_the_path(self, fifo_path: str) -> None:
        server = timer.FileTimerServer(fifo_path, "test")
        server.start()
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
        try:
            server.stop()
            again = timer.FileTimerServer(fifo_path, "test")
            again.start()
            again.stop()
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def test_a_stop_in_a_forked_child_leaves_the_parents_server_alone(
        self, server: timer.FileTimerServer, start_worker: StartWorker
    ) -> None:
        pid = os.fork()
        if pid == 0:
            server.stop()
            os._exit(0)
        os.waitpid(pid, 0)
        assert start_worker(HANG).wait(PATIENCE) == -signal.SIGKILL

    def test_mode_and_owner(self, server: timer.FileTimerServer) -> None:
        status = os.stat(server._file_path)
        assert oct(status.st_mode) == oct(0o010600)
        assert status.st_uid == os.geteuid()

    def test_the_umask_does_not_matter(self, fifo_path: str) -> None:
        old = os.umask(0o777)
        try:
            server = timer.FileTimerServer(fifo_path, "test")
            server.start()
        finally:
            os.umask(old)
        assert oct(os.stat(fifo_path).st_mode) == oct(0o010600)
        server.stop()

    def test_a_stale_fifo_is_used_and_not_removed(
        self, fifo_path: str, start_worker: StartWorker
    ) -> None:
        os.mkfifo(fifo_path)
        server = timer.FileTimerServer(fifo_path, "test")
        server.start()
        assert start_worker(HANG).wait(PATIENCE) == -signal.SIGKILL
        server.stop()
        assert os.path.exists(fifo_path)

    def test_a_path_that_was_replaced_is_not_removed(
        self, server: timer.FileTimerServer, fifo_path: str
    ) -> None:
        os.unlink(fifo_path)
        Path(fifo_path).write_text("somebody else's")
        server.stop()
        assert Path(fifo_path).read_text() == "somebody else's"

    def test_no_temporary_file_is_left(self, server: timer.FileTimerServer, tmp_path: Path) -> None:
        assert sorted(os.listdir(tmp_path)) == ["runtime", "timers"]

    def test_a_missing_directory_is_an_os_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            timer.FileTimerServer(str(tmp_path / "no" / "timers"), "test").start()

    def test_the_lock_tells_that_it_lives(self, server: timer.FileTimerServer) -> None:
        """SPEC S-18: for whoever wants to know."""
        fd = os.open(server._file_path, os.O_WRONLY | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(fd)


@pytest.mark.parametrize("capability", ["start_time", "pid"])
def test_without_pidfds_workers_are_reaped_and_seen_to_die(
    fifo_path: str,
    events: EventList,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
) -> None:
    monkeypatch.setattr(process_module, "capability", lambda: capability)
    if capability == "pid":
        monkeypatch.setattr(process_module, "_stat_fields", lambda pid: None)
    server = timer.FileTimerServer(fifo_path, "test", on_event=events)
    server.start()
    worker = start_worker(HANG)
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    events.wait_for("worker died")
    server.stop()


def test_pidfds_by_system_call_number(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[str]
) -> None:
    """As on a Python that was built on an old system."""
    process_module.capability.cache_clear()
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.delattr(signal, "pidfd_send_signal")
    assert process_module.capability() == "pidfd"
    process = process_module.open_process(sleeper.pid)
    assert process is not None
    assert process.is_alive()
    process.send_signal(signal.SIGKILL)
    sleeper.wait(PATIENCE)
    assert not process.is_alive()
    process.close()
    with pytest.raises(OSError, match=r".*"):
        process_module._pidfd_open(sleeper.pid)


def test_pidfds_that_cannot_be_had_just_now_are_not_given_up_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first look may come when no descriptor is left; the answer is kept."""

    def fail(pid: int) -> int:
        raise OSError(errno.EMFILE, "too many")

    process_module.capability.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(process_module, "_pidfd_open", fail)
        assert process_module.capability() == "pidfd"
    process_module.capability.cache_clear()


def test_a_flood_of_garbage_does_not_keep_others_from_being_served(
    server: timer.FileTimerServer, events: EventList, start_worker: StartWorker
) -> None:
    stop = threading.Event()

    def flood() -> None:
        fd = os.open(server._file_path, os.O_WRONLY | os.O_NONBLOCK)
        while not stop.is_set():
            try:
                os.write(fd, b"garbage\n" * 500)
            except BlockingIOError:
                time.sleep(0.0005)
        os.close(fd)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        assert start_worker(HANG).wait(PATIENCE) == -signal.SIGKILL
    finally:
        stop.set()
        thread.join()
    assert server.counts["record rejected", "json"] > 100


def test_rejections_are_counted_but_their_log_is_limited(
    server: timer.FileTimerServer, caplog: pytest.LogCaptureFixture
) -> None:
    """SPEC X-2."""
    write_line(server._file_path, b"".join(b"x%d\n" % i for i in range(200)))
    eventually(lambda: server.counts.get(("record rejected", "json")) == 200)
    assert sum("record rejected" in message for message in caplog.messages) == 10


def test_a_release_that_was_sent_in_time_counts_however_late_the_server_is(
    server: timer.FileTimerServer, events: EventList, sleeper: subprocess.Popen[str]
) -> None:
    """SPEC S-7: the server is held up, as a starved machine would, over the whole deadline."""
    write_line(server._file_path, record(sleeper.pid, 1.5))
    eventually(lambda: server.get_expired_timers(time.time() + 60))
    with server._lock:
        write_line(server._file_path, record(sleeper.pid, scope="s", expiration_time=-1))
        time.sleep(1.8)
    time.sleep(0.2)
    assert events.named("timer expired") == []
    assert sleeper.poll() is None


def test_the_journal_is_given_up_when_it_cannot_be_written(
    fifo_path: str, events: EventList, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILETIMER_RUNTIME_DIR", "/proc/no-such-place")
    server = timer.FileTimerServer(fifo_path, "test", on_event=events)
    server.start()
    assert [event.code for event in events.named("server degraded")] == ["journal"]
    assert start_worker(HANG).wait(PATIENCE) == -signal.SIGKILL
    server.stop()


def test_a_process_whose_first_thread_has_ended_is_no_zombie(
    server: timer.FileTimerServer, start_worker: StartWorker
) -> None:
    """As by pthread_exit; /proc/PID/stat says Z, while the others live on."""
    worker = start_worker(
        """
        import ctypes, os, platform, threading, time
        import filetimer as timer
        timer.configure_from_env()
        def hang():
            while ") Z" not in open(f"/proc/{os.getpid()}/stat").read():
                time.sleep(0.01)
            with timer.expires(0.2):
                time.sleep(600)
        threading.Thread(target=hang).start()
        ctypes.CDLL(None).syscall({"x86_64": 60}.get(platform.machine(), 93), 0)  # exit
        """
    )
    assert worker.wait(PATIENCE) == -signal.SIGKILL
