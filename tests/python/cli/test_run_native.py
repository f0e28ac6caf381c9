"""Workers in C and C++ under ``filetimer run``: the examples, compiled as a user compiles them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from filetimer import native_files

EXAMPLES = Path(__file__).parents[3] / "c" / "examples"
COMPILERS = {"worker.c": ["cc"], "worker.cpp": ["c++", "-std=c++17"],
             "kernel.cu": ["c++", "-std=c++17", "-xc++"]}  # fmt: skip


@pytest.fixture(params=COMPILERS)
def worker(request, tmp_path):
    compiler, *flags = COMPILERS[request.param]
    if shutil.which(compiler) is None:
        text = f"{compiler} is not installed (Debian packages gcc, g++)"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    program = tmp_path / Path(request.param).stem
    command = [compiler, *flags, *shlex.split(native_files.cflags())]
    subprocess.run([*command, EXAMPLES / request.param, "-o", program], check=True)
    return str(program)


def test_one_that_works_ends_well(bench, worker):
    result = bench("run", "--workers", "2", "--", worker)
    assert result.returncode == 0, result.stderr.decode()
    assert b"reaped" not in result.stderr
    bench.assert_nothing_left()


def test_one_that_hangs_is_reaped(bench, worker):
    result = bench("run", "--", worker, "hang")
    assert result.returncode != 0
    assert re.search(rb"rank 0 \(pid \d+\) was reaped in scope ", result.stderr), result.stderr
    bench.assert_nothing_left()


@pytest.mark.parametrize("worker", ["worker.c"], indirect=True)
def test_one_that_hangs_once_finishes_in_its_second_life(bench, worker):
    """What `make demo-c` shows."""
    result = bench("run", "--workers", "2", "--max-restarts", "1", "--", worker, "hang-once")
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.count(b"step 4") == 2
    assert b"was reaped in scope" in result.stderr
    assert b"worker.c#" in result.stderr
    bench.assert_nothing_left()
