"""The clients under test, and a burst of pairs with each.

A burst times itself, with the clock read right around it.  With cold caches each call of a Python
function in between costs half as much as a write, and that was counted against every client.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import filetimer
from bench.bed import SCOPE, DrainedFifo

BURST = 250  # pairs; torch's server refuses more than about 300

CLIENTS: dict[str, Callable[[str], Any]] = {
    "FileTimerClient": filetimer.FileTimerClient,
    "NativeTimerClient": lambda path: filetimer.NativeTimerClient(path),
}


def without_nosignal(name: str, path: str) -> Any:
    """A client as it is where the kernel has no RWF_NOSIGNAL: before Linux 6.18."""
    from filetimer.client import native_client, pipe

    by_mask = native_client.lib.FILETIMER_MASK_SIGPIPE
    with (
        mock.patch.object(pipe, "_has_nosignal", return_value=False),
        mock.patch.object(native_client, "INIT_FLAGS", by_mask),
    ):
        return CLIENTS[name](path)


def torch_client(path: str) -> Any:
    from torch.distributed.elastic.timer import FileTimerClient

    return FileTimerClient(path)


def pairs(client: Any, count: int = BURST) -> Callable[[], float]:
    """``count`` times acquire and release, as a program would call them: seconds of one pair."""
    acquire, release, now, clock = client.acquire, client.release, time.time, time.perf_counter

    def burst() -> float:
        rounds = range(count)
        start = clock()
        for _ in rounds:
            acquire(SCOPE, now() + 60)
            release(SCOPE)
        return (clock() - start) / count

    return burst


def two_writes(
    fifo: DrainedFifo, client: Any, count: int = BURST, into: Path | None = None
) -> Callable[[], float]:
    """``count`` times two ``os.write`` of the very bytes that a client of ``fifo`` sends: seconds.

    ``into``: a server's FIFO to write them to, waiting for room; else it is the same one.
    """
    fifo.drain()
    client.acquire(SCOPE, time.time() + 3600)  # once that has passed, a server kills us
    client.release(SCOPE)
    acquire, release = fifo.read().splitlines(keepends=True)
    fd = fifo.writer() if into is None else os.open(into, os.O_WRONLY)
    write, clock = os.write, time.perf_counter

    def burst() -> float:
        rounds = range(count)
        start = clock()
        for _ in rounds:
            write(fd, acquire)
            write(fd, release)
        return (clock() - start) / count

    return burst
