"""Clients and servers of torch's and ours, each against the other's."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from torch_jobs import Job, worker

import filetimer

pytest_plugins = ["torch_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


def test_torchs_client_under_our_server(job: Job, tmp_path: Path) -> None:
    seen: list[tuple[str, filetimer.FileTimerRequest | None]] = []
    path = str(tmp_path / "fifo")
    server = filetimer.FileTimerServer(
        path, "peers", log_event=lambda name, request: seen.append((name, request))
    )
    server.start()
    try:
        result = job.run([sys.executable], worker("torch_client"), path)
    finally:
        server.stop()
    assert result.status == -signal.SIGKILL, result.output
    assert "alive" in result.output
    assert [name for name, _ in seen] == [
        "watchdog started",
        "timer expired",
        "kill worker process",
        "watchdog stopped",
    ]
    request = seen[2][1]
    assert request is not None
    assert (request.scope_id, request.signal) == ("stuck", signal.SIGKILL)


@pytest.mark.parametrize("version", [1, 2])
def test_our_client_under_torchs_server(job: Job, other_job: Job, version: int) -> None:
    """torch's server runs in a process of its own: it kills that after a worker."""
    path = str(other_job.directory / "fifo")
    other_job.start([sys.executable], worker("torch_server"), path)
    other_job.wait_for("ready", 60)
    result = job.run([sys.executable], worker("our_client"), path, version, timeout=30)
    assert "alive" in result.output
    assert result.status == -signal.SIGKILL, result.output
