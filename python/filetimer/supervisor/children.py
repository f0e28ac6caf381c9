"""Child processes that cannot outlive this one, and the processes that they leave behind.

A child is killed by the kernel when this process dies (PR_SET_PDEATHSIG), whatever kills it.  What
a dead child leaves behind becomes a child of this process (PR_SET_CHILD_SUBREAPER; as pid 1 of a
container it does so anyway), so that it can be found, ended and waited for.

A pid stays taken until its process was waited for.  So nothing here waits before it is done with
signalling: only direct children, and process groups of children not yet waited for, are signalled.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, NoReturn

__all__ = [
    "Child",
    "Listed",
    "adopt_orphans",
    "children",
    "processes",
    "signal_group",
    "wait_for",
]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
_LOST = 125  # exit status of a child that never ran its program
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def adopt_orphans() -> None:
    """Become the parent of whatever our descendants leave behind."""
    if _prctl is not None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Child:
    """A child process that runs ``command``; ``pid`` is the command's own.

    Args:
        command: the program, looked up in PATH, and its arguments.
        environment: of the program.
        descriptors: by number in the child, the descriptors that it gets; the rest is closed.
        mask: the signals that the child blocks.
        new_session: whether it leads a session and a process group of its own.
        gated: whether it waits for :meth:`release` before it runs the program.

    Must be made in the main thread: the death signal is tied to the thread that forks.
    Call :meth:`started` next.
    """

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str],
        *,
        descriptors: Mapping[int, int],
        mask: Iterable[int],
        new_session: bool,
        gated: bool = False,
    ) -> None:
        self.command = command
        self._errors, errors = os.pipe()
        gate, self._gate = os.pipe() if gated else (-1, -1)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            # Other threads may hold any lock: from here on, little more than system calls.
            try:
                _die_with(parent)
                _set_up(descriptors, mask, new_session)
                if gated:
                    os.read(gate, 1)
                _exec(command, environment, errors)
            finally:
                os._exit(_LOST)
        os.close(errors)
        if gated:
            os.close(gate)

    def release(self) -> None:
        """Let a gated child run its program."""
        try:
            os.write(self._gate, b"!")
        except BrokenPipeError:
            pass  # it was killed; whoever waits for it will see
        os.close(self._gate)
        self._gate = -1

    def started(self) -> None:
        """Wait until the program runs.  Raises OSError with its name when it cannot be run."""
        with os.fdopen(self._errors, "rb") as file:
            report = file.read()
        if not report:
            return
        wait_for(self.pid)
        raise OSError(int(report), os.strerror(int(report)), self.command[0])


def wait_for(pid: int, *, block: bool = True, keep: bool = False) -> int | None:
    """The exit status of a child that has ended (128+n for signal n); None while it runs.

    ``keep``: leave the zombie, so that its pid and its process group's id stay taken.
    """
    options = os.WEXITED | (0 if block else os.WNOHANG) | (os.WNOWAIT if keep else 0)
    ended = os.waitid(os.P_PID, pid, options)
    if ended is None:
        return None
    by_signal = ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
    return 128 + ended.si_status if by_signal else ended.si_status


def signal_group(leader: int, signum: int) -> None:
    """Signal the process group of a child that made one and was not waited for yet."""
    if leader <= 1:
        raise ValueError(f"{leader} leads no process group of ours")
    try:
        os.killpg(leader, signum)
    except (ProcessLookupError, PermissionError):
        pass  # it is empty, or what is in it has changed its user


class Listed(NamedTuple):
    """One process in /proc."""

    pid: int
    state: str
    parent: int
    session: int

    @property
    def runs(self) -> bool:
        """Whether it is more than a zombie."""
        return self.state not in "ZX"


def processes() -> Iterator[Listed]:
    """All processes in sight; none where /proc is missing or shows another pid namespace."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return  # its numbers would name strangers here
        names = os.listdir("/proc")
    except OSError:
        return
    for name in filter(str.isdecimal, names):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent, _, session = file.read().rpartition(b")")[2].split()[:4]
        except (OSError, ValueError):
            continue  # gone meanwhile
        yield Listed(int(name), state.decode("ascii"), int(parent), int(session))


def children() -> list[Listed]:
    """Our children: those that we started, and those that we adopted."""
    return [process for process in processes() if process.parent == os.getpid()]


# In the child, between fork and exec.


def _die_with(parent: int) -> None:
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(_LOST)


def _set_up(descriptors: Mapping[int, int], mask: Iterable[int], new_session: bool) -> None:
    if new_session:
        os.setsid()
    for number, fd in descriptors.items():
        os.dup2(fd, number)
    for signum in _IGNORED_BY_PYTHON:
        signal.signal(signum, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would end here, in Python
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _exec(command: list[str], environment: Mapping[str, str], errors: int) -> NoReturn:
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        os.write(errors, b"%d" % (error.errno or errno.EINVAL))
    os._exit(_LOST)
