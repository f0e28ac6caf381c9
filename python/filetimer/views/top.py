"""What ``filetimer top`` shows at one instant.  How it is drawn is in ``top_screen``."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from filetimer.replay import Follower, History, Noted, Span, WorkerId, is_alive, runs
from filetimer.server import events
from filetimer.server.journal import JournalError
from filetimer.server.timers import Now
from filetimer.views.lanes import by_worker
from filetimer.views.ranks import place_in, rank_by_pid, with_rank
from filetimer.views.source import NoServer, load

__all__ = ["Board", "Frame", "Note", "Past", "Row", "kept_frame"]

REMEMBERED = 100  # ended blocks and events: more than fit on a screen


@dataclass(frozen=True)
class Row:
    """A timer that is set, or a worker without one (``scope_id`` is None).  Times in seconds."""

    pid: int
    scope_id: str | None = None
    left: float = 0.0
    allowed: float = 0.0
    reports_only: bool = False
    rank: int | None = None
    attributes: dict[str, Any] | None = None

    @property
    def share(self) -> float:
        """What is left of the time allowed, from 0 to 1."""
        return min(1.0, max(0.0, self.left / self.allowed)) if self.allowed > 0 else 0.0


@dataclass(frozen=True)
class Past:
    """A block that has ended, so many seconds ``ago``."""

    pid: int
    scope_id: str
    took: float
    allowed: float
    how: str
    ago: float
    rank: int | None = None
    attributes: dict[str, Any] | None = None


@dataclass(frozen=True)
class Note:
    """Something that the server noted, in words."""

    ago: float
    text: str
    grave: bool


@dataclass(frozen=True)
class Frame:
    """All that there is to see.

    ``state`` is "running", "died" (its journal is still there), "stopped" (and took its journal
    along) or "kept" (a file that a job left).  ``rows`` has the timers that are set, the most
    urgent first, and then the workers without one.  The newest of ``recent`` and ``notes`` is
    first.  ``silent`` is how many seconds ago the server last wrote.
    """

    path: str
    run_id: str
    pid: int
    state: str
    silent: float
    rows: list[Row]
    recent: list[Past]
    notes: list[Note]
    records: int
    rate: float
    kills: int
    rejected: dict[str, int]

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return len({row.pid for row in self.rows})

    @property
    def timers(self) -> int:
        """How many timers are set."""
        return sum(row.scope_id is not None for row in self.rows)


class Board:
    """Follows one server's journal; :meth:`look` whenever a frame is wanted."""

    def __init__(self, journal: str) -> None:
        self._follower = Follower(journal)
        self._memory = _Memory()

    def look(self, now: Now) -> Frame:
        """What there is to see now.  Raises NoServer when there has never been anything."""
        stopped = False
        try:
            self._follower.poll(now)
        except FileNotFoundError:
            stopped = True
        except (JournalError, OSError) as error:
            raise NoServer(f"cannot read the journal: {error}") from None
        header = self._follower.header
        if not header:
            raise NoServer("the server has stopped")
        self._memory.take(self._follower.history)
        alive = not stopped and is_alive(header)
        state = "running" if alive else "stopped" if stopped else "died"
        return self._memory.frame(header, self._follower.history, now.monotonic, state)


def kept_frame(journal: str) -> Frame:
    """The end of a kept history.  Raises NoServer."""
    header, history = load(journal)
    memory = _Memory()
    memory.take(history)
    return memory.frame(header, history, history.last, "kept")


class _Memory:
    """What is remembered of a history; the rest is forgotten."""

    def __init__(self) -> None:
        self._spans: deque[Span] = deque(maxlen=REMEMBERED)
        self._noted: deque[Noted] = deque(maxlen=REMEMBERED)
        self._workers: dict[WorkerId, None] = {}  # in the order in which they came
        self._ranks: dict[WorkerId, int] = {}  # where they are known
        self._names: Counter[str] = Counter()

    def take(self, history: History) -> None:
        spans, noted = history.take()
        self._spans.extend(spans)
        self._noted.extend(noted)
        self._names.update(note.event.name for note in noted)
        self._workers |= dict.fromkeys(span.worker for span in spans)
        self._workers |= dict.fromkeys(span.worker for span in history.open.values())

    def _note_ranks(self, history: History, *, look: bool) -> None:
        """Find the ranks of those that are new; forget those that are no longer shown."""
        spans = [*self._spans, *history.open_spans()]
        shown = {**self._workers, **dict.fromkeys(span.worker for span in spans)}
        self._ranks = {w: rank for w, rank in self._ranks.items() if w in shown}
        unknown = {w: own for w, own in by_worker(spans).items() if w not in self._ranks}
        places = place_in(history.started, unknown, look=look)
        self._ranks |= {worker: place.rank for worker, place in places.items()}

    def frame(self, header: dict[str, Any], history: History, now: float, state: str) -> Frame:
        if state != "kept":
            self._workers = {worker: None for worker in self._workers if runs(worker)}
        self._note_ranks(history, look=state != "kept")
        ranks = rank_by_pid(history.started, self._ranks)
        return Frame(
            path=header["path"],
            run_id=header["run_id"],
            pid=header["server"]["pid"],
            state=state,
            silent=now - history.last,
            rows=[] if state == "stopped" else self._rows(history, now, state),
            recent=[self._past(span, now) for span in reversed(self._spans)],
            notes=[_note(noted, now, ranks) for noted in reversed(self._noted)],
            records=history.records,
            rate=history.rate(now),
            kills=self._names[events.KILL_WORKER],
            rejected=dict(history.rejected),
        )

    def _rows(self, history: History, now: float, state: str) -> list[Row]:
        spans = [s for s in history.open_spans() if state == "kept" or s.worker in self._workers]
        busy = {span.worker for span in spans}
        if state == "kept":
            return [self._row(span, now) for span in spans]
        idle = [
            Row(worker.pid, rank=self._ranks.get(worker))
            for worker in self._workers
            if worker not in busy
        ]
        return [*(self._row(span, now) for span in spans), *idle]

    def _row(self, span: Span, now: float) -> Row:
        return Row(
            span.worker.pid,
            span.scope_id,
            left=span.deadline - now,
            allowed=span.allowed,
            reports_only=span.signal <= 0,
            rank=self._ranks.get(span.worker),
            attributes=span.attributes,
        )

    def _past(self, span: Span, now: float) -> Past:
        end = now if span.end is None else span.end
        return Past(
            span.worker.pid,
            span.scope_id,
            took=end - span.begin,
            allowed=span.allowed,
            how=span.how,
            ago=now - end,
            rank=self._ranks.get(span.worker),
            attributes=span.attributes,
        )


def _note(noted: Noted, now: float, ranks: dict[int | None, int]) -> Note:
    return Note(
        now - noted.at,
        with_rank(noted.event, ranks).describe(),
        noted.event.name not in (events.TIMER_REFUSED, events.WORKER_EXITED),
    )
