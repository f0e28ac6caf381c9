"""Python stacks on request, without ptrace: ``faulthandler`` on a signal that is free.

The worker leaves an empty file in the runtime directory, whose name tells the server's collector
which signal makes the worker write its stacks there.  faulthandler writes from the signal handler
itself: also while native code holds the GIL, and without Python code being run.

``FILETIMER_STACKS=0`` in the environment keeps a worker from offering any: the signal makes a
sleep, a poll or a select in C return early, with EINTR.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal

from filetimer.client.identity import own_identity
from filetimer.runtime import runtime_directory, stacks_directory

__all__ = ["VARIABLE", "offer_stacks", "offer_stacks_again"]

VARIABLE = "FILETIMER_STACKS"

logger = logging.getLogger("filetimer")

_fifo_path: str | None = None  # what was offered, and is to be offered by forked children, too
_offered: tuple[int, str, int] | None = None  # pid, path and descriptor


def offer_stacks(fifo_path: str) -> None:
    """Let the server at this FIFO ask for the stacks of this process.  Never raises."""
    global _fifo_path
    wanted = os.environ.get(VARIABLE) != "0" and hasattr(signal, "SIGRTMIN")
    if wanted and not _is_offered(fifo_path):
        _fifo_path = fifo_path
        try:
            _offer(fifo_path)
        except Exception as error:  # a worker must not fail for want of it
            logger.debug("no stacks are offered: %s", error)


def offer_stacks_again() -> None:
    """In a forked child: offer its own, if the parent offered its stacks."""
    if _fifo_path is not None:
        offer_stacks(_fifo_path)


def _is_offered(fifo_path: str) -> bool:
    return _offered is not None and _offered[0] == os.getpid() and _fifo_path == fifo_path


def _offer(fifo_path: str) -> None:
    global _offered
    signum = _free_signal()
    start_time, _ = own_identity()
    if signum is None or start_time is None:
        return
    directory = stacks_directory(fifo_path, runtime_directory(create=True))
    os.makedirs(directory, mode=0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    temporary = os.path.join(directory, f"{os.getpid()}.{os.urandom(4).hex()}.tmp")
    fd = os.open(temporary, flags, 0o600)
    # The name says it all, and is there only when the handler is.
    path = os.path.join(directory, f"{os.getpid()}-{start_time}-{signum}-{fd}")
    try:
        import faulthandler

        faulthandler.register(signum, file=fd, all_threads=True)
        os.rename(temporary, path)
    except BaseException:
        os.close(fd)
        os.unlink(temporary)
        raise
    if _offered is None:
        atexit.register(_withdraw)
    elif _offered[0] == os.getpid():  # for another server; nothing writes there any more
        _withdraw()
        os.close(_offered[2])
    _offered = os.getpid(), path, fd


def _free_signal() -> int | None:
    """A real-time signal that nothing in this process handles, ignores or blocks."""
    taken = 0
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(("SigBlk:", "SigIgn:", "SigCgt:")):
                taken |= int(line.split()[1], 16)
    if _offered is not None:  # ours, from before a fork or for another server
        taken &= ~(1 << int(os.path.basename(_offered[1]).split("-")[2]) - 1)
    # From above: programs that use such signals count from below.
    candidates = range(signal.SIGRTMAX - 2, signal.SIGRTMIN + 1, -1)
    return next((signum for signum in candidates if not taken >> signum - 1 & 1), None)


def _withdraw() -> None:
    if _offered is not None and _offered[0] == os.getpid():
        try:
            os.unlink(_offered[1])
        except OSError:
            pass  # the server cleaned up before us
