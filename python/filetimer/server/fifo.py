"""The server's end of the FIFO: making it, locking it, reading it, taking it away.

The path is only ever touched under the lock, which is a ``flock`` on the FIFO itself (SPEC S-18).
A FIFO that is new is made and locked under another name and then linked to its path, which fails
when something is there: nobody sees it half-made (SPEC S-16), nothing is overwritten (SPEC S-15).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

__all__ = ["HeldFifo", "ServerFifo"]

MODE = 0o600
LOCK_TRIES, LOCK_RETRY = 5, 0.01  # seconds between tries

# What is in the pipe when a deadline comes is read before the deadline is acted on (SPEC S-7), so
# that a pipe full of what takes long delays a kill.  Most records take little, and 64 writers that
# find room are half as fast again as those that wait for it.
SMALL, LARGE = 1 << 16, 1 << 18  # bytes: room for some 350 records, or 1400
SOON = 0.006  # seconds of CPU time that a pipe's full may take


class HeldFifo:
    """The FIFO at ``path``, made if it is not there, and open at both ends.

    While it is held, nothing that is in the pipe is lost, and no client sees its server gone.

    Raises:
        FileExistsError: the path holds something else than a FIFO of this user.
        OSError: the directory is missing, or not writable.
    """

    def __init__(self, path: str, *, lock: bool = False) -> None:
        self.path = os.path.abspath(path)
        self.fd, self._made = _open_or_make(self.path, lock)

    def close(self) -> None:
        """Close it; remove the FIFO if this object made it and it is still at its path."""
        if self.fd < 0:
            return
        if self._made and _is_at(self.path, self.fd):
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass
        self.forget()

    def forget(self) -> None:
        """Close the descriptor only: in a forked child, which must not keep the lock."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class ServerFifo(HeldFifo):
    """A FIFO that is read, by one server only: it is locked.

    Raises BlockingIOError when another live server serves the path, and as :class:`HeldFifo`.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, lock=True)
        self.capacity = self._wanted = self._large = _resize(self.fd, LARGE)

    def read(self) -> bytes:
        """Everything that is in the pipe now: one read takes it all out, and no more."""
        try:
            return os.read(self.fd, self.capacity)
        except BlockingIOError:
            return b""

    @property
    def is_small(self) -> bool:
        """Whether there is little room: this system gives no more, or what comes takes long."""
        return self.capacity < LARGE

    def fit(self, taken: int, seconds: float) -> None:
        """Choose the pipe's size by the CPU seconds that it took to act on so many bytes."""
        if 2 * taken >= SMALL:
            self._wanted = self._large if LARGE / taken * seconds < SOON else SMALL

    def resize(self) -> None:
        """Give the pipe the chosen size; right after a read, for a full one cannot shrink."""
        if self._wanted != self.capacity:
            self.capacity = _resize(self.fd, self._wanted)


def _open_or_make(path: str, lock: bool) -> tuple[int, bool]:
    """Descriptor of the FIFO at ``path``, and whether it was made here."""
    for _ in range(10):  # each turn lost means that somebody else made or removed it
        try:
            return _open_existing(path, lock), False
        except FileNotFoundError:
            pass
        try:
            return _make(path, lock), True
        except FileExistsError:
            pass
    raise BlockingIOError(errno.EAGAIN, "the path keeps changing while it is opened", path)


def _open_existing(path: str, lock: bool) -> int:
    _require_own_fifo(os.lstat(path), path)
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags)  # SPEC S-17: read-write, so that it never sees an end of file
    try:
        _require_own_fifo(os.fstat(fd), path)
        if lock:
            _lock(fd, path)
        if not _is_at(path, fd):
            raise FileNotFoundError(errno.ENOENT, "the FIFO was just replaced", path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make(path: str, lock: bool) -> int:
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    os.mkfifo(temporary, MODE)
    try:
        fd = _open_existing(temporary, lock)
        try:
            os.fchmod(fd, MODE)  # the umask may have taken bits away
            os.link(temporary, path)
        except BaseException:
            os.close(fd)
            raise
        return fd
    finally:
        os.unlink(temporary)


def _require_own_fifo(status: os.stat_result, path: str) -> None:
    if not stat.S_ISFIFO(status.st_mode):
        raise FileExistsError(
            errno.EEXIST, f"{path} is there and is not a FIFO: give a path that is free"
        )
    if status.st_uid != os.geteuid():
        raise FileExistsError(
            errno.EEXIST,
            f"the FIFO {path} belongs to uid {status.st_uid}, not to you "
            f"(uid {os.geteuid()}): give a path of your own",
        )


def _lock(fd: int, path: str) -> None:
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(LOCK_RETRY)  # a client may just be looking whether it is locked
    raise BlockingIOError(
        errno.EAGAIN, f"another server is serving {path}: stop it, or give another path"
    )


def _is_at(path: str, fd: int) -> bool:
    try:
        at_path = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(at_path, os.fstat(fd))


def _resize(fd: int, wanted: int) -> int:
    """Give the pipe another size, if that may be; its capacity in bytes."""
    set_size, get_size = getattr(fcntl, "F_SETPIPE_SZ", 1031), getattr(fcntl, "F_GETPIPE_SZ", 1032)
    try:
        return int(fcntl.fcntl(fd, set_size, wanted))
    except OSError:  # over the user's pipe budget, or too full for that, or not Linux
        pass
    try:
        return int(fcntl.fcntl(fd, get_size))
    except OSError:
        return SMALL
