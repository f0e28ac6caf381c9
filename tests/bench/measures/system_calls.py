"""System calls of a pair, counted by strace: those of many pairs less those of few."""

from __future__ import annotations

import collections
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.bed import PYTHON_ENVIRONMENT, DrainedFifo, folder, has_torch, tool
from bench.samples import Effort
from bench.table import Row, Target

FEW, MANY = 10, 110
ONE_CLIENT = """
import sys
from bench import clients
make = {**clients.CLIENTS, "torch": clients.torch_client}[sys.argv[1]]
clients.pairs(make(sys.argv[2]), int(sys.argv[3]))()
"""
CALL = re.compile(r"^(?:\d+ +)?([a-z_0-9]+)\(")


def rows(effort: Effort) -> Iterator[Row]:
    strace = tool("strace", "strace")
    with folder() as where:
        torchs = _calls(strace, "torch", where) if has_torch() else None
        for name in ("FileTimerClient", "NativeTimerClient"):
            calls = _calls(strace, name, where)
            writes = sum(count for call, count in calls.items() if "write" in call)
            others = sum(
                count for call, count in calls.items() if "write" not in call and call != "getpid"
            )
            yield Row(
                f"system calls of a pair, `{name}`",
                _text(calls),
                f"torch: {_text(torchs)}" if torchs else "",
                (
                    Target(writes, " writes", at_most=2, digits=0),
                    Target(calls["getpid"], " getpid", at_most=2, digits=0),
                    Target(others, " others", at_most=0, digits=0),
                ),
            )


def _calls(strace: str, client: str, where: Path) -> collections.Counter[str]:
    """Calls of one pair, by name."""
    many, few = (_counted(strace, client, where, pairs) for pairs in (MANY, FEW))
    per_pair = {call: round((many[call] - few[call]) / (MANY - FEW)) for call in many}
    return collections.Counter({call: n for call, n in per_pair.items() if n > 0})


def _counted(strace: str, client: str, where: Path, pairs: int) -> collections.Counter[str]:
    fifo = DrainedFifo(where / f"{client}-{pairs}", locked=client != "torch")
    log = where / "strace.log"
    command = [strace, "-f", "-qq", "-o", str(log), sys.executable, "-c", ONE_CLIENT, client]
    environment = {**os.environ, **PYTHON_ENVIRONMENT, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([*command, fifo.path, str(pairs)], check=True, env=environment, timeout=120)
    return collections.Counter(
        found[1] for line in log.read_text().splitlines() if (found := CALL.match(line))
    )


def _text(calls: collections.Counter[str]) -> str:
    return ", ".join(f"{count} {call}" for call, count in sorted(calls.items())) or "none"
