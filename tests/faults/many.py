"""Many at once: a million blocks that end in time, and the exit of all workers in one instant.

`python tests/faults/many.py [--quick]` prints what was measured.  Times are of the monotonic clock.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filetimer as timer
from filetimer.server.events import Event, EventReporter
from filetimer.server.timers import Host, Now, TimerTable
from filetimer.server.watchdog import Watchdog
from filetimer.wire.decoder import LineDecoder

PATIENCE = 120.0  # seconds

# What a block takes, in seconds, and by how much its deadline is above that: from what is about the
# time of a wake-up on, so that many deadlines come while their releases are on the way.
TAKES = (0.0, 0.0, 0.00002, 0.0005)
SPARE = (0.002, 0.2)


def million_blocks(blocks: int = 1_000_000, processes: int = 8) -> dict[str, float]:
    """``expires`` blocks with random short deadlines, from several processes at once.

    The signal is one that workers ignore, so that a wrong one ends nothing and is counted.  A block
    whose release was written after its deadline, because its process did not run, was late by its
    own fault; that is seen by the worker itself, and an expiry of it is right.

    The numbers: ``blocks``; ``late``, blocks that were not in time; ``expired``, timers that the
    server acted on; ``wrong``, those of them that had been released in time; ``refused``, records
    that it did not take; ``left``, timers that it still has; ``seconds``.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, _server(directory) as server:
        workers = [_blocks(server.path, blocks // processes) for _ in range(processes)]
        late = {tuple(block) for worker in workers for block in _told(worker)}
        events = server.stop()
    expired = [(e.pid, e.token) for e in events if e.name == "timer expired"]
    return {
        "blocks": blocks // processes * processes,
        "late": len(late),
        "expired": len(expired),
        "wrong": len(set(expired) - late),
        "refused": sum(e.name in ("timer refused", "record rejected") for e in events),
        "left": sum(e.name == "worker exited" for e in events),
        "seconds": time.monotonic() - began,
    }


def exit_at_once(workers: int = 1000, timers: int = 10) -> dict[str, float]:
    """Real processes with ``timers`` timers each all exit in one instant.

    Just then the deadline of one more comes.  The numbers: ``workers``; ``timers``; ``seen``, exits
    that the server reported; ``seen_ms``, from the exit to the last of these reports;
    ``killed``, of those that exited; ``lost``, 1 if the other one was not killed; ``late_ms``, by
    how much that was.
    """
    with tempfile.TemporaryDirectory() as directory, _server(directory) as server:
        gate, hold = os.pipe()  # all wait for its end of file
        ready, say_ready = os.pipe()
        children = [_child(server.path, timers, gate, hold, say_ready) for _ in range(workers)]
        os.close(say_ready)
        while os.read(ready, 1 << 16):  # ends when each has closed its end: they are all set
            pass
        stuck = subprocess.Popen(
            [sys.executable, "-c", STUCK, server.path], stdout=subprocess.PIPE, text=True
        )
        assert stuck.stdout is not None
        deadline = float(stuck.stdout.readline())
        poller = select.poll()
        stuck_fd = os.pidfd_open(stuck.pid)
        poller.register(stuck_fd, select.POLLIN)
        time.sleep(max(0.0, deadline - time.monotonic() - 0.01))
        exited = time.time()
        os.close(hold)
        died = time.monotonic() if poller.poll(1000 * PATIENCE) else None
        os.close(stuck_fd)
        stuck.kill()
        stuck.communicate()
        for child in children:
            os.waitpid(child, 0)
        _eventually(lambda: server.count("worker exited") >= workers)
        events = server.stop()
        os.close(gate)
        os.close(ready)
    seen = [event for event in events if event.name == "worker exited"]
    killed = {event.pid for event in events if event.name == "kill worker process"}
    return {
        "workers": workers,
        "timers": workers * timers,
        "seen": len(seen),
        "seen_ms": 1000 * (max(event.time for event in seen) - exited),
        "killed": len(killed & set(children)),
        "lost": int(died is None),
        "late_ms": float("inf") if died is None else 1000 * (died - deadline),
    }


def virtual_exit_at_once(workers: int = 10_000, timers: int = 10) -> dict[str, float]:
    """As :func:`exit_at_once`, without processes: more of them than a machine may have.

    Everything but the processes is real, from the bytes on.  The numbers: ``workers``; ``timers``
    that were set; ``set_ms``, to decode and set them all; ``next_ms``, to find the first deadline;
    ``exit_ms``, until all exits were processed; ``left``, timers after that; ``killed``.
    """
    with _quiet():
        return _virtual_exit_at_once(workers, timers)


@contextmanager
def _quiet() -> Iterator[None]:
    """As in `python -m filetimer.server`: ten thousand exits are no news."""
    logger = logging.getLogger("filetimer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def _virtual_exit_at_once(workers: int, timers: int) -> dict[str, float]:
    events: list[Event] = []
    reporter = EventReporter(on_event=events.append)
    host = Host(pid=1 << 22)
    watchdog: Any = Watchdog(host, reporter)
    processes = {pid: _VirtualProcess(pid) for pid in range(2, 2 + workers)}
    watchdog.table = TimerTable[Any](host, processes.get, watchdog)
    now = Now(1000.0, 1_767_225_600.0)
    lines = [_line(pid, i, now.monotonic) for i in range(timers) for pid in processes]
    random.shuffle(lines)
    stream = b"".join(lines)
    decoder = LineDecoder()
    clock = [time.perf_counter()]
    for start in range(0, len(stream), 1 << 16):
        watchdog.receive(decoder.feed_fast(stream[start : start + (1 << 16)]), now)
    clock.append(time.perf_counter())
    was_set = sum(1 for _ in watchdog.table.live_timers())
    watchdog.next_due()
    clock.append(time.perf_counter())
    for process in processes.values():
        watchdog.process_exited(process, now)
    watchdog.enforce(now.monotonic + 1e6)
    clock.append(time.perf_counter())
    return {
        "workers": workers,
        "timers": was_set,
        "set_ms": 1000 * (clock[1] - clock[0]),
        "next_ms": 1000 * (clock[2] - clock[1]),
        "exit_ms": 1000 * (clock[3] - clock[2]),
        "left": sum(1 for _ in watchdog.table.live_timers()),
        "killed": sum(event.name == "kill worker process" for event in events),
    }


class _VirtualProcess:
    """What ``server.process.ProcessHandle`` is to the watchdog, and never to be signalled."""

    pidfd = None
    uid = time_ns = None
    start_time = 5000
    zombie = False

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def is_alive(self) -> bool:
        return True

    def send_signal(self, signum: int) -> None:
        pass

    def close(self) -> None:
        pass


def _line(pid: int, i: int, monotonic: float) -> bytes:
    return (
        b'{"version": 2, "pid": %d, "scope_id": "train.py#%d", "expiration_time": 9000000000.0, '
        b'"signal": 9, "deadline": %.6f, "start_time": 5000, "token": %d}\n'
        % (pid, i, monotonic + random.uniform(10, 1000), random.getrandbits(52))
    )


STUCK = """
import sys, time, filetimer as timer
handle = timer.FileTimerClient(sys.argv[1]).begin("stuck", 2.0)
print(handle._deadline, flush=True)
time.sleep(600)
"""


def _child(path: str, timers: int, gate: int, hold: int, say_ready: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.close(hold)
        client = timer.FileTimerClient(path)
        for i in range(timers):
            client.begin(f"scope {i}", random.uniform(600, 6000))
        os.close(say_ready)
        os.read(gate, 1)
    finally:
        os._exit(0)


def _blocks(path: str, count: int) -> tuple[int, int]:
    """A child that enters so many blocks; its pid, and a pipe on which it tells of late ones."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    status = 1
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        client = timer.FileTimerClient(path, signal.SIGUSR1)
        rng = random.Random(os.getpid())
        late = [block for block in (_block(client, rng) for _ in range(count)) if block]
        with open(writer, "w") as report:
            json.dump(late, report)
        status = 0
    finally:
        os._exit(status)


def _block(client: timer.FileTimerClient, rng: random.Random) -> tuple[int, int] | None:
    """One block; its worker and token if it was late."""
    takes = rng.choice(TAKES)
    with timer.expires(takes + rng.uniform(*SPARE), "block", client) as handle:
        token, deadline = handle._token, handle._deadline  # type: ignore[attr-defined]
        end = time.monotonic() + takes
        while time.monotonic() < end:
            pass
    return (os.getpid(), token) if time.monotonic() >= deadline else None


def _told(worker: tuple[int, int]) -> list[list[int]]:
    pid, reader = worker
    with open(reader) as report:
        text = report.read()
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"a worker ended with status {status}"
    late: list[list[int]] = json.loads(text)
    return late


class _Server:
    """A server in a process of its own, as under ``filetimer serve``; its messages are a file."""

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, "timers")
        self._log = Path(directory, "messages")
        options = json.dumps({"file_path": self.path, "run_id": "many"})
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "filetimer.server", options],
                stdin=subprocess.PIPE,
                stdout=log,
                env={**os.environ, "FILETIMER_RUNTIME_DIR": os.path.join(directory, "runtime")},
            )
        _eventually(lambda: b'"ready"' in self._log.read_bytes())

    def count(self, name: str) -> int:
        """How many events of this name it has reported so far."""
        return self._log.read_bytes().count(f'"name": "{name}"'.encode())

    def stop(self) -> list[Event]:
        """End it; all that it has reported."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(PATIENCE) == 0
        messages = map(json.loads, self._log.read_text().splitlines())
        return [Event.from_dict(message["event"]) for message in messages if "event" in message]


@contextmanager
def _server(directory: str) -> Iterator[_Server]:
    server = _Server(directory)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def _eventually(condition: Any) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never came true"
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    quick = parser.parse_args().quick
    for measured in (
        million_blocks(20_000 if quick else 1_000_000),
        exit_at_once(50 if quick else 1000),
        virtual_exit_at_once(1000 if quick else 10_000),
    ):
        print("  ".join(f"{name} {number:g}" for name, number in measured.items()), flush=True)


if __name__ == "__main__":
    main()
