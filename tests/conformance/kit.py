"""What the tests of the kit share: where things are, and the subjects."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filetimer.conformance.session import copy_of_environ

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = ROOT / "protocol"
DRIVERS = Path(__file__).resolve().parent / "drivers"

REFERENCE = (sys.executable, str(DRIVERS / "reference.py"))

Command = tuple[str, ...]


class Missing(Exception):
    """A subject cannot be tried here, because this is not installed."""


@dataclass(frozen=True)
class Subject:
    name: str
    roles: tuple[str, ...]
    versions: tuple[int, ...]
    command: Callable[[Path], Command]  # given a directory to build in; raises Missing
    failures: str = ""  # the table in PROTOCOL of the cases that it is known to fail


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Missing(f"the command {name}")
    return path


def finish(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """What came of a command; subjects are built in threads, so it must not inherit."""
    return subprocess.run(command, capture_output=True, text=True, env=copy_of_environ(), **options)


def build(command: list[str], output: Path) -> Command:
    """A compiler's complaint is a failure, not a skip."""
    if not output.exists():
        built = finish([*command, "-o", str(output)])
        assert built.returncode == 0, built.stderr
    return (str(output),)


def rust(folder: Path) -> Command:
    source = str(DRIVERS / "rust_driver.rs")
    flags = ["-O", "--edition", "2021", "-D", "warnings"]
    return build([tool("rustc"), *flags, source], folder / "rust_driver")


def c(folder: Path) -> Command:
    flags = ["-std=gnu99", "-Wall", "-Wextra", "-Werror", "-O2", *jansson()]
    return build([tool("cc"), *flags, str(DRIVERS / "c_driver.c"), *LIBRARIES], folder / "c_driver")


def cpp(folder: Path) -> Command:
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-O2", *jansson()]
    source = str(DRIVERS / "cpp_driver.cpp")
    return build([tool("c++"), *flags, source, *LIBRARIES], folder / "cpp_driver")


LIBRARIES = ("-ljansson", "-lm", "-lpthread")


def jansson() -> list[str]:
    """The flags to compile with; jansson is Debian's libjansson-dev."""
    probe = [tool("cc"), "-E", "-x", "c", "-", "-o", os.devnull]
    if finish(probe, input="#include <jansson.h>").returncode != 0:
        raise Missing("jansson.h (Debian: libjansson-dev)")
    return ["-I", str(ROOT / "c" / "include")]


def native(folder: Path) -> Command:
    """filetimer.NativeTimerClient, where its module was compiled."""
    if importlib.util.find_spec("filetimer._native") is None:
        raise Missing("filetimer._native (install filetimer with a C compiler)")
    return (sys.executable, "-m", "filetimer.conformance.driver", "--client", "native")


def torch(folder: Path) -> Command:
    """Torch may be installed beside us, or for another Python that TORCH_PYTHON names."""
    python = os.environ.get("TORCH_PYTHON", sys.executable)
    probe = [python, "-c", "import importlib.metadata as m; print(m.version('torch'))"]
    found = finish(probe)
    if found.returncode != 0 or not found.stdout.startswith("2.13"):
        raise Missing(f"torch 2.13 for {python} (set TORCH_PYTHON)")
    return (python, str(DRIVERS / "torch_peer.py"))


ALL = ("codec", "timeline", "client", "server")

SUBJECTS = (
    Subject("reference", ALL, (1, 2), lambda _: REFERENCE),
    Subject(
        "python", ALL, (1, 2), lambda _: (sys.executable, "-m", "filetimer.conformance.driver")
    ),
    Subject("shell", ("client",), (1, 2), lambda _: (tool("sh"), str(DRIVERS / "client.sh"))),
    Subject("rust", ("codec", "client"), (1, 2), rust),
    Subject("c", ("codec", "client"), (2,), c),
    Subject("cpp", ("codec", "client"), (2,), cpp),
    Subject("native", ("client",), (2,), native),
    Subject("torch", ("client", "server"), (1,), torch, failures="torch-2.13.md"),
)


def known_failures(table: str) -> dict[str, str]:
    """Case to reason, from the rows `| case | requirements | reason |` of a committed table."""
    rows = {}
    for line in (PROTOCOL / table).read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            rows[cells[0].strip("`")] = cells[2]
    return rows
