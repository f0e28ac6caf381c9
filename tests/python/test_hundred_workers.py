"""A server in a process of its own, a hundred workers that hang, and a hundred that do not."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time

from support import PATIENCE

import filetimer as timer

SERVER = """
import json, sys, filetimer
server = filetimer.FileTimerServer(
    sys.argv[1], "herd", on_event=lambda event: print(json.dumps(event.to_dict()), flush=True)
)
server.start()
sys.stdin.read()
server.stop()
"""


def hang(path: str, after: float) -> None:
    with timer.expires(after, scope="hung", client=timer.FileTimerClient(path)):
        time.sleep(600)


def behave(path: str, after: float) -> None:
    client = timer.FileTimerClient(path)
    with timer.expires(4, scope="quick", client=client):
        time.sleep(after / 2)
    time.sleep(4.5 - after / 2)


def fork(target: object, path: str, after: float) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            target(path, after)  # type: ignore[operator]
        finally:
            os._exit(0)
    return pid


def test_a_hundred_are_killed_none_early_and_a_hundred_are_spared(fifo_path: str) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, fifo_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert "watchdog started" in server.stdout.readline()
    rng = random.Random(2)
    hung = [fork(hang, fifo_path, rng.uniform(0.1, 2)) for _ in range(100)]
    spared = [fork(behave, fifo_path, rng.uniform(0.1, 2)) for _ in range(100)]
    ends = {pid: os.waitpid(pid, 0)[1] for pid in [*hung, *spared]}
    out, _ = server.communicate(timeout=PATIENCE)
    events = [json.loads(line) for line in out.splitlines()]
    died = [event for event in events if event["name"] == "worker died"]
    assert {pid for pid, status in ends.items() if os.WIFSIGNALED(status)} == set(hung)
    assert {os.WTERMSIG(ends[pid]) for pid in hung} == {signal.SIGKILL}
    assert sorted(event["pid"] for event in died) == sorted(hung)
    assert min(event["late"] for event in died) >= 0
    lateness = statistics.median(event["late"] for event in died)
    print(f"median lateness, deadline to confirmed death: {lateness * 1000:.2f} ms")
    assert lateness < 1.0  # a bound for any machine; the benchmarks say how little it is
