"""Waiting: for records, for exits, for a wake-up call, and precisely for a deadline.

The source of records is polled, and not in an epoll: with that, the kernel would have somebody to
tell of every single write, whether he waits or not, and its writer would pay for it, half as much
again as for the write.  Processes may be many; they are in an epoll, which is polled, too.

poll counts in milliseconds, so it ends a millisecond or two before a deadline.  What is left is
slept, with the thread's timer slack set to its minimum, but for the last half of a millisecond:
that is not waited for at all.  A sleeping core wakes up 0.05 ms late, and with cold caches, so the
caller makes passes meanwhile; then the one that kills takes 0.05 ms, not 0.15.  Deadlines that come
so near are rare: most timers are released long before.
"""

from __future__ import annotations

import os
import select
import threading
import time

__all__ = ["Waiter"]

PRECISE = 0.001  # seconds: half of the last stretch, in which sleeping takes over
AWAKE = 0.0005  # seconds before a deadline that are not slept
LONGEST = 86_400.0  # seconds; poll's own limit is 2**31 milliseconds


class Waiter:
    """Waits for ``source``, and for what is registered, until a point of ``CLOCK_MONOTONIC``."""

    def __init__(self, source: int) -> None:
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._poller = _new_poller()
        self._many = _new_epoll()
        self._poller.register(source, select.POLLIN)
        self._poller.register(self._wake_reader, select.POLLIN)
        if self._many is not None:
            self._poller.register(self._many.fileno(), select.POLLIN)

    def register(self, fd: int) -> None:
        """Report ``fd``, too, when it can be read.  Raises OSError at the system's limits."""
        (self._many or self._poller).register(fd, select.POLLIN)

    def unregister(self, fd: int) -> None:
        """Stop reporting ``fd``."""
        (self._many or self._poller).unregister(fd)

    def wait(self, until: float, deadline: float) -> set[int]:
        """The readable descriptors; empty when it ended for another reason.

        It ends at ``until`` or up to a millisecond later, before ``deadline`` and then, called
        again, on the dot (both are monotonic seconds), and on a wake-up.
        """
        now = time.monotonic()
        left = deadline - now
        if left > 2 * PRECISE:
            return self._poll(min(until - now + PRECISE, left - PRECISE))
        if left > AWAKE:
            time.sleep(left - AWAKE)
        return self._poll(0)

    def wake(self) -> None:
        """Let ``wait`` return at once; from any thread."""
        try:
            os.write(self._wake_writer, b"!")
        except (BlockingIOError, OSError):
            pass  # it is awake enough, or closed

    def close(self) -> None:
        """Close what this object opened."""
        if self._many is not None:
            self._many.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def _poll(self, seconds: float) -> set[int]:
        milliseconds = int(min(max(seconds, 0.0), LONGEST) * 1000)
        ready = {fd for fd, _ in self._poller.poll(milliseconds)}
        if self._wake_reader in ready:
            ready.discard(self._wake_reader)
            try:
                os.read(self._wake_reader, 4096)
            except BlockingIOError:
                pass
        if self._many is not None and self._many.fileno() in ready:
            ready.discard(self._many.fileno())
            ready.update(fd for fd, _ in self._many.poll(0))
        return ready


def minimise_timer_slack() -> None:
    """Let sleeps of this thread end on time; the default is up to 0.05 ms late, or more."""
    try:
        with open(f"/proc/{threading.get_native_id()}/timerslack_ns", "w") as file:
            file.write("1")
    except OSError:
        pass


def _new_poller() -> select.poll:
    return select.poll()


def _new_epoll() -> select.epoll | None:
    return select.epoll() if hasattr(select, "epoll") else None
