"""The test bed: FIFOs, servers, workers and tools, all ended when their block ends."""

from __future__ import annotations

import array
import contextlib
import fcntl
import importlib.util
import os
import select
import shutil
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "HERE",
    "PYTHON_ENVIRONMENT",
    "ROOT",
    "SCOPE",
    "DrainedFifo",
    "Missing",
    "Process",
    "compiled",
    "folder",
    "has_torch",
    "resident",
    "scheduled",
    "server",
    "tool",
    "worker",
]

HERE = Path(__file__).parent
MOST_OF_ONE = 5_000  # timers of a worker: a server bounds them at twice as many
ROOT = HERE.parent.parent
SCOPE = "training/loop.py#120"
# What lets a Python child import what we import.
PYTHON_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, sys.path)]),
    "PYTHONWARNINGS": "ignore",  # torch warns of a missing numpy
}
PATIENCE = 120.0  # seconds that anything here may take to answer


class Missing(Exception):
    """A tool that a measure needs is not installed; says which, and how to get it."""


def tool(name: str, package: str) -> str:
    """The path of a program.  Raises Missing, which in CI ends the suite."""
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed (Debian package {package})")
    return found


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A directory of its own, for FIFOs, programs and the runtime files of our servers."""
    with tempfile.TemporaryDirectory(prefix="filetimer-bench-") as name:
        yield Path(name)


def compiled(source: str, into: Path, compiler: str | None = None) -> Path:
    """A C file of this directory as a program, with fixed flags."""
    compiler = compiler or os.environ.get("CC", "cc")
    program = into / f"{Path(source).stem}-{Path(compiler).name}"
    if not program.exists():
        subprocess.run(
            [tool(compiler, "gcc"), "-O2", "-D_GNU_SOURCE", "-pthread", f"-I{ROOT}/c/include",
             str(HERE / source), "-o", str(program)],
            check=True,
        )  # fmt: skip
    return program


class DrainedFifo:
    """A FIFO that nobody is woken by: what is written is thrown away between the bursts.

    A woken reader costs more than all the rest, and every writer the same.  It is locked, as our
    servers lock theirs.
    """

    def __init__(self, path: Path, locked: bool = True) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(self.fd, getattr(fcntl, "F_SETPIPE_SZ", 1031), 1 << 20)
        if locked:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def read(self) -> bytes:
        try:
            return os.read(self.fd, 1 << 20)
        except BlockingIOError:
            return b""

    def drain(self) -> None:
        while self.read():
            pass

    def writer(self) -> int:
        """Another descriptor, to write to."""
        return os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)


class Process:
    """A child that is asked and answers in lines; ended by the end of its input."""

    def __init__(self, *command: object, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.pid = self._process.pid

    def tell(self, line: str = "") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self, patience: float = PATIENCE) -> str:
        """Its next line.  Raises TimeoutError, EOFError when it has died."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise TimeoutError(f"{self._process.args} does not answer")
        line = self._process.stdout.readline()
        if not line:
            raise EOFError(f"{self._process.args} has died")
        return line.strip()

    def ask(self, line: str) -> list[float]:
        self.tell(line)
        return [float(word) for word in self.hear().split()]

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Server(Process):
    """A server under test, in a process of its own; its journal is in memory, as it always is."""

    def __init__(self, kind: str, path: Path) -> None:
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self._runtime = tempfile.TemporaryDirectory(prefix="filetimer-bench-", dir=memory)
        super().__init__(
            sys.executable, "-m", "bench.serve", kind, path,
            environment={**PYTHON_ENVIRONMENT, "FILETIMER_RUNTIME_DIR": self._runtime.name},
        )  # fmt: skip
        self.kind, self.path = kind, path
        self.hear()

    def close(self) -> None:
        super().close()
        self._runtime.cleanup()

    def cpu(self) -> float:
        """Seconds of CPU time that the process has used."""
        return self.ask("cpu")[0]

    def timers(self) -> tuple[int, int]:
        """Live timers, and records that were refused."""
        live, refused = self.ask("timers")
        return int(live), int(refused)

    def wait_until_drained(self) -> float:
        """Returns when nothing is left in the pipe (monotonic seconds).

        The descriptor that looks is a reader's: torch's server waits for its writers to go.
        """
        fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        waiting = array.array("i", [1])
        try:
            while waiting[0]:
                fcntl.ioctl(fd, termios.FIONREAD, waiting)
                time.sleep(0.0002)
            return time.monotonic()
        finally:
            os.close(fd)

    def wait_for_timers(self, count: int) -> float:
        """Until the server has taken them in (monotonic seconds); at most ``PATIENCE`` seconds."""
        give_up = time.monotonic() + PATIENCE
        while self.timers()[0] < count:
            if time.monotonic() > give_up:
                raise TimeoutError(f"the server has {self.timers()[0]} timers of {count}")
            time.sleep(0.005)
        return time.monotonic()


def server(kind: str, where: Path) -> Server:
    """``ours`` or ``torch``'s, at a path of its own, ready."""
    return Server(kind, where / f"{kind}-{time.monotonic_ns()}")


@contextlib.contextmanager
def worker(where: Path, what: str, path: Path, kind: str, *arguments: object) -> Iterator[Process]:
    """``worker.c`` with a client of the server at ``path``; its input's end is its own."""
    one_shot = 2 if kind == "torch" else 0  # torch's server acts on nothing while it is held open
    with Process(compiled("worker.c", where), what, path, one_shot, *arguments) as process:
        yield process


@contextlib.contextmanager
def holders(where: Path, of: Server, kind: str, timers: int) -> Iterator[None]:
    """Workers that have so many timers set, and do nothing more."""
    workers = max(1, timers // MOST_OF_ONE)
    with worker(where, "flood", of.path, kind, timers // workers, 0, workers) as group:
        group.tell()
        group.hear()
        yield


def scheduled(pid: int) -> tuple[float, int]:
    """CPU seconds of a process so far, to the nanosecond, and how often its threads have waited."""
    seconds, waits = 0.0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        seconds += int((task / "schedstat").read_text().split()[0]) / 1e9
        status = (task / "status").read_text()
        waits += int(status.partition("voluntary_ctxt_switches:")[2].split()[0])
    return seconds, waits


def resident(pid: int) -> int:
    """Bytes of memory that are a process's own."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024
