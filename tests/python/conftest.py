"""Fixtures: a server with its events, and workers that these tests start and end themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from filetimer import FileTimerServer
from filetimer.server.events import Event

PATIENCE = 20.0  # seconds: a bound for what should take milliseconds, on any machine


class EventList(list[Event]):
    """Events as they come, and a way to wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self._came = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._came:
            self.append(event)
            self._came.notify_all()

    def named(self, name: str) -> list[Event]:
        return [event for event in list(self) if event.name == name]

    def wait_for(self, name: str, count: int = 1) -> list[Event]:
        with self._came:
            came = self._came.wait_for(lambda: len(self.named(name)) >= count, PATIENCE)
        assert came, f"expected {count} of {name!r}, got {list(self)}"
        return self.named(name)


@pytest.fixture(autouse=True)
def _private_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILETIMER_RUNTIME_DIR", str(tmp_path / "runtime"))
    for name in ("FILETIMER_PATH", "TORCHELASTIC_TIMER_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fifo_path(tmp_path: Path) -> str:
    return str(tmp_path / "timers")


@pytest.fixture
def events() -> EventList:
    return EventList()


@pytest.fixture
def server(fifo_path: str, events: EventList) -> Iterator[FileTimerServer]:
    server = FileTimerServer(fifo_path, "test", on_event=events)
    server.start()
    yield server
    server.stop()


StartWorker = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_worker(fifo_path: str) -> Iterator[StartWorker]:
    """Start Python code as a worker of the server at ``fifo_path``; whatever lives on is ended."""
    workers: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        worker = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *arguments],
            env={**os.environ, "FILETIMER_PATH": fifo_path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
        worker.communicate()


@pytest.fixture
def sleeper(start_worker: StartWorker) -> subprocess.Popen[str]:
    """A process that does nothing; a target that tests may have killed."""
    return start_worker("import time; time.sleep(600)")


def eventually(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never came true"
        time.sleep(0.005)
