"""``filetimer top``: once, and live on a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import time

import pytest

from .conftest import PATIENCE, wait_until


def start_worker(bench):
    """A worker that has a timer set."""
    worker = bench.script("with filetimer.expires(60, 'guarded'):\n    time.sleep(600)\n")
    process = bench.popen("expires", "--after", "600", "--", *worker)
    wait_until(lambda: b"guarded" in bench("top", "--once").stdout, "the worker's timer is seen")
    return process


@pytest.mark.parametrize("arguments", [["--once"], []])
def test_one_frame_where_there_is_no_terminal(bench, arguments):
    path = bench.serve()
    start_worker(bench)
    result = bench("top", str(path), *arguments)
    assert (result.returncode, result.stderr) == (0, b"")
    text = result.stdout.decode()
    assert "running, pid" in text
    assert "guarded" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_live_on_a_terminal_until_ctrl_c(bench):
    bench.serve()
    start_worker(bench)
    master, slave = pty.openpty()
    environment = {**bench.environment, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    process = bench.popen("top", "--interval", "0.05", stdin=slave, stdout=slave, env=environment)
    os.close(slave)
    seen = b""
    give_up = time.monotonic() + PATIENCE
    while seen.count(b"running, pid") < 3:  # frame after frame
        assert time.monotonic() < give_up, seen
        if select.select([master], [], [], 0.1)[0]:
            seen += os.read(master, 65536)
    assert b"\x1b[36m" in seen  # a bar in colour
    process.send_signal(signal.SIGINT)
    while select.select([master], [], [], 0.1)[0]:
        try:
            if not os.read(master, 65536):
                break
        except OSError:
            break
    assert process.wait(60) == 0
    assert process.stderr.read() == b""
    os.close(master)


def test_a_server_that_was_killed(bench):
    """Its journal stays, and every view finds it."""
    bench.serve()
    start_worker(bench)
    holder = bench.started[0]
    holder.send_signal(signal.SIGSTOP)  # so that it does not start another
    os.kill(_child_of(holder.pid), signal.SIGKILL)
    wait_until(lambda: b"DIED" in bench("top", "--once").stdout, "it is seen that it died")
    assert b"guarded" in bench("top", "--once").stdout
    assert b"guarded" in bench("suggest").stdout
    holder.kill()


def _child_of(pid: int) -> int:
    """The one child of a process that this test started."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        (child,) = map(int, file.read().split())
    return child
