"""Rejected lines that wait for their report: few, whoever writes whatever (SPEC X-1, X-2)."""

from __future__ import annotations

import pytest
from support import EventList

from filetimer.server import backlog as backlog_module
from filetimer.server.backlog import Backlog
from filetimer.server.events import EventReporter
from filetimer.server.timers import Host, Now
from filetimer.server.watchdog import Watchdog
from filetimer.wire.decoder import LineDecoder, code_of_garbage, judge_garbage

NOW = Now(100.0, 1_767_225_600.0)
LONG = b'{"version": 1, "pid": "a string, which it may not be, and long enough for a record"}'


def filled(text: bytes) -> Backlog:
    backlog = Backlog()
    backlog.add(LineDecoder().feed_fast(text))  # type: ignore[arg-type]
    return backlog


def test_equal_lines_are_one_entry_with_a_count() -> None:
    taken = sorted((bad.line, bad.code, n) for bad, n in filled(b"a\n\xff\na\n[]\na\n").take_all())
    assert taken == [(b"[]", "object", 1), (b"a", "json", 3), (b"\xff", "utf8", 1)]


def test_lines_that_could_have_been_records_are_among_them() -> None:
    backlog = filled(b"a\n" + LONG + b"\nb\n")
    assert sorted(bad.code for bad, _ in backlog.take_all()) == ["json", "json", "missing_field"]
    assert not backlog


def test_a_pass_takes_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "SLICE", 3)
    monkeypatch.setattr(backlog_module, "FULL", 4)
    backlog = filled(b"".join(b"%d x\n" % i for i in range(5)))
    assert len(list(backlog.take_slice())) == 3
    assert not backlog.is_full
    assert len(list(backlog.take_slice())) == 2
    assert not backlog


def test_what_outlives_a_pass_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "SLICE", 3)
    monkeypatch.setattr(backlog_module, "MOST", 10)
    backlog = filled(b"".join(b"%d x\n" % i for i in range(100)))
    assert len(list(backlog.take_slice())) == 90
    assert len(list(backlog.take_all())) == 10


def test_all_are_counted_and_a_watchdog_says_when_it_is_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backlog_module, "SLICE", 10)
    monkeypatch.setattr(backlog_module, "FULL", 300)
    events = EventList()
    reporter = EventReporter(on_event=events)
    watchdog = Watchdog(Host(1), reporter)
    text = b"".join(b"%d x\n" % (i % 400) for i in range(1000))
    watchdog.receive(LineDecoder().feed_fast(text), NOW)
    watchdog.enforce(NOW.monotonic)
    assert watchdog.is_behind
    assert watchdog.next_chore() == 0.0
    while watchdog.is_behind:
        watchdog.enforce(NOW.monotonic)
    watchdog.close()
    assert reporter.counts["record rejected", "json"] == 1000
    assert sum(event.count or 1 for event in events) == 1000


def test_in_a_flood_they_are_only_counted() -> None:
    backlog = filled(b"a\n\xff\na\n[]\n1\n" + LONG + b"\n \t{}\n")
    assert backlog.tally_slice() == {"json": 2, "utf8": 1, "object": 2, "missing_field": 2}
    assert not backlog


def test_to_count_one_is_to_judge_it() -> None:
    for line in (b"", b" ", b"x", b"[1]", b"{}", b"{", b"nul", b"null", b"\xff", "é".encode()):
        assert code_of_garbage(line) == judge_garbage(line).code
