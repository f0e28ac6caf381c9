"""Relays the workers' output, line by line, each line with its worker's prefix.

A thread of its own does all the writing: where nobody reads what we write (a stopped terminal, a
full pipe), the workers' output has to wait, but never the supervisor and never the timer server.
"""

from __future__ import annotations

import os
import select
import selectors
import threading
import time
from collections import deque

__all__ = ["Relay"]

MAX_LINE = 1 << 16  # bytes after which an unfinished line is broken, so that memory is bounded
MAX_SAID = 10_000  # lines of our own that wait; the oldest go first
CHUNK = 1 << 16


class _Stream:
    """One pipe from a worker."""

    def __init__(self, fd: int, prefix: bytes, target: int) -> None:
        self.fd, self.prefix, self.target = fd, prefix, target
        self._partial = b""

    def lines(self, data: bytes) -> bytes:
        """The lines that ``data`` completes, with their prefix; no data: the end of the stream."""
        *whole, rest = (self._partial + data).split(b"\n")
        if not data and rest:
            whole, rest = [*whole, rest], b""  # a last line without a newline
        while len(rest) > MAX_LINE:
            whole, rest = [*whole, rest[:MAX_LINE]], rest[MAX_LINE:]
        self._partial = rest
        return b"".join(self.prefix + line + b"\n" for line in whole)


class Relay:
    """Writes workers' output and our own messages to the descriptors 1 and 2.

    Output that cannot be written, because its reader has gone, is dropped: a closed log must not
    end a training job.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._said: deque[bytes] = deque(maxlen=MAX_SAID)
        self._new: deque[_Stream] = deque()
        self._idle = threading.Event()  # nothing is left to relay
        self._idle.set()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="filetimer-relay", daemon=True)
        self._thread.start()

    def add(self, fd: int, prefix: str, target: int) -> None:
        """Relay what comes out of ``fd`` to ``target`` (1 or 2), and close ``fd`` at its end."""
        self._new.append(_Stream(fd, prefix.encode(), target))
        self._idle.clear()
        self._wake()

    def say(self, text: str) -> None:
        """Write one line of our own to stderr; never waits."""
        self._said.append(text.encode("utf-8", "backslashreplace") + b"\n")
        self._idle.clear()
        self._wake()

    def drain(self, seconds: float) -> bool:
        """Wait until all is written and all streams have ended, for at most ``seconds``."""
        return self._idle.wait(seconds)

    def close(self, seconds: float) -> None:
        """Write what is there, for at most ``seconds``, and end."""
        give_up = time.monotonic() + seconds
        self.drain(seconds)
        self._closing = True
        self._wake()
        self._thread.join(max(0.1, give_up - time.monotonic()))

    def _wake(self) -> None:
        try:
            os.write(self._wake_writer, b"!")
        except BlockingIOError:
            pass  # it is awake enough

    def _run(self) -> None:
        while not self._closing:
            ready = {key.fd: key.data for key, _ in self._selector.select()}
            if self._wake_reader in ready:
                del ready[self._wake_reader]
                os.read(self._wake_reader, CHUNK)
            while self._new:
                stream = self._new.popleft()
                self._selector.register(stream.fd, selectors.EVENT_READ, stream)
            for stream in ready.values():
                self._relay(stream)
            while self._said:
                _write(2, self._said.popleft())
            self._see_idle()

    def _relay(self, stream: _Stream) -> None:
        data = os.read(stream.fd, CHUNK)
        _write(stream.target, stream.lines(data))
        if not data:
            self._selector.unregister(stream.fd)
            os.close(stream.fd)

    def _see_idle(self) -> None:
        if len(self._selector.get_map()) > 1:
            return
        self._idle.set()
        if self._new or self._said:  # came in between: the wake-up is on its way
            self._idle.clear()


def _write(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # somebody made our terminal non-blocking
            select.select([], [fd], [], 1.0)
        except OSError:
            return  # nobody reads it any more
