"""Runs the measures, and says on what machine."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from bench.bed import Missing, has_torch
from bench.samples import Effort
from bench.table import Row

__all__ = ["MEASURES", "machine", "run"]

MEASURES = (
    "python_pair", "system_calls", "expires_block", "c_pair", "death", "throughput",
    "server_cpu", "idle", "footprint", "pace", "busy_thread",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Date and kind of machine: what it can do, not what it is called."""
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "kernel": ".".join(platform.release().split("-")[0].split(".")[:2]),
        "python": platform.python_version(),
        "torch": f"torch {importlib.metadata.version('torch').split('+')[0]}"
        if has_torch()
        else "torch not installed",
    }


def run(effort: Effort, names: Iterable[str] = MEASURES) -> Iterator[Row]:
    """The rows of these measures, as they come.  A missing tool is an error only in CI."""
    for name in names:
        start = time.monotonic()
        print(f"{name} ...", file=sys.stderr, end=" ", flush=True)
        module = importlib.import_module(f"bench.measures.{name}")
        try:
            yield from module.rows(effort)
        except Missing as error:
            if os.environ.get("CI"):
                raise
            yield Row(name, f"not measured: {error}")
        print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
