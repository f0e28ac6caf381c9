"""Spans side by side: which of a worker's blocks can be drawn in one row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from filetimer.replay import Span, WorkerId

__all__ = ["by_worker", "lanes"]


def by_worker(spans: Iterable[Span]) -> dict[WorkerId, list[Span]]:
    """The spans of each worker, by their begin; the workers by that of their first."""
    found: dict[WorkerId, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.begin):
        found[span.worker].append(span)
    return dict(found)


def lanes(spans: Iterable[Span], now: float, *, nest: bool) -> list[list[Span]]:
    """Distribute one worker's spans over as few lanes as greed finds.

    In a lane each two are apart, or, with ``nest``, one is within the other; those of threads
    overlap.  ``now`` is the end of what is still open, in monotonic seconds.
    """
    found: list[list[Span]] = []
    enclosing: list[list[float]] = []  # by lane: the ends of those that go on, inner ones last

    def end(span: Span) -> float:
        return max(span.begin, now) if span.end is None else span.end

    for span in sorted(spans, key=lambda span: (span.begin, -end(span))):
        for ends in enclosing:
            while ends and ends[-1] <= span.begin:
                ends.pop()
        fits = (not ends or (nest and end(span) <= ends[-1]) for ends in enclosing)
        lane = next((i for i, fit in enumerate(fits) if fit), len(found))
        if lane == len(found):
            found.append([])
            enclosing.append([])
        found[lane].append(span)
        enclosing[lane].append(end(span))
    return found
