"""What the tests of the kit share: where things are, and the subjects."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = ROOT / "protocol"
DRIVERS = Path(__file__).resolve().parent / "drivers"
PYTHON = sys.executable

REFERENCE = (PYTHON, str(DRIVERS / "reference.py"))


def lacking(what: str) -> None:
    """A subject that cannot be built is skipped at a desk, and fails where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI must try every subject")
    pytest.skip(f"{what} is missing")


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        lacking(f"the command {name}")
    assert path is not None
    return path


def compiled(command: list[str], output: Path) -> Path:
    """Builds once a session; a compiler's complaint is a failure, not a skip."""
    built = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return output


@dataclass(frozen=True)
class Subject:
    name: str
    version: int
    command: Callable[[Path], tuple[str, ...]]  # given a directory to build in
    failures: str = ""  # the table of the cases that it is known to fail, in PROTOCOL

    @property
    def id(self) -> str:
        return f"{self.name}-v{self.version}"


@lru_cache
def known_failures(table: str) -> dict[str, str]:
    """Case to reason, from the rows `| case | requirements | reason |` of a committed table."""
    rows = {}
    for line in (PROTOCOL / table).read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            rows[cells[0].strip("`")] = cells[2]
    return rows
