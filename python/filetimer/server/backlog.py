"""Rejected lines that wait for their report: a flood of them must hold up no kill (SPEC X-1, X-2).

They are reported after the kills of a pass, a slice at a time.  Lines of garbage that are the same
are one entry with a count, and are judged only now.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator

from filetimer.wire.decoder import Garbage, Rejection, code_of_garbage, judge_garbage

__all__ = ["Backlog"]

SLICE = 1000  # entries that are reported in one pass: some milliseconds' work
TALLY = 5000  # the same, of entries that are only counted
FULL = 20_000  # entries: while there are so many, writers have to wait
MOST = 150_000  # entries that outlive a pass: deadlines may make it read on, again and again


class Backlog:
    """Rejections, not in order."""

    def __init__(self) -> None:
        self._judged: collections.deque[Rejection] = collections.deque()
        self._fresh: list[Garbage] = []  # not yet counted
        self._garbage: collections.Counter[bytes] = collections.Counter()

    def __bool__(self) -> bool:
        return bool(self._judged or self._garbage or self._fresh)

    @property
    def is_full(self) -> bool:
        """Whether reading should wait, unless somebody's deadline has come."""
        return len(self._judged) + len(self._garbage) >= FULL

    def add(self, results: list[Rejection | Garbage]) -> None:
        """Take them in."""
        self._judged += [result for result in results if isinstance(result, Rejection)]
        self._fresh += [result for result in results if isinstance(result, Garbage)]

    def take_slice(self) -> Iterator[tuple[Rejection, int]]:
        """The next that are to be reported, and how many lines each stands for."""
        self._count()
        return self._take(max(SLICE, len(self._judged) + len(self._garbage) - MOST))

    def tally_slice(self) -> dict[str, int]:
        """The next that are only to be counted: how many lines deserve each code."""
        self._count()
        tally: collections.Counter[str] = collections.Counter()
        for _ in range(min(TALLY, len(self._judged))):
            tally[self._judged.popleft().code] += 1
        for _ in range(min(max(TALLY, len(self._garbage) - MOST), len(self._garbage))):
            line, count = self._garbage.popitem()
            tally[code_of_garbage(line)] += count
        return tally

    def take_all(self) -> Iterator[tuple[Rejection, int]]:
        """As :meth:`take_slice`, all that there are."""
        self._count()
        return self._take(len(self._judged) + len(self._garbage))

    def _count(self) -> None:
        while self._fresh:
            self._garbage.update(self._fresh[-1].lines)
            self._fresh.pop()

    def _take(self, most: int) -> Iterator[tuple[Rejection, int]]:
        for _ in range(min(most, len(self._judged) + len(self._garbage))):
            if self._judged:
                yield self._judged.popleft(), 1
            else:
                line, count = self._garbage.popitem()
                yield judge_garbage(line), count
