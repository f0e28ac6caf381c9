# SPDX-License-Identifier: BSD-3-Clause
"""Many writers, servers that come and go: stress.c writes, this file reads and judges."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from native import HERE, Fifo

from filetimer import Event, FileTimerServer
from filetimer.server.watchdog import Watchdog
from filetimer.wire.decoder import Record, Rejection

Build = Callable[..., Path]
RECORD = re.compile(
    rb'\{"version": 2, "pid": (\d+), "scope_id": "([^"]+)", "expiration_time": '
    rb'(?:(-1), "signal": 0|\d+\.\d{6}, "signal": 9, "deadline": \d+\.\d{6}), '
    rb'"start_time": \d+, "pid_ns": \d+, "token": (\d+)\}'
)


@pytest.fixture(scope="module")
def stress(build: Build) -> Path:
    return build("gcc", HERE / "stress.c", "-O2")


@contextmanager
def started(*command: object, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A process of this test's, which does not outlive it."""
    words = [str(word) for word in command]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("mask", [False, True], ids=["pwritev2", "mask"])
def test_every_record_arrives_whole_and_in_order(stress: Path, fifo: Fifo, mask: bool) -> None:
    processes, threads, pairs = 4, 8, 20_000 if not mask else 2_000
    open_timers: dict[tuple[bytes, bytes], bytes | None] = {}
    counts: dict[tuple[bytes, bytes], int] = {}
    tokens: set[tuple[bytes, bytes]] = set()
    env = os.environ | ({"MASK_SIGPIPE": "1"} if mask else {})
    with started(stress, "pairs", fifo.path, processes, threads, pairs, env=env) as writers:
        done = False
        while not done:
            done = writers.poll() is not None  # then read once more
            lines = fifo.read()
            if not lines and not done:
                time.sleep(0.001)
            for line in lines:
                match = RECORD.fullmatch(line)
                assert match, line
                pid, scope, release, token = match.groups()
                key = pid, scope
                if release:
                    assert open_timers[key] == token, "a release of another timer"
                    open_timers[key] = None
                    counts[key] += 1
                else:
                    assert open_timers.get(key) is None, "an acquire before the release"
                    assert (pid, token) not in tokens, "two timers with one token"
                    open_timers[key] = token
                    counts.setdefault(key, 0)
                    tokens.add((pid, token))
        assert writers.returncode == 0
    assert fifo.rest == b""
    assert set(open_timers.values()) == {None}
    assert list(counts.values()) == [pairs] * (processes * threads)


def test_one_server_serves_them_all(
    stress: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own server: all records count, none is refused, no timer is left, nobody is killed."""
    processes, threads, pairs = 4, 8, 20_000
    monkeypatch.setenv("FILETIMER_RUNTIME_DIR", str(tmp_path / "runtime"))
    received = 0
    receive = Watchdog.receive

    def counted(self: Watchdog, results: list[Record | Rejection], *rest: Any) -> None:
        nonlocal received
        received += len(results)
        receive(self, results, *rest)

    monkeypatch.setattr(Watchdog, "receive", counted)
    events: list[Event] = []
    path = str(tmp_path / "timers")
    server = FileTimerServer(path, "stress", on_event=events.append)
    server.start()
    try:
        with started(stress, "pairs", path, processes, threads, pairs) as writers:
            assert writers.wait(90) == 0
        deadline = time.monotonic() + 30
        while received < 2 * processes * threads * pairs and time.monotonic() < deadline:
            time.sleep(0.05)
        assert received == 2 * processes * threads * pairs
        assert server.get_expired_timers(time.time() + 1e6) == {}
        assert [event.name for event in events] == ["watchdog started"]
    finally:
        server.stop()


@pytest.mark.parametrize("mask", [False, True], ids=["pwritev2", "mask"])
@pytest.mark.parametrize("replace", [False, True], ids=["same-fifo", "new-fifo"])
def test_no_record_lands_in_an_ordinary_file(
    stress: Path, tmp_path: Path, mask: bool, replace: bool
) -> None:
    """The server restarts 50 times while other threads open, write and close files."""
    files = tmp_path / "files"
    files.mkdir()
    fifo = Fifo(tmp_path / "fifo")
    env = os.environ | ({"MASK_SIGPIPE": "1"} if mask else {})
    lines = 0
    with started(stress, "files", fifo.path, files, env=env) as process:
        for _ in range(50):
            until = time.monotonic() + 0.02
            while time.monotonic() < until:
                lines += len(fifo.read())
            fifo.close()
            if replace:
                os.unlink(fifo.path)
            else:
                time.sleep(0.002)
            if replace:
                fifo = Fifo(fifo.path)
            else:
                fifo.reader = os.open(fifo.path, os.O_RDWR | os.O_NONBLOCK)
                fifo.rest = b""
        while process.poll() is None and lines == 0:
            lines += len(fifo.read())
        assert process.stdin
        process.stdin.close()
        assert process.stdout
        result = json.loads(process.stdout.readline())
        assert process.wait(30) == 0
    fifo.close()
    assert lines > 0
    assert result["sent"] > 0
    written = [path.read_bytes() for path in files.iterdir()]
    assert len(written) > 100
    assert set(written) == {b"ordinary\n" * 2}


BARE_SERVER = """
import os, sys
reader = os.open(sys.argv[1], os.O_RDWR)
print("up", flush=True)
while os.read(reader, 1 << 20):
    pass
"""


def up(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    assert process.stdout.readline() == "up\n"


def all_say(workers: list[subprocess.Popen[str]], word: str) -> None:
    for worker in workers:
        assert worker.stdout
        assert worker.stdout.readline() == word + "\n"


@pytest.mark.parametrize("mask", [False, True], ids=["pwritev2", "mask"])
def test_server_is_killed_under_four_busy_workers(stress: Path, tmp_path: Path, mask: bool) -> None:
    """Nobody dies; every call is an error until the server is back; then none is."""
    path = tmp_path / "fifo"
    os.mkfifo(path, 0o600)
    env = os.environ | ({"MASK_SIGPIPE": "1"} if mask else {})
    server = (sys.executable, "-c", BARE_SERVER, path)
    workers: list[subprocess.Popen[str]] = []
    with started(*server) as first:
        up(first)
        try:
            workers = [
                subprocess.Popen(
                    [stress, "hammer", path],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
                )
                for _ in range(4)
            ]  # fmt: skip
            all_say(workers, "sent")
            time.sleep(0.3)
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            all_say(workers, "errors")
            time.sleep(0.3)
            assert [worker.poll() for worker in workers] == [None] * 4
            with started(*server) as second:
                up(second)
                all_say(workers, "sent")
                time.sleep(0.3)
                results = []
                for worker in workers:
                    assert worker.stdin
                    assert worker.stdout
                    worker.stdin.close()
                    # One line: no further change.
                    results.append(json.loads(worker.stdout.read()))
                    assert worker.wait(30) == 0
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()
    for result in results:
        assert result["sent"] > 0
        assert result["errors"] > 0
        assert result["last_error"] == 32  # EPIPE
