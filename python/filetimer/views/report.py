"""What ``filetimer report`` shows of a job.  How it is drawn is in ``report_charts`` and
``report_page``.

A row of the timeline is one rank, where ranks are known (``views.ranks``), with its processes one
after another.  Of the others, a worker that started after another had ended is put behind it, in
the order in which they were started.  So a group that is restarted has as many rows as it has
workers, and in the order of its ranks where it was started in that; the records do not say ranks.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from filetimer.replay import History, Noted, Span, WorkerId
from filetimer.server import events
from filetimer.server.events import describe_attributes
from filetimer.views.lanes import by_worker, lanes
from filetimer.views.ranks import Place, place_in, rank_by_pid, with_rank
from filetimer.views.suggest import Advice, advise

__all__ = [
    "CLOSE",
    "Bar",
    "Durations",
    "Report",
    "Row",
    "Timeline",
    "bars",
    "make_report",
]

MAX_SCOPES = 7  # with a colour of their own: more cannot be told apart
MAX_HISTOGRAMS = 12
MAX_ROWS = 128
MAX_LANES = 4  # blocks within blocks, or of threads, of one worker
CLOSE = 0.2  # of the time allowed was left at most: a close call
MAX_CLOSE = 200
TICK = 0.01  # seconds: start times count in hundredths
MAX_BARS = 30_000  # of all rows: what a page can hold


@dataclass(frozen=True)
class Row:
    """One row of the timeline: processes, one after another, and their blocks in lanes.

    ``starts`` are when they began, or began their first blocks, but for those of a restart that is
    drawn as such.
    """

    workers: list[WorkerId]
    starts: list[float]
    lanes: list[list[Span]]
    rank: int | None = None

    @property
    def label(self) -> str:
        """Which worker this is."""
        return self._pids(3) if self.rank is None else f"rank {self.rank}"

    @property
    def title(self) -> str:
        """What there is to say of it beside that."""
        said = describe_attributes(self._attributes())
        pids = ("pid " if len(self.workers) == 1 else "pids ") + self._pids(20)
        return f"{pids}, {said}" if said else pids

    def title_of(self, span: Span) -> str:
        """A block of it, and what that says, in one line."""
        said = describe_attributes(span.attributes or {})
        who = f"pid {span.worker.pid}"
        who = who if self.rank is None else f"{self.label} ({who})"
        return f"{who}: {span.scope_id}" + (f", {said}" if said else "")

    def _pids(self, most: int) -> str:
        pids = [str(worker.pid) for worker in self.workers]
        shown = pids if len(pids) <= most else [*pids[: most - 2], "…", pids[-1]]
        return " → ".join(shown)

    def _attributes(self) -> dict[str, Any]:
        """What all its blocks say."""
        given = [span.attributes or {} for lane in self.lanes for span in lane]
        return dict(item for item in given[0].items() if all(item in g.items() for g in given))


@dataclass(frozen=True)
class Timeline:
    """All rows.  ``marks`` are by row: what ran out, was close, or is still open.  Times are
    monotonic seconds; ``scopes`` are those with a colour of their own; ``restarts`` those of the
    whole group, where they are known."""

    begin: float
    end: float
    rows: list[Row]
    hidden: int
    scopes: list[str]
    kills: list[float]
    restarts: list[float]
    ran_out: list[tuple[int, Span]]
    close: list[tuple[int, Span]]
    still_open: list[tuple[int, Span]]


@dataclass(frozen=True)
class Durations:
    """How long the blocks of one scope took, in seconds, and the deadlines that they had."""

    scope_id: str
    first: list[float]
    later: list[float]
    allowed: list[float]
    suggested: float | None
    ran_out: int


@dataclass(frozen=True)
class Report:
    """Everything on the page.  ``began`` is Unix time.  ``ranks`` is 0 where none is known."""

    path: str
    run_id: str
    began: float
    covered: float
    complete: bool
    workers: int
    ranks: int
    blocks: int
    records: int
    kills: int
    rejected: dict[str, int]
    timeline: Timeline
    durations: list[Durations]
    hidden_scopes: int
    advice: list[Advice]
    notes: list[tuple[float, str, str]]


def make_report(header: dict[str, Any], history: History, *, look: bool = False) -> Report:
    """The report on a history; ``look`` at its processes if it is that of a server of now."""
    spans = [*history.spans, *history.open_spans()]
    first = history.first or 0.0
    workers = by_worker(spans)
    places = place_in(history.started, workers, look=look)
    if look and len(places) < len(workers):  # those that are gone would not be in their ranks' rows
        places = place_in(history.started, workers)
    ranks = rank_by_pid(history.started, {w: place.rank for w, place in places.items()})
    advice = advise(spans)
    scopes = list(dict.fromkeys(row.scope_id for row in advice))
    kills = [noted for noted in history.events if noted.event.name == events.KILL_WORKER]
    return Report(
        path=header["path"],
        run_id=header["run_id"],
        began=first + history.to_wall,
        covered=history.last - first,
        complete=history.complete,
        workers=len(workers),
        ranks=len({place.rank for place in places.values()}),
        blocks=len(spans),
        records=history.records,
        kills=len(kills),
        rejected=dict(history.rejected),
        timeline=_timeline(history, spans, _rows(workers, places, history.last), kills),
        durations=[_durations(scope, spans, advice) for scope in scopes[:MAX_HISTOGRAMS]],
        hidden_scopes=max(0, len(scopes) - MAX_HISTOGRAMS),
        advice=advice[: 4 * MAX_HISTOGRAMS],
        notes=[_note(noted, first, ranks) for noted in history.events],
    )


def _timeline(history: History, spans: list[Span], rows: list[Row], kills: list[Noted]) -> Timeline:
    shown = _most_telling(rows)
    of_row = [(i, span) for i, row in enumerate(shown) for lane in row.lanes for span in lane]
    close = [(i, s) for i, s in of_row if s.completed and s.headroom < CLOSE and not s.cut]
    return Timeline(
        begin=history.first or 0.0,
        end=history.last,
        rows=shown,
        hidden=len(rows) - len(shown),
        scopes=_by_time(spans, history.last)[:MAX_SCOPES],
        kills=[noted.at for noted in kills],
        restarts=[at for at in _restarts(history.started) if at >= (history.first or 0.0)],
        ran_out=[(i, span) for i, span in of_row if _ran_out(span)],
        close=sorted(close, key=lambda found: found[1].headroom)[:MAX_CLOSE],
        still_open=[(i, span) for i, span in of_row if span.end is None],
    )


def _most_telling(rows: list[Row]) -> list[Row]:
    """As many as can be shown, in their order; those in which something ran out come first."""
    telling = [any(_ran_out(span) for lane in row.lanes for span in lane) for row in rows]
    chosen = sorted(range(len(rows)), key=lambda i: not telling[i])[:MAX_ROWS]
    return [rows[i] for i in sorted(chosen)]


def _restarts(started: list[Noted]) -> list[float]:
    """When each restart of the group began."""
    first: dict[int, float] = {}
    for at, event in started:
        if event.restart:
            first[event.restart] = min(at, first.get(event.restart, at))
    return sorted(first.values())


def _rows(
    workers: dict[WorkerId, list[Span]], places: dict[WorkerId, Place], last: float
) -> list[Row]:
    """A row for each rank that is known, in their order, and then those of the other workers."""
    of_rank: dict[int, list[WorkerId]] = defaultdict(list)
    for worker in workers:  # by their first blocks
        if worker in places:
            of_rank[places[worker].rank].append(worker)
    rows = []
    for rank in sorted(of_rank):
        own = of_rank[rank]
        found = lanes((s for w in own for s in workers[w]), last, nest=False)[:MAX_LANES]
        seen = [w for w in own if not places[w].restart]
        rows.append(Row(own, [workers[w][0].begin for w in seen], found, rank))
    others = {worker: own for worker, own in workers.items() if worker not in places}
    return rows + _rows_of_others(others, last)


def _rows_of_others(workers: dict[WorkerId, list[Span]], last: float) -> list[Row]:
    rows: list[Row] = []
    ends: list[float] = []
    for worker in sorted(workers, key=lambda worker: _seniority(worker, workers[worker])):
        own = workers[worker]
        begin = own[0].begin
        end = max(last if span.end is None else span.end for span in own)
        found = lanes(own, last, nest=False)[:MAX_LANES]
        started = min(begin, _started(worker, begin) + 2 * TICK)
        at = next((i for i, busy_until in enumerate(ends) if busy_until < started), None)
        if at is None:
            rows.append(Row([worker], [begin], found))
            ends.append(end)
            continue
        row, ends[at] = rows[at], end
        row.workers.append(worker)
        row.starts.append(begin)
        for i, lane in enumerate(found):
            if i < len(row.lanes):
                row.lanes[i].extend(lane)
            else:
                row.lanes.append(lane)
    return rows


def _started(worker: WorkerId, begin: float) -> float:
    """When it started, to a tick; where that is unknown, when its first block began."""
    if worker.start_time is None:
        return begin
    return worker.start_time / os.sysconf("SC_CLK_TCK")


def _seniority(worker: WorkerId, own: list[Span]) -> tuple[float, int]:
    return _started(worker, own[0].begin), worker.pid


def _by_time(spans: Iterable[Span], last: float) -> list[str]:
    """The scopes, those with most time in them first."""
    time_in: Counter[str] = Counter()
    for span in spans:
        time_in[span.scope_id] += max(span.duration(last), 1e-9)  # type: ignore[assignment]
    return [scope for scope, _ in time_in.most_common()]


def _durations(scope: str, spans: list[Span], advice: list[Advice]) -> Durations:
    own = [span for span in spans if span.scope_id == scope and not span.cut]
    ended = [span for span in own if span.completed]
    suggested = [row.suggested for row in advice if row.scope_id == scope and row.suggested]
    return Durations(
        scope,
        first=[span.duration(0) for span in ended if span.nth == 0],
        later=[span.duration(0) for span in ended if span.nth != 0],
        allowed=_distinct([span.allowed for span in own if span.allowed > 0]),
        suggested=max(suggested, default=None),
        ran_out=sum(map(_ran_out, own)),
    )


def _distinct(allowed: Sequence[float]) -> list[float]:
    """The most usual deadlines, at most three, without what receipt makes of them."""
    rounded = Counter(float(f"{value:.2g}") for value in allowed)
    return sorted(value for value, _ in rounded.most_common(3))


def _ran_out(span: Span) -> bool:
    return span.how in ("killed", "expired") and (span.end or 0.0) >= span.deadline - 1e-3


def _note(noted: Noted, first: float, ranks: dict[int | None, int]) -> tuple[float, str, str]:
    """When, in seconds since the beginning, what, and the details."""
    name, _, details = with_rank(noted.event, ranks).describe().partition(": ")
    return noted.at - first, name, details


@dataclass(frozen=True)
class Bar:
    """What is drawn for one or more blocks of a scope; of ``None``, the scopes without a colour."""

    row: int
    lane: int
    scope_id: str | None
    begin: float
    end: float


def bars(timeline: Timeline) -> list[Bar]:
    """What to draw: blocks as they are, and those narrower than a column by columns.

    A column that many narrow blocks share has the colour of the scope that most of it is.
    """
    number = sum(len(row.lanes) for row in timeline.rows)
    columns = min(1500, max(100, MAX_BARS // max(1, number)))
    width = max(timeline.end - timeline.begin, 1e-6) / columns
    coloured = set(timeline.scopes)
    found: list[Bar] = []
    for i, row in enumerate(timeline.rows):
        for j, lane in enumerate(row.lanes):
            narrow: dict[int, Counter[str | None]] = defaultdict(Counter)
            for span in lane:
                scope = span.scope_id if span.scope_id in coloured else None
                end = timeline.end if span.end is None else span.end
                if end - span.begin >= width:
                    found.append(Bar(i, j, scope, span.begin, end))
                else:
                    column = int((span.begin - timeline.begin) / width)
                    narrow[column][scope] += max(end - span.begin, 1e-9)  # type: ignore[assignment]
            found += _columns(i, j, narrow, timeline.begin, width)
    return found


def _columns(
    row: int, lane: int, narrow: dict[int, Counter[str | None]], begin: float, width: float
) -> list[Bar]:
    """A bar for each run of columns that are mostly of one scope."""
    found: list[Bar] = []
    for column in sorted(narrow):
        scope = narrow[column].most_common(1)[0][0]
        start = begin + column * width
        before = found[-1] if found else None
        if before and before.scope_id == scope and abs(before.end - start) < width / 2:
            found[-1] = Bar(row, lane, scope, before.begin, start + width)
        else:
            found.append(Bar(row, lane, scope, start, start + width))
    return found
