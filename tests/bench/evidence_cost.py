"""What events, evidence and attributes cost a server and a worker, side by side.

    python tests/bench/evidence_cost.py [--rounds N] [--against CHECKOUT]

``server_cost`` measures the processor time that a server spends on a record, with all three
switched off and on, in alternating rounds.  ``worker_cost`` measures an acquire with its release,
without and with attributes; ``--against`` another checkout of this project, such as the commit
before attributes, what they cost a worker that has none.  Medians, in nanoseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve()
PACKAGE = HERE.parents[2] / "python"

RECORDS = 100_000  # in one round of the server
ATTRIBUTES = {"rank": 3, "step": 120_000, "device": "cuda:1"}

SERVER = """
import sys, time
from filetimer import FileTimerServer
path, everything = sys.argv[1], sys.argv[2] == "on"
options = {}
if everything:
    from filetimer.server.event_file import EventFile
    options = {"on_event": EventFile(path + ".events"), "evidence": path + ".evidence"}
server = FileTimerServer(path, "bench", **options)
server.start()
for line in sys.stdin:
    server.settle()
    print(time.process_time_ns(), flush=True)
server.stop()
"""

WORKER = """
import os, sys, time
import filetimer
path, attributes = sys.argv[1], eval(sys.argv[2])
if not os.path.exists(path):
    os.mkfifo(path)
reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)
import fcntl
fcntl.flock(reader, fcntl.LOCK_EX)
client = filetimer.FileTimerClient(path)
if attributes:
    client.set_attributes(attributes)
bursts = []
now = time.perf_counter_ns
for _ in range(400):
    start = now()
    for _ in range(50):
        client.begin("training/loop.py#120", 60.0).end()
    bursts.append((now() - start) / 50)
    os.read(reader, 1 << 20)
bursts.sort()
print(bursts[len(bursts) // 2])
"""


class _Server:
    """A server in a process of its own, whose processor time can be asked for."""

    def __init__(self, directory: str, everything: str) -> None:
        self.path = os.path.join(directory, everything)
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, self.path, everything],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(PACKAGE)},
            text=True,
        )
        self.spent()  # it serves
        self._fifo = os.open(self.path, os.O_WRONLY)

    def spent(self) -> int:
        """Processor time in nanoseconds, once all that was written before is done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def cost(self, lines: Sequence[bytes]) -> float:
        """Nanoseconds for each record."""
        before = self.spent()
        for line in lines:
            os.write(self._fifo, line)
        while _waiting(self._fifo):
            pass
        return (self.spent() - before) / len(lines)

    def close(self) -> None:
        os.close(self._fifo)
        self._process.communicate()


def _waiting(fd: int) -> int:
    import array
    import fcntl
    import termios

    size = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, size)
    return size[0]


def _lines(attributes: dict[str, object]) -> list[bytes]:
    """Acquires and releases of this process, as a worker of 16 open scopes sends them."""
    from filetimer.client.identity import own_identity
    from filetimer.wire.encoder import RecordEncoder

    if attributes:
        from filetimer.wire.encoder import encode_attributes

        encoded = encode_attributes(attributes)  # type: ignore[arg-type]
        encoder = RecordEncoder(2, os.getpid(), 9, *own_identity(), encoded)
    else:
        encoder = RecordEncoder(2, os.getpid(), 9, *own_identity())
    lines = []
    for i in range(RECORDS // 2):
        scope = f"training/loop.py#{i % 16}"
        lines.append(encoder.acquire(scope, 4e9, 4e9, i))
        lines.append(encoder.release(scope, i))
    return lines


def server_cost(rounds: int = 5) -> dict[str, float]:
    """Nanoseconds of the server's processor time for a record: ``off``, ``on``, and their ratio."""
    sides = {"off": _lines({}), "on": _lines(dict(ATTRIBUTES))}
    costs: dict[str, list[float]] = {"off": [], "on": []}
    with tempfile.TemporaryDirectory() as directory:
        os.environ["FILETIMER_RUNTIME_DIR"] = os.path.join(directory, "runtime")
        servers = {side: _Server(directory, side) for side in sides}
        for _ in range(rounds):
            for side, lines in sides.items():
                costs[side].append(servers[side].cost(lines))
        for server in servers.values():
            server.close()
    found = {side: statistics.median(values) for side, values in costs.items()}
    return {**found, "ratio": found["on"] / found["off"]}


def worker_cost(against: str | None = None, rounds: int = 9) -> dict[str, float]:
    """Nanoseconds for a pair, without and with attributes, and in another checkout."""
    sides = {"without": (PACKAGE, {}), "with": (PACKAGE, ATTRIBUTES)}
    if against is not None:
        sides["before"] = (Path(against).resolve() / "python", {})
    costs: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(rounds):
            for side, (package, attributes) in sides.items():
                printed = subprocess.check_output(
                    [sys.executable, "-c", WORKER, f"{directory}/fifo", repr(attributes)],
                    env={**os.environ, "PYTHONPATH": str(package)},
                )
                costs[side].append(float(printed))
    return {side: statistics.median(values) for side, values in costs.items()}


def main() -> None:
    """Print both, as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", metavar="CHECKOUT")
    options = parser.parse_args()
    found = {
        "server, ns a record": server_cost(options.rounds),
        "worker, ns a pair": worker_cost(options.against, 2 * options.rounds - 1),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
