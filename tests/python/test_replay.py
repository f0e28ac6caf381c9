"""What a history tells of a journal, read at once or followed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from journals import WALL, Script, training_job
from support import StartWorker, eventually

import filetimer as timer
from filetimer import replay
from filetimer.replay import Follower, History, Span, WorkerId, find_journals, load_history
from filetimer.server import events
from filetimer.server.journal import CHUNK_LINE
from filetimer.server.loop import read_clocks
from filetimer.server.timers import HELD_TOKEN, Now

LATER = Now(9000.0, 9000.0 + WALL)


@pytest.fixture
def script() -> Script:
    return Script()


def history_of(script: Script, tmp_path: Path) -> History:
    return load_history(str(script.save(tmp_path / "journal")), LATER)[1]


def ends(history: History) -> list[tuple[str, str]]:
    return [(span.scope_id, span.how) for span in history.spans]


def test_a_span_is_an_acquire_with_its_end(script: Script, tmp_path: Path) -> None:
    script.block(7, "step", 10, took=2.5)
    (span,) = history_of(script, tmp_path).spans
    assert span == Span(WorkerId(7, 7), "step", None, 9, 1000.0, 1010.0, 1002.5, "released")
    assert (span.allowed, span.completed, span.duration(0)) == (10.0, True, 2.5)
    assert span.headroom == pytest.approx(0.75)


def test_how_spans_end(script: Script, tmp_path: Path) -> None:
    script.acquire(1, "renewed", 10)
    script.acquire(1, "renewed", 10)
    script.release(1, "renewed")
    script.acquire(2, "reported", 1, signal=0)
    script.at += 1
    script.event(events.TIMER_EXPIRED, pid=2, scope_id="reported", signal=0, late=0.0)
    script.acquire(3, "outer", 60)
    script.acquire(3, "hung", 1)
    script.at += 1
    script.kill(3, "hung")
    script.acquire(4, "left", 60)
    script.event(events.WORKER_EXITED, pid=4)
    script.acquire(5, "refused", 60)
    script.event(events.TIMER_REFUSED, pid=5, scope_id="refused", code="zombie")
    script.acquire(6, "open", 60)
    history = history_of(script, tmp_path)
    assert ends(history) == [
        ("renewed", "renewed"),
        ("renewed", "released"),
        ("reported", "expired"),
        ("hung", "killed"),
        ("outer", "killed"),
        ("left", "exited"),
    ]
    assert [(span.scope_id, span.how) for span in history.open_spans()] == [("open", "open")]
    assert history.rejected == {"zombie": 1}
    assert [noted.event.name for noted in history.events][:2] == ["timer expired"] * 2


def test_what_a_job_adds_at_the_end_is_of_before(script: Script, tmp_path: Path) -> None:
    script.block(7, "s", 10, took=5, attributes={"step": 1})
    last, script.at = script.at, 1000.5
    script.event(events.WORKER_STARTED, pid=7, rank=3, restart=0)
    history = history_of(script, tmp_path)
    assert (history.last, history.to_wall) == (last, WALL)
    assert [(at, event.rank) for at, event in history.started] == [(1000.5, 3)]
    assert history.events == []
    assert history.spans[0].attributes == {"step": 1}


def test_tokens_keep_recursions_apart_and_calls_are_counted(script: Script, tmp_path: Path) -> None:
    script.acquire(1, "s", 10, token=1)
    script.block(1, "s", 10, took=1, token=2)
    script.release(1, "s", token=1)
    assert [(span.token, span.nth) for span in history_of(script, tmp_path).spans] == [
        (2, 1),
        (1, 0),
    ]


def test_lines_that_are_no_records_are_counted_by_code(script: Script, tmp_path: Path) -> None:
    script.chunk(b"nonsense\n" + script.line(1, "s", 1) + b'{"version": 2}\n')
    history = history_of(script, tmp_path)
    assert history.rejected == {"json": 1, "missing_field": 1}
    assert history.records == 1


def test_the_servers_own_timers_are_not_the_workers(script: Script, tmp_path: Path) -> None:
    script.begin_file(script.line(1, "s", 60, token=HELD_TOKEN))
    history = history_of(script, tmp_path)
    assert (history.open, history.records) == ({}, 0)


def test_a_new_file_repeats_what_is_open_and_drops_what_is_lost(
    script: Script, tmp_path: Path
) -> None:
    script.acquire(1, "kept", 60)
    state = script.line(1, "kept", 60)
    script.acquire(1, "gone", 60)
    script.at += 5
    script.begin_file(state, began=1000.0)
    script.release(1, "kept")
    history = history_of(script, tmp_path)
    assert ends(history) == [("gone", "lost"), ("kept", "released")]
    assert [(span.begin, span.cut) for span in history.spans] == [(1000.0, False)] * 2
    assert history.records == 3  # the state is no record that came


def test_a_history_without_its_start_knows_no_first_calls(tmp_path: Path) -> None:
    script = Script()
    script._content.clear()
    script.begin_file(script.line(1, "s", 60), began=10.0)
    script.at += 1
    script.release(1, "s")
    script.block(1, "t", 5, took=1)
    young = int((script.at + 1) * os.sysconf("SC_CLK_TCK"))
    script.block(2, "t", 5, took=1, start_time=young)
    history = history_of(script, tmp_path)
    assert not history.complete
    assert [(s.scope_id, s.cut, s.nth) for s in history.spans] == [
        ("s", True, None),
        ("t", False, None),
        ("t", False, 0),
    ]


def test_a_line_of_the_server_that_is_half_written_is_not_read(
    script: Script, tmp_path: Path
) -> None:
    script.acquire(1, "s", 1)
    script.at += 1
    script.kill(1, "s")
    del script._content[-20:]
    history = history_of(script, tmp_path)
    assert ends(history) == [("s", "killed")]


def test_what_was_taken_is_forgotten(script: Script, tmp_path: Path) -> None:
    script.block(1, "s", 10, took=1)
    script.kill(1, "s")
    history = history_of(script, tmp_path)
    spans, noted = history.take()
    assert (len(spans), len(noted)) == (1, 3)
    assert history.take() == ([], [])


def test_the_memory_of_scopes_is_bounded(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MAX_SCOPES_COUNTED", 10)
    script.block(1, "often", 1, took=0)
    for i in range(30):
        script.block(1, f"once {i}", 1, took=0)
        script.block(1, "often", 1, took=0)
    history = history_of(script, tmp_path)
    assert len(history._seen) == 10
    assert history.spans[-1].nth == 30


def test_the_rate_is_that_of_the_last_seconds(script: Script, tmp_path: Path) -> None:
    for _ in range(100):
        script.block(1, "s", 10, took=0.25)
    history = history_of(script, tmp_path)
    assert history.rate(script.at) == pytest.approx(8, rel=0.1)
    assert history.rate(script.at + 60) == 0


class TestFollower:
    def test_it_sees_what_a_reading_of_all_sees(self, tmp_path: Path) -> None:
        script = training_job(4)
        whole = script._content
        path = tmp_path / "journal"
        follower = Follower(str(path))
        for end in [*script.ends[::7], len(whole)]:
            path.write_bytes(whole[:end] + b"\0" * CHUNK_LINE + b"half")  # a chunk is on its way
            follower.poll(LATER)
        path.write_bytes(whole)
        assert follower.history.spans == load_history(str(path), LATER)[1].spans
        assert len(follower.history.spans) > 100
        assert follower.history.complete

    def test_it_goes_on_over_a_server_that_is_replaced_and_one_that_is_new(
        self, fifo_path: str, start_worker: StartWorker
    ) -> None:
        (journal, follower) = self._serve_one_block(fifo_path, start_worker, "first")
        follower.poll(read_clocks())
        with_open = [span.scope_id for span in follower.history.open_spans()]
        assert with_open == ["left open"]
        self.server.stop()
        with pytest.raises(FileNotFoundError):
            follower.poll(read_clocks())
        self._serve_one_block(fifo_path, start_worker, "second")
        follower.poll(read_clocks())
        self.server.stop()
        assert journal == follower._path
        scopes = [span.scope_id for span in follower.history.spans]
        assert scopes == ["first", "left open", "second"]
        assert [span.how for span in follower.history.spans][1] == "lost"

    def _serve_one_block(
        self, path: str, start_worker: StartWorker, scope: str
    ) -> tuple[str, Follower]:
        self.server = timer.FileTimerServer(path, "test")
        self.server.start()
        worker: subprocess.Popen[str] = start_worker(
            """
            import sys, time, filetimer
            client = filetimer.configure_from_env()
            with filetimer.expires(60, sys.argv[1]): pass
            client.acquire("left open", time.time() + 600)
            print("done", flush=True)
            time.sleep(600)
            """,
            scope,
        )
        assert worker.stdout is not None
        assert worker.stdout.readline() == "done\n"
        (journal,) = find_journals(path)
        eventually(lambda: load_history(journal, read_clocks())[1].records == 3)
        return journal, Follower(journal)
