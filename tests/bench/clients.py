"""The clients under test, and a burst of pairs with each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filetimer
from bench.bed import SCOPE, DrainedFifo

BURST = 250  # pairs; torch's server refuses more than about 300

CLIENTS: dict[str, Callable[[str], Any]] = {
    "FileTimerClient": filetimer.FileTimerClient,
    "NativeTimerClient": lambda path: filetimer.NativeTimerClient(path),
}


def torch_client(path: str) -> Any:
    from torch.distributed.elastic.timer import FileTimerClient

    return FileTimerClient(path)


def pairs(client: Any, count: int = BURST) -> Callable[[], None]:
    """``count`` times acquire and release, as a program would call them."""
    acquire, release, now = client.acquire, client.release, time.time

    def burst() -> None:
        for _ in range(count):
            acquire(SCOPE, now() + 60)
            release(SCOPE)

    return burst


def two_writes(
    fifo: DrainedFifo, client: Any, count: int = BURST, into: Path | None = None
) -> Callable[[], None]:
    """``count`` times two ``os.write`` of the very bytes that a client of ``fifo`` sends.

    ``into``: a server's FIFO to write them to; else it is the same one.
    """
    fifo.drain()
    client.acquire(SCOPE, time.time() + 60)
    client.release(SCOPE)
    acquire, release = fifo.read().splitlines(keepends=True)
    fd = fifo.writer() if into is None else os.open(into, os.O_WRONLY | os.O_NONBLOCK)
    write = os.write

    def burst() -> None:
        for _ in range(count):
            write(fd, acquire)
            write(fd, release)

    return burst
