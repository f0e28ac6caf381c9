"""A block of ``expires(after)`` with automatic scope, beside torch's, at two stack depths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import filetimer
from bench.bed import DrainedFifo, folder, has_torch
from bench.clients import torch_client
from bench.samples import Effort, alternate, no_garbage, ratios, spread, time_of
from bench.table import Row, Target

DEPTHS = (5, 100)
BLOCKS = 20
FASTER, FLAT = 30.0, 1.2


def rows(effort: Effort) -> Iterator[Row]:
    with folder() as where, no_garbage():
        fifo = DrainedFifo(where / "ours")
        sides: dict[str, Callable[[], float]] = {}
        client = filetimer.FileTimerClient(fifo.path)
        for depth in DEPTHS:
            sides[f"ours {depth}"] = _blocks(filetimer.expires, client, depth)
        if has_torch():
            from torch.distributed.elastic.timer import expires

            torch_fifo = DrainedFifo(where / "torch", locked=False)
            other = torch_client(torch_fifo.path)
            for depth in DEPTHS:
                sides[f"torch {depth}"] = _blocks(expires, other, depth)

        def drain() -> None:
            fifo.drain()
            if has_torch():
                torch_fifo.drain()

        # In a thread of its own: inspect.stack, which torch uses, takes ten milliseconds where a
        # frame has no source file, as the first ones of `python -m` have none.
        with ThreadPoolExecutor(1) as thread:
            took = thread.submit(alternate, sides, effort(100, 25), drain).result()
    flat = ratios(took["ours 100"], took["ours 5"])
    for depth in DEPTHS:
        torchs = took.get(f"torch {depth}")
        ours = took[f"ours {depth}"]
        targets = [Target(flat.median, "x of depth 5", at_most=FLAT)] if depth == 100 else []
        if torchs:
            ratio = ratios(torchs, ours).median
            targets.insert(0, Target(ratio, "x faster", at_least=FASTER, digits=0))
        yield Row(
            f"`with expires(60)`, automatic scope, stack {depth} deep",
            spread(ours).text("us"),
            f"torch: {spread(torchs).text('us')}" if torchs else "",
            tuple(targets),
        )


def _blocks(expires: Any, client: Any, depth: int) -> Callable[[], float]:
    def blocks() -> None:
        for _ in range(BLOCKS):
            with expires(60, client=client):
                pass

    def at(level: int) -> float:
        return time_of(blocks, BLOCKS) if level <= 0 else at(level - 1)

    return lambda: at(depth - 5)  # those of the suite itself come on top
