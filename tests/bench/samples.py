"""Samples and what is told of them: medians with quartiles, ratios of what was measured in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

__all__ = ["Effort", "Spread", "alternate", "no_garbage", "ratios", "spread", "time_of"]


class Effort(NamedTuple):
    """How much work a run may take."""

    quick: bool

    def __call__(self, full: int, quick: int) -> int:
        return quick if self.quick else full


class Spread(NamedTuple):
    """A median with what lies around it."""

    median: float
    lower: float  # quartile
    upper: float  # quartile
    p99: float
    count: int

    def text(self, unit: str) -> str:
        """Of seconds: as ``unit`` (ns, us or ms); of ratios: as ``x``."""
        factor = {"x": 1.0, "s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[unit]
        median, lower, upper = (f"{value * factor:.3g}" for value in self[:3])
        return f"{median} {unit} ({lower} to {upper})"


def spread(samples: Sequence[float]) -> Spread:
    """Raises ValueError without samples."""
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("nothing was measured")
    return Spread(
        statistics.median(ordered),
        _quantile(ordered, 0.25),
        _quantile(ordered, 0.75),
        _quantile(ordered, 0.99),
        len(ordered),
    )


def _quantile(ordered: Sequence[float], q: float) -> float:
    """Linear between neighbours, as numpy's default is."""
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Of samples that were taken in turn, pair by pair."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def alternate(
    sides: Mapping[str, Callable[[], float]], rounds: int, pause: Callable[[], None] | None = None
) -> dict[str, list[float]]:
    """Measure each side once a round.  ``pause`` comes before each; nobody times it.

    The order turns from round to round, so that no side always comes after the same other.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for _ in range(rounds):
        for name in names:
            if pause is not None:
                pause()
            samples[name].append(sides[name]())
        names.append(names.pop(0))
    return samples


def time_of(work: Callable[[], object], parts: int = 1) -> float:
    """Seconds that ``work`` takes, by the part of it."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / parts


@contextmanager
def no_garbage() -> Iterator[None]:
    """The collector runs before, and not meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
