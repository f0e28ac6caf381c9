"""What a command raises for a mistake of its user: one sentence and an exit status."""

from __future__ import annotations

import errno
import os
import sys

__all__ = [
    "FAILED",
    "REAPED",
    "USAGE",
    "CommandError",
    "cannot_run",
    "require_linux",
    "system_error",
]

USAGE = 2
REAPED = 124  # the statuses of timeout(1), which scripts know already
FAILED = 125
CANNOT_RUN = 126
NOT_FOUND = 127


class CommandError(Exception):
    """Ends the command with this sentence on stderr and this exit status."""

    def __init__(self, sentence: str, status: int = USAGE) -> None:
        super().__init__(sentence)
        self.status = status


def cannot_run(error: OSError) -> CommandError:
    """For a program that could not be run; the statuses are a shell's."""
    status = NOT_FOUND if error.errno == errno.ENOENT else CANNOT_RUN
    return CommandError(f"cannot run {error.filename!r}: {error.strerror}", status)


def system_error(what: str, error: OSError) -> CommandError:
    """For something that the system refused; ``what`` we were about to do."""
    reason = error.strerror or str(error)
    if error.filename is not None and os.fsdecode(error.filename) not in reason:
        reason = f"{reason}: {os.fsdecode(error.filename)}"
    return CommandError(f"cannot {what}: {reason}", FAILED)


def require_linux() -> None:
    """Raises CommandError elsewhere."""
    if not sys.platform.startswith("linux"):
        raise CommandError("this command needs Linux: it relies on prctl and /proc", FAILED)
