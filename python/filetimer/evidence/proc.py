"""What /proc says of a worker: its command, its environment's ranks, and its threads.

Reading may hang: the command line of a process whose memory is locked, for one.  So the collector
does it in a thread for each worker.
"""

from __future__ import annotations

import os
import platform

from filetimer.evidence.model import Member, Task

__all__ = ["describe_process"]

MAX_TASKS = 64  # threads that are looked at
MAX_COMMAND = 64  # words of the command line that are kept
SHOWN = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "FILETIMER_RESTART_COUNT",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_RUN_ID",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_ENABLE_USER_TRIGGERED_COREDUMP",
    "CUDA_COREDUMP_PIPE",
    "CUDA_COREDUMP_FILE",
)
_X86_64 = {
    0: "read", 1: "write", 7: "poll", 23: "select", 35: "nanosleep", 42: "connect", 43: "accept",
    45: "recvfrom", 47: "recvmsg", 61: "wait4", 202: "futex", 230: "clock_nanosleep",
    232: "epoll_wait", 257: "openat", 270: "pselect6", 271: "ppoll", 281: "epoll_pwait",
    288: "accept4",
}  # fmt: skip


def describe_process(member: Member) -> None:
    """Fill in what /proc tells."""
    member.tasks = _tasks(member.pid)
    member.state = member.tasks[0].state if member.tasks else "gone"
    words = (_read(f"/proc/{member.pid}/cmdline") or "").rstrip("\0").split("\0")
    member.command = words[:MAX_COMMAND]
    environment = (_read(f"/proc/{member.pid}/environ") or "").split("\0")
    pairs = dict(entry.partition("=")[::2] for entry in environment)
    member.environment = {name: pairs[name] for name in SHOWN if name in pairs}
    member.rank = _number(member.environment, "RANK")
    member.restart = _number(
        member.environment, "FILETIMER_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"
    )


def _number(environment: dict[str, str], *names: str) -> int | None:
    """The first of these variables that is a whole number."""
    values = (environment.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdecimal()), None)


def _tasks(pid: int) -> list[Task]:
    try:
        tids = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    except OSError:
        return []
    tasks = (_task(f"/proc/{pid}/task/{tid}", tid) for tid in tids[:MAX_TASKS])
    return [task for task in tasks if task is not None]


def _task(directory: str, tid: int) -> Task | None:
    stat = _read(f"{directory}/stat")
    if stat is None:
        return None
    stack = _read(f"{directory}/stack")
    return Task(
        tid,
        (_read(f"{directory}/comm") or "?").strip(),
        stat.rpartition(")")[2].split()[0],
        _meaningful(_read(f"{directory}/wchan")),
        _syscall(_read(f"{directory}/syscall")),
        None if stack is None else [line.split("] ")[-1] for line in stack.splitlines()],
    )


def _meaningful(wchan: str | None) -> str | None:
    return wchan if wchan not in (None, "", "0") else None


def _syscall(text: str | None) -> str | None:
    """``futex``, a number where the name is not known, or ``running``."""
    word = (text or "").split(" ")[0].strip()
    if not word.isdecimal():
        return word or None
    named = _X86_64 if platform.machine() == "x86_64" else {}
    return named.get(int(word), f"syscall {word}")


def _read(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace")
    except OSError:
        return None
