"""Deadlines from data: what ``filetimer suggest`` says of each scope.

The estimator
-------------
A deadline that is too short kills a healthy worker; one that is too long only finds a hang later.
So it is chosen for few false kills: at most about :data:`RISK` a call.

Durations have no known distribution.  What holds for all of them: of ``n + 1`` calls that are alike
the last is the longest with probability ``1 / (n + 1)``.  That is the risk of the longest duration
seen, taken as a deadline, and it is far too much.  Beyond it there are no data, so something must
be assumed of the tail: that it falls at least as fast as ``x ** -TAIL``.  (A choice
on the safe side: the variance of such durations exists, and can be estimated.)  Then a deadline of
``factor * longest`` is passed with a probability of at most
``factor ** -TAIL / (n + 1)``, and :data:`RISK` gives the factor: 5.6 after 100 calls, 1.8 after
10,000; never less than :data:`LEAST_FACTOR`, because tomorrow's data are not today's, and never
less than :data:`LEAST` seconds, because a host can hiccup that long under any code.

``n`` counts calls that say something of their own.  The workers of a group take the same step
together, so steady calls are counted for the worker that has most; of first calls, each counts.

First calls are apart: compilation, lazy initialisation and cold caches make them slow.  Durations
are only of calls that came to their end.  Those that were killed, expired, were lost, exited or are
still open lasted at least so long, and nobody knows how long: they are counted, and that is all.
Calls whose begin is not in the history are left out.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from filetimer.replay import Span
from filetimer.views.words import seconds

__all__ = ["LEAST", "LEAST_FACTOR", "RISK", "TAIL", "TOO_FEW", "Advice", "advise", "quantile"]

RISK = 1e-5
"""The probability that a healthy call takes longer than its suggested deadline, at most."""

TAIL = 4.0
"""The durations' tail is assumed to fall at least as fast as x to the minus this."""

LEAST_FACTOR = 1.5
LEAST = 1.0  # second
TOO_FEW = 10  # calls below which nothing is suggested
SLACK = 1.02  # a time allowed counts from its receipt, and is somewhat longer than it looks
GENEROUS = 4.0  # times the suggestion: above that, a hang is found needlessly late


@dataclass(frozen=True)
class Advice:
    """What the data say of one scope's first calls, or of its later ones.  Times are seconds.

    ``count`` calls came to their end; ``censored`` are those that did not, by how they ended.
    ``allowed`` is the shortest time that such a call was given lately, ``headroom`` what the
    longest left of it, as a share.  ``verdict`` is "raise", "could be lower", "fine" or "too few".
    """

    scope_id: str
    first_call: bool
    count: int
    censored: dict[str, int]
    median: float | None
    p99: float | None
    longest: float | None
    allowed: float
    headroom: float | None
    suggested: float | None
    verdict: str
    why: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def advise(spans: Iterable[Span]) -> list[Advice]:
    """Advice for every scope, those with most time in them first; first calls before later ones."""
    scopes: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        if not span.cut:
            scopes[span.scope_id].append(span)
    by_time = sorted(scopes.items(), key=lambda item: -_time_in(item[1]))
    return [advice for scope_id, found in by_time for advice in _advise_scope(scope_id, found)]


def _advise_scope(scope_id: str, spans: list[Span]) -> list[Advice]:
    first = [span for span in spans if span.nth == 0]
    later = [span for span in spans if span.nth != 0]
    slow_start = max((_duration(span) for span in first if span.completed), default=None)
    found = [_advise(scope_id, True, first, None)] if first else []
    return found + ([_advise(scope_id, False, later, slow_start)] if later else [])


def _advise(scope_id: str, first_call: bool, spans: list[Span], slow_start: float | None) -> Advice:
    durations = sorted(_duration(span) for span in spans if span.completed)
    censored = Counter(span.how for span in spans if not span.completed)
    allowed = _allowed(spans)
    longest = durations[-1] if durations else None
    samples = len(durations) if first_call else _samples(spans)
    suggested = None
    if longest is not None and samples >= TOO_FEW:
        suggested = suggest(longest, samples)
    verdict, why = _judge(allowed, longest, samples, suggested, censored, slow_start)
    return Advice(
        scope_id=scope_id,
        first_call=first_call,
        count=len(durations),
        censored=dict(censored),
        median=statistics.median(durations) if durations else None,
        p99=quantile(durations, 0.99) if durations else None,
        longest=longest,
        allowed=allowed,
        headroom=None if longest is None or allowed <= 0 else 1 - longest / allowed,
        suggested=suggested,
        verdict=verdict,
        why=why,
    )


def suggest(longest: float, samples: int) -> float:
    """The deadline for calls of which ``samples`` took at most ``longest`` seconds."""
    return _round_up(max(factor(samples) * longest, LEAST))


def factor(samples: int) -> float:
    """By how much the deadline is above the longest duration of so many."""
    return float(max(LEAST_FACTOR, (1 / (RISK * (samples + 1))) ** (1 / TAIL)))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest of these values that at least this share of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _judge(
    allowed: float,
    longest: float | None,
    samples: int,
    suggested: float | None,
    censored: Counter[str],
    slow_start: float | None,
) -> tuple[str, str]:
    ran_out = censored["killed"] + censored["expired"]
    remark = f"; {ran_out} ran out of time" if ran_out else ""
    if suggested is None or longest is None:
        return "too few", f"{samples} calls say something, {TOO_FEW} are needed{remark}"
    why = f"{suggested / longest:.1f} times the longest of {samples}"
    if suggested == LEAST:
        why = f"never below {seconds(LEAST)}"
    if suggested > SLACK * allowed:
        return "raise", why + remark
    if slow_start is not None and LEAST_FACTOR * slow_start > suggested:
        remark = f"; but first calls took up to {seconds(slow_start)}{remark}"
    if allowed > GENEROUS * suggested:
        return "could be lower", why + remark
    return "fine", why + remark


def _samples(spans: list[Span]) -> int:
    """The most completed calls that one worker made."""
    counts = Counter(span.worker for span in spans if span.completed)
    return max(counts.values(), default=0)


def _allowed(spans: list[Span]) -> float:
    """The shortest time that was given among the latest calls; which may have been changed."""
    latest = sorted(spans, key=lambda span: span.begin)[-TOO_FEW:]
    return min(span.allowed for span in latest)


def _time_in(spans: list[Span]) -> float:
    return sum(_duration(span) for span in spans)


def _duration(span: Span) -> float:
    return 0.0 if span.end is None else span.end - span.begin


def _round_up(value: float) -> float:
    """To two digits: a suggestion knows no more."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / unit - 1e-9) * unit, 9)
