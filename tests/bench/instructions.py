"""Instructions of a pair in C, counted by callgrind: a regression that shows without a clock.

Only instructions of the program itself count, not those of its C library; they depend on the
compiler and its flags alone, which are fixed here.  ``instructions.json`` has the recorded ones, by
compiler and its major version.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

from bench.bed import HERE, compiled, folder, tool
from filetimer.client.pipe import _has_nosignal

__all__ = ["count", "key_of", "main", "own_instructions", "verdict"]

RECORDED = HERE / "instructions.json"
COMPILERS = {"gcc": "gcc", "clang": "clang"}  # and their Debian packages
WAYS = ("nosignal", "masked")  # of pair.c; the first one where the kernel has it (Linux 6.18)
FEW, MANY = 200, 1200
TOLERANCE = 0.05


def main(action: str) -> int:
    """``check`` or ``record`` for each compiler.  1 when a count is out of bounds."""
    recorded: dict[str, dict[str, float]] = json.loads(RECORDED.read_text())
    failed = False
    for compiler in COMPILERS:
        tool(compiler, COMPILERS[compiler])
        key, counts = key_of(compiler), count(compiler)
        if action == "record":
            recorded[key] = counts
        for way, now in counts.items():
            before = recorded.get(key, {}).get(way)
            text, bad = verdict(key, way, now, before)
            failed = failed or bad
            print(text, file=sys.stderr if bad else sys.stdout)
    if action == "record":
        RECORDED.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
    return int(failed)


def verdict(key: str, way: str, now: float, before: float | None) -> tuple[str, bool]:
    """What to say of a count, and whether it is out of bounds."""
    counted = f"{key}, {way}: {now:.1f} instructions a pair"
    if before is None:
        return f"{counted}; none is recorded for this compiler, so nothing is compared", False
    change = now / before - 1
    said = f"{counted}, {change:+.1%} of the recorded {before:.1f}"
    if abs(change) <= TOLERANCE:
        return said, False
    cure = "run `make bench-record`, and commit tests/bench/instructions.json, if that is meant"
    return f"{said}: more than {TOLERANCE:.0%}; {cure}", True


def key_of(compiler: str) -> str:
    """Compiler, its major version, and the processor's architecture."""
    asked = subprocess.run([compiler, "-dumpversion"], check=True, capture_output=True, text=True)
    return f"{compiler} {asked.stdout.split('.')[0].strip()} {platform.machine()}"


def count(compiler: str) -> dict[str, float]:
    """Instructions of one pair, by the way in which it writes."""
    with folder() as where:
        program = compiled("pair.c", where, compiler)
        return {
            way: (_run(program, way, MANY, where) - _run(program, way, FEW, where)) / (MANY - FEW)
            for way in WAYS
            if way != "nosignal" or _has_nosignal()
        }


def _run(program: Path, way: str, pairs: int, where: Path) -> int:
    valgrind = tool("valgrind", "valgrind")
    out = where / "callgrind.out"
    command = [
        valgrind, "--tool=callgrind", "--compress-strings=no", f"--callgrind-out-file={out}",
        str(program), "--count", str(pairs), way,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return own_instructions(out.read_text(), program.name)


def own_instructions(profile: str, program: str) -> int:
    """The self cost, in callgrind's format, of the object file whose name is ``program``."""
    total, ours, call = 0, False, False
    for line in profile.splitlines():
        if line.startswith("ob="):
            ours = Path(line[3:]).name == program
        elif line.startswith("calls="):
            call = True  # the next line is what the callee cost
        elif re.match(r"[+*\-\d]", line):
            total += int(line.split()[1]) if ours and not call else 0
            call = False
    return total
