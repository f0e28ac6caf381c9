"""What the kernel says of a process, read from outside: nothing here trusts the subject."""

from __future__ import annotations

import os
from pathlib import Path

_CLOEXEC = 0o2000000
SIGPIPE_BIT = 1 << (13 - 1)


def start_time(pid: int) -> int:
    """Field 22 of stat; the second field may hold spaces and parentheses."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def busy_seconds(pid: int) -> float:
    """For how long its threads ran, or waited for a processor that others had."""
    tasks = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    if tasks:
        return sum(int(ran) + int(waited) for ran, waited, _ in tasks) / 1e9
    # A kernel without it tells the former only.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    return _status_number(pid, "VmRSS", 10) * 1024


def pid_ns(pid: int | str = "self") -> int:
    return os.stat(f"/proc/{pid}/ns/pid").st_ino


def signal_masks(pid: int) -> dict[str, int]:
    """Pending, blocked, ignored and caught signals of the process's first thread."""
    return {
        name: _status_number(pid, name, 16)
        for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
    }


def _status_number(pid: int, name: str, base: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1], base)
    raise KeyError(name)


def descriptors_of(pid: int, path: str) -> dict[int, bool]:
    """The descriptors that the process has of the file at `path`: number to close-on-exec."""
    target = os.stat(path)
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held = os.stat(entry)
            flags = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
        except FileNotFoundError:
            continue  # closed meanwhile
        if (held.st_dev, held.st_ino) == (target.st_dev, target.st_ino):
            octal = next(line.split()[1] for line in flags.splitlines() if line.startswith("flags"))
            found[int(entry.name)] = bool(int(octal, 8) & _CLOEXEC)
    return found
