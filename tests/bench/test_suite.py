"""The suite's own parts: arithmetic, table, instruction counts; and that each measure works."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from bench import instructions, suite
from bench.bed import DrainedFifo, Missing, Process, compiled, folder, server, tool, worker
from bench.samples import Effort, Spread, alternate, ratios, spread
from bench.table import BEGIN, END, Row, Target, as_json, as_markdown, put_into

MACHINE = {"date": "2026-01-31", "cores": 2, "kernel": "6.18", "python": "3.11.0", "torch": "none"}


def test_spread_of_known_samples() -> None:
    assert spread([5, 1, 3, 2, 4]) == Spread(3, 2, 4, pytest.approx(4.96), 5)
    assert spread([1, 2]).median == 1.5
    assert spread([7]) == Spread(7, 7, 7, 7, 1)
    with pytest.raises(ValueError, match="nothing was measured"):
        spread([])


def test_ratios_are_of_pairs_and_not_of_medians() -> None:
    assert ratios([2, 40, 6], [1, 10, 2]).median == 3
    with pytest.raises(ValueError, match="zip"):
        ratios([1], [1, 2])


def test_units() -> None:
    assert spread([0.00000125]).text("us") == "1.25 us (1.25 to 1.25)"
    assert spread([0.25, 0.25]).text("ms") == "250 ms (250 to 250)"


def test_sides_take_turns_and_every_side_is_first_once() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return len(order)

    took = alternate({name: lambda name=name: side(name) for name in "abc"}, 3)
    assert "".join(order) == "abcbcacab"
    assert {name: len(samples) for name, samples in took.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_pause_comes_before_each_measurement() -> None:
    order: list[str] = []
    alternate({"a": lambda: order.append("a") or 1.0}, 2, lambda: order.append("-"))
    assert order == ["-", "a", "-", "a"]


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target(2.0, "x", at_most=2.0), True),
        (Target(2.01, "x", at_most=2.0), False),
        (Target(8.0, "x", at_least=8.0), True),
        (Target(7.99, "x", at_least=8.0), False),
        (Target(math.nan, "x", at_most=2.0), False),
    ],
)
def test_targets(target: Target, met: bool) -> None:
    assert target.met is met


def test_one_missed_target_is_a_missed_row() -> None:
    good, bad = Target(1, "x", at_most=2), Target(3, "x", at_most=2)
    assert Row("m", "r", targets=(good, good)).verdict == "met"
    assert Row("m", "r", targets=(good, bad)).verdict == "**missed**"
    assert Row("m", "r").verdict == ""


def test_table() -> None:
    rows = [
        Row("a", "1 us", "2 us", (Target(0.5, "x", at_most=0.75),), "because"),
        Row("b|c", "", note="because"),
    ]
    text = as_markdown(rows, MACHINE)
    assert "| a [1] | 1 us | 2 us | 0.50 (≤ 0.75x) | met |" in text
    assert r"| b\|c [1] |" in text
    assert text.count("because") == 1
    result = json.loads(json.dumps(as_json(rows, MACHINE)))
    assert result["rows"][0]["targets"][0]["value"] == 0.5
    assert result["rows"][0]["verdict"] == "met"


def test_a_table_replaces_the_one_between_the_marks(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    put_into(document, "new\n")
    put_into(document, "newer\n")
    assert document.read_text() == f"before\n{BEGIN}\nnewer\n{END}\nafter\n"


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, BEGIN + END + BEGIN + END])
def test_a_document_without_its_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    document = tmp_path / "README.md"
    document.write_text(text)
    with pytest.raises(ValueError, match=r"README\.md needs one line"):
        put_into(document, "new\n")
    assert document.read_text() == text


def test_only_instructions_of_the_program_count() -> None:
    profile = """events: Ir
fn=main
ob=/tmp/x/pair-gcc
fl=pair.c
fn=main
16 100
+1 20
cob=/lib/libc.so.6
cfn=write
calls=2 0
17 5000
18 3
ob=/lib/libc.so.6
fn=write
0 4990
ob=/tmp/x/pair-gcc
fn=other
* 7
"""
    assert instructions.own_instructions(profile, "pair-gcc") == 130


@pytest.mark.parametrize(
    ("now", "before", "bad", "said"),
    [
        (1049.0, 1000.0, False, "+4.9%"),
        (1051.0, 1000.0, True, "make bench-record"),
        (940.0, 1000.0, True, "make bench-record"),
        (940.0, None, False, "none is recorded for this compiler"),
    ],
)
def test_verdict_on_instructions(now: float, before: float | None, bad: bool, said: str) -> None:
    text, is_bad = instructions.verdict("gcc 12 x86_64", "masked", now, before)
    assert is_bad is bad
    assert said in text


def test_a_missing_tool_is_said_in_the_table_but_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CI", raising=False)
    (row,) = suite.run(Effort(True), ["system_calls"])
    assert "strace is not installed (Debian package strace)" in row.result
    assert row.verdict == ""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(Missing, match="strace"):
        list(suite.run(Effort(True), ["system_calls"]))


def test_the_machine_has_no_name() -> None:
    assert set(suite.machine()) == {"date", "cores", "kernel", "python", "torch"}


def test_what_a_server_under_test_says() -> None:
    with (
        folder() as where,
        server("ours", where) as ours,
        worker(where, "flood", ours.path, "ours", 7, 1000, 3) as flood,
    ):
        flood.tell()
        assert flood.hear() == "ready"
        ours.wait_for_timers(21)
        flood.tell()
        first, last, refused = map(float, flood.hear().split())
        assert ours.wait_until_drained() >= first
        assert (last > first, refused, ours.timers()) == (True, 0, (21, 0))
        assert ours.cpu() > 0


@pytest.mark.parametrize("name", ["c_pair", "expires_block", "death"])
def test_a_measure_yields_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick ones, with hardly any rounds and without torch; what they say is not judged."""
    module = __import__(f"bench.measures.{name}", fromlist=["rows"])
    if hasattr(module, "has_torch"):
        monkeypatch.setattr(module, "has_torch", lambda: False)
    if name == "death":
        monkeypatch.setattr(module, "BIG", 1 << 20)

    class Hardly(Effort):
        def __call__(self, full: int, quick: int) -> int:
            return 2

    rows = list(module.rows(Hardly(True)))
    assert rows
    assert all(row.measure and row.result for row in rows)
    as_markdown(rows, MACHINE)


def test_the_pipe_of_a_drained_fifo_takes_a_burst(tmp_path: Path) -> None:
    from bench.clients import pairs, two_writes
    from filetimer import FileTimerClient

    fifo = DrainedFifo(tmp_path / "fifo")
    client = FileTimerClient(fifo.path)
    two_writes(fifo, client)()
    written = fifo.read()
    pairs(client)()
    assert len(fifo.read().splitlines()) == len(written.splitlines()) == 500


def test_a_child_that_has_died_is_told_from_one_that_is_slow() -> None:
    with Process("true") as child, pytest.raises(EOFError, match="has died"):
        child.hear()
    with Process("cat") as child, pytest.raises(TimeoutError, match="does not answer"):
        child.hear(0.05)


def test_writers_end_with_their_parent() -> None:
    with folder() as where, server("ours", where) as ours:
        with worker(where, "flood", ours.path, "ours", 3, 0, 2) as flood:
            flood.tell()
            flood.hear()
            ours.wait_for_timers(6)
        give_up = time.monotonic() + 60
        while ours.timers()[0]:  # a worker that has exited has none
            assert time.monotonic() < give_up
            time.sleep(0.01)


def test_programs_are_compiled_once(tmp_path: Path) -> None:
    program = compiled("pair.c", tmp_path, "gcc")
    first = program.stat().st_mtime_ns
    assert compiled("pair.c", tmp_path, "gcc").stat().st_mtime_ns == first
    assert tool("gcc", "gcc")
