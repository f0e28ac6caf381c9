"""The demo's training script, end to end, in fewer steps."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "python" / "examples" / "train_digits.py"


@pytest.fixture
def command(bench):
    pytest.importorskip("numpy", reason="the demo needs numpy: pip install 'filetimer[demo]'")
    pytest.importorskip("sklearn", reason="the demo needs sklearn: pip install 'filetimer[demo]'")
    bench.environment["STEPS"] = "120"
    return [sys.executable, str(SCRIPT)]


def test_it_hangs_is_reaped_restarts_from_the_checkpoint_and_finishes(bench, command):
    result = bench("run", "--workers", "2", "--max-restarts", "1", "--", *command)
    assert result.returncode == 0, result.stderr.decode()
    assert b"[1] calling into native code, and never coming back" in result.stdout
    assert re.search(
        rb"rank 1 \(pid \d+\) was reaped in scope 'compute gradients', [\d.]+ m?s", result.stderr
    )
    assert b"[0] continuing from the checkpoint of step 60" in result.stdout
    (accuracy,) = re.findall(rb"\[0\] finished: accuracy ([\d.]+)%", result.stdout)
    assert float(accuracy) > 80
    bench.assert_nothing_left()


def test_without_filetimer_it_hangs(bench, command):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    workers = [
        subprocess.Popen(
            command,
            env={
                **bench.environment,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "CHECKPOINT_DIR": str(bench.directory),
            },
            stdout=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    try:
        assert b"never coming back\n" in workers[1].stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            workers[1].wait(5)
        assert workers[0].poll() is None
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stdout.close()
