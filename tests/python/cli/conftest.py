"""The command in processes of its own, and proof that it leaves none behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from event_schema import check_line

PATIENCE = 60.0  # seconds: what any one step may take on a busy machine
MARK = "FILETIMER_TEST_MARK"  # an environment variable that all descendants of a test inherit


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll until ``condition`` holds; fail the test when it does not within PATIENCE."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, f"not within {PATIENCE} s: {what}"
        time.sleep(0.02)


class Bench:
    """Runs ``filetimer`` in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runtime = directory / "runtime"
        self.runtime.mkdir(mode=0o700)
        self.mark = uuid.uuid4().hex
        self.event_files: list[str] = []
        self.started: list[subprocess.Popen[bytes]] = []
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("FILETIMER_PATH", "TORCHELASTIC_TIMER_FILE", "MASTER_PORT")
        }
        self.environment |= {MARK: self.mark, "FILETIMER_RUNTIME_DIR": str(self.runtime)}

    def popen(
        self,
        *arguments: str,
        prefix: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "filetimer"),
        **options: object,
    ):
        command = [*prefix, sys.executable, *program, *arguments]
        settings = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
            "bufsize": 0,  # what readline() takes too much, communicate() would not see
            "env": self.environment,
            "cwd": self.directory,
        }
        if "--events" in arguments:
            self.event_files.append(arguments[arguments.index("--events") + 1])
        process = subprocess.Popen(command, **{**settings, **options})
        self.started.append(process)
        return process

    def __call__(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
        process = self.popen(*arguments, **options)
        out, err = process.communicate(timeout=PATIENCE)
        assert b"Traceback" not in err, err.decode()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def script(self, text: str, name: str = "worker.py") -> tuple[str, str]:
        """A Python program as the arguments that run it; ``filetimer`` is configured in it."""
        path = self.directory / name
        path.write_text(
            "import os, signal, subprocess, sys, time, filetimer\n"
            "filetimer.configure_from_env()\n"
            "rank, attempt = (int(os.environ.get(n, '0')) for n in "
            "('RANK', 'FILETIMER_RESTART_COUNT'))\n" + text
        )
        return sys.executable, str(path)

    def serve(self) -> Path:
        """Start a server; its path.  It is stopped at the end of the test."""
        path = self.directory / "served"
        log = self.directory / "serve.log"
        with open(log, "wb") as file:
            self.popen("serve", str(path), stdout=file, stderr=file)
        wait_until(lambda: b"watchdog started" in log.read_bytes(), "the server serves")
        self.environment["FILETIMER_PATH"] = str(path)
        return path

    def check_events(self) -> None:
        """Every line that was written for programs is as documented."""
        for name in self.event_files:
            path = self.directory / name
            for line in path.read_text().splitlines() if path.is_file() else ():
                check_line(json.loads(line))

    def survivors(self) -> list[int]:
        """Processes that this test has started, directly or not, and that still run."""
        found = []
        for name in filter(str.isdecimal, os.listdir("/proc")):
            try:
                environment = Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue
            if f"{MARK}={self.mark}".encode() in environment.split(b"\0"):
                found.append(int(name))
        return found

    def assert_nothing_left(self) -> None:
        """No process, and nothing in the runtime directory."""
        wait_until(lambda: not self.survivors(), "all processes are gone")
        assert list(self.runtime.iterdir()) == []


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.check_events()
    for process in bench.started:
        process.kill()  # not waited for yet, or a no-op
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    for pid in bench.survivors():  # of a test that failed: its own, by their mark
        os.kill(pid, signal.SIGKILL)
