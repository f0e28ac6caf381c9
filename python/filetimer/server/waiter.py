"""Waiting: for descriptors, for a wake-up call, and precisely for a deadline.

epoll counts in milliseconds, so it ends a millisecond or two before a deadline.  What is left is
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
LONGEST = 86_400.0  # seconds; epoll's own limit is 2**31 milliseconds


class Waiter:
    """Waits for the descriptors registered with it, until a point of ``CLOCK_MONOTONIC``."""

    def __init__(self) -> None:
        self._poller = _new_poller()
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self.register(self._wake_reader)

    def register(self, fd: int) -> None:
        """Report ``fd`` when it can be read.  Raises OSError at the system's limits."""
        self._poller.register(fd, select.POLLIN)

    def unregister(self, fd: int) -> None:
        """Stop reporting ``fd``."""
        self._poller.unregister(fd)

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
        getattr(self._poller, "close", lambda: None)()
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
        return ready


def minimise_timer_slack() -> None:
    """Let sleeps of this thread end on time; the default is up to 0.05 ms late, or more."""
    try:
        with open(f"/proc/{threading.get_native_id()}/timerslack_ns", "w") as file:
            file.write("1")
    except OSError:
        pass


class _Epoll:
    """epoll with poll's unit, milliseconds."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.register = self._epoll.register
        self.unregister = self._epoll.unregister
        self.close = self._epoll.close

    def poll(self, milliseconds: int) -> list[tuple[int, int]]:
        # Python rounds up to the next millisecond: stay below the whole one that is meant.
        return self._epoll.poll(max(0.0, milliseconds - 0.1) / 1000)


def _new_poller() -> _Epoll | select.poll:
    return _Epoll() if hasattr(select, "epoll") else select.poll()
