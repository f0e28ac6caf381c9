"""A pair, acquire and release, in Python: beside two os.write, and beside torch's client.

With cold caches, where everything that is touched costs, also beside the least that a client in
Python can do: format two numbers, and write twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from bench.bed import DrainedFifo, Server, folder, has_torch, server
from bench.clients import BURST, CLIENTS, pairs, torch_client, two_writes, without_nosignal
from bench.samples import Effort, alternate, no_garbage, ratios, spread
from bench.table import Row, Target

AT_MOST = {"FileTimerClient": 3.0, "NativeTimerClient": 2.0}  # times two os.write
FASTER = {"FileTimerClient": 8.0, "NativeTimerClient": 15.0}  # than torch, in bursts
FASTER_COLD = 5.0
LIMITS = {"two os.write": "two `os.write`", "least": "one `%` and two `os.write`"}
ASKED = (
    "There `FileTimerClient` asks before each write whether SIGPIPE is ignored, as Python does "
    "unless told otherwise; `NativeTimerClient` blocks it: two more system calls."
)
SETTLE = 0.25  # seconds after a burst, so that torch's server has read it


def rows(effort: Effort) -> Iterator[Row]:
    yield from _beside_writes(effort)
    if has_torch():
        with folder() as where, server("ours", where) as ours, server("torch", where) as torchs:
            fifo = DrainedFifo(where / "fifo")
            yield from _bursts_beside_torch(effort, fifo, ours, torchs)
            yield from _cold_beside_torch(effort, fifo, ours, torchs)


def _beside_writes(effort: Effort) -> Iterator[Row]:
    with folder() as where, no_garbage():
        fifo = DrainedFifo(where / "fifo")
        bursts = {name: pairs(make(fifo.path)) for name, make in CLIENTS.items()}
        for name in CLIENTS:
            bursts[f"{name}, older"] = pairs(without_nosignal(name, fifo.path))
        bursts["two os.write"] = two_writes(fifo, CLIENTS["FileTimerClient"](fifo.path))
        took = alternate(bursts, effort(400, 100), fifo.drain)
    writes = f"two `os.write` of the same bytes: {spread(took['two os.write']).text('us')}"
    for name in CLIENTS:
        ratio = ratios(took[name], took["two os.write"]).median
        yield Row(
            f"pair back to back, `{name}`",
            spread(took[name]).text("us"),
            writes,
            (Target(ratio, "x", at_most=AT_MOST[name]),),
        )
    for name in CLIENTS:
        older = took[f"{name}, older"]
        yield Row(
            f"pair back to back, `{name}`, where the kernel has no RWF_NOSIGNAL "
            "(before Linux 6.18)",
            spread(older).text("us"),
            f"{writes}; ratio {ratios(older, took['two os.write']).median:.2f}",
            (),
            ASKED,
        )


def _bursts_beside_torch(
    effort: Effort, fifo: DrainedFifo, ours: Server, torchs: Server
) -> Iterator[Row]:
    bursts = _sides(BURST, fifo, ours, torchs)
    with no_garbage():
        took = alternate(bursts, effort(40, 8), lambda: time.sleep(SETTLE))
    for name in CLIENTS:
        ratio = ratios(took["torch"], took[name])
        yield Row(
            f"pairs in bursts of {BURST}, `{name}`, each with its server",
            spread(took[name]).text("us"),
            f"torch: {spread(took['torch']).text('us')}; {_limits(took, 'two os.write')}",
            (Target(ratio.median, "x faster", at_least=FASTER[name], digits=1),),
        )


def _cold_beside_torch(
    effort: Effort, fifo: DrainedFifo, ours: Server, torchs: Server
) -> Iterator[Row]:
    sides = _sides(1, fifo, ours, torchs)
    sides["least"] = _least(ours)
    took = alternate(sides, effort(500, 100), lambda: time.sleep(0.01))
    limits = _limits(took, *LIMITS)
    for name in CLIENTS:
        ratio = ratios(took["torch"], took[name])
        yield Row(
            f"one pair every 10 ms, `{name}`, cold caches",
            spread(took[name]).text("us"),
            f"torch: {spread(took['torch']).text('us')}; {limits}",
            (Target(ratio.median, "x faster", at_least=FASTER_COLD, digits=1),),
        )


def _limits(took: dict[str, list[float]], *sides: str) -> str:
    """What bounds a client, and how much faster than torch's that is."""
    return "; ".join(
        f"{LIMITS[side]}: {spread(took[side]).text('us')}, "
        f"{ratios(took['torch'], took[side]).median:.1f}x faster"
        for side in sides
    )


def _sides(
    count: int, fifo: DrainedFifo, ours: Server, torchs: Server
) -> dict[str, Callable[[], float]]:
    """Bursts of ``count`` pairs, each with its server; ``fifo`` is nobody's."""
    clients = {name: make(str(ours.path)) for name, make in CLIENTS.items()}
    sides = {name: pairs(client, count) for name, client in clients.items()}
    sides["torch"] = pairs(torch_client(str(torchs.path)), count)
    example = CLIENTS["FileTimerClient"](fifo.path)
    sides["two os.write"] = two_writes(fifo, example, count, into=ours.path)
    return sides


def _least(ours: Server) -> Callable[[], float]:
    """A pair without a look at the fork, the scope, its bounds, or errors."""
    fd = os.open(ours.path, os.O_WRONLY)
    head = b'{"version": 2, "pid": %d, "scope_id": "least", "expiration_time": ' % os.getpid()
    acquire = head + b'%.6f, "signal": 9, "deadline": %.6f, "x_as_long_as_others": ""}\n'
    release = head + b'-1, "signal": 0, "x_as_long_as_others": "                        "}\n'
    monotonic, now, clock, write = time.monotonic, time.time, time.perf_counter, os.write

    def pair() -> float:
        start = clock()
        write(fd, acquire % (now() + 60, monotonic() + 60))
        write(fd, release)
        return clock() - start

    return pair
