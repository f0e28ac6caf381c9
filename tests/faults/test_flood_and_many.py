"""What must hold in a flood, and with many at once, in sizes for every day; speed is not tested."""

from __future__ import annotations

import pytest

from faults import flood, many


@pytest.mark.parametrize("kind", ["garbage", "blank lines", "wrong start times"])
def test_no_timer_is_lost_in_a_flood(kind: str) -> None:
    found = flood.measure(kind, 6)
    assert (found["kills"] + found["undelivered"], found["lost"], found["early"]) == (6, 0, 0)
    assert found["kills"] >= 3  # those that were acquired before the flood, at least


def test_no_block_that_ends_in_time_is_acted_on() -> None:
    found = many.million_blocks(20_000, 4)
    assert found["blocks"] == 20_000
    assert found["late"] < 20_000
    assert (found["wrong"], found["refused"], found["left"]) == (0, 0, 0)


def test_all_workers_exit_at_once() -> None:
    found = many.exit_at_once(40, 10)
    assert (found["timers"], found["seen"], found["killed"], found["lost"]) == (400, 40, 0, 0)
    assert found["late_ms"] >= 0


def test_all_virtual_workers_exit_at_once() -> None:
    found = many.virtual_exit_at_once(1000, 10)
    assert (found["timers"], found["left"], found["killed"]) == (10_000, 0, 0)
