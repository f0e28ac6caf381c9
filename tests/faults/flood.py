"""A flood: one writer fills the pipe without pause; how late are the kills of other workers?

`python tests/faults/flood.py [--kills N]` prints one row for each kind of flood.  The server runs
in a process of its own, as under `filetimer serve`.  The workers are children of this process: each
opens a timer, half of them before the flood and half in the midst of it, and hangs; when it died
is seen here, from outside, through a pidfd.  All times are of the monotonic clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import filetimer as timer

PATIENCE = 30.0  # seconds
AFTER = (0.5, 1.0)  # seconds that a worker's timer allows, between these two
SPACING = 0.06  # seconds between the starts of two workers

# What fills the pipe: an expression for the bytes of the i-th line, in a writer that knows `pid`.
KINDS = {
    "none": "",
    "garbage": r'b"garbage\n"',
    "blank lines": r'b"\n"',
    "ever new garbage": r'b"%06d\n" % (i % 999_983)',
    "not UTF-8": r'b"\xff%d\n" % i',
    "without end": r'b"x" * 4096',
    "half records": r"""b'{"version": 2, "pid": %d\n' % i""",
    "releases": r"""b'{"version": 1, "pid": %d, "scope_id": "f%d", '
        b'"expiration_time": -1, "signal": 0}\n' % (pid, i)""",
    "acquires": r"""b'{"version": 1, "pid": %d, "scope_id": "f%d", '
        b'"expiration_time": 9e9, "signal": 0}\n' % (pid, i % 9000)""",
    "expired acquires": r"""b'{"version": 1, "pid": %d, "scope_id": "f%d", '
        b'"expiration_time": 1, "signal": 0}\n' % (pid, i)""",
    "wrong start times": r"""b'{"version": 2, "pid": %d, "scope_id": "f%d", '
        b'"expiration_time": 9e9, "signal": 9, "start_time": %d}\n' % (pid, i, i)""",
    "no such process": r"""b'{"version": 1, "pid": %d, "scope_id": "f", '
        b'"expiration_time": 9e9, "signal": 9}\n' % (2**31 - 1 - i)""",
}

WRITER = """
import os, sys
pid, fd = os.getpid(), os.open(sys.argv[1], os.O_WRONLY)
chunks = []  # made beforehand, so that writing is all that it does
i = 0
for _ in range(256):
    chunk = b""
    while len(chunk) < 4096:
        chunk += {line}
        i += 1
    chunks.append(chunk)
print("writing", flush=True)
while True:
    for chunk in chunks:
        os.write(fd, chunk)
"""


class Kill(NamedTuple):
    """What became of one worker; seconds."""

    acquire: float  # how long the call took
    late: float  # from the deadline to the death


UNDELIVERED = Kill(-1.0, -1.0)
GAVE_UP = 3  # exit status of a worker whose acquire was not delivered


def measure(kind: str, kills: int = 40) -> dict[str, float]:
    """Flood a server while ``kills`` workers hang.

    The numbers: ``kills``; ``undelivered``, calls that gave up and said so, because there was no
    room in the pipe for a second; ``lost``, workers that were not killed otherwise; ``early``,
    those killed before their deadline; ``median_ms`` and ``worst_ms``, from a deadline to the
    death; ``acquire_worst_ms``, the longest call that opened a timer;
    ``server_mb``, the most memory that the server had.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "timers")
        os.environ["FILETIMER_RUNTIME_DIR"] = os.path.join(directory, "runtime")
        with _server(path) as server:
            before = [_Worker(path) for _ in range(kills // 2)]
            with _writer(path, KINDS[kind]):
                seen = list(_watch(before, path, kills - len(before)))
                memory = _peak_memory(server)
    undelivered = seen.count(UNDELIVERED)
    seen = [kill for kill in seen if kill != UNDELIVERED]
    died = [kill for kill in seen if kill is not None]
    late = [1000 * kill.late for kill in died] or [float("inf")]
    return {
        "kills": len(seen),
        "undelivered": undelivered,
        "lost": len(seen) - len(died),
        "early": sum(1 for kill in died if kill.late < 0),
        "median_ms": statistics.median(late),
        "worst_ms": max(late),
        "server_mb": memory / 1e6,
        "acquire_worst_ms": 1000 * max((kill.acquire for kill in died), default=float("inf")),
    }


def _watch(workers: list[_Worker], path: str, more: int) -> Iterator[Kill | None]:
    """See the workers die, and start more of them, one at a time."""
    poller = select.poll()
    alive = {worker.pidfd: worker for worker in workers}
    for fd in alive:
        poller.register(fd, select.POLLIN)
    next_start = time.monotonic()
    while alive or more:
        now = time.monotonic()
        if more and now >= next_start:
            worker = _Worker(path)
            alive[worker.pidfd] = worker
            poller.register(worker.pidfd, select.POLLIN)
            more -= 1
            next_start = now + SPACING
        for fd, _ in poller.poll(5):
            died = time.monotonic()
            poller.unregister(fd)
            yield alive.pop(fd).end(died)
        for fd, worker in list(alive.items()):
            if now > worker.give_up:
                poller.unregister(fd)
                yield alive.pop(fd).end(None)


class _Worker:
    """A child that opens a timer and hangs."""

    def __init__(self, path: str) -> None:
        after = random.uniform(*AFTER)
        self._reader, writer = os.pipe()
        self.give_up = time.monotonic() + PATIENCE
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _hang(path, after, writer)
            finally:
                os._exit(1)
        os.close(writer)
        self.pidfd = os.pidfd_open(self.pid)

    def end(self, died: float | None) -> Kill | None:
        """Clean up; what became of it.  None: it was not killed by its timer."""
        if died is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.pidfd)
        with open(self._reader) as told:
            called, deadline, *returned = map(float, told.read().split())
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == GAVE_UP:
            return UNDELIVERED
        if died is None or not os.WIFSIGNALED(status):
            return None
        # It may have been killed while the call was still on its way back.
        return Kill((returned[0] if returned else died) - called, died - deadline)


def _hang(path: str, after: float, writer: int) -> None:
    client = timer.FileTimerClient(path)
    called = time.monotonic()
    os.write(writer, b"%.9f %.9f " % (called, called + after))
    try:
        client.begin("hung", after)
    except BrokenPipeError:
        os._exit(GAVE_UP)
    os.write(writer, b"%.9f" % time.monotonic())
    time.sleep(600)


@contextmanager
def _server(path: str) -> Iterator[int]:
    options = json.dumps({"file_path": path, "run_id": "flood"})
    server = subprocess.Popen(
        [sys.executable, "-m", "filetimer.server", options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        while b'"ready"' not in server.stdout.readline():
            pass
        yield server.pid
        server.stdin.close()
        server.stdout.read()
        server.wait(PATIENCE)
    finally:
        server.kill()
        server.wait()


def _peak_memory(pid: int) -> int:
    """Of this process, in bytes."""
    with open(f"/proc/{pid}/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


@contextmanager
def _writer(path: str, line: str) -> Iterator[None]:
    if not line:
        yield
        return
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER.replace("{line}", f"({line})"), path],
        stdout=subprocess.PIPE,
    )
    assert writer.stdout is not None
    try:
        writer.stdout.readline()
        yield
    finally:
        writer.kill()
        writer.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    options = parser.parse_args()
    for kind in options.kinds:
        found = measure(kind, options.kills)
        print(f"{kind:18}", "  ".join(f"{name} {n:.1f}" for name, n in found.items()), flush=True)


if __name__ == "__main__":
    main()
