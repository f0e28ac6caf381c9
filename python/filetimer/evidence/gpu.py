"""GPU core dumps: asks the CUDA driver in a hung worker for one, by a write to its pipe.

The driver listens if the worker was started with CUDA_ENABLE_USER_TRIGGERED_COREDUMP=1; the pipe is
named by CUDA_COREDUMP_PIPE, the dump by CUDA_COREDUMP_FILE.  It writes the dump by itself, and ends
the process after it unless it is told otherwise: so only workers are asked that are to be killed.
"""

from __future__ import annotations

import glob
import os
import stat
import time

from filetimer.evidence.model import Member

__all__ = ["ask_for_core_dump", "wait_for_core_dump"]

ENABLED, PIPE, FILE = (
    "CUDA_ENABLE_USER_TRIGGERED_COREDUMP", "CUDA_COREDUMP_PIPE", "CUDA_COREDUMP_FILE",
)  # fmt: skip
DEFAULT_PIPE, DEFAULT_FILE = "corepipe.cuda.%h.%p", "core_%t_%h_%p.nvcudmp"
STABLE = 1.0  # seconds without growth after which a dump is complete
LOOK = 0.05


def ask_for_core_dump(member: Member) -> bool:
    """Ask, without ever waiting; whether it was.  ``member.gpu`` then says what came of it."""
    if PIPE not in member.environment and member.environment.get(ENABLED) != "1":
        member.gpu = f"no core dump: {ENABLED} is not 1 in the worker's environment"
        return False
    path = _path(member, member.environment.get(PIPE) or DEFAULT_PIPE)
    try:
        _write(path)
    except OSError as error:
        member.gpu = f"no core dump: {path} cannot be written to: {error.strerror or error}"
        return False
    member.gpu = f"a core dump was asked for through {path}"
    return True


def wait_for_core_dump(member: Member, until: float) -> None:
    """Wait until the dump is there and grows no more, or until ``until``, monotonic seconds."""
    pattern = _path(member, member.environment.get(FILE) or DEFAULT_FILE)
    seen: tuple[tuple[str, int], ...] = ()
    since = time.monotonic()
    while time.monotonic() < until:
        now = tuple((path, os.stat(path).st_size) for path in _fresh(pattern))
        if now != seen:
            seen, since = now, time.monotonic()
        elif seen and time.monotonic() - since >= STABLE:
            member.gpu = f"core dump in {seen[-1][0]}"
            return
        time.sleep(LOOK)
    member.gpu = f"{member.gpu}; it was not complete in time (--evidence-budget)"


def _fresh(pattern: str) -> list[str]:
    return sorted(path for path in glob.glob(pattern) if os.path.isfile(path))


def _write(path: str) -> None:
    """One byte into a FIFO that somebody reads.  Raises OSError for anything else."""
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            raise OSError(0, "it is not a pipe")
        os.write(fd, b"1")
    finally:
        os.close(fd)


def _path(member: Member, template: str) -> str:
    """The template filled in, as seen from here; ``%t``, the time of the dump, becomes ``*``."""
    name = template
    for letter, value in (("%h", os.uname().nodename), ("%p", str(member.pid)), ("%t", "*")):
        name = name.replace(letter, value)
    return os.path.join(_directory(member.pid), name)


def _directory(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return f"/proc/{pid}/cwd"
