"""The journal: every chunk of bytes is in a file before it is acted on.

``splice`` moves a chunk from the FIFO to the end of a plain file.  The file's size is the commit: a
server that dies at any instruction has lost nothing that left the FIFO, and a full disk leaves the
chunk where it was.  Other processes read the file while it grows (``filetimer.replay``).

The file is text.  It starts with one line that says whose it is.  After that come chunks, each a
line of :data:`CHUNK_LINE` bytes that tells its length and when it was received, and then the bytes
themselves, whatever they are: nothing in them can be taken for a line of ours, because the lengths
say where those are.  A chunk's line is written after its bytes; if the server died in between,
there are NULs in its place, and the chunk goes on to the end of the file.

When the file has grown to its bound, it is replaced by a new one whose first chunk is the state.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from filetimer.server.timers import Now, Worker
from filetimer.wire.decoder import UNSET

__all__ = [
    "CHUNK_LINE",
    "Chunk",
    "Journal",
    "JournalError",
    "State",
    "boot_id",
    "chunk_line",
    "journal_header",
    "read_journal",
]

FORMAT = 1
BOUND = 4 << 20  # bytes at which the file is replaced
MOST_BOUNDS = 8  # so many times its bound a file may have, if no new one can be written
_CHUNK_FORMAT = b'{"chunk": %10d, "monotonic": %17.6f, "wall": %17.6f}\n'


def chunk_line(length: int, now: Now) -> bytes:
    """The line before a chunk; padded, so that it has the same length whatever it says."""
    return _CHUNK_FORMAT % (length, now.monotonic, now.wall)


CHUNK_LINE = len(chunk_line(0, Now(0.0, 0.0)))


def journal_header(
    fifo_path: str, run_id: str, now: Now, holder: str | None = None, **server: Any
) -> bytes:
    """The first line: which server writes this, in which boot of the host, for which holder."""
    header = {
        "journal": FORMAT,
        "path": fifo_path,
        "run_id": run_id,
        "boot_id": boot_id(),
        "holder": holder,
        "monotonic": now.monotonic,
        "wall": now.wall,
        "server": server,
    }
    return json.dumps(header).encode("ascii") + b"\n"


class JournalError(ValueError):
    """The file is not a journal that this version can read."""


class Chunk(NamedTuple):
    """Bytes that a server received at one instant; none: it acted on timers then."""

    now: Now
    data: bytes


class State(NamedTuple):
    """All that matters of what was received: live timers, and the line that is not finished."""

    workers: Iterable[Worker[Any]] = ()
    unfinished: bytes = b""


class Journal:
    """Writes one journal at ``path``.  Raises OSError when it cannot be made.

    Args:
        path: the file; one that is there is replaced, in one step.
        header: its first line (:func:`journal_header`).
        state: what the server starts with.
        now: when it starts.
        bound: bytes at which :attr:`is_full` asks for :meth:`compact`.
    """

    def __init__(
        self, path: str, header: bytes, state: State, now: Now, bound: int = BOUND
    ) -> None:
        self.path = path
        self._header = header
        self._bound = bound
        self._taken = 0  # bytes that were moved behind the end, and not committed yet
        self._fd, self._end = self._write_new(state, now)
        self._limit = max(bound, 4 * self._end)

    @property
    def is_full(self) -> bool:
        """Whether the file has reached its bound."""
        return self._end >= self._limit

    def take(self, fifo: int, size: int, now: Now) -> bytes:
        """Move what is in the FIFO, up to ``size`` bytes, into the file; return it.

        Raises BlockingIOError when the FIFO is empty, another OSError (a full disk) when the file
        cannot grow; the FIFO then still holds the bytes.
        """
        start = self._end + CHUNK_LINE
        if not self._taken:
            flags = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
            self._taken = os.splice(fifo, self._fd, size, offset_dst=start, flags=flags)
        chunk = os.pread(self._fd, self._taken, start)
        os.pwrite(self._fd, chunk_line(self._taken, now), self._end)
        self._end = start + self._taken
        self._taken = 0
        return chunk

    def rescue(self) -> bytes:
        """What :meth:`take` had moved when it failed, and the FIFO does not hold any more."""
        taken, self._taken = self._taken, 0
        return os.pread(self._fd, taken, self._end + CHUNK_LINE) if taken else b""

    def mark(self, now: Now) -> None:
        """Write down that the timers due at ``now`` were acted on: a chunk without bytes."""
        os.pwrite(self._fd, chunk_line(0, now), self._end)
        self._end += CHUNK_LINE

    def compact(self, state: State, now: Now) -> None:
        """Replace the file by one that holds this state only."""
        old = self._fd
        self._fd, self._end = self._write_new(state, now)
        os.close(old)
        self._limit = max(self._bound, 4 * self._end)

    def put_off(self) -> bool:
        """Go on in this file though it is full; False when it is far over its bound."""
        self._limit = 2 * self._end
        return self._end < MOST_BOUNDS * self._bound

    def close(self) -> None:
        """Close and remove the file; nothing after :meth:`forget`."""
        if self._fd >= 0:
            self.forget()
            with contextlib.suppress(OSError):  # gone, or the file system is read-only now
                os.unlink(self.path)

    def forget(self) -> None:
        """Close the file only: in a forked child."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write_new(self, state: State, now: Now) -> tuple[int, int]:
        temporary = self.path + ".tmp"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # of a server that died at this point
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(temporary, flags, 0o600)
        try:
            snapshot = b"".join(_to_lines(state.workers)) + state.unfinished
            content = self._header + chunk_line(len(snapshot), now) + snapshot
            if os.write(fd, content) != len(content):
                raise OSError(errno.ENOSPC, "no space for the journal", temporary)
            os.rename(temporary, self.path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return fd, len(content)


def read_journal(path: str, now: Now) -> tuple[dict[str, Any], list[Chunk]]:
    """The header and the chunks of a journal.

    ``now`` stands in for the receipt time of a last chunk whose server died while it wrote.
    Raises JournalError, and OSError when the file is gone.
    """
    with open(path, "rb") as file:
        content = file.read()
    first, newline, rest = content.partition(b"\n")
    try:
        header = json.loads(first)
        if header["journal"] != FORMAT or not newline:
            raise ValueError(f"format {header['journal']}")
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(f"{path} is not a timer journal that can be read: {error}") from None
    return header, list(_chunks(rest, now))


def _chunks(rest: bytes, now: Now) -> Iterator[Chunk]:
    position = 0
    while position < len(rest):
        line = rest[position : position + CHUNK_LINE]
        position += CHUNK_LINE
        try:
            meta = json.loads(line)
            length, received = meta["chunk"], Now(meta["monotonic"], meta["wall"])
        except ValueError:  # its server died, or has not come to writing it yet
            length, received = len(rest) - position, now
        yield Chunk(received, rest[position : position + length])
        position += length


def boot_id() -> str:
    """What tells one boot of this host from another; empty where unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _to_lines(workers: Iterable[Worker[Any]]) -> Iterator[bytes]:
    """The timers as records that would set them again, for these very processes."""
    for worker in workers:
        for timer in worker.timers.values():
            record: dict[str, Any] = {
                "version": 2,
                "pid": timer.pid,
                "scope_id": timer.scope_id,
                "expiration_time": timer.expiration_time,
                "signal": timer.signal,
                "deadline": timer.deadline,
            }
            if worker.start_time is not None:
                record["start_time"] = worker.start_time
            if timer.token is not UNSET:
                record["token"] = timer.token
            yield json.dumps(record).encode("ascii") + b"\n"
