# SPDX-License-Identifier: BSD-3-Clause
"""The examples do what they say: one that hangs is reaped, one that does not is not."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from native import C_WARNINGS, EXAMPLES, INCLUDE, WARNINGS, Fifo, need, run

EXPECTED = {
    "worker.c": (5, "step 4\n"),
    "worker.cpp": (20, "done\n"),
    "kernel.cu": (2, "2\n"),
}


@pytest.fixture(params=EXPECTED)
def example(request: pytest.FixtureRequest, build: Callable[..., Path]) -> tuple[str, Path]:
    name = request.param
    if name == "worker.c":
        return name, build("gcc", EXAMPLES / name, "-O2", *C_WARNINGS)
    return name, build("g++", EXAMPLES / name, "-O2", "-std=c++17", *WARNINGS, "-xc++")


def environment(path: Path | None, variable: str = "FILETIMER_PATH") -> dict[str, str]:
    env = {
        k: v for k, v in os.environ.items()
        if k not in ("FILETIMER_PATH", "TORCHELASTIC_TIMER_FILE")
    }  # fmt: skip
    if path:
        env[variable] = str(path)
    return env


def test_runs_without_a_server(example: tuple[str, Path]) -> None:
    name, program = example
    result = run(program, env=environment(None))
    assert result.stdout.endswith(EXPECTED[name][1])
    assert result.stderr == ""


@pytest.mark.parametrize("variable", ["FILETIMER_PATH", "TORCHELASTIC_TIMER_FILE"])
def test_that_works_takes_all_timers_back(
    example: tuple[str, Path], fifo: Fifo, variable: str
) -> None:
    name, program = example
    result = run(program, env=environment(fifo.path, variable))
    assert result.stdout.endswith(EXPECTED[name][1])
    records = [json.loads(line) for line in fifo.read()]
    armed = {r["token"] for r in records if r["expiration_time"] >= 0}
    ended = {r["token"] for r in records if r["expiration_time"] < 0}
    assert len(armed) == EXPECTED[name][0]
    assert armed == ended


def test_that_hangs_is_reaped(example: tuple[str, Path], fifo: Fifo) -> None:
    """The test is the server: it reads the timer that expires first, and acts on it."""
    _, program = example
    started = time.monotonic()
    with subprocess.Popen([program, "hang"], env=environment(fifo.path)) as worker:
        try:
            timers: dict[int, dict[str, float]] = {}
            while time.monotonic() < started + 30:
                for line in fifo.read():
                    record = json.loads(line)
                    assert record["pid"] == worker.pid
                    if record["expiration_time"] < 0:
                        del timers[record["token"]]
                    else:
                        timers[record["token"]] = record
                now = time.monotonic()
                expired = [r for r in timers.values() if r["deadline"] <= now]
                if expired:
                    assert now - started > 0.9
                    worker.send_signal(int(expired[0]["signal"]))
                    break
                time.sleep(0.005)
            assert worker.wait(10) == -9
        finally:
            worker.kill()


def test_kernel_compiles_with_nvcc(tmp_path: Path) -> None:
    result = run(need("nvcc"), "-std=c++17", f"-I{INCLUDE}", "-Werror", "all-warnings",
                 "-Xcompiler", "-Wall,-Wextra,-Werror", EXAMPLES / "kernel.cu",
                 "-o", tmp_path / "kernel")  # fmt: skip
    assert result.stdout + result.stderr == ""


def test_bench_runs(build: Callable[..., Path]) -> None:
    """That it works, not how fast: this machine may be busy."""
    source = EXAMPLES.parent.parent / "tests" / "bench" / "pair.c"
    result = json.loads(run(build("gcc", source, "-O2", "-D_GNU_SOURCE"), 20).stdout)
    assert result["rounds"] == 20
    assert 0.5 < result["ratio"] < 20
    assert result["unconfigured_pair_ns"] < 100
