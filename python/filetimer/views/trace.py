"""Chrome Trace Event JSON: the blocks of a job beside the traces of torch's profiler.

The format is the JSON object form that Perfetto and chrome://tracing read: complete events ("X")
for blocks, instant events ("i") for what the server noted, metadata ("M") for names.  ``ts`` and
``dur`` are microseconds.

Clocks.  torch's profiler writes ``ts`` as Unix time in microseconds since ``baseTimeNanoseconds``,
a time that is a whole number of quarters of a year after the epoch, so that a double keeps the
nanoseconds.  We do the same, so that both lie on one axis: monotonic times become Unix times by
what the two clocks said at the end of the history.  Durations are the monotonic clock's.  Where
the wall clock was stepped during the job, torch's times from before the step are off by it.

A worker's rows are in the process with its pid, where torch's rows are, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from filetimer.replay import History, Noted, Span, WorkerId
from filetimer.views.lanes import by_worker, lanes
from filetimer.views.ranks import place_in, rank_by_pid
from filetimer.views.words import HOW

__all__ = ["QUARTER", "add_to", "trace"]

QUARTER = 7_889_238  # seconds: a quarter of 365.2425 days
FIRST_TID = 10_000_000  # above any thread id: pid_max is at most 2**22
CATEGORY = "filetimer"


def trace(history: History, *, look: bool = False) -> dict[str, Any]:
    """The history as a trace of its own; ``look`` at its processes if it is of a server of now."""
    first = (history.first or 0.0) + history.to_wall
    base = int(first // QUARTER) * QUARTER * 10**9
    return {
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": base,
        "traceEvents": list(_events(history, base, frozenset(), look)),
    }


def add_to(other: dict[str, Any], history: History, *, look: bool = False) -> dict[str, Any]:
    """The trace of torch's profiler with this history in it, on its axis.

    Raises ValueError when it is no such trace.
    """
    theirs = other.get("traceEvents") if isinstance(other, dict) else None
    if not isinstance(theirs, list):
        raise ValueError("it has no list traceEvents")
    base = int(other.get("baseTimeNanoseconds", 0))
    named = frozenset(e.get("pid") for e in theirs if e.get("name") == "process_name")
    return {**other, "traceEvents": [*theirs, *_events(history, base, named, look)]}


def _events(
    history: History, base: int, named: frozenset[Any], look: bool
) -> Iterator[dict[str, Any]]:
    """``named``: the processes that have a name already."""
    axis = _Axis(history.to_wall, base)
    workers = by_worker([*history.spans, *history.open.values()])
    places = place_in(history.started, workers, look=look)
    ranks = rank_by_pid(history.started, {w: place.rank for w, place in places.items()})
    noted = [*history.started, *history.events]
    pids = {worker.pid for worker in workers} | {event.pid for _, event in noted}
    for pid in sorted(pid for pid in pids if pid is not None and pid not in named):
        rank = ranks.get(pid)
        title = f"worker {pid}" if rank is None else f"rank {rank} (pid {pid})"
        yield _metadata("process_name", pid, 0, name=title)
        if rank is not None:
            yield _metadata("process_sort_index", pid, 0, sort_index=rank)
    tid = FIRST_TID
    for worker, spans in workers.items():
        for i, lane in enumerate(lanes(spans, history.last, nest=True)):
            tid += 1
            title = "filetimer" if i == 0 else f"filetimer ({i + 1})"
            yield _metadata("thread_name", worker.pid, tid, name=title)
            yield from (_block(span, worker, tid, axis, history.last) for span in lane)
    yield from _instants(noted, axis)


class _Axis:
    """Monotonic seconds to microseconds of the trace."""

    def __init__(self, to_wall: float, base: int) -> None:
        self._offset = round(to_wall * 1e6) - base // 1000  # whole numbers: floats would round

    def __call__(self, monotonic: float) -> float:
        return round(monotonic * 1e6) + self._offset


def _block(span: Span, worker: WorkerId, tid: int, axis: _Axis, last: float) -> dict[str, Any]:
    end = max(last, span.begin) if span.end is None else span.end
    details: dict[str, Any] = {
        "ended": HOW[span.how],
        "allowed_seconds": _plain(span.allowed),
        "headroom": _plain(span.headroom) if span.completed else None,
        "signal": span.signal,
        "begin": "not seen: before the history" if span.cut else None,
        "call": None if span.nth is None else span.nth + 1,
        "attributes": span.attributes,
    }
    return {
        "ph": "X",
        "cat": CATEGORY,
        "name": span.scope_id,
        "pid": worker.pid,
        "tid": tid,
        "ts": axis(span.begin),
        "dur": axis(end) - axis(span.begin),
        "args": {key: value for key, value in details.items() if value is not None},
    }


def _instants(noted: Iterable[Noted], axis: _Axis) -> Iterator[dict[str, Any]]:
    for at, event in noted:
        if event.pid is not None:
            details = event.to_dict()
            if event.restart:
                details["name"] = f"restart {event.restart}"
            yield {
                "ph": "i",
                "s": "p",
                "cat": CATEGORY,
                "name": details.pop("name"),
                "pid": event.pid,
                "tid": 0,
                "ts": axis(at),
                "args": details,
            }


def _metadata(kind: str, pid: int, tid: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "ts": 0, "args": args}


def _plain(value: float) -> float | None:
    """To six digits; JSON has no infinity."""
    return round(value, 6) if math.isfinite(value) else None
