"""Workers under test, and the verdict on them.

A worker is a child process with a real client.  Which of them must die, and when, is known from
what they have promised on their slates; which did is seen by this process's own ``waitpid``.  The
server's events prove nothing here.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from faults.fault import Result
from faults.slate import Slate
from filetimer.replay import find_journals, view_server
from filetimer.server.journal import read_journal
from filetimer.server.loop import read_clocks

__all__ = [
    "GATE",
    "PATIENCE",
    "Fleet",
    "FleetWorker",
    "HeldServerProcess",
    "ServerProcess",
    "bare_server",
    "eventually",
    "native_is_built",
    "serve",
    "server_children",
    "start_bare",
    "stop",
]

# Seconds: a bound for what should take milliseconds.
PATIENCE = float(os.environ.get("FAULTS_PATIENCE", "30"))
GATE = "say('ready'); input()\n"  # a worker that begins with this waits for ``Fleet.go``
SETTLE = 0.5  # seconds in which a wrong kill would have happened
CLOCK_STEP = 0.0005  # seconds between reading a clock and writing it down


def eventually(condition, what: str, patience: float = PATIENCE) -> None:
    """Wait until the condition holds; raises TimeoutError."""
    give_up = time.monotonic() + patience
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"not within {patience:g} s: {what}")
        time.sleep(0.002)


def native_is_built() -> bool:
    """Whether this installation has ``NativeTimerClient``."""
    import importlib.util

    return importlib.util.find_spec("filetimer._native") is not None


class FleetWorker:
    """One worker: its process, its slate, and when it died.

    ``must_live``: whatever is on the slate, nobody may signal it.
    """

    def __init__(
        self, name: str, code: str, process: subprocess.Popen[str], slate: Slate, must_live: bool
    ) -> None:
        self.name = name
        self.process = process
        self.pid = process.pid
        self.slate = slate
        self.must_live = must_live
        self.waits = code.startswith(GATE)
        self.will_hang = "hang(" in code
        self.died_at: float | None = None  # monotonic seconds

    def hear(self, word: str) -> None:
        """Wait for this line of its output."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line != word + "\n":
            raise AssertionError(f"{self.name} said {line!r} instead of {word!r}")

    def tell(self, word: str = "go") -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    @property
    def must_die(self) -> bool:
        """Whether it hangs with a timer out."""
        return bool(self.slate.hangs) and not self.must_live

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None


class Fleet:
    """The workers of one fault; a context manager that ends whoever is left.

    Args:
        path: the FIFO that they write to.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.workers: list[FleetWorker] = []
        self._by_pidfd: dict[int, FleetWorker] = {}
        self._epoll = select.epoll()
        self._ended = False
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.workers:
            if worker.is_alive():
                worker.process.kill()
            worker.process.communicate()
        self._ended = True
        self._watcher.join()

    def start(
        self,
        code: str,
        *,
        name: str = "",
        client: str = "python",
        must_live: bool = False,
        prefix: tuple[str, ...] = (),
        pid: int | None = None,
        **environment: str,
    ) -> FleetWorker:
        """Start ``code``, with the names of ``faults.worker``; ``client``: ``native`` or so.

        ``pid``: which one it is to get.
        """
        slate_path = self._new_slate()
        slate = Slate(slate_path, create=True)
        process = _with_pid(
            pid,
            [*prefix, sys.executable, "-c", f"from faults.worker import *\n{code}"],
            env=_environment(
                {
                    "FILETIMER_PATH": self.path,
                    "FAULTS_SLATE": slate_path,
                    "FAULTS_CLIENT": client,
                    **environment,
                }
            ),
        )
        worker = FleetWorker(
            name or f"worker {len(self.workers)} ({client})", code, process, slate, must_live
        )
        self.workers.append(worker)
        self._follow(worker)
        return worker

    def go(self) -> None:
        """Once all have started, which takes long on a busy machine, let those on who wait."""
        waiting = [worker for worker in self.workers if worker.waits]
        for worker in waiting:
            worker.hear("ready")
        for worker in waiting:
            worker.waits = False
            worker.tell()

    def await_read(self) -> None:
        """Wait until the server has read what is out now: its journal has a timer of each worker.

        For faults that come after the read; the verdict is not taken from there.
        """
        eventually(self._are_read, "the server reads what was acquired")

    def _are_read(self) -> bool:
        now = read_clocks()
        views = [view_server(journal, now) for journal in find_journals(self.path)]
        read = {timer.pid for view in views for timer in view.timers}
        out = [worker for worker in self.workers if worker.slate.armed and worker.is_alive()]
        return all(worker.pid in read for worker in out)

    def await_applied(self) -> None:
        """As :meth:`await_read`, and until the pass of the server that read it last is over.

        That its journal goes on proves it; blank lines, which mean nothing, make it go on.
        """
        self.await_read()
        before = self._count_chunks()
        with open(self.path, "ab", buffering=0) as pipe:

            def goes_on() -> bool:
                pipe.write(b"\n")
                return self._count_chunks() > before

            eventually(goes_on, "the server makes another pass")

    def _count_chunks(self) -> int:
        (journal,) = find_journals(self.path)
        return len(read_journal(journal, read_clocks())[1])

    def bystander(
        self,
        name: str,
        command: tuple[str, ...] = ("sleep", "600"),
        pid: int | None = None,
        **options: object,
    ) -> FleetWorker:
        """Start a process that has nothing to do with timers, and must live."""
        slate = Slate(self._new_slate(), create=True)
        process = _with_pid(pid, list(command), **options)
        worker = FleetWorker(name, "", process, slate, must_live=True)
        self.workers.append(worker)
        self._follow(worker)
        return worker

    @staticmethod
    def _new_slate() -> str:
        return os.path.abspath(f"slate-{os.urandom(6).hex()}")

    def _follow(self, worker: FleetWorker) -> None:
        pidfd = os.pidfd_open(worker.pid)
        self._by_pidfd[pidfd] = worker
        self._epoll.register(pidfd, select.EPOLLIN)

    def _watch(self) -> None:
        """Note when each of them dies."""
        while not self._ended:
            for pidfd, _ in self._epoll.poll(0.1):
                self._by_pidfd[pidfd].died_at = time.monotonic()
                self._epoll.unregister(pidfd)
                os.close(pidfd)

    def judge(self, result: Result, patience: float = PATIENCE) -> None:
        """Wait for the deaths that are due, then for those that are not, and say what was wrong.

        Adds the timers, and the lateness of those who died, to ``result``.  May be called once.
        """
        self._await_hangs(patience)
        for worker in self._due(patience):
            late = time.monotonic() - worker.slate.deadline
            result.lose(f"{worker.name} (pid {worker.pid}) lives on {late:.1f} s past its deadline")
        time.sleep(SETTLE)
        for worker in self.workers:
            self._judge(worker, result)

    def _await_hangs(self, patience: float) -> None:
        """Wait until whoever is to hang does."""
        coming = [worker for worker in self.workers if worker.will_hang]
        eventually(
            lambda: all(w.slate.hangs or w.died_at is not None for w in coming),
            "the workers that are to hang do so",
            patience + 30,
        )

    def _due(self, patience: float) -> list[FleetWorker]:
        """Those who must die and do not, within ``patience`` seconds."""
        give_up = time.monotonic() + patience
        while due := [w for w in self.workers if w.must_die and w.died_at is None]:
            if time.monotonic() > max([give_up, *(w.slate.deadline + patience for w in due)]):
                break
            time.sleep(0.01)
        return due

    def _judge(self, worker: FleetWorker, result: Result) -> None:
        slate, status = worker.slate, worker.process.poll()
        result.timers += int(slate.acquired)
        who = f"{worker.name} (pid {worker.pid})"
        if slate.failed:
            result.breach(f"{who}: its client failed: {self._last_words(worker)}")
        if status is None or worker.died_at is None:
            return
        if status > 0:
            result.breach(f"{who} ended with status {status}: {self._last_words(worker)}")
        if status >= 0:
            return
        early = slate.deadline - worker.died_at
        if worker.must_die and early <= CLOCK_STEP:
            result.saw_lateness(-early)
        elif not worker.must_live and (slate.late or (slate.armed and early <= CLOCK_STEP)):
            result.late += 1  # it, or its full pipe, took longer than its timer had to spare
        elif worker.must_live or not slate.armed:
            result.blame(f"{who} was innocent; signal {-status} ended it")
        else:
            result.blame(f"{who} was reaped {early:.3f} s before its deadline")

    @staticmethod
    def _last_words(worker: FleetWorker) -> str:
        if worker.is_alive() or worker.process.stderr is None:
            return "it lives"
        lines = worker.process.stderr.read().strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def stop(pid: int) -> None:
    """SIGSTOP; returns once every thread of the process has stopped."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: _thread_states(pid) == {"T"}, "it stops")


def _thread_states(pid: int) -> set[str]:
    paths = Path(f"/proc/{pid}/task").glob("*/stat")
    try:
        return {path.read_text().rpartition(")")[2].split()[0] for path in paths}
    except OSError:
        return set()  # a thread has just ended: look again


class ServerProcess:
    """A server under test in a process of its own, and what it has written."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: Path, events: Path) -> None:
        self.process = process
        self.stderr = stderr
        self.events = events

    @property
    def pid(self) -> int:
        """The process that serves."""
        return self.process.pid

    def said(self, *words: str) -> bool:
        """Whether one of its events, or a line on standard error, has all these words."""
        lines = _lines(self.events) + _lines(self.stderr)
        return any(all(word in line for word in words) for line in lines)

    def told(self) -> list[dict[str, object]]:
        """Its events, in order."""
        return [json.loads(line) for line in _lines(self.events)]

    def stop(self, result: Result) -> None:
        """Ask it to end; it must do so, with status 0, and leave no journal."""
        self.process.terminate()
        self._end(result)

    def _end(self, result: Result) -> None:
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            result.breach("the server does not end")
            self.process.kill()
            status = self.process.wait()
        words = [line for line in _lines(self.stderr) if "Traceback" in line]
        result.check(status == 0 and not words, f"the server ended with {status}: {self.stderr}")


class HeldServerProcess(ServerProcess):
    """``filetimer serve``: the server is a child of the process that was started."""

    @property
    def pid(self) -> int:
        found: list[int] = []
        eventually(lambda: found.extend(server_children(self.process.pid)) or found, "a server")
        return found[0]

    def kill_and_wait(self) -> None:
        """Kill the server; return when another one runs, if not ready yet."""
        before = self.pid
        os.kill(before, signal.SIGKILL)
        eventually(lambda: self.pid != before, "another server")


def server_children(parent: int) -> list[int]:
    """The servers among a process's children: their program is running already."""
    found = []
    try:
        pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for task in os.listdir(f"/proc/{parent}/task"):  # a thread of it forked
            pids += Path(f"/proc/{parent}/task/{task}/children").read_text().split()
    except OSError:
        return []
    for pid in dict.fromkeys(pids):
        with contextlib.suppress(OSError):
            if b"\0filetimer.server\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def _with_pid(pid: int | None, command: list[str], **options) -> subprocess.Popen[str]:
    """Start a process that gets this pid, which must be free: in a private namespace only."""
    for _ in range(100):
        if pid is not None:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, **options
        )
        if pid in (None, process.pid):
            return process
        process.kill()  # somebody else started a thread just then
        process.communicate()
    raise AssertionError(f"no process gets the pid {pid}")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


SEAMS = str(Path(__file__).parent / "seams")
_numbers = iter(range(1_000_000))


def _environment(extra: dict[str, str]) -> dict[str, str]:
    environment = {**os.environ, **extra}
    if environment.keys() & {"FAULTS_SEAM", "FAULTS_CLOCK", "FAULTS_MUTANT"}:
        environment["PYTHONPATH"] = SEAMS + os.pathsep + environment.get("PYTHONPATH", "")
    return environment


@contextlib.contextmanager
def serve(
    path: str, result: Result, *options: str, prefix: tuple[str, ...] = (), **environment: str
) -> Iterator[HeldServerProcess]:
    """``filetimer serve`` at ``path``, until the end of the block."""
    number = next(_numbers)
    stderr, events = Path(f"serve-{number}.stderr"), Path(f"serve-{number}.events")
    with open(stderr, "wb") as file:
        process = subprocess.Popen(
            [
                *prefix,
                *(sys.executable, "-m", "filetimer", "serve", path),
                *("--events", str(events), *options),
            ],
            stderr=file,
            env=_environment(environment),
        )
    server = HeldServerProcess(process, stderr, events)
    eventually(lambda: server.said("watchdog started"), "the server starts")
    try:
        yield server
    finally:
        server.stop(result)


@contextlib.contextmanager
def bare_server(
    path: str, result: Result, *, setup: str = "", **options: object
) -> Iterator[BareServer]:
    """A ``FileTimerServer`` in a process that nobody restarts, until the end of the block."""
    server = start_bare(path, setup=setup, **options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop(result)


def start_bare(
    path: str,
    *,
    prefix: tuple[str, ...] = (),
    setup: str = "",
    environment: dict[str, str] | None = None,
    **options: object,
) -> BareServer:
    """As :func:`bare_server`.

    ``setup`` is code that it runs once it serves, with the name ``server``; ``options`` are those
    of ``FileTimerServer``.
    """
    number = next(_numbers)
    stderr, events = Path(f"bare-{number}.stderr"), Path(f"bare-{number}.events")
    with open(stderr, "wb") as file:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "faults.server", path, str(events), repr(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            env=_environment({"FAULTS_SETUP": setup, **(environment or {})}),
        )
    server = BareServer(process, stderr, events)
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != b"ready\n":
        raise AssertionError(f"the server said {line!r}: {stderr.read_text()}")
    return server


class BareServer(ServerProcess):
    """A server in a program of its own."""

    def stop(self, result: Result) -> None:
        """Ask it to end, and its program after it."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self._end(result)

    def die(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait()
