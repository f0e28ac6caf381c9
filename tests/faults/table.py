"""The table of faults: for people, for programs, and for the README."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from pathlib import Path

from faults.fault import Fault, Result

__all__ = ["BEGIN", "END", "holds", "replace", "to_json", "to_markdown"]

BEGIN, END = "<!-- faults: made by `make faults-readme` -->", "<!-- end of faults -->"
Rows = list[tuple[Fault, Result]]


def holds(result: Result) -> bool:
    """Whether a row is as it must be; what CI cannot inject is a failure there."""
    if result.skipped:
        return os.environ.get("CI") != "true"
    return result.passed


def to_markdown(rows: Rows, quick: bool) -> str:
    """A line for every fault."""
    lines = [
        f"{time.strftime('%F')}, Linux {platform.release().split('-')[0]}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores{', the short run' * quick}.",
        "",
        "| fault | injected | timers at risk | lost | wrongly killed | worst lateness |",
        "|---|---|---|---|---|---|",
    ]
    for fault, result in rows:
        note = f" ({result.note})" if result.note else ""
        name = fault.name + note + _late(result)
        if result.skipped:
            lines.append(f"| {name} | not injected: {result.skipped} | | | | |")
            continue
        lines.append(
            f"| {name}{_broken(result)} | {result.injected} | {result.timers} | {result.lost} "
            f"| {result.wrong} | {_lateness(result.lateness)} |"
        )
    return "\n".join(lines) + "\n"


def _late(result: Result) -> str:
    return f"; {result.late} workers were late themselves" if result.late else ""


def _broken(result: Result) -> str:
    return f"; **{result.broken} promises broken**" if result.broken else ""


def _lateness(seconds: float | None) -> str:
    if seconds is None:
        return "nobody was to die"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds:.2f} s"


def to_json(rows: Rows, quick: bool, lasted: float) -> str:
    """The same for programs."""
    table = {
        "date": time.strftime("%F"),
        "quick": quick,
        "seconds": round(lasted, 1),
        "faults": [{"name": fault.name, **result.to_dict()} for fault, result in rows],
    }
    return json.dumps(table, indent=1) + "\n"


def replace(path: Path, markdown: str) -> None:
    """Put the table between the markers of a file."""
    text = path.read_text()
    between = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if len(between.findall(text)) != 1:
        raise ValueError(f"{path} must have {BEGIN} and {END} once")
    path.write_text(between.sub(lambda _: f"{BEGIN}\n{markdown}\n{END}", text))
