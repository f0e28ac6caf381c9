"""Sweeping: the journals that servers left behind which were killed and never came back.

Only a journal goes whose server is dead and whose FIFO is gone: as long as the FIFO is there, a
server may come back to it and take the timers over.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import time
from typing import Any

from filetimer.server.journal import boot_id
from filetimer.server.process import read_stat

__all__ = ["is_alive", "sweep"]

MOST = 100  # files that are looked at: a server must not be late because of it
OLD = 3600.0  # seconds after which a file that is made and gone within a moment was left behind
LONGEST_HEADER = 1 << 16


def sweep(directory: str) -> None:
    """Remove stale journals from this user's runtime directory, as far as that can be done."""
    for path in _some(directory, "*.journal"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if _is_stale(path):
                _remove(path)
    for path in (*_some(directory, "*.journal.tmp"), *_some(directory, "*.journal.stale")):
        with contextlib.suppress(OSError):
            if time.time() - os.lstat(path).st_mtime > OLD:
                os.unlink(path)


def is_alive(header: dict[str, Any]) -> bool:
    """Whether the server that wrote this header still runs."""
    stat = read_stat(header["server"]["pid"])
    return (
        header["boot_id"] == boot_id()
        and stat is not None
        and stat[0] not in "ZX"
        and stat[1] == header["server"].get("start_time", stat[1])
    )


def _some(directory: str, pattern: str) -> list[str]:
    return glob.glob(os.path.join(glob.escape(directory), pattern))[:MOST]


def _is_stale(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if os.fstat(fd).st_uid != os.geteuid():
            return False
        header = json.loads(file.readline(LONGEST_HEADER))
    in_other_ns = header["server"].get("pid_ns") != os.stat("/proc/self/ns/pid").st_ino
    if in_other_ns and header["boot_id"] == boot_id():
        return False  # its pid means nothing here
    return not is_alive(header) and not os.path.lexists(header["path"])


def _remove(path: str) -> None:
    """Remove the journal, unless a server has begun another one at its path meanwhile."""
    aside = path + ".stale"
    os.rename(path, aside)
    if not _is_stale(aside):
        with contextlib.suppress(FileExistsError):  # it has replaced this one already
            os.link(aside, path)
    os.unlink(aside)
