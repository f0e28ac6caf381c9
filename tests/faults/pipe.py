"""Pipes that are full, or hold what writers left behind that died in the middle of a line."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

from faults.fault import Fault, Result, Scale
from faults.fleet import GATE, Fleet, bare_server, eventually, native_is_built, serve, stop
from faults.load import Load


def full(scale: Scale) -> Result:
    """The server is stopped while the pipe is filled; workers wait, and go on when there is room.

    Those that were taken before, and are given back while the pipe is full, are given back in time.
    """
    result = Result()
    with serve("timers", result) as server:
        for _ in range(scale.pick(10, 2)):
            with Fleet("timers") as fleet:
                for _ in range(4):
                    fleet.start(_WAITS.format(then="end(timer)\npairs(0.3)"))
                    fleet.start(_WAITS.format(then="hang(0.5)"))
                fleet.go()
                for worker in fleet.workers:
                    worker.hear("taken")
                time.sleep(0.1)
                pid = server.pid
                stop(pid)
                _fill("timers")
                result.injected += 1
                for worker in fleet.workers:
                    worker.tell()
                time.sleep(0.5)
                os.kill(pid, signal.SIGCONT)
                eventually(
                    lambda fleet=fleet: all(
                        w.slate.hangs or not w.is_alive() for w in fleet.workers
                    ),
                    "the workers go on",
                )
                fleet.judge(result)
    return result


_WAITS = f"""{GATE}
timer = begin(5.0)
say("taken")
input()
{{then}}
"""


def _fill(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(fd, b'{"version": 2, "pid": 0}\n' * 40)
    except BlockingIOError:
        pass
    try:
        while True:
            os.write(fd, b"\n")
    except BlockingIOError:
        os.close(fd)


def unreachable(scale: Scale) -> Result:
    """The pipe stays full: an acquire fails in time, and says so; a release disturbs nobody."""
    result = Result()
    with serve("timers", result) as server:
        for _ in range(scale.pick(5, 1)):
            with Fleet("timers") as fleet:
                for client in ("python", "version 1", "native" if native_is_built() else "python"):
                    fleet.start(_FAILS, client=client)
                fleet.go()
                for worker in fleet.workers:
                    worker.hear("taken")
                pid = server.pid
                stop(pid)
                _fill("timers")
                for worker in fleet.workers:
                    worker.tell()
                    result.injected += 1
                    result.timers += 1
                for worker in fleet.workers:
                    worker.process.wait(20)
                os.kill(pid, signal.SIGCONT)
                fleet.judge(result)
                for worker in fleet.workers:
                    code = worker.process.returncode
                    result.check(code == 0, f"{worker.name} ended with {code}, not with 0")
    return result


_FAILS = f"""{GATE}
client.acquire("before", time.time() + 2.0)
say("taken")
input()
began = time.monotonic()
try:
    client.acquire("block", time.time() + 30)
except BrokenPipeError:
    pass
else:
    sys.exit(8)
client.release("before")
sys.exit(9 if time.monotonic() - began > 4 else 0)
"""


def half_lines(scale: Scale) -> Result:
    """Writers that break the protocol die by SIGKILL between two halves of a line."""
    result = Result(note="beside 8 clients")
    with serve("timers", result) as server, Fleet("timers") as fleet:
        load = Load(fleet, (0.5, 2.0))
        for _ in range(scale.pick(200, 20)):
            load.keep_up()
            _die_in_a_line("timers")
            result.injected += 1
            time.sleep(random.uniform(0, 0.1))
        load.finish()
        fleet.judge(result)
        result.check(server.said("record rejected"), "no word of the rejected lines")
    return result


_WRITER = """
import os, random, signal, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY)
line = b'{"version": 2, "pid": %d, "scope_id": "half", "expiration_time": 0, "signal": 9}' % (
    os.getppid())
os.write(fd, line[:random.randrange(1, len(line))])
time.sleep(random.uniform(0, 0.02))
os.kill(os.getpid(), signal.SIGKILL)
"""


def _die_in_a_line(path: str) -> None:
    subprocess.run([sys.executable, "-S", "-E", "-c", _WRITER, path])


def noise(scale: Scale) -> Result:
    """Random bytes, cut anywhere, from four writers at once."""
    result = Result(note="4 writers beside 8 clients")
    with bare_server("timers", result) as server, Fleet("timers") as fleet:
        load = Load(fleet, (0.5, 2.0))
        writers = [
            subprocess.Popen([sys.executable, "-S", "-E", "-c", _NOISE, "timers", str(seed)])
            for seed in range(4)
        ]
        until = time.monotonic() + scale.pick(30, 3)
        while time.monotonic() < until:
            load.keep_up()
            time.sleep(0.01)
        load.finish()
        for writer in writers:
            writer.kill()
            writer.wait()
        result.injected = os.stat("noise").st_size
        fleet.judge(result)
        result.check(server.said("record rejected"), "no word of the rejected lines")
    return result


# One byte in a file for each write.  The noise never holds a line that ends a record's line early
# and looks like a valid one: it could name anybody.
_NOISE = """
import os, random, sys, time
random.seed(int(sys.argv[2]))
fd = os.open(sys.argv[1], os.O_WRONLY)
count = os.open("noise", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    noise = os.urandom(random.randrange(1, 600))
    if random.random() < 0.2:
        noise = b'{"version":' + noise
    os.write(fd, noise.replace(b"\\n", b" ") + b"\\n")
    os.write(count, b".")
    time.sleep(random.uniform(0, 0.004))
"""


FAULTS = [
    Fault("pipe full for a while", full),
    Fault("pipe full until clients give up", unreachable),
    Fault("writers killed in the middle of a line", half_lines),
    Fault("random bytes, written without pause", noise),
]
