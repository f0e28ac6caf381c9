"""Servers in little memory: what they have taken they keep, until there is memory to decode it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import tracemalloc
from typing import Any

import pytest

from filetimer import memory
from filetimer.server import loop as loop_module
from filetimer.server.events import EventReporter
from filetimer.server.fifo import ServerFifo
from filetimer.server.fifo_source import FifoSource
from filetimer.server.loop import ServerLoop, read_clocks
from filetimer.server.timers import Host, Now
from filetimer.server.watchdog import Watchdog
from filetimer.wire.decoder import ARENA, GROWTH, LineDecoder, Received, Record

MEMBERS: dict[str, Any] = {
    "version": 2,
    "pid": 4242,
    "scope_id": "s" * 50,
    "expiration_time": 1795471656.25,
    "signal": 9,
    "deadline": 1234.5,
    "start_time": 4243,
    "pid_ns": 4026531836,
    "token": 7,
}

DECODES_UNTIL_MEMORY_ENDS = """
import resource, sys
from filetimer.wire.decoder import LineDecoder
lines = sys.stdin.buffer.read()
decoder, kept, refused = LineDecoder(), [], 0
with open("/proc/self/statm") as file:
    pages = int(file.read().split()[{"RLIMIT_AS": 0, "RLIMIT_DATA": 5}[sys.argv[1]]])
size = pages * resource.getpagesize() + (24 << 20)
resource.setrlimit(getattr(resource, sys.argv[1]), (size, size))
while refused < 100:
    try:
        kept += decoder.feed_fast(lines)
    except MemoryError:
        refused += 1
        del kept[-500:]
        lines = lines[lines.index(b"\\n") + 1:]  # it ends at another place each time
assert len(kept) > 1000
print("refused")
"""


def lines(count: int, **changed: Any) -> bytes:
    members = [{**MEMBERS, "token": token, **changed} for token in range(1, count + 1)]
    return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in members)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits are Linux's")
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_decoding_without_memory_is_an_error_and_not_a_crash(limit: str) -> None:
    command = [sys.executable, "-c", DECODES_UNTIL_MEMORY_ENDS, limit]
    ended = subprocess.run(command, input=lines(400), capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"refused\n", b"")


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"scope_id": "x"},
        {"scope_id": "s" * 1000 + "\N{PILE OF POO}"},  # four bytes each, for one
        {"attributes": {chr(97 + i): "y" for i in range(8)}},
    ],
    ids=["usual", "short", "wide", "attributes"],
)
def test_what_lines_become_is_within_what_is_asked_for(changed: dict[str, Any]) -> None:
    data, decoder = lines(500, **changed), LineDecoder()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        records = decoder.feed_fast(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(isinstance(record, Record) for record in records)
    assert peak - before <= GROWTH * len(data)


def test_a_reserve_takes_no_memory_until_it_is_used_and_may_be_refused() -> None:
    memory.reserve(1 << 30).close()
    with pytest.raises(MemoryError, match="no 1152921504606846976 bytes"):
        memory.reserve(1 << 60)


class OutOfMemory:
    """The memory that a decoder asks for: there is none as often as it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures = 0
        self.asked: list[int] = []
        monkeypatch.setattr(memory, "require", self)

    def __call__(self, size: int) -> None:
        if self.failures:
            self.failures -= 1
            raise MemoryError
        self.asked.append(size)


def tokens(received: Received) -> list[int]:
    return [result.token for result in received if isinstance(result, Record)]  # type: ignore[misc]


@pytest.mark.parametrize("journal", [False, True])
def test_what_was_taken_without_memory_comes_first_and_alone(
    journal: bool, fifo_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = OutOfMemory(monkeypatch)
    source = FifoSource(ServerFifo(fifo_path), EventReporter())
    try:
        if journal:
            source.open_journal("test", None, read_clocks())
        short.asked.clear()
        with open(fifo_path, "wb", buffering=0) as writer:
            writer.write(lines(3))
            short.failures = 2
            for _ in range(2):
                with pytest.raises(MemoryError):
                    source.receive(read_clocks(), urgent=True)
                writer.write(lines(1))  # it does not pile up
            assert tokens(source.receive(read_clocks(), urgent=True)) == [1, 2, 3]
            assert tokens(source.receive(read_clocks(), urgent=True)) == [1, 1]
            assert tokens(source.receive(read_clocks(), urgent=True)) == []
        assert short.asked[0] == ARENA + GROWTH * len(lines(3))
    finally:
        source.close()


def test_after_a_pass_without_memory_the_pipe_is_read_before_anybody_is_killed(
    fifo_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SPEC S-7: what is left of the pass before is not all there is."""
    short = OutOfMemory(monkeypatch)
    reporter = EventReporter()
    source = FifoSource(ServerFifo(fifo_path), reporter)
    loop = ServerLoop(source, threading.RLock(), 1.0)
    received: list[list[int]] = []
    watchdog = Watchdog(Host(1, 0, 1, 1), reporter, loop)

    def receive(results: Received, now: Now, *written_by: object) -> None:
        received.append(tokens(results))

    def sleep(seconds: float) -> None:
        if seconds == loop_module.FAULT_PAUSE:  # after the pass that failed
            writer.write(lines(1))

    enforced = 0

    def enforce(now: float) -> bool:
        nonlocal enforced
        enforced += 1
        loop.stop()
        return False

    monkeypatch.setattr(watchdog, "receive", receive)
    monkeypatch.setattr(watchdog, "enforce", enforce)
    monkeypatch.setattr(loop_module.time, "sleep", sleep)
    with open(fifo_path, "wb", buffering=0) as writer:
        writer.write(lines(2))
        short.failures = 1
        loop.run(watchdog)
    assert received == [[1, 2], [1]]
    assert enforced == 1
