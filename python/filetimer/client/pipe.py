"""A worker's end of the FIFO: one descriptor, opened late, kept, and reopened onto its number.

A record is one ``write`` (SPEC F-3), of at most PIPE_BUF bytes, to a descriptor in non-blocking
mode: it goes out whole or not at all.

torch's server acts on no timer while any writer has the FIFO open.  A server that is not one of
this specification is told by the lock that it does not hold (SPEC S-18); for such a one, the FIFO
is opened for each record and closed after it (SPEC C-10).
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import select
import signal
import stat
import threading
import time
import weakref
from typing import Any

try:  # what signal.getsignal calls, which makes an enumeration's member of the answer: 0.4 us
    from _signal import getsignal  # type: ignore[import-not-found]
except ImportError:
    from signal import getsignal

__all__ = ["RWF_NOSIGNAL", "ClientPipe", "pwritev", "write_masked"]

RWF_NOSIGNAL = 0x100  # Linux 6.18: EPIPE without SIGPIPE
pwritev: Any = getattr(os, "pwritev", None)  # some C libraries have none
CONNECT_RETRY = 0.01  # seconds between attempts while a server starts

_SIGPIPE, _IGNORED = int(signal.SIGPIPE), int(signal.SIG_IGN)


class ClientPipe:
    """Writes records to the FIFO at ``path``, from any thread.

    Args:
        path: the FIFO; it need not exist yet.
        connect_timeout: seconds, from the first record on, in which a server may still turn up.

    Who is in a hurry makes the first attempt at a record without the call of :meth:`send`, and
    goes on with :meth:`send_after`: ``fd`` is the descriptor, -1 before the first record, and
    ``nosignal`` says how to write to it: ``pwritev`` with RWF_NOSIGNAL, or :func:`write_masked`.
    """

    def __init__(self, path: str, connect_timeout: float) -> None:
        self.path = path
        self._connect_timeout = connect_timeout
        self._connect_until: float | None = None
        self._lock = threading.Lock()
        self.fd = -1
        self._identity: tuple[int, int] | None = None  # device and inode of what is open
        self.nosignal = _has_nosignal()
        self._write = _write_nosignal if self.nosignal else write_masked
        _pipes.add(self)

    def send(self, record: bytes, wait: float) -> None:
        """Write one record; wait at most ``wait`` seconds while the pipe is full.

        Raises BlockingIOError when that was not enough, another OSError when there is no server,
        or nothing at the path that a client may write to.
        """
        try:
            self._write(self.fd, record)
        except OSError as error:
            self.send_after(error, record, wait)

    def send_after(self, error: OSError, record: bytes, wait: float) -> None:
        """What :meth:`send` does once its first attempt has failed with ``error``."""
        if error.errno in (errno.EPIPE, errno.EBADF):  # the server is gone; not opened yet
            fd = self._open_new(wait)
            if not _is_locked(fd):  # SPEC C-10
                self._send_and_close(fd, record, wait)
                return
            self._keep(fd)
        elif not isinstance(error, BlockingIOError):
            raise error
        self._send_patiently(self.fd, record, wait)

    def close(self) -> None:
        """Close the descriptor; a later ``send`` opens another."""
        with self._lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1

    def _send_and_close(self, fd: int, record: bytes, wait: float) -> None:
        try:
            self._send_patiently(fd, record, wait)
        finally:
            os.close(fd)  # no other thread knows this number

    def _send_patiently(self, fd: int, record: bytes, wait: float) -> None:
        give_up = time.monotonic() + wait  # SPEC C-1
        while True:
            try:
                self._write(fd, record)
                return
            except BlockingIOError:
                remaining = give_up - time.monotonic()
                if remaining <= 0:
                    raise BlockingIOError(
                        errno.EAGAIN,
                        f"the timer pipe {self.path} is full: its server is not reading",
                    ) from None
            _wait_writable(fd, remaining)

    def _keep(self, fd: int) -> None:
        """Use this descriptor from now on, under the number that there was (SPEC C-5)."""
        with self._lock:
            if self.fd < 0:
                self.fd = fd
            else:
                os.dup2(fd, self.fd, inheritable=False)
                os.close(fd)
            status = os.fstat(self.fd)
            self._identity = status.st_dev, status.st_ino

    def _open_new(self, wait: float) -> int:
        now = time.monotonic()
        if self._connect_until is None:
            self._connect_until = now + self._connect_timeout
        while True:
            try:
                return _open_fifo(self.path)
            except OSError as error:
                if error.errno not in (errno.ENXIO, errno.ENOENT):
                    raise
                may_turn_up = self._identity is None and time.monotonic() < self._connect_until
                text = f"no timer server is serving {self.path}"
                if not may_turn_up:
                    raise BrokenPipeError(errno.EPIPE, text) from None
                if time.monotonic() - now >= wait:
                    raise BlockingIOError(errno.EAGAIN, text + " yet") from None
            time.sleep(CONNECT_RETRY)

    def _after_fork(self) -> None:
        """In a forked child: the lock may be held by a thread that is not here.

        The child may have closed the inherited number, or given it to a file of its own: that is
        checked once, before its first record (SPEC C-6), by :meth:`adopt`.
        """
        self._lock = threading.Lock()

    def adopt(self) -> None:
        """In a forked child: keep the inherited descriptor only if it still is the FIFO."""
        try:
            status = os.fstat(self.fd)
            if (status.st_dev, status.st_ino) == self._identity:
                return
        except OSError:
            pass
        self.fd = -1  # somebody else's now: not ours to close


_pipes: weakref.WeakSet[ClientPipe] = weakref.WeakSet()


def _renew_locks() -> None:
    for pipe in list(_pipes):
        pipe._after_fork()


os.register_at_fork(after_in_child=_renew_locks)


def _open_fifo(path: str) -> int:
    """Open a FIFO for writing.  Raises OSError: ENXIO without a server, ENOENT without a FIFO."""
    # SPEC T-2, C-5: never O_CREAT, always close-on-exec.
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISFIFO(status.st_mode):  # SPEC C-4
            raise FileExistsError(errno.EEXIST, f"{path} is not a FIFO: is this a timer path?")
        if status.st_uid not in (os.geteuid(), 0):
            raise PermissionError(
                errno.EPERM, f"the FIFO {path} belongs to uid {status.st_uid}, a stranger"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_locked(fd: int) -> bool:
    """Whether a server of this specification serves the FIFO (SPEC S-18)."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True  # or the file system has no locks, and nothing is to be told from that
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _wait_writable(fd: int, seconds: float) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    poller.poll(min(seconds, 60.0) * 1000)


# SPEC C-3.  Python ignores SIGPIPE from its start, but a program may have set it to its default.


def _write_nosignal(fd: int, record: bytes) -> None:
    pwritev(fd, (record,), -1, RWF_NOSIGNAL)


def write_masked(fd: int, record: bytes) -> None:
    """Write a record where the kernel has no RWF_NOSIGNAL."""
    if getsignal(_SIGPIPE) == _IGNORED:
        os.write(fd, record)
        return
    pending_before = signal.SIGPIPE in signal.sigpending()
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGPIPE,))
    try:
        os.write(fd, record)
    except BrokenPipeError:
        if not pending_before:
            signal.sigtimedwait((signal.SIGPIPE,), 0)  # ours: take it back
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


@functools.lru_cache(maxsize=1)
def _has_nosignal() -> bool:
    reader, writer = os.pipe()
    try:
        _write_nosignal(writer, b"x")
    except (OSError, AttributeError, NotImplementedError, TypeError):
        return False
    finally:
        os.close(reader)
        os.close(writer)
    return True
