"""Which worker of its group a process is: its rank, where that is known.

What `filetimer run` noted of it in a history that it kept comes first; then the attribute ``rank``
of its timers (SPEC R-12); and then, if it still runs, its environment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from filetimer.replay import Noted, Span, WorkerId, runs
from filetimer.server.events import Event

__all__ = ["Place", "place_in", "rank_attribute", "rank_by_pid", "rank_in_environment", "with_rank"]


class Place(NamedTuple):
    """A worker's rank; where it is known when it started, the restarts before, and that time.

    ``started`` is in monotonic seconds.
    """

    rank: int
    restart: int | None = None
    started: float | None = None


def place_in(
    started: Sequence[Noted], workers: Mapping[WorkerId, Sequence[Span]], *, look: bool = False
) -> dict[WorkerId, Place]:
    """The places of those workers, with their spans by begin, that have a known one.

    ``look``: whether to ask processes that run; not in a history of which nobody knows how old it
    is, or of which host.
    """
    noted: dict[int | None, list[Noted]] = defaultdict(list)
    for note in sorted(started, key=lambda note: note.at):
        noted[note.event.pid].append(note)
    found = {}
    for worker, spans in workers.items():
        place = _noted_place(noted[worker.pid], spans[0].begin) or _said_place(spans)
        if place is None and look:
            rank = rank_in_environment(worker)
            place = None if rank is None else Place(rank)
        if place is not None:
            found[worker] = place
    return found


def rank_by_pid(started: Sequence[Noted], ranks: Mapping[WorkerId, int]) -> dict[int | None, int]:
    """The ranks of pids, for events, which say no more; not of a pid that has had several."""
    found: dict[int | None, set[int]] = defaultdict(set)
    for worker, rank in ranks.items():
        found[worker.pid].add(rank)
    for _, event in started:  # of workers without a block, too
        if event.rank is not None:
            found[event.pid].add(event.rank)
    return {pid: min(several) for pid, several in found.items() if len(several) == 1}


def with_rank(event: Event, ranks: Mapping[int | None, int]) -> Event:
    """The event with the rank of its worker in it, if that is known."""
    rank = ranks.get(event.pid)
    return event if rank is None else msgspec.structs.replace(event, rank=rank)


def rank_attribute(attributes: Mapping[str, Any] | None) -> int | None:
    """The rank that a timer's attributes say."""
    rank = (attributes or {}).get("rank")
    return rank if type(rank) is int and rank >= 0 else None


def rank_in_environment(worker: WorkerId) -> int | None:
    """The rank that a running worker, or what started it, was told; None where there is none.

    RANK alone may be a stranger's (some schedulers number the hosts so): launchers set both.
    """
    try:
        with open(f"/proc/{worker.pid}/environ", "rb") as file:
            variables = dict(entry.partition(b"=")[::2] for entry in file.read().split(b"\0"))
    except OSError:  # it is gone, or another user's
        return None
    rank, local = variables.get(b"RANK", b""), variables.get(b"LOCAL_RANK", b"")
    known = rank.isdigit() and local.isdigit() and runs(worker)  # still: pids are given out again
    return int(rank) if known else None


def _noted_place(starts: list[Noted], begin: float) -> Place | None:
    """A pid may have been given out again: the last start before the first block counts."""
    for at, event in reversed(starts):
        if at <= begin and event.rank is not None:
            return Place(event.rank, event.restart, at)
    return None


def _said_place(spans: Sequence[Span]) -> Place | None:
    ranks = (rank_attribute(span.attributes) for span in spans)
    return next((Place(rank) for rank in ranks if rank is not None), None)
