"""Processes: which one a pid names, signalling exactly that one, and seeing it end.

A :class:`ProcessHandle` holds a pidfd where the system has them, so that a recycled pid cannot be
hit.  Without (a kernel before 5.3, a seccomp filter), the start time from /proc is compared right
before the signal; without /proc (other POSIX), the pid is all there is.  :func:`capability` says
which of these holds here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import sys
import time
from functools import lru_cache
from typing import NamedTuple

from filetimer.server.spare import OUT_OF_DESCRIPTORS, read_file
from filetimer.server.timers import Host

__all__ = [
    "TICK",
    "ProcessHandle",
    "all_processes",
    "capability",
    "open_process",
    "read_stat",
    "started_at",
    "this_host",
]

_FOR_NOW = (*OUT_OF_DESCRIPTORS, errno.ENOMEM)  # a process may be there and not to be looked at
TICK = 0.02  # seconds: start times count in hundredths, and clocks are read one after the other

_SYS_PIDFD_SEND_SIGNAL, _SYS_PIDFD_OPEN = 424, 434  # the same on every Linux architecture


class ProcessHandle:
    """One process, from :func:`open_process` on; what ``timers.Process`` asks for.

    ``start_time`` is in clock ticks since boot (field 22 of /proc/PID/stat), ``uid`` its user,
    ``time_ns`` the inode of its time namespace; each is None where unknown.  ``no_pidfd`` is why
    there is no pidfd though the system has them.
    """

    __slots__ = ("no_pidfd", "pid", "pidfd", "start_time", "time_ns", "uid", "zombie")

    def __init__(self, pid: int, pidfd: int | None) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.no_pidfd: OSError | None = None
        self.zombie = False
        self.start_time: int | None = None
        self.uid: int | None = None
        self.time_ns: int | None = None

    def send_signal(self, signum: int) -> None:
        """Signal this very process.  Raises ProcessLookupError when it is gone."""
        if self.pid <= 1 or self.pid == os.getpid():  # SPEC S-13, whatever came before
            raise PermissionError(errno.EPERM, f"refused to signal pid {self.pid}")
        if self.pidfd is not None:
            _pidfd_send_signal(self.pidfd, signum)
        elif not self.is_alive():
            raise ProcessLookupError(errno.ESRCH, f"process {self.pid} is gone")
        else:
            os.kill(self.pid, signum)

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not.

        Raises OSError for one without a pidfd that cannot be looked at: that is no death.
        """
        if self.pidfd is not None:
            return not _readable(self.pidfd)
        stat = _read_stat(self.pid)
        if stat is not None:
            return stat[0] not in "ZX" and stat[1] == self.start_time
        return self.start_time is None and _answers(self.pid)

    def state(self) -> str | None:
        """The state letter of /proc/PID/stat (R, S, D, T, Z ...); None when unknown."""
        stat = read_stat(self.pid)
        return stat[0] if stat is not None and stat[1] == self.start_time else None

    def close(self) -> None:
        """Let go of the pidfd."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


def open_process(pid: int, pidfd_allowed: bool = True) -> ProcessHandle | None:
    """The process that now has this pid, or None.  ``pidfd_allowed``: whether to take a pidfd.

    The pidfd comes first.  If its process still runs after /proc was read, then what was read is
    that process's: the pid cannot have been recycled in between.

    Raises OSError for a process that cannot be looked at: without descriptors, or memory.
    """
    pidfd, reason = None, None
    try:
        if pidfd_allowed and capability() == "pidfd":
            pidfd = _pidfd_open(pid)
    except OSError as error:
        if error.errno not in _FOR_NOW:
            return None  # no such process, or a thread's id
        reason = error  # go on by start time
    handle = ProcessHandle(pid, pidfd)
    handle.no_pidfd = reason
    try:
        return handle if _look_at(handle) else None
    except BaseException:
        handle.close()
        raise


def _look_at(handle: ProcessHandle) -> bool:
    """Fill in what /proc says; whether there is such a process."""
    pid = handle.pid
    stat = _read_stat(pid)
    if stat is not None:
        state, handle.start_time = stat
        handle.uid = _uid(pid)
        handle.time_ns = _namespace(f"/proc/{pid}/ns/time")
        handle.zombie = state in "ZX"
    if handle.pidfd is not None:
        handle.zombie = handle.zombie or _readable(handle.pidfd)
        return True
    return (stat is not None and _leads(pid)) or (stat is None and _answers(pid))


def read_stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time (clock ticks since boot) of a process, or None."""
    try:
        return _read_stat(pid)
    except OSError:
        return None


def _read_stat(pid: int) -> tuple[str, int] | None:
    """As :func:`read_stat`; raises OSError where the file is there and cannot be opened."""
    fields = _stat_fields(pid)
    if fields is None:
        return None
    state, threads = fields[0].decode("ascii"), int(fields[17])
    if state == "Z" and threads > 1:
        state = "S"  # its first thread has ended; the process lives on in the others
    return state, int(fields[19])


def _stat_fields(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the state on; None without such a process or file."""
    try:
        content = read_file(f"/proc/{pid}/stat")
    except OSError as error:
        if error.errno in _FOR_NOW:
            raise
        return None
    fields = content.rpartition(b")")[2].split()  # the name may hold anything
    return fields if len(fields) > 19 else None


class Listed(NamedTuple):
    """A process as a walk through /proc found it."""

    parent: int
    group: int
    start_time: int


def all_processes() -> dict[int, Listed]:
    """Every process by pid."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (fields := _stat_fields(int(name))) is not None:
            found[int(name)] = Listed(int(fields[1]), int(fields[2]), int(fields[19]))
    return found


def started_at(process: ProcessHandle) -> float:
    """When the process started, in monotonic seconds, to a hundredth; -inf where unknown."""
    if process.start_time is None or not hasattr(time, "CLOCK_BOOTTIME"):
        return float("-inf")
    # Start times count from the boot, suspension included; the monotonic clock leaves that out.
    suspended = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return process.start_time / os.sysconf("SC_CLK_TCK") - suspended


def this_host() -> Host:
    """The identity of a server in this process."""
    pid_ns, time_ns = _namespace("/proc/self/ns/pid"), _namespace("/proc/self/ns/time")
    return Host(os.getpid(), os.geteuid(), pid_ns, time_ns)


@lru_cache(maxsize=1)
def capability() -> str:
    """How processes are held here: ``pidfd``, ``start_time`` or ``pid``."""
    try:
        os.close(_pidfd_open(os.getpid()))
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno in _FOR_NOW:
            return "pidfd"  # the system has them, if none for us at this moment
        return "pid" if read_stat(os.getpid()) is None else "start_time"
    return "pidfd"


def _pidfd_open(pid: int) -> int:
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    return _syscall(_SYS_PIDFD_OPEN, pid, 0)  # Pythons that were built on an old system


def _pidfd_send_signal(pidfd: int, signum: int) -> None:
    if hasattr(signal, "pidfd_send_signal"):
        signal.pidfd_send_signal(pidfd, signum)
    else:
        _syscall(_SYS_PIDFD_SEND_SIGNAL, pidfd, signum, None, 0)


def _syscall(number: int, *arguments: int | None) -> int:
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, "not Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _readable(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _namespace(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _uid(pid: int) -> int | None:
    """The real user.  (The owner of /proc/PID is root where a process is not dumpable.)"""
    return _from_status(pid, b"Uid:")


def _leads(pid: int) -> bool:
    """Whether this is a process, and not another thread's id."""
    return _from_status(pid, b"Tgid:") in (None, pid)


def _from_status(pid: int, name: bytes) -> int | None:
    try:
        for line in read_file(f"/proc/{pid}/status").splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    except OSError as error:
        if error.errno in _FOR_NOW:
            raise
    except (ValueError, IndexError):
        pass
    return None
