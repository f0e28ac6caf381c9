"""Who this process is, in the terms of the wire (SPEC section 3)."""

from __future__ import annotations

import os

__all__ = ["own_identity"]


def own_identity() -> tuple[int | None, int | None]:
    """Start time (clock ticks since boot) and pid namespace of this process; None if unknown."""
    return _start_time(), _pid_namespace()


def _start_time() -> int | None:
    try:
        with open("/proc/self/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def _pid_namespace() -> int | None:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None
