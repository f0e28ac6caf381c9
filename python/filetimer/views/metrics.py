"""Prometheus metrics of one server, from its journal: what ``filetimer metrics`` serves.

Needs ``prometheus-client`` (``filetimer[metrics]``).  What the journal still holds when this starts
is counted, too.  Scopes are what clients make of them, so only the first :data:`MAX_SCOPES` have a
label of their own; the others share ``other``.
"""

from __future__ import annotations

import os
from collections import Counter as Count
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from filetimer.replay import Follower, Noted, Span, is_alive, runs
from filetimer.runtime import journal_path, runtime_directory
from filetimer.server import events
from filetimer.server.journal import JournalError
from filetimer.server.timers import Now
from filetimer.views.source import NoServer, choose_journal
from filetimer.views.words import printable, shortened

__all__ = ["MAX_SCOPES", "OTHER", "Exporter", "journal_finder"]

MAX_SCOPES = 50
OTHER = "other"
LABEL_WIDTH = 120  # characters of a scope

LATENESS = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.1, 0.5, 1, 5, 30)
DURATIONS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
)
HEADROOM = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)


def journal_finder(path: str | None) -> Callable[[], str]:
    """Says which journal to follow; it may not exist (yet).  Raises NoServer.

    With a ``path`` it is that server's; without, that of the only one there is.
    """
    if path is None:
        return choose_journal
    journal = journal_path(path, runtime_directory())
    return lambda: journal


class Exporter:
    """Follows a server, and whatever server comes after it.

    Args:
        find: see :func:`journal_finder`; asked again whenever no server is being followed.
        max_scopes: how many scopes have a label of their own.
    """

    def __init__(self, find: Callable[[], str], max_scopes: int = MAX_SCOPES) -> None:
        self._find = find
        self._max_scopes = max_scopes
        self._scopes: set[str] = set()
        self._journal: str | None = None
        self._follower: Follower | None = None
        self._records, self._rejected = 0, Count[str]()  # of the follower, as counted already
        self.registry = CollectorRegistry()
        self._define_server_metrics()
        self._define_scope_metrics()

    def _define_server_metrics(self) -> None:
        registry = self.registry
        self._up = Gauge("filetimer_up", "Whether the timer server runs", registry=registry)
        self._server = Info("filetimer_server", "The server that is or was seen", registry=registry)
        self._active = Gauge(
            "filetimer_active_timers", "Timers that are set now", registry=registry
        )
        self._received = Counter(
            "filetimer_records", "Valid records that were received", registry=registry
        )
        self._rejections = Counter(
            "filetimer_rejections",
            "Lines that were no records, and acquires that were refused",
            ["reason"],
            registry=registry,
        )
        self._expirations = Counter(
            "filetimer_expirations", "Timers that ran out", registry=registry
        )
        self._kills = Counter(
            "filetimer_kills", "Workers that were signalled because time ran out", registry=registry
        )
        self._failures = Counter(
            "filetimer_kill_failures",
            "Signals that could not be sent, and workers that outlived SIGKILL",
            registry=registry,
        )
        self._lateness = Histogram(
            "filetimer_lateness_seconds",
            "From a deadline until the server acted on it",
            buckets=LATENESS,
            registry=registry,
        )
        self._kill_lateness = Histogram(
            "filetimer_kill_lateness_seconds",
            "From a deadline to the signal, with the time that evidence took",
            buckets=LATENESS,
            registry=registry,
        )

    def _define_scope_metrics(self) -> None:
        self._durations = Histogram(
            "filetimer_scope_duration_seconds",
            "How long blocks took that came to their end",
            ["scope"],
            buckets=DURATIONS,
            registry=self.registry,
        )
        self._headroom = Histogram(
            "filetimer_scope_headroom_ratio",
            "Time left at the end of a block, over the time that it was allowed",
            ["scope"],
            buckets=HEADROOM,
            registry=self.registry,
        )
        self._ended = Counter(
            "filetimer_scope_ended",
            "Blocks by how they ended",
            ["scope", "how"],
            registry=self.registry,
        )

    def update(self, now: Now) -> bool:
        """Take in what is new.  Whether a server runs."""
        try:
            alive = self._poll(now)
        except (NoServer, OSError, JournalError):  # none now; of several, none was named
            alive = False
        self._up.set(alive)
        active = 0
        if alive and self._follower is not None:
            active = sum(runs(span.worker) for span in self._follower.history.open_spans())
        self._active.set(active)
        return alive

    def _poll(self, now: Now) -> bool:
        if self._journal is None or not os.path.exists(self._journal):
            self._follow(self._find())
        if self._take(now):
            return True
        before = self._journal
        self._follow(self._find())  # one that died may have a successor elsewhere
        return self._journal != before and self._take(now)

    def _follow(self, journal: str) -> None:
        if journal != self._journal:
            self._journal, self._follower = journal, Follower(journal)
            self._records, self._rejected = 0, Count()

    def _take(self, now: Now) -> bool:
        assert self._follower is not None
        self._follower.poll(now)
        history, header = self._follower.history, self._follower.header
        self._received.inc(history.records - self._records)
        for reason, count in (history.rejected - self._rejected).items():
            self._rejections.labels(reason).inc(count)
        self._records, self._rejected = history.records, history.rejected.copy()
        spans, noted = history.take()
        for span in spans:
            self._count_span(span)
        for note in noted:
            self._count_event(note)
        server = {"path": printable(header["path"]), "run_id": printable(header["run_id"])}
        self._server.info({**server, "pid": str(header["server"]["pid"])})
        return is_alive(header)

    def _count_span(self, span: Span) -> None:
        scope = self._label(span.scope_id)
        self._ended.labels(scope, span.how).inc()
        if span.completed and not span.cut and span.end is not None:
            self._durations.labels(scope).observe(span.end - span.begin)
            self._headroom.labels(scope).observe(span.headroom)

    def _count_event(self, noted: Noted) -> None:
        event = noted.event
        if event.name == events.TIMER_EXPIRED:
            self._expirations.inc()
            self._lateness.observe(event.late or 0.0)
        elif event.name == events.KILL_WORKER:
            self._kills.inc()
            self._kill_lateness.observe(event.late or 0.0)
        elif event.name in (events.KILL_FAILED, events.WORKER_UNKILLABLE):
            self._failures.inc()

    def _label(self, scope_id: str) -> str:
        scope = shortened(printable(scope_id), LABEL_WIDTH)
        if scope not in self._scopes:
            if len(self._scopes) >= self._max_scopes:
                return OTHER
            self._scopes.add(scope)
        return scope
