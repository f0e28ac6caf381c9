"""What is peculiar to NativeTimerClient; what it shares is in test_file_client.py."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
import threading
import time

import pytest

import filetimer

WITHOUT = """
import sys
sys.modules[{missing!r}] = None  # as if it were not installed
import filetimer
filetimer.FileTimerClient("/nowhere")
assert not hasattr(filetimer, "no_such_name")
assert "NativeTimerClient" in dir(filetimer)
try:
    filetimer.NativeTimerClient
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("missing", "cure"),
    [("filetimer._native", "install a C compiler"), ("_cffi_backend", "pip install cffi")],
)
def test_without_the_compiled_module_one_sentence_says_so(missing: str, cure: str) -> None:
    command = [sys.executable, "-c", WITHOUT.format(missing=missing)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("filetimer.NativeTimerClient cannot be used: ")
    if missing == "_cffi_backend":
        pytest.importorskip("filetimer._native", reason="it was not compiled")
    assert cure in result.stdout
    assert result.stdout.count("\n") == 1


@pytest.fixture
def reader(fifo_path: str):
    native_client()
    os.mkfifo(fifo_path, 0o600)
    fd = os.open(fifo_path, os.O_RDWR | os.O_NONBLOCK)
    fcntl.flock(fd, fcntl.LOCK_EX)  # as a server of ours
    yield fd
    os.close(fd)


def native_client():
    try:
        from filetimer.client import native_client
    except ImportError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    return native_client


def test_it_speaks_for_the_header_of_this_version() -> None:
    module = native_client()
    assert module.ffi.string(module.lib.FILETIMER_VERSION).decode() == filetimer.__version__


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_cannot_be_a_path(path: str) -> None:
    native_client()
    with pytest.raises(ValueError, match="must be the path of a FIFO"):
        filetimer.NativeTimerClient(path)


def test_a_path_that_is_too_long() -> None:
    native_client()
    with pytest.raises(ValueError, match="too long"):
        filetimer.NativeTimerClient("x" * 5000)


def test_the_descriptor_is_closed_with_the_client(fifo_path: str, reader: int) -> None:
    client = filetimer.NativeTimerClient(fifo_path)
    handle = client.begin("s", 60)
    number = client._client.fd_
    del client
    gc.collect()
    os.fstat(number)  # the handle still needs it
    assert handle.end()
    del handle
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_handles_outlive_the_cache_of_scopes(
    fifo_path: str, reader: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_client(), "MAX_SCOPES", 2)
    client = filetimer.NativeTimerClient(fifo_path)
    handles = [client.begin(f"scope {i}", 60) for i in range(10)]
    gc.collect()
    os.read(reader, 1 << 16)
    for handle in handles:
        handle.end()
    lines = os.read(reader, 1 << 16).decode().splitlines()
    assert [f'"scope {i}"' in line for i, line in enumerate(lines)] == [True] * 10


def test_a_busy_thread_does_not_hold_it_up(fifo_path: str, reader: int) -> None:
    """Its calls keep the GIL: else each would wait for the other thread's 5 ms."""
    client = filetimer.NativeTimerClient(fifo_path)
    done = threading.Event()

    def compute() -> None:
        while not done.is_set():
            sum(range(100))

    busy = threading.Thread(target=compute)
    busy.start()
    took = []
    for _ in range(100):
        start = time.perf_counter()
        client.begin("s", 60).end()
        took.append(time.perf_counter() - start)
        os.read(reader, 1 << 16)
    done.set()
    busy.join()
    assert sorted(took)[75] < 0.002
