"""The journal: every chunk of bytes is in a file before it is acted on.

``splice`` moves a chunk from the FIFO to the end of a plain file.  The file's size is the commit: a
server that dies at any instruction has lost nothing that left the FIFO, and a full disk leaves the
chunk where it was.  Other processes read the file while it grows (``filetimer.replay``).

The file is text.  It starts with one line that says whose it is.  After that come chunks, each a
line of :data:`CHUNK_LINE` bytes that tells its length and when it was received, and then the bytes
themselves, whatever they are: nothing in them can be taken for a line of ours, because the lengths
say where those are.  A chunk's line is written after its bytes; if the server died in between,
there are NULs in its place, and the chunk goes on to the end of the file.

Between the chunks that were received stand chunks of our own, marked as such: the events that are
not to be seen in the records (kills, exits, refusals), each a line of JSON, and the records of
timers that the server sets itself (``server.holding``).

When the file has grown to its bound, it is replaced by a new one whose first chunk is the state.
The old one stays beside it as ``.old``, until the next replacement: so readers have between one
and two bounds of history, and the disk never has more than that.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from filetimer.server.timers import HELD_TOKEN, Now, Worker
from filetimer.wire.decoder import UNSET, Record

__all__ = [
    "CHUNK_LINE",
    "Chunk",
    "Journal",
    "JournalError",
    "State",
    "boot_id",
    "chunk_line",
    "chunks_of",
    "event_line",
    "journal_header",
    "old_path",
    "own_events",
    "own_records",
    "read_history",
    "read_journal",
    "split_header",
    "timer_lines",
]

FORMAT = 2
BOUND = 4 << 20  # bytes at which the file is replaced: some 19,000 records of version 2
MOST_BOUNDS = 8  # so many times its bound a file may have, if no new one can be written
_CHUNK_FORMAT = b'{%s %10d, "monotonic": %17.6f, "wall": %17.6f}\n'
_RECEIVED, _OWN = b'"chunk":', b'"own":  '
_EVENT = b'{"event": '
_encoder, _replace = msgspec.json.Encoder(), msgspec.structs.replace


def chunk_line(length: int, now: Now, *, own: bool = False) -> bytes:
    """The line before a chunk; padded, so that it has the same length whatever it says."""
    return _CHUNK_FORMAT % (_OWN if own else _RECEIVED, length, now.monotonic, now.wall)


def event_line(event: Mapping[str, Any]) -> bytes:
    """An event as a line of a chunk of our own."""
    return _EVENT + json.dumps(event).encode("ascii") + b"}\n"


def own_events(chunk: Chunk) -> list[dict[str, Any]]:
    """The events of a chunk of our own."""
    return [
        json.loads(line)["event"] for line in chunk.data.splitlines() if line.startswith(_EVENT)
    ]


def own_records(chunk: Chunk) -> list[Record]:
    """The records of a chunk of our own: of timers that a server sets itself."""
    records = []
    for line in chunk.data.splitlines():
        if not line.startswith(_EVENT):
            with contextlib.suppress(ValueError, TypeError):  # half written
                records.append(Record(**json.loads(line)))
    return records


CHUNK_LINE = len(chunk_line(0, Now(0.0, 0.0)))
_HEADER = b'{"journal": '


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
    """Bytes that a server received at one instant, or wrote down itself.

    ``own``: it acted on timers then, and these are its own lines.  ``start``: the file begins
    here, with the state that the server had.
    """

    now: Now
    data: bytes
    own: bool = False
    start: bool = False


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

    def note(self, lines: bytes, now: Now) -> None:
        """Write down that the timers due at ``now`` were acted on, and lines of our own.

        It is one write.  Raises OSError when the file cannot grow.
        """
        content = chunk_line(len(lines), now, own=True) + lines
        if os.pwrite(self._fd, content, self._end) != len(content):
            raise OSError(errno.ENOSPC, "no space for the journal", self.path)
        self._end += len(content)

    def compact(self, state: State, now: Now) -> None:
        """Replace the file by one that holds this state only; keep the old one as ``.old``."""
        old = self._fd
        self._fd, self._end = self._write_new(state, now)
        os.close(old)
        self._limit = max(self._bound, 4 * self._end)

    def put_off(self) -> bool:
        """Go on in this file though it is full; False when it is far over its bound."""
        self._limit = 2 * self._end
        return self._end < MOST_BOUNDS * self._bound

    def close(self, keep: str | None = None) -> None:
        """Close and remove the file; nothing after :meth:`forget`.

        ``keep``: where to write what there is of its history first.  Raises OSError when that
        fails; the file is removed all the same.
        """
        if self._fd < 0:
            return
        self.forget()
        try:
            if keep is not None:
                _write_history(self.path, keep)
        finally:
            for path in (self.path, old_path(self.path)):
                with contextlib.suppress(OSError):  # gone, or the file system is read-only now
                    os.unlink(path)

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
            content = b"".join([self._header, *_state_chunks(state, now)])
            if os.write(fd, content) != len(content):
                raise OSError(errno.ENOSPC, "no space for the journal", temporary)
            _keep_old(self.path)
            os.rename(temporary, self.path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return fd, len(content)


def old_path(path: str) -> str:
    """Where the journal's file before this one is."""
    return path + ".old"


def read_journal(path: str, now: Now) -> tuple[dict[str, Any], list[Chunk]]:
    """The header and the chunks of a journal.

    ``now`` stands in for the receipt time of a last chunk whose server died while it wrote.
    Raises JournalError, and OSError when the file is gone.
    """
    with open(path, "rb") as file:
        content = file.read()
    header, rest = split_header(content, path)
    return header, list(chunks_of(rest, now))


def read_history(path: str, now: Now) -> tuple[dict[str, Any], list[Chunk]]:
    """As :func:`read_journal`, with what is left of the time before it; the header is the last."""
    content = _both_files(path)
    header, rest = split_header(content, path)
    chunks: list[Chunk] = []
    while True:
        part = list(chunks_of(rest, now))
        chunks += part
        rest = rest[sum(CHUNK_LINE + len(chunk.data) for chunk in part) :]
        if not rest:
            return header, chunks
        header, rest = split_header(rest, path)


def _both_files(path: str) -> bytes:
    """The old file and the current one, of one instant: the server may just replace them."""
    while True:
        with open(path, "rb") as current:
            try:
                with open(old_path(path), "rb") as old:
                    before = old.read()
                    replaced = os.path.samestat(os.fstat(old.fileno()), os.fstat(current.fileno()))
            except FileNotFoundError:
                before, replaced = b"", False
            if not replaced:
                return before + current.read()


def _write_history(path: str, target: str) -> None:
    """A journal's files, one after the other, are a journal, too."""
    history = _both_files(path)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(history)


def _keep_old(path: str) -> None:
    """Give the file a second name; the first one must never be missing."""
    temporary = path + ".old.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    with contextlib.suppress(FileNotFoundError):
        os.link(path, temporary)
        os.rename(temporary, old_path(path))


def split_header(content: bytes, path: str) -> tuple[dict[str, Any], bytes]:
    """The first line, and the rest.  Raises JournalError when it is no header."""
    first, newline, rest = content.partition(b"\n")
    try:
        header: dict[str, Any] = json.loads(first)
        if header["journal"] != FORMAT or not newline:
            raise ValueError(f"format {header['journal']}")
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(f"{path} is not a timer journal that can be read: {error}") from None
    return header, rest


def chunks_of(rest: bytes, now: Now) -> Iterator[Chunk]:
    """The chunks up to the end, or to the next header."""
    position = 0
    while position < len(rest) and not rest.startswith(_HEADER, position):
        line = rest[position : position + CHUNK_LINE]
        start = position == 0
        position += CHUNK_LINE
        try:
            meta = json.loads(line)
            own = "own" in meta
            length = meta["own" if own else "chunk"]
            received = Now(meta["monotonic"], meta["wall"])
        except ValueError:  # its server died, or has not come to writing it yet
            own, received = False, now
            length = _length_of_unwritten(rest, position)
        yield Chunk(received, rest[position : position + length], own, start)
        position += length


def _length_of_unwritten(rest: bytes, position: int) -> int:
    """How long a chunk is whose line is missing: to the end of its file."""
    end = rest.find(b"\n" + _HEADER, position)
    return (len(rest) if end < 0 else end + 1) - position


def boot_id() -> str:
    """What tells one boot of this host from another; empty where unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def timer_lines(worker: Worker[Any], timers: Iterable[Record]) -> bytes:
    """Timers of a worker as records that would set them again, for this very process."""
    start_time = UNSET if worker.start_time is None else worker.start_time
    own = [_replace(timer, version=2, start_time=start_time, pid_ns=UNSET) for timer in timers]
    return _encoder.encode_lines(own)


def _state_chunks(state: State, now: Now) -> list[bytes]:
    """The state as if it had just been received; and, apart, the timers of the server's own.

    In pieces: it may be large, and each copy of it costs as much as to encode a part.
    """
    received: list[bytes] = []
    own: list[bytes] = []
    for worker in state.workers:
        timers: Iterable[Record] = worker.timers.values()
        held = [timer for timer in timers if timer.token == HELD_TOKEN]
        if held:
            own.append(timer_lines(worker, held))
            timers = [timer for timer in timers if timer.token != HELD_TOKEN]
        received.append(timer_lines(worker, timers))
    chunks = _chunk([*received, state.unfinished], now)
    return chunks + _chunk(own, now, own=True) if own else chunks


def _chunk(lines: list[bytes], now: Now, *, own: bool = False) -> list[bytes]:
    return [chunk_line(sum(map(len, lines)), now, own=own), *lines]
