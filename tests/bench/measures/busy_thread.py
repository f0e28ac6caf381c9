"""A pair beside a busy Python thread: who gives up the GIL waits for it, up to 5 ms."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from bench.bed import DrainedFifo, folder
from bench.clients import CLIENTS, pairs, two_writes
from bench.samples import Effort, alternate, spread
from bench.table import Row

NOTE = (
    "`os.write` and `os.pwritev` give up the GIL; where the busy thread takes it, each waits a "
    "switch interval of 5 ms for it. The calls of `NativeTimerClient` keep it."
)


def rows(effort: Effort) -> Iterator[Row]:
    with folder() as where:
        fifo = DrainedFifo(where / "fifo")
        clients = {name: make(fifo.path) for name, make in CLIENTS.items()}
        sides: dict[str, Callable[[], float]] = {
            name: pairs(client, 1) for name, client in clients.items()
        }
        sides["two os.write"] = two_writes(fifo, clients["FileTimerClient"], 1)

        def pause() -> None:
            fifo.drain()
            time.sleep(0.001)  # a program does other things between its blocks

        stop = threading.Event()
        thread = threading.Thread(target=_spin, args=(stop,), daemon=True)
        thread.start()
        try:
            took = alternate(sides, effort(1000, 100), pause)
        finally:
            stop.set()
            thread.join()
    for name in CLIENTS:
        yield Row(
            f"pair beside a busy Python thread, `{name}`",
            _text(took[name]),
            f"two `os.write`: {_text(took['two os.write'])}",
            (),
            NOTE,
        )


def _spin(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(1000))


def _text(samples: list[float]) -> str:
    ordered = sorted(samples)
    p90 = ordered[len(ordered) * 9 // 10]
    return f"{spread(samples).text('us')}, p90 {p90 * 1e6:.3g} us"
