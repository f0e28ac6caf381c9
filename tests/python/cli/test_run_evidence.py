"""What ``filetimer run`` tells of a hang, where nobody may trace another process."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
from pathlib import Path

import pytest

HUNG_IN_C = """
import ctypes, threading
def load_batch():
    reader, writer = os.pipe()
    ctypes.PyDLL(None).read(reader, ctypes.create_string_buffer(1), 1)  # holds the GIL
with filetimer.expires(0.5, 'step'):
    load_batch()
"""

DEADLOCK = """
import threading
a, b = threading.Lock(), threading.Lock()
def first():
    with a:
        time.sleep(0.1); b.acquire()
def second():
    with b:
        time.sleep(0.1); a.acquire()
with filetimer.expires(1, 'deadlock'):
    threads = [threading.Thread(target=f) for f in (first, second)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
"""

# ptrace, process_vm_readv and process_vm_writev
FORBIDDEN = {"x86_64": (101, 310, 311), "aarch64": (117, 270, 271)}


def forbid_tracing() -> None:
    """In a child: these system calls fail with EPERM, as under a container's seccomp profile."""
    numbers = FORBIDDEN[platform.machine()]
    jumps = [(0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    code = [(0x20, 0, 0, 0), *jumps, (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050001)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    filter_ = ctypes.create_string_buffer(
        struct.pack("HL", len(code), ctypes.addressof(program)), struct.calcsize("HL")
    )
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    no_new_privs, seccomp, mode_filter = 38, 22, 2
    arguments = ctypes.c_ulong(mode_filter), ctypes.c_void_p(ctypes.addressof(filter_))
    if prctl(no_new_privs, 1, 0, 0, 0) or prctl(seccomp, *arguments, 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp filter")


def run(bench, worker: str) -> tuple[str, str, dict]:
    """The output of a run that may not trace, and its report."""
    if platform.machine() not in FORBIDDEN:
        pytest.skip(f"no numbers of system calls for {platform.machine()}")
    process = bench.popen("run", "--", *bench.script(worker), preexec_fn=forbid_tracing)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 124, err.decode()
    (text,) = (bench.directory / "filetimer-evidence").glob("hang-*.txt")
    assert str(text) in err.decode()
    return err.decode(), text.read_text(), json.loads(text.with_suffix(".json").read_text())


def test_a_hang_in_c_without_the_right_to_trace(bench):
    terminal, text, report = run(bench, HUNG_IN_C)
    (member,) = report["members"]
    assert member["native"] == []
    assert member["native_missing"]  # and not for want of a program
    assert report["complete"]
    line = 1 + Path(bench.directory / "worker.py").read_text().splitlines().index(
        "    ctypes.PyDLL(None).read(reader, ctypes.create_string_buffer(1), 1)  # holds the GIL"
    )
    place = f"load_batch (worker.py:{line})"
    assert f"it hung in {place}" in terminal
    assert f"rank 0 (pid {member['pid']}) is stuck in {place}" in text
    assert (member["rank"], member["restart"], report["host"]) == (0, 0, os.uname().nodename)
    assert report["run_id"].startswith("run-")
    assert "worker.py" in " ".join(member["command"])
    bench.assert_nothing_left()


def test_a_deadlock_of_two_threads_without_the_right_to_trace(bench):
    _, text, report = run(bench, DEADLOCK)
    (member,) = report["members"]
    innermost = [stack["frames"][0]["function"] for stack in member["python"]]
    assert {"first", "second"} <= set(innermost)
    assert "first" in text
    assert "second" in text
    bench.assert_nothing_left()


def test_without_evidence_there_is_no_report_and_no_directory(bench):
    result = bench("run", "--no-evidence", "--", *bench.script(HUNG_IN_C))
    assert result.returncode == 124
    assert not (bench.directory / "filetimer-evidence").exists()
    assert b"it hung in" not in result.stderr
