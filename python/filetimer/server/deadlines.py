"""``Deadlines``: which timers are next, without work for those that are released before.

Most timers are released long before they expire, many within the chunk of records that acquired
them.  So a timer enters the heap only when somebody asks what is next, and one that is no longer
set stays in the heap until it surfaces or the heap is rebuilt.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from filetimer.wire.decoder import Record

__all__ = ["Deadlines", "Key"]

Key = str | tuple[str, int]
"""Of a timer within its worker: the scope, or the scope and the token (SPEC S-2)."""

MIN_REBUILD = 1024  # heap entries below which a rebuild is not worth it


class Deadlines:
    """Timers by the monotonic second at which each is due; ``is_set``: whether it still counts.

    ``add((at, timer, timers, key))`` lets a timer be due at ``at``; ``timers`` are those of its
    worker, where it is ``key``.
    """

    def __init__(self, is_set: Callable[[Record], bool]) -> None:
        self._is_set = is_set
        self._fresh: list[tuple[float, Record, dict[Key, Record], Key]] = []  # not yet in the heap
        # By time, then by arrival.  Such a tuple is nothing for the garbage collector to look at.
        self._heap: list[tuple[float, int, Record]] = []
        self._arrivals = 0
        self._rebuild_at = MIN_REBUILD
        self.add = self._fresh.append  # a method of its own would cost every acquire a call

    def next(self) -> float | None:
        """When the first timer that is set is due; None without any."""
        if self._fresh:
            self._settle()
        heap = self._heap
        while heap and not self._is_set(heap[0][2]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def first(self) -> Record | None:
        """The first timer that is set; None without any."""
        return None if self.next() is None else self._heap[0][2]

    def pop(self, until: float) -> Record | None:
        """Take the first timer that is set and due by ``until``; None if there is none."""
        at = self.next()
        if at is None or at > until:
            return None
        return heapq.heappop(self._heap)[2]

    def _settle(self) -> None:
        """Move fresh timers that are still set into the heap; rebuild it when others dominate."""
        for at, timer, timers, key in self._fresh:
            if timers.get(key) is timer:
                self._arrivals += 1
                heapq.heappush(self._heap, (at, self._arrivals, timer))
        self._fresh.clear()
        if len(self._heap) > self._rebuild_at:
            self._heap = [entry for entry in self._heap if self._is_set(entry[2])]
            heapq.heapify(self._heap)
            self._rebuild_at = max(MIN_REBUILD, 2 * len(self._heap))
