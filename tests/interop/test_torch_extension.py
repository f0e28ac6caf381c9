# SPDX-License-Identifier: BSD-3-Clause
"""A torch extension in C++ that hangs with the GIL held is killed by torch's own server.

Runs under a Python that has torch 2.13 (`pip install torch==2.13.0`), and needs a C++
compiler and Python's headers.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from torch_jobs import STOCK, TORCHRUN, Job, one_host

ROOT = Path(__file__).parent.parent.parent
CODE = """
import sys, threading, time, torch, op
assert op.scale(torch.ones(2), 2.0, False).tolist() == [2.0, 2.0]
print("works", flush=True)
if sys.argv[1] == "hang":
    op.scale(torch.ones(2), 2.0, True)
"""


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled as torch.utils.cpp_extension does, without its need for ninja."""
    if importlib.util.find_spec("torch") is None:
        text = "torch is missing: run this test with a Python that has torch==2.13.0"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    import torch
    from torch.utils import cpp_extension

    folder = tmp_path_factory.mktemp("extension")
    libraries = Path(torch.__file__).parent / "lib"
    subprocess.run(
        [
            "g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-DTORCH_EXTENSION_NAME=op",
            f"-I{ROOT / 'c' / 'include'}", f"-I{sysconfig.get_paths()['include']}",
            *(f"-isystem{path}" for path in cpp_extension.include_paths()),
            ROOT / "c" / "examples" / "torch_extension.cpp",
            f"-L{libraries}", f"-Wl,-rpath,{libraries}",
            "-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10", "-o", folder / "op.so",
        ],
        check=True,
    )  # fmt: skip
    return folder


def worker(extension: Path, fifo: Path, what: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(extension), "TORCHELASTIC_TIMER_FILE": str(fifo)}
    env.pop("FILETIMER_PATH", None)
    return subprocess.Popen(
        [sys.executable, "-c", CODE, what], env=env, stdout=subprocess.PIPE, text=True
    )


SERVER = """
import sys, time
from torch.distributed.elastic.timer import FileTimerServer
server = FileTimerServer(sys.argv[1], "run", max_interval=0.1, daemon=True)
server.start()
while True:
    time.sleep(1)
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["work", "hang"])
def test_under_torchs_own_server(extension: Path, tmp_path: Path, what: str) -> None:
    fifo = tmp_path / "timers"
    # torch's server kills its own process after a worker, so it gets one to itself.
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(fifo)])
    try:
        deadline = time.monotonic() + 60
        while not fifo.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        with worker(extension, fifo, what) as process:
            try:
                assert process.stdout
                assert process.stdout.readline() == "works\n"
                expected = -signal.SIGKILL if what == "hang" else 0
                assert process.wait(60) == expected
            finally:
                process.kill()
    finally:
        server.kill()
        server.wait()


WORKER = """
import os, torch, op
assert op.scale(torch.ones(2), 2.0, False).tolist() == [2.0, 2.0]
print("in native code, pid", os.getpid(), flush=True)
op.scale(torch.ones(2), 2.0, True)
"""


@pytest.mark.timeout(120)
def test_under_an_unmodified_torchrun(extension: Path, tmp_path: Path) -> None:
    """torch's own agent and server, and nothing of ours but the header in the extension.

    The worker's death is the proof.  (From torch 2.7 on, the server then kills its own agent.)
    """
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    with Job(tmp_path / "job") as job:
        job.start(TORCHRUN, *one_host(1, 0), script, PYTHONPATH=str(extension), **STOCK)
        match = job.wait_for(r"in native code, pid (\d+)", 60)
        eventually_gone = time.monotonic() + 30
        while int(match[1]) in job.processes():
            assert time.monotonic() < eventually_gone, job.output()
            time.sleep(0.05)
        result = job.wait(60)
    assert result.status in (-signal.SIGKILL, 1), result.output
    assert "filetimer: reaped" not in result.output  # it was not our server
