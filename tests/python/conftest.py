"""Fixtures: a server with its events, and workers that these tests start and end themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from event_schema import check_events
from support import EventList, StartWorker

from filetimer import FileTimerServer


@pytest.fixture(autouse=True)
def _private_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILETIMER_RUNTIME_DIR", str(tmp_path / "runtime"))
    for name in ("FILETIMER_PATH", "TORCHELASTIC_TIMER_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fifo_path(tmp_path: Path) -> str:
    return str(tmp_path / "timers")


@pytest.fixture
def events() -> Iterator[EventList]:
    events = EventList()
    yield events
    check_events(list(events))


@pytest.fixture
def server(fifo_path: str, events: EventList) -> Iterator[FileTimerServer]:
    server = FileTimerServer(fifo_path, "test", on_event=events)
    server.start()
    yield server
    server.stop()


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
