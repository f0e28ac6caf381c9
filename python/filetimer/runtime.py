"""Where servers and workers keep what other processes of the same user may read.

Memory-backed, because a stalled disk must stall no server, and not XDG_RUNTIME_DIR, because that
goes away when the user logs out while the job goes on.
"""

from __future__ import annotations

import os
import stat

__all__ = ["VARIABLE", "journal_path", "runtime_directory", "stacks_directory"]

VARIABLE = "FILETIMER_RUNTIME_DIR"


def runtime_directory(create: bool = False) -> str:
    """This user's runtime directory: FILETIMER_RUNTIME_DIR, or one in /dev/shm or the temp dir.

    With ``create`` it is made, with mode 0700, and checked.  Raises PermissionError when somebody
    else owns it or may write to it, another OSError when it cannot be made.
    """
    path = os.environ.get(VARIABLE) or os.path.join(_memory_backed(), f"filetimer-{os.geteuid()}")
    if create:
        os.makedirs(path, mode=0o700, exist_ok=True)
        _require_private(path)
    return path


def journal_path(fifo_path: str, directory: str) -> str:
    """The journal of the server at this FIFO: a restarted one finds its predecessor's."""
    return os.path.join(directory, f"{_digest(fifo_path)}.journal")


def stacks_directory(fifo_path: str, directory: str) -> str:
    """Where the workers of the server at this FIFO leave files for their stacks."""
    return os.path.join(directory, f"{_digest(fifo_path)}.stacks")


def _digest(fifo_path: str) -> str:
    import hashlib  # a worker that offers no stacks does without

    return hashlib.sha256(os.fsencode(os.path.abspath(fifo_path))).hexdigest()[:16]


def _memory_backed() -> str:
    shared_memory = "/dev/shm"
    if os.access(shared_memory, os.W_OK | os.X_OK):
        return shared_memory
    import tempfile  # costs as much as all the rest of a worker's imports

    return tempfile.gettempdir()


def _require_private(path: str) -> None:
    status = os.lstat(path)
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not ours or status.st_mode & 0o022:
        raise PermissionError(
            f"{path} is not a directory that only you can write to: remove it, or set {VARIABLE}"
        )
