# SPDX-License-Identifier: BSD-3-Clause
"""Compile C, own a FIFO: what the tests of the native client share."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
INCLUDE = ROOT / "c" / "include"
EXAMPLES = ROOT / "c" / "examples"

WARNINGS = [
    "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wundef", "-Wcast-qual",
    "-Werror",
]  # fmt: skip
C_WARNINGS = [*WARNINGS, "-Wstrict-prototypes"]

PACKAGES = {
    "gcc": "gcc", "g++": "g++", "clang": "clang", "clang++": "clang", "musl-gcc": "musl-tools",
    "nvcc": "nvidia-cuda-toolkit", "valgrind": "valgrind", "nm": "binutils",
}  # fmt: skip


def need(tool: str) -> str:
    """The path of a tool; without it the test is skipped, or fails where CI is set."""
    found = shutil.which(tool)
    if found is None:
        text = f"{tool} is not installed (Debian package {PACKAGES.get(tool, tool)})"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    return found


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run to the end; show all output where it fails."""
    words = [str(word) for word in command]
    options.setdefault("timeout", 110)
    result = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, (
        f"{' '.join(words)}: {result.returncode}\n{result.stdout}{result.stderr}"
    )
    return result


def compile_c(compiler: str, *arguments: object, output: Path) -> Path:
    run(need(compiler), f"-I{INCLUDE}", *arguments, "-o", output)
    return output


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """build(compiler, source, *flags): the program, compiled once a session."""
    done: dict[tuple[str, ...], Path] = {}
    folder = tmp_path_factory.mktemp("build")

    def build(compiler: str, source: Path, *flags: str) -> Path:
        key = (compiler, str(source), *flags)
        if key not in done:
            output = folder / f"{source.stem}-{len(done)}"
            done[key] = compile_c(compiler, *flags, source, "-pthread", output=output)
        return done[key]

    return build


class Fifo:
    """A FIFO whose reading end the test holds, as a server would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path, 0o600)
        self.reader = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(self.reader, getattr(fcntl, "F_SETPIPE_SZ", 1031), 1 << 20)
        self.rest = b""

    def read(self) -> list[bytes]:
        """The whole lines that are there now (all that the pipe holds, in one read: writers
        that keep pace must not keep the reader)."""
        try:
            self.rest += os.read(self.reader, 1 << 20)
        except BlockingIOError:
            pass
        *lines, self.rest = self.rest.split(b"\n")
        return lines

    def close(self) -> None:
        os.close(self.reader)


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Fifo]:
    it = Fifo(tmp_path / "fifo")
    yield it
    it.close()
