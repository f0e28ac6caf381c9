"""The live cases of the role server: the runner is the client, and has workers of its own.

Each function is named after its case in `vectors/live/server.json`, which says what is tried.

Servers reap by pid, so a mistake here would cost somebody else's process: the only pids that a
record names are those of workers that the case itself started and still holds, and the server's.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import procfs
from .cases import Case
from .link import Driver, DriverFault, Message
from .session import Session, copy_of_environ
from .verdicts import Skip, expect

_STRANGER = 65534  # "nobody": runs a worker that must be spared
_SOON = 0.15  # seconds to a deadline that the case waits for
_PATIENCE = 4.0  # seconds that a kill may be late on a busy machine
_GRACE = 0.4  # seconds past its deadline after which a worker counts as spared


class Worker:
    """A process that sleeps until it is reaped. The case is its parent: its pid stays its own."""

    def __init__(self, *, ignores_sigterm: bool = False, user: int | None = None) -> None:
        script = ('trap "" TERM; ' if ignores_sigterm else "") + "echo; exec sleep 60"
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", script],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            user=user,
            env=copy_of_environ(),
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it is set up
        self._process.stdout.close()
        self.pid = self._process.pid
        self.start_time = procfs.start_time(self.pid)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ended_by(self, within: float) -> int | str:
        """The number of the signal that ended it, or what happened instead."""
        try:
            status = self._process.wait(within)
        except subprocess.TimeoutExpired:
            return "alive"
        return -status if status < 0 else f"exit status {status}"

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class Server:
    """A driver that serves a path."""

    def __init__(self, driver: Driver, path: str) -> None:
        self.driver, self.path = driver, path
        self.pid = driver.pid

    def start(self, **options: Any) -> Message:
        reply = self.driver.request({"op": "start", "path": self.path, **options})
        self.pid = int(reply.get("pid", self.driver.pid))
        return reply

    def stop(self) -> None:
        self.driver.request({"op": "stop"})

    def answers(self) -> None:
        reply = self.driver.request({"op": "noop"})
        expect(reply.get("ok") is True, {"ok": True}, reply, {"op": "noop"})
        expect(_exists(self.pid), "the serving process lives", "it is gone")

    def events(self) -> Message:
        return self.driver.request({"op": "events"})


def _exists(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


Check = Callable[["Bench"], None]
CHECKS: dict[str, Check] = {}


class Bench:
    """What a case has at hand."""

    def __init__(self, session: Session, folder: str) -> None:
        self.session, self.folder, self.version = session, folder, session.version
        self.path = os.path.join(folder, "fifo")
        self.sent: list[bytes] = []
        self._workers: list[Worker] = []

    @contextmanager
    def server(self, **options: Any) -> Iterator[Server]:
        """The shared driver, serving the FIFO of this case."""
        with self.session.shared() as driver:
            server = Server(driver, self.path)
            _started(server.start(**options))
            try:
                yield server
            finally:
                if driver.alive:
                    try:
                        server.stop()
                    except DriverFault:
                        self.session.discard()

    @contextmanager
    def fresh(self, **options: Any) -> Iterator[Server]:
        """A driver of the case's own, not started yet."""
        with self.session.fresh(**options) as driver:
            yield Server(driver, self.path)

    def worker(self, **options: Any) -> Worker:
        worker = Worker(**options)
        self._workers.append(worker)
        return worker

    def record(self, pid: int, scope: str = "a", after: float = _SOON, **fields: Any) -> bytes:
        """An acquire as a client of this version writes it; `fields` change it, None omits."""
        wall, monotonic = time.time(), time.monotonic()
        record: dict[str, Any] = {
            "version": self.version,
            "pid": pid,
            "scope_id": scope,
            "expiration_time": round(wall + after, 6),
            "signal": int(signal.SIGKILL),
        }
        if self.version >= 2:
            record["deadline"] = round(monotonic + after, 6)
            record["start_time"] = procfs.start_time(pid)
            record["pid_ns"] = procfs.pid_ns()
        record.update(fields)
        record = {key: value for key, value in record.items() if value is not None}
        return json.dumps(record).encode() + b"\n"

    def acquire(self, worker: Worker, scope: str = "a", after: float = _SOON, **more: Any) -> None:
        self.send(self.record(worker.pid, scope, after, **more))

    def release(self, worker: Worker, scope: str = "a", **more: Any) -> None:
        gone = {"expiration_time": -1, "signal": 0, "deadline": None}
        self.send(self.record(worker.pid, scope, **{**gone, **more}))

    def send(self, data: bytes) -> None:
        """As a client that opens, writes and closes."""
        self.sent.append(data)
        with self.writer() as write:
            write(data)

    @contextmanager
    def writer(self) -> Iterator[Callable[[bytes], None]]:
        """A client that holds the FIFO open. It waits for room, up to a bound."""
        fd = _open_writer(self.path)
        try:
            yield lambda data: _write_all(fd, data)
        finally:
            os.close(fd)

    def killed(self, worker: Worker, by: int = signal.SIGKILL, within: float = _PATIENCE) -> None:
        got = worker.ended_by(within)
        expect(got == by, f"the worker is ended by signal {int(by)}", got, self.sent)

    def spared(self, worker: Worker, seconds: float = _SOON + _GRACE) -> None:
        got = worker.ended_by(seconds)
        expect(got == "alive", "the worker is spared", f"ended by signal {got}", self.sent)

    def reaps(self) -> None:
        """The server still does its work."""
        worker = self.worker()
        self.acquire(worker, "still at work")
        self.killed(worker)

    def close(self) -> None:
        for worker in self._workers:
            worker.end()


def _open_writer(path: str) -> int:
    """As clients do: a server that has made its FIFO may need a moment to open it."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > deadline:
                raise
        time.sleep(0.005)


def _write_all(fd: int, data: bytes) -> None:
    deadline = time.monotonic() + 10
    while data:
        try:
            data = data[os.write(fd, data[:4096]) :]
        except BlockingIOError:
            expect(time.monotonic() < deadline, "the server reads the FIFO", "it is full for 10 s")
            time.sleep(0.0005)


def _started(reply: Message) -> None:
    expect(reply.get("ok") is True, {"ok": True}, reply, {"op": "start"})


def _refused(reply: Message) -> None:
    expect("error" in reply, "an error: this path must be refused", reply, {"op": "start"})


def run_server(case: Case, session: Session) -> None:
    check = CHECKS[case.name]
    with TemporaryDirectory(prefix="filetimer-") as folder:
        bench = Bench(session, folder)
        try:
            check(bench)
        except FileNotFoundError as error:
            expect(False, "the FIFO is at its path", str(error))
        except OSError as error:
            expect(False, "somebody reads the FIFO", str(error))
        finally:
            bench.close()


def _case(check: Check) -> Check:
    CHECKS[check.__name__.replace("_", "-")] = check
    return check


# ---------------------------------------------------------------------------------------- timers


@_case
def server_kills_at_the_deadline(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker()
        start = time.monotonic()
        bench.acquire(worker, after=0.3)
        bench.killed(worker)
        took = time.monotonic() - start
        expect(took >= 0.299, "not before its deadline, 0.3 s", f"killed after {took:.3f} s")


@_case
def server_sends_the_signal_of_the_record(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker()
        bench.acquire(worker, signal=int(signal.SIGTERM))
        bench.killed(worker, signal.SIGTERM)


@_case
def server_kills_one_expired_on_arrival(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker()
        bench.acquire(worker, after=-5)
        bench.killed(worker)


@_case
def server_spares_a_released_worker(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker()
        bench.acquire(worker, after=1.0)
        bench.release(worker)
        bench.spared(worker, 1.0 + _GRACE)


@_case
def server_keeps_the_order_of_records(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker()
        release: dict[str, Any] = {"expiration_time": -1, "signal": 0, "deadline": None}
        bench.send(
            bench.record(worker.pid)
            + bench.record(worker.pid, **release)
            + bench.record(worker.pid, after=60)
        )
        bench.spared(worker)


@_case
def server_keeps_tokens_apart(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker()
        bench.acquire(worker, after=0.3, token=1)
        bench.acquire(worker, after=60, token=2)
        bench.release(worker, token=2)
        bench.killed(worker)


@_case
def server_report_only_kills_nobody(bench: Bench) -> None:
    with bench.server() as server:
        worker = bench.worker()
        bench.acquire(worker, signal=0)
        bench.spared(worker)
        server.answers()


@_case
def server_lives_on_after_a_kill(bench: Bench) -> None:
    with bench.server() as server:
        for _ in range(2):
            worker = bench.worker()
            bench.acquire(worker)
            bench.killed(worker)
            time.sleep(0.1)  # whatever follows a kill has time to happen
            server.answers()


@_case
def server_refuses_its_own_pid(bench: Bench) -> None:
    with bench.server() as server:
        bench.send(bench.record(server.pid, after=0.05))
        time.sleep(0.05 + _GRACE)
        server.answers()
        bench.reaps()


@_case
def server_forgets_an_exited_worker(bench: Bench) -> None:
    with bench.server() as server:
        worker = bench.worker()
        bench.acquire(worker)
        worker.end()
        time.sleep(_SOON + 0.1)
        server.answers()
        bench.reaps()


# -------------------------------------------------------------------------------- who is spared


@_case
def server_spares_a_recycled_pid(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker()
        bench.acquire(worker, start_time=worker.start_time - 1)
        bench.spared(worker)
        bench.reaps()


@_case
def server_spares_a_foreign_namespace(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker()
        bench.acquire(worker, pid_ns=procfs.pid_ns() + 1)
        bench.spared(worker)
        bench.reaps()


@_case
def server_spares_a_foreign_users_process(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker(user=_STRANGER)
        bench.acquire(worker)
        bench.spared(worker, 2.0)  # a server that is wrong may be late, too
        bench.reaps()


# ---------------------------------------------------------------------------------------- clocks


@_case
def server_kills_at_the_monotonic_deadline(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker()
        bench.acquire(worker, expiration_time=time.time() + 3600)
        bench.killed(worker)


@_case
def server_spares_before_the_monotonic_deadline(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker()
        bench.acquire(worker, deadline=time.monotonic() + 3600, expiration_time=time.time() - 5)
        bench.spared(worker)


@_case
def server_applies_a_release_before_it_kills(bench: Bench) -> None:
    with bench.server() as server:
        for _ in range(3):  # a server that is stopped just before it reads is right by luck
            worker = bench.worker()
            bench.acquire(worker, after=2.0)
            expired = time.monotonic() + 2.0
            time.sleep(0.25)  # the acquire is read, though the server look once in 0.1 s
            os.kill(server.pid, signal.SIGSTOP)
            try:
                bench.release(worker)
                time.sleep(max(0, expired + 0.1 - time.monotonic()))
            finally:
                os.kill(server.pid, signal.SIGCONT)
            bench.spared(worker, _GRACE)


@_case
def server_kills_in_a_flood(bench: Bench) -> None:
    with bench.server():
        worker, noise = bench.worker(), bench.worker()
        block = bench.record(noise.pid, "noise", after=60) * 20
        begun, over = threading.Event(), threading.Event()
        flood = threading.Thread(target=_flood, args=(bench.path, block, begun, over), daemon=True)
        flood.start()
        try:
            expect(begun.wait(10), "the server lets a flood begin", "nothing is written for 10 s")
            bench.acquire(worker)
            bench.killed(worker)
        finally:
            over.set()
            flood.join()


def _flood(path: str, block: bytes, begun: threading.Event, over: threading.Event) -> None:
    fd = _open_writer(path)
    try:
        while not over.is_set():
            try:
                os.write(fd, block)
                begun.set()
            except BlockingIOError:
                time.sleep(0.0001)
            except BrokenPipeError:
                return
    finally:
        os.close(fd)


# ------------------------------------------------------------------------------- bytes of others

_BAD_LINES = (
    b"hello\n",
    b"\n",
    b"[]\n",
    b"null\n",
    b"{}\n",
    b"\xff\xfe\n",
    b"\0\n",
    b'{"version": 1}\n',
    b'{"version": 1, "pid": "4242", "scope_id": "a", "expiration_time": 1, "signal": 9}\n',
    b'{"version": 1, "pid": [1], "scope_id": {}, "expiration_time": null, "signal": "9"}\n',
    b'{"version": 1, "pid": 2.5, "scope_id": "a", "expiration_time": NaN, "signal": 9}\n',
    b"[" * 3000 + b"\n",
    b"x" * 9000 + b"\n",
)


@_case
def server_survives_bad_lines(bench: Bench) -> None:
    short = b"".join(line for line in _BAD_LINES if len(line) < 200)
    with bench.server():
        worker = bench.worker()
        bench.send(b"".join(_BAD_LINES))
        bench.send(short + bench.record(worker.pid) + short)  # one write: they are read together
        bench.send(b"".join(_BAD_LINES))
        bench.killed(worker)


@_case
def server_rescues_a_record_behind_half_a_line(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker()
        with bench.writer() as write:  # so that no reader sees an end of file between the two
            write(bench.record(worker.pid, "dead writer")[:40])
            bench.acquire(worker)
        bench.killed(worker)


@_case
def server_waits_for_no_half_line(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker()
        bench.acquire(worker, after=1.5)
        with bench.writer() as write:
            write(bench.record(worker.pid, "slow writer")[:40])
            bench.killed(worker, within=1.5 + _PATIENCE)


@_case
def server_takes_end_of_file_for_no_release(bench: Bench) -> None:
    with bench.server():
        worker = bench.worker()
        bench.acquire(worker, after=0.3)
        for _ in range(3):
            bench.send(b"")
        bench.killed(worker)


@_case
def server_sleeps_without_clients(bench: Bench) -> None:
    with bench.server() as server:
        worker = bench.worker()
        bench.acquire(worker, after=60)
        time.sleep(0.1)
        start = procfs.busy_seconds(server.pid)
        time.sleep(0.6)
        busy = procfs.busy_seconds(server.pid) - start
        expect(busy < 0.2, "to be awake for less than 0.2 s in 0.6 s", f"{busy:.2f} s")


@_case
def server_survives_a_line_without_end(bench: Bench) -> None:
    size = 16 << 20
    with bench.server() as server:
        bench.acquire(bench.worker(), after=60)
        time.sleep(0.1)  # everything is warm
        before = procfs.resident_bytes(server.pid)
        with bench.writer() as write:
            for _ in range(size >> 20):
                write(b"x" * (1 << 20))
            server.answers()
            grown = procfs.resident_bytes(server.pid) - before
            write(b"\n")
        expect(grown < size // 3, f"less than {size // 3} bytes of growth", grown)
        bench.reaps()


@_case
def server_survives_random_bytes(bench: Bench) -> None:
    with bench.server() as server:
        dice = random.Random(20260101)
        writers = [
            threading.Thread(target=_noise, args=(bench.path, dice.randbytes(1 << 18)), daemon=True)
            for _ in range(4)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        bench.send(b"\n")
        server.answers()
        bench.reaps()


def _noise(path: str, data: bytes) -> None:
    """Noise with no chance to hold a record: it has no brace, and so names no process."""
    fd = _open_writer(path)
    try:
        _write_all(fd, data.replace(b"{", b"\n"))
    except Exception:
        pass  # the case finds out by asking the server
    finally:
        os.close(fd)


@_case
def server_counts_every_rejection(bench: Bench) -> None:
    with bench.server() as server:
        before = server.events()
        if "rejected" not in before:
            raise Skip("the driver does not count rejections")
        bench.send(b"hello\n" * 1000)
        deadline = time.monotonic() + _PATIENCE
        counted = 0
        while counted < 1000 and time.monotonic() < deadline:
            time.sleep(0.02)
            counted = server.events()["rejected"] - before["rejected"]
        expect(counted == 1000, "1000 rejections", counted, "1000 bad lines")


# ------------------------------------------------------------------------------------ escalation


@_case
def server_escalates(bench: Bench) -> None:
    with bench.server(kill_after=0.2):
        worker = bench.worker(ignores_sigterm=True)
        bench.acquire(worker, signal=int(signal.SIGTERM))
        bench.killed(worker, signal.SIGKILL)


@_case
def server_reports_a_death(bench: Bench) -> None:
    with bench.server(kill_after=5) as server:
        worker = bench.worker()
        bench.acquire(worker)
        bench.killed(worker)
        want = {"event": "dead", "pid": worker.pid}
        seen: list[Message] = []
        deadline = time.monotonic() + _PATIENCE
        while want not in seen and time.monotonic() < deadline:
            seen += server.events()["events"]
            time.sleep(0.02)
        expect(want in seen, want, seen, bench.sent)


# -------------------------------------------------------------------------------------- the FIFO


@_case
def server_makes_a_private_fifo(bench: Bench) -> None:
    with bench.fresh(umask=0) as server:
        _started(server.start())
        mode = os.stat(bench.path).st_mode
        expect(stat.S_ISFIFO(mode), "a FIFO", oct(mode))
        expect(stat.S_IMODE(mode) == 0o600, "mode 0600", oct(stat.S_IMODE(mode)))
        server.stop()


@_case
def server_refuses_a_regular_file(bench: Bench) -> None:
    file = Path(bench.path)
    file.write_bytes(b"precious\n")
    with bench.fresh() as server:
        reply = server.start()
        _precious(file)
        _refused(reply)


@_case
def server_refuses_a_foreign_fifo(bench: Bench) -> None:
    os.mkfifo(bench.path)
    os.chown(bench.path, _STRANGER, _STRANGER)
    inode = os.stat(bench.path).st_ino
    with bench.fresh() as server:
        _refused(server.start())
    expect(os.path.exists(bench.path), "the FIFO is still there", "it is gone")
    expect(os.stat(bench.path).st_ino == inode, "the same FIFO", "another one")


@_case
def server_refuses_a_served_path(bench: Bench) -> None:
    with bench.server():
        with bench.fresh() as second:
            _refused(second.start())
        bench.reaps()


@_case
def server_removes_not_what_it_did_not_make(bench: Bench) -> None:
    file = Path(bench.path)
    with bench.fresh() as server:
        _started(server.start())
        file.unlink()
        file.write_bytes(b"precious\n")
        server.stop()
        _precious(file)


def _precious(file: Path) -> None:
    got = file.read_bytes() if file.is_file() else "it is no file any more"
    expect(got == b"precious\n", b"precious\n", got)


@_case
def server_holds_a_lock(bench: Bench) -> None:
    with bench.fresh() as server:
        _started(server.start())
        expect(not _lockable(bench.path), "the FIFO is locked", "flock succeeds")
        server.driver.kill()
        deadline = time.monotonic() + _PATIENCE
        while not _lockable(bench.path) and time.monotonic() < deadline:
            time.sleep(0.01)
        expect(_lockable(bench.path), "the lock is gone with the server", "flock fails")


def _lockable(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


@_case
def server_takes_no_reader_for_a_server(bench: Bench) -> None:
    os.mkfifo(bench.path, 0o600)
    reader = os.open(bench.path, os.O_RDWR | os.O_NONBLOCK)
    try:
        with bench.server():
            os.close(reader)
            reader = -1
            bench.reaps()
    finally:
        if reader >= 0:
            os.close(reader)


@_case
def server_takes_over_from_a_killed_one(bench: Bench) -> None:
    with bench.fresh() as first:
        _started(first.start())
        first.driver.kill()
    with bench.server():
        bench.reaps()
