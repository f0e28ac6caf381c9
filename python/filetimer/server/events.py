"""What a server reports: the event names, their fields, and the ways they leave the process.

The first four names are torch's and are all that its ``log_event`` callback receives.  Every event
goes to ``on_event``.  A callback that raises is logged and changes nothing.
"""

from __future__ import annotations

import json
import logging
import signal as signals
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from filetimer.requests import FileTimerRequest

__all__ = [
    "Event",
    "EventLog",
    "EventReporter",
    "describe_attributes",
    "describe_lateness",
    "describe_signal",
]

logger = logging.getLogger("filetimer")

WATCHDOG_STARTED = "watchdog started"
WATCHDOG_STOPPED = "watchdog stopped"
TIMER_EXPIRED = "timer expired"
KILL_WORKER = "kill worker process"
TORCH_NAMES = frozenset({WATCHDOG_STARTED, WATCHDOG_STOPPED, TIMER_EXPIRED, KILL_WORKER})

RECORD_REJECTED = "record rejected"
TIMER_REFUSED = "timer refused"
WORKER_EXITED = "worker exited"
WORKER_DIED = "worker died"
KILL_FAILED = "kill failed"
KILL_ESCALATED = "kill escalated"
WORKER_UNKILLABLE = "worker unkillable"
CALLBACK_FAILED = "callback failed"
DEGRADED = "server degraded"
RECOVERED = "server recovered"
SERVER_DIED = "server died"
TIMER_OVERDUE = "timer overdue"
WORKER_HELD = "worker held"
MENDED = "server mended"
WORKER_STARTED = "worker started"  # of `filetimer run`, which starts them

LIMITED = frozenset({RECORD_REJECTED, TIMER_REFUSED})  # whoever can write can make any number
SAY_AGAIN = 60.0  # seconds until a cause of degradation is reported again
MAX_SINGLE = 100  # of these in one second are events of their own; the others are summed up


# What readers of the journal cannot see in the records.
JOURNALLED = frozenset(
    {
        TIMER_EXPIRED,
        KILL_WORKER,
        TIMER_REFUSED,
        WORKER_EXITED,
        WORKER_DIED,
        KILL_FAILED,
        KILL_ESCALATED,
        WORKER_UNKILLABLE,
    }
)
MAX_UNWRITTEN = 1000  # events of one pass that are kept: a flood must not fill the journal


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened.  Fields that do not apply are None.

    ``code`` is the code of a rejected record (SPEC section 5), or the reason of a refusal (SPEC
    S-11), or what a degraded server lacks.  ``late`` is in seconds past the deadline.  ``count``
    says how many of a kind one event stands for, where it is not one.  ``time`` is Unix time.
    ``evidence`` is the path of the report on a hung worker, ``where`` the innermost frames of its
    hang.  ``attributes`` are the timer's (SPEC R-12).  ``rank`` and ``restart`` are those of a
    worker that was started: ``restart`` counts those of its group, 0 at first.
    """

    name: str
    pid: int | None = None
    scope_id: str | None = None
    token: int | None = None
    signal: int | None = None
    code: str | None = None
    late: float | None = None
    expiration_time: float | None = None
    detail: str | None = None
    count: int | None = None
    time: float = 0.0
    evidence: str | None = None
    where: str | None = None
    attributes: dict[str, Any] | None = None
    rank: int | None = None
    restart: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that apply, for JSON."""
        fields = msgspec.structs.asdict(self)
        return {name: value for name, value in fields.items() if value is not None}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Event:
        """The event that :meth:`to_dict` took apart."""
        return msgspec.convert(fields, cls)

    def describe(self) -> str:
        """The event in one line, for people."""
        parts = []
        if self.code is not None:
            parts.append(self.code)
        if self.count is not None:
            parts.append(f"{self.count} times")
        if self.pid is not None:
            parts.append(f"pid {self.pid}")
        if self.rank is not None:
            parts.append(f"rank {self.rank}")
        if self.restart is not None:
            parts.append(f"restart {self.restart}")
        if self.scope_id is not None:
            parts.append(f"scope {self.scope_id!r}")
        if self.attributes:
            parts.append(describe_attributes(self.attributes))
        if self.late is not None:
            parts.append(describe_lateness(self.late))
        if self.signal is not None:
            parts.append(describe_signal(self.signal))
        if self.detail is not None:
            parts.append(self.detail)
        if self.where is not None:
            parts.append(f"in {self.where}")
        if self.evidence is not None:
            parts.append(f"evidence in {self.evidence}")
        return f"{self.name}: {', '.join(parts)}" if parts else self.name

    def request(self) -> FileTimerRequest | None:
        """The timer that the event is about, as torch's callback expects it."""
        if self.pid is None or self.scope_id is None or self.expiration_time is None:
            return None
        return FileTimerRequest(self.pid, self.scope_id, self.expiration_time, self.signal or 0)


def describe_signal(signum: int) -> str:
    """The signal's name; a number that has none stays a number."""
    if signum <= 0:
        return "report only"
    try:
        return signals.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def describe_attributes(attributes: Mapping[str, Any]) -> str:
    """``rank=3 step=120``; whatever a client wrote, it is printable and on one line."""
    return " ".join(f"{_word(name)}={_word(value)}" for name, value in attributes.items())


def _word(value: object) -> str:
    plain = isinstance(value, str) and value.isprintable() and value.isascii() and " " not in value
    return str(value) if plain and value else json.dumps(value)


def describe_lateness(late: float) -> str:
    """``late``, in seconds, in words."""
    if late < 1:
        return f"{late * 1000:.1f} ms past its deadline"
    return f"{late:.3f} s past its deadline"


LogEvent = Callable[[str, "FileTimerRequest | None"], None]


class EventLog:
    """Writes events as lines of text.

    Rejections and refusals are written at most ``max_logged`` times in ``interval`` seconds; how
    many were left out is written later (SPEC X-2).  ``write`` gets a level of ``logging`` and the
    text.
    """

    def __init__(
        self, write: Callable[[int, str], None], max_logged: int = 10, interval: float = 10.0
    ) -> None:
        self._write = write
        self._max_logged, self._interval = max_logged, interval
        self._window_start, self._logged, self._suppressed = 0.0, 0, 0

    def __call__(self, event: Event) -> None:
        """Write one event, or count it as left out."""
        if event.name in LIMITED and not self._may_log(event):
            return
        routine = event.name in (WATCHDOG_STARTED, WATCHDOG_STOPPED)
        self._write(logging.INFO if routine else logging.WARNING, event.describe())

    def _may_log(self, event: Event) -> bool:
        now = event.time
        if now - self._window_start >= self._interval:
            if self._suppressed:
                self._write(logging.WARNING, f"{self._suppressed} more rejections were not logged")
            self._window_start, self._logged, self._suppressed = now, 0, 0
        self._logged += 1
        if self._logged > self._max_logged:
            self._suppressed += event.count or 1
            return False
        return True


class EventReporter:
    """Hands every event to the log and to the callbacks.

    ``counts`` counts every event by name and code.  Of rejections and refusals, at most
    :data:`MAX_SINGLE` a second are handed on one by one; the others are one event for each name and
    code when the second is over (:meth:`flush`), with their ``count``: a flood of garbage must not
    become a flood of events.
    """

    def __init__(
        self,
        log_event: LogEvent | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.counts: dict[tuple[str, str | None], int] = {}
        self._unwritten: list[Event] = []  # for the journal
        self.next_flush: float | None = None  # monotonic seconds
        self._log = EventLog(logger.log)
        self._log_event = log_event
        self._on_event = on_event
        self._window_end, self._single = 0.0, 0
        self._withheld: dict[tuple[str, str | None], int] = {}
        self._degraded: dict[str, float] = {}  # when it was said last

    def take_unwritten(self) -> list[Event]:
        """What was reported since the last call and is to be kept in the journal."""
        unwritten, self._unwritten = self._unwritten, []
        return unwritten

    def report(self, name: str, **fields: Any) -> None:
        """Report one event; ``fields`` are those of :class:`Event`.

        ``detail`` may be a function that finds the words, if they are needed.
        """
        key, count = (name, fields.get("code")), fields.get("count") or 1
        self.counts[key] = self.counts.get(key, 0) + count
        if name in LIMITED and not self._may_be_single(key, count):
            return
        if callable(fields.get("detail")):
            fields["detail"] = fields["detail"]()
        self._hand_on(Event(name, time=time.time(), **fields))

    @property
    def is_flooded(self) -> bool:
        """Whether rejections and refusals are summed up at this moment."""
        return self._single > MAX_SINGLE and time.monotonic() < self._window_end

    def withhold(self, name: str, code: str | None, count: int) -> None:
        """Count events without looking at them: they are reported in sum, when it is time."""
        self.counts[name, code] = self.counts.get((name, code), 0) + count
        self._withheld[name, code] = self._withheld.get((name, code), 0) + count
        self.next_flush = self.next_flush or self._window_end

    def degraded(self, code: str, detail: str) -> None:
        """Report what the server lacks: each cause once, and again only after a while."""
        now = time.monotonic()
        if now - self._degraded.get(code, float("-inf")) >= SAY_AGAIN:
            self._degraded[code] = now
            self.report(DEGRADED, code=code, detail=detail)

    def flush(self, monotonic: float) -> None:
        """Report what was withheld, if its time has come."""
        if self.next_flush is None or monotonic < self.next_flush:
            return
        self.next_flush = None
        withheld, self._withheld = self._withheld, {}
        for (name, code), count in withheld.items():
            self._hand_on(Event(name, code=code, count=count, time=time.time()))

    def _may_be_single(self, key: tuple[str, str | None], count: int) -> bool:
        now = time.monotonic()
        if now >= self._window_end:
            self._window_end, self._single = now + 1.0, 0
        self._single += 1
        if self._single <= MAX_SINGLE:
            return True
        self._withheld[key] = self._withheld.get(key, 0) + count
        self.next_flush = self.next_flush or self._window_end
        return False

    def _hand_on(self, event: Event) -> None:
        if event.name in JOURNALLED and len(self._unwritten) < MAX_UNWRITTEN:
            self._unwritten.append(event)
        self._log(event)
        if self._log_event is not None and event.name in TORCH_NAMES:
            self._call("log_event", self._log_event, event.name, event.request())
        if self._on_event is not None:
            self._call("on_event", self._on_event, event)

    def _call(self, which: str, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception as error:
            logger.exception("the callback %s raised; the server goes on", which)
            self._report_failure(which, error)

    def _report_failure(self, which: str, error: Exception) -> None:
        """``on_event`` hears of a failure of ``log_event``, but not of its own."""
        if which != "on_event":
            detail = f"{type(error).__name__}: {error}"
            self.report(CALLBACK_FAILED, code=which, detail=detail)
        else:
            key = (CALLBACK_FAILED, which)
            self.counts[key] = self.counts.get(key, 0) + 1
