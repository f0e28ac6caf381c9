"""Deadlines from data: the estimator, and what it makes of censored and first calls."""

from __future__ import annotations

import random

import pytest

from filetimer.replay import Span, WorkerId
from filetimer.views.suggest import LEAST, RISK, TAIL, TOO_FEW, advise, factor, quantile, suggest


def spans(
    durations: list[float], allowed: float = 10.0, how: str = "released", **fields: object
) -> list[Span]:
    worker = fields.pop("worker", WorkerId(1, 1))
    first = fields.pop("nth", 1)
    return [
        Span(worker, "s", None, 9, 128.0 * i, 128.0 * i + allowed, 128.0 * i + took, how, first)  # type: ignore[arg-type]
        for i, took in enumerate(durations)
    ]


def test_the_risk_is_kept_where_the_tail_is_as_heavy_as_it_may_be() -> None:
    """Of jobs with Pareto durations of the index assumed, few calls pass the suggestion."""
    chance = random.Random(5)
    for samples in (20, 200):
        risks = []
        for _ in range(2000):
            longest = max(chance.paretovariate(TAIL) for _ in range(samples))
            risks.append((factor(samples) * longest) ** -TAIL)  # P(X > x) of that distribution
        assert sum(risks) / len(risks) <= 1.2 * RISK


def test_more_calls_need_less_of_a_factor() -> None:
    factors = [factor(n) for n in (TOO_FEW, 100, 1000, 10_000, 10**7)]
    assert factors == sorted(factors, reverse=True)
    assert [round(f, 1) for f in factors] == [9.8, 5.6, 3.2, 1.8, 1.5]


@pytest.mark.parametrize(
    ("longest", "samples", "expected"),
    [(0.001, 1000, LEAST), (2.0, 10**6, 3.0), (1.0, 100, 5.7), (100, 1000, 320)],
)
def test_a_suggestion_is_rounded_up(longest: float, samples: int, expected: float) -> None:
    assert suggest(longest, samples) == expected


def test_quantile() -> None:
    assert [quantile(list(range(1, 101)), share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert quantile([3.0], 0.99) == 3.0


@pytest.mark.parametrize(
    ("allowed", "verdict"), [(3.0, "raise"), (8.0, "fine"), (120.0, "could be lower")]
)
def test_verdicts(allowed: float, verdict: str) -> None:
    (row,) = advise(spans([1.0] * 99 + [1.25], allowed))
    assert (row.verdict, row.suggested) == (verdict, 7.1)
    assert (row.median, row.p99, row.longest, row.allowed) == (1.0, 1.0, 1.25, allowed)
    assert row.headroom == pytest.approx(1 - 1.25 / allowed)


def test_too_few() -> None:
    (row,) = advise(spans([1.0] * (TOO_FEW - 1)))
    assert (row.verdict, row.suggested, row.count) == ("too few", None, TOO_FEW - 1)
    assert f"{TOO_FEW} are needed" in row.why


def test_censored_spans_are_counted_apart_and_are_no_durations() -> None:
    found = spans([1.0] * 50)
    for how in ("killed", "killed", "expired", "exited", "lost", "open"):
        found += spans([10.0], how=how)
    (row,) = advise(found)
    assert row.longest == 1.0
    assert row.count == 50
    assert row.censored == {"killed": 2, "expired": 1, "exited": 1, "lost": 1, "open": 1}
    assert "3 ran out of time" in row.why


def test_only_censored_spans() -> None:
    (row,) = advise(spans([10.0] * 20, how="killed"))
    assert (row.verdict, row.count, row.longest, row.headroom) == ("too few", 0, None, None)


def test_a_span_whose_begin_was_not_seen_is_left_out() -> None:
    cut = spans([0.1] * 20)
    for span in cut:
        span.cut = True
    assert advise(cut) == []


def test_first_calls_are_apart_and_warn_against_a_lower_deadline() -> None:
    first, later = advise(spans([30.0], allowed=60, nth=0) + spans([0.5] * 1000, allowed=60))
    assert (first.first_call, first.verdict, first.longest) == (True, "too few", 30.0)
    assert (later.first_call, later.verdict, later.longest) == (False, "could be lower", 0.5)
    assert "first calls took up to 30.0 s" in later.why


def test_workers_of_a_group_are_not_samples_of_their_own() -> None:
    """Eight ranks that take four steps together say as much as four calls."""
    ranks = [WorkerId(pid, 1) for pid in range(8)]
    (later,) = advise([span for rank in ranks for span in spans([1.0] * 4, worker=rank)])
    assert (later.verdict, later.count) == ("too few", 32)
    (first,) = advise([span for rank in ranks * 2 for span in spans([1.0], worker=rank, nth=0)])
    assert (first.first_call, first.verdict) == (True, "fine")


def test_the_allowance_is_the_latest() -> None:
    found = spans([1.0] * 100, allowed=2.0) + spans([1.0] * 200, allowed=20.0)[100:]
    assert advise(found)[0].allowed == 20.0
