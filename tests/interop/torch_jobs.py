"""Jobs of torchrun for tests: started, bounded, looked at and cleaned up.

Every process of a job carries the job's mark in its environment.  That is how ranks that an agent
orphaned are found again, and the only thing that a process is ever killed for here.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WORKERS = Path(__file__).parent / "workers"
MARK = "FILETIMER_TEST_JOB"

OURS = {"FILETIMER_TORCHRUN": "1"}
STOCK = {"TORCHELASTIC_ENABLE_FILE_TIMER": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
FILETIMER_TORCHRUN = [sys.executable, "-m", "filetimer", "torchrun"]

FIXED = {
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    # torch 2.13 keeps one store through all attempts.  Restarted ranks then find the addresses of
    # the attempt before in it, and gloo connects to nobody, in every other run or so.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


@dataclass
class Result:
    status: int | None  # negative: the signal; None: it was still running
    output: str
    seconds: float

    def outcome(self) -> str:
        ended = "still running" if self.status is None else f"exit {_shell_status(self.status)}"
        return f"{ended} after {self.seconds:.1f} s"


class Job:
    """One agent and its workers, with a temporary directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.temporary = directory / "tmp"
        self.runtime = directory / "runtime"  # where servers keep their journals
        self.temporary.mkdir(parents=True)
        self._mark = f"{MARK}={uuid.uuid4()}"
        self._started = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def start(self, command: list[str], *arguments: object, **environment: str) -> Job:
        self._started = time.monotonic()
        with open(self.directory / "output", "wb") as output:  # orphans would hold a pipe open
            self._process = subprocess.Popen(
                [*command, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(environment),
                cwd=self.directory,  # where evidence goes
                start_new_session=True,
            )
        return self

    def wait(self, timeout: float) -> Result:
        assert self._process is not None
        try:
            status: int | None = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        return Result(status, self.output(), time.monotonic() - self._started)

    def run(
        self, command: list[str], *arguments: object, timeout: float = 90, **environment: str
    ) -> Result:
        """Run to the end; it must come within ``timeout`` seconds."""
        result = self.start(command, *arguments, **environment).wait(timeout)
        assert result.status is not None, f"did not end in {timeout} s:\n{result.output}"
        return result

    def terminate(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def output(self) -> str:
        return (self.directory / "output").read_text(errors="replace")

    def wait_for(self, pattern: str, timeout: float) -> re.Match[str]:
        give_up = time.monotonic() + timeout
        while (match := re.search(pattern, self.output())) is None:
            assert time.monotonic() < give_up, f"no {pattern!r} in {timeout} s:\n{self.output()}"
            time.sleep(0.02)
        return match

    def processes(self) -> list[int]:
        """The pids of the job that run."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._has(pid)]

    def fifos(self) -> list[Path]:
        return [p for p in self.directory.rglob("*") if stat.S_ISFIFO(p.lstat().st_mode)]

    def assert_clean(self, patience: float = 5) -> None:
        """No process left, no FIFO, no journal."""
        give_up = time.monotonic() + patience
        while self.processes() and time.monotonic() < give_up:
            time.sleep(0.05)
        assert not self.processes(), f"orphans: {list(map(_command_line, self.processes()))}"
        assert not self.fifos()
        assert not self.runtime.exists() or not os.listdir(self.runtime)

    def kill(self) -> None:
        """Kill what is left of the job."""
        for _ in range(50):
            left = self.processes()
            for pid in left:
                self._kill(pid)
            if self._process is not None:
                self._process.poll()
            if not left:
                return
            time.sleep(0.1)

    def _kill(self, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return
        try:
            if self._has(pid):  # still ours: looked at after the pidfd was opened
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError:
            pass
        finally:
            os.close(pidfd)

    def _has(self, pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                return pid > 1 and self._mark.encode() in file.read().split(b"\0")
        except OSError:
            return False

    def _environment(self, changes: dict[str, str]) -> dict[str, str]:
        name, value = self._mark.split("=")
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("FILETIMER", "TORCHELASTIC", "PET_"))
        }
        places = {"TMPDIR": str(self.temporary), "FILETIMER_RUNTIME_DIR": str(self.runtime)}
        return {**inherited, **places, **FIXED, **changes, name: value}


def worker(name: str) -> Path:
    return WORKERS / f"{name}.py"


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def one_host(ranks: int, restarts: int) -> list[str]:
    return [
        "--standalone",
        f"--nproc-per-node={ranks}",
        f"--max-restarts={restarts}",
        "--monitor-interval=0.05",
    ]


def lines_with(output: str, text: str) -> Iterator[str]:
    return (line for line in output.splitlines() if text in line)


def _shell_status(status: int) -> str:
    return str(status) if status >= 0 else f"{128 - status} ({signal.Signals(-status).name})"


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return f"pid {pid}"
