"""What runs in a worker under test: a real client, and the slate that says what it has promised.

A worker is ``python -c 'from faults.worker import *; ...'``; the slate is written before a timer is
taken, and after it was given back: whoever is killed while nothing is on the slate, is innocent.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time

import filetimer
from faults.slate import Slate

__all__ = [
    "acquire",
    "begin",
    "client",
    "end",
    "hang",
    "idle",
    "os",
    "pairs",
    "random",
    "release",
    "say",
    "signal",
    "slate",
    "sys",
    "threading",
    "time",
]

slate = Slate(os.environ["FAULTS_SLATE"])
slate.pid = os.getpid()


def _new_client() -> filetimer.TimerClient:
    path = os.environ["FILETIMER_PATH"]
    kind = os.environ.get("FAULTS_CLIENT", "python")
    if kind == "native":
        return filetimer.NativeTimerClient(path)
    return filetimer.FileTimerClient(
        path,
        int(os.environ.get("FAULTS_SIGNAL", signal.SIGKILL)),
        version=1 if kind == "version 1" else 2,
    )


client = _new_client()
# Version 1 has no tokens; its timers are by scope.
_scopes = os.environ.get("FAULTS_CLIENT") == "version 1"


def say(word: str) -> None:
    """A line for the test."""
    print(word, flush=True)


def begin(after: float, scope: str = "block"):
    """Take a timer that expires ``after`` seconds from now."""
    slate.deadline = time.monotonic() + after
    slate.armed = 1
    try:
        handle = None
        if _scopes:
            client.acquire(scope, time.time() + after)
        else:
            handle = client.begin(scope, after)
    except BaseException:
        slate.failed += 1
        slate.armed = 0
        raise
    slate.acquired += 1
    return handle


def end(handle, scope: str = "block") -> None:
    """Give it back."""
    if handle is None:
        client.release(scope)
    else:
        handle.end()
    _given_back()


def _given_back() -> None:
    slate.late += time.monotonic() >= slate.deadline
    slate.armed = 0


def acquire(after: float, scope: str = "block") -> None:
    """Take the plain timer of a scope."""
    slate.deadline = time.monotonic() + after
    slate.armed = 1
    try:
        client.acquire(scope, time.time() + after)
    except BaseException:
        slate.failed += 1
        slate.armed = 0
        raise
    slate.acquired += 1


def release(scope: str = "block") -> None:
    """Give it back."""
    client.release(scope)
    _given_back()


def pairs(seconds: float, work: float = 0.1, spare: tuple[float, float] = (0.5, 3.0)) -> None:
    """Guard one short block after the other, with random deadlines above what each takes."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        takes = random.uniform(0, work)
        scope = f"scope {random.randrange(4)}"
        handle = begin(takes + random.uniform(*spare), scope)
        time.sleep(takes)
        end(handle, scope)


def hang(after: float, scope: str = "stuck") -> None:
    """Take a timer and never come back."""
    slate.hangs = 1
    begin(after, scope)
    say("hangs")
    idle()


def idle() -> None:
    """Do nothing, for ever."""
    while True:
        time.sleep(600)
