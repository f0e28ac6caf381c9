"""What ``filetimer top`` shows: the frame, and how it is drawn in the space that there is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from journals import Script, training_job
from support import eventually
from test_file_server import record, write_line

import filetimer as timer
from filetimer.replay import find_journals
from filetimer.server.loop import read_clocks
from filetimer.views.source import NoServer
from filetimer.views.top import Board, Frame, Note, Past, Row, kept_frame
from filetimer.views.top_screen import render


def board_of(path: str) -> Board:
    (journal,) = find_journals(path)
    return Board(journal)


def look(board: Board) -> Frame:
    return board.look(read_clocks())


class TestFrame:
    def test_a_server_that_runs_then_stops(
        self, server: timer.FileTimerServer, sleeper: subprocess.Popen[str]
    ) -> None:
        path = server._file_path
        board = board_of(path)
        write_line(path, record(sleeper.pid, 60, "later") + record(sleeper.pid, 30, "sooner"))
        eventually(lambda: look(board).timers == 2)
        frame = look(board)
        assert [row.scope_id for row in frame.rows] == ["sooner", "later"]
        assert (frame.state, frame.pid, frame.workers) == ("running", os.getpid(), 1)
        assert (frame.records, frame.kills, frame.rejected) == (2, 0, {})
        assert 20 < frame.rows[0].left <= frame.rows[0].allowed + 0.1 <= 31
        assert frame.rate > 0
        write_line(path, record(sleeper.pid, scope="sooner", expiration_time=-1) + b"nonsense\n")
        write_line(path, record(sleeper.pid, scope="later", expiration_time=-1))
        eventually(lambda: not look(board).timers)
        frame = look(board)
        assert frame.rows == [Row(sleeper.pid)]  # a worker without a timer
        assert [past.scope_id for past in frame.recent] == ["later", "sooner"]
        assert frame.rejected == {"json": 1}
        write_line(path, record(1, 60))
        eventually(lambda: look(board).notes)
        assert "init" in look(board).notes[0].text
        server.stop()
        assert (look(board).state, look(board).rows) == ("stopped", [])

    def test_the_rank_of_a_process_that_runs_is_in_its_environment(
        self, server: timer.FileTimerServer
    ) -> None:
        environments = [{"RANK": "3", "LOCAL_RANK": "1"}, {"RANK": "5"}]  # a scheduler's
        sleepers = [
            subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"], **extra})
            for extra in environments
        ]
        try:
            board = board_of(server._file_path)
            for sleeper in sleepers:
                write_line(server._file_path, record(sleeper.pid, 60, "s"))
            eventually(lambda: look(board).timers == 2)
            found = {row.pid: row.rank for row in look(board).rows}
            assert found == {sleepers[0].pid: 3, sleepers[1].pid: None}
            write_line(server._file_path, record(sleepers[0].pid, scope="s", expiration_time=-1))
            eventually(lambda: look(board).timers == 1)
            frame = look(board)
            assert frame.rows[1] == Row(sleepers[0].pid, rank=3)
            assert (frame.recent[0].pid, frame.recent[0].rank) == (sleepers[0].pid, 3)
        finally:
            for sleeper in sleepers:
                sleeper.kill()
                sleeper.wait()

    def test_a_kill(self, server: timer.FileTimerServer, sleeper: subprocess.Popen[str]) -> None:
        board = board_of(server._file_path)
        write_line(server._file_path, record(sleeper.pid, 0.05, "hung"))
        sleeper.wait(20)
        eventually(lambda: look(board).kills == 1)
        frame = look(board)
        assert (frame.rows, frame.recent[0].how) == ([], "killed")
        assert any("hung" in note.text and note.grave for note in frame.notes)

    def test_a_server_that_died(self, fifo_path: str, sleeper: subprocess.Popen[str]) -> None:
        server = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys, time, filetimer\n"
                "filetimer.FileTimerServer(sys.argv[1], 'x').start()\n"
                "print(flush=True)\ntime.sleep(600)",
                fifo_path,
            ],
            stdout=subprocess.PIPE,
        )
        try:
            assert server.stdout is not None
            server.stdout.readline()
            board = board_of(fifo_path)
            write_line(fifo_path, record(sleeper.pid, 60, "unwatched"))
            eventually(lambda: look(board).timers == 1)
        finally:
            server.send_signal(signal.SIGKILL)
            server.communicate()
        frame = look(board)
        assert (frame.state, frame.rows[0].scope_id) == ("died", "unwatched")
        assert "DIED" in render(frame, 80, 24).plain
        sleeper.kill()
        sleeper.wait()
        assert look(board).rows == []
        assert look(board_of(fifo_path)).state == "died"  # one that comes only now sees it, too

    def test_what_a_job_kept(self, tmp_path: Path) -> None:
        script = training_job(4)
        script.acquire(4000, "open", 60)
        frame = kept_frame(str(script.save(tmp_path / "kept")))
        assert (frame.state, frame.kills) == ("kept", 1)
        assert [(row.pid, row.left) for row in frame.rows] == [(4000, pytest.approx(60))]
        assert {row.rank for row in [*frame.rows, *frame.recent]} == {None}

    def test_the_ranks_that_a_job_kept(self, tmp_path: Path) -> None:
        script = training_job(4, ranks=True)
        script.acquire(5002, "open", 60, attributes={"step": 7})
        script.acquire(99, "another", 60, attributes={"rank": 9})
        frame = kept_frame(str(script.save(tmp_path / "kept")))
        found = [(row.pid, row.rank, row.attributes) for row in frame.rows]
        assert found == [(5002, 2, {"step": 7}), (99, 9, {"rank": 9})]
        assert any("pid 4001, rank 1, scope" in note.text for note in frame.notes)
        assert all(past.rank == past.pid % 1000 for past in frame.recent)

    def test_there_has_never_been_a_server(self, tmp_path: Path) -> None:
        with pytest.raises(NoServer):
            look(Board(str(tmp_path / "nosuch")))


def frame_with(timers: int, idle: int = 0, **fields: object) -> Frame:
    rows = [
        Row(4000 + i, f"scope {i}", left=60.0 * (i + 1) / timers, allowed=60) for i in range(timers)
    ]
    rows += [Row(5000 + i) for i in range(idle)]
    frame = Frame("/p", "r", 9, "running", 0.1, rows, [], [], 10, 1.5, 0, {})
    return replace(frame, **fields)  # type: ignore[arg-type]


PASTS = [Past(1, "s" * 200, 1.0, 2.0, "killed", 3.0)] * 50
NOTES = [Note(1.0, "something " * 50, True)] * 50


class TestDrawing:
    @pytest.mark.parametrize("timers", [0, 1, 2, 64, 500])
    @pytest.mark.parametrize("size", [(80, 24), (60, 12), (200, 60), (80, 500)])
    def test_it_fits(self, timers: int, size: tuple[int, int]) -> None:
        width, height = size
        for pasts, notes in [([], []), (PASTS, NOTES), (PASTS, []), ([], NOTES[:1])]:
            frame = frame_with(timers, idle=7, recent=pasts, notes=notes)
            lines = render(frame, width, height).plain.splitlines()
            assert len(lines) <= height
            assert max(map(len, lines)) <= width
            shown = sum(line.lstrip().startswith("4") and "scope" in line for line in lines)
            hidden = next((line for line in lines if "not shown" in line), "")
            assert f"{timers - shown} more timers" in hidden or timers == shown
            assert shown >= min(timers, 1)

    def test_the_workers_that_are_not_shown_are_counted(self) -> None:
        assert "50 more timers" in render(frame_with(64), 80, 20).plain
        assert "1 worker without" in render(frame_with(15, idle=1), 80, 20).plain

    @pytest.mark.parametrize(
        ("left", "style", "mark"),
        [(50.0, "cyan", " "), (12.0, "yellow", " "), (5.0, "bold red", "!"), (-1, "bold red", "!")],
    )
    def test_bars_shrink_and_turn(self, left: float, style: str, mark: str) -> None:
        frame = frame_with(1)
        text = render(replace(frame, rows=[Row(1, "s", left, 60.0)]), 80, 24)
        line = next(line for line in text.split("\n") if "of 60.0 s" in line.plain)
        assert style in {str(span.style) for span in line.spans}
        assert mark == "!" if "!" in line.plain else mark == " "
        full = line.plain.count("█")
        assert abs(full - max(0, left) / 60 * 22) <= 1
        assert ("over" in line.plain) == (left < 0)

    def test_attributes_and_ranks(self) -> None:
        rows = [
            Row(1, "train", 30, 60, rank=12, attributes={"rank": 12, "step": 7, "at": "\x1b[2J"}),
            Row(2, "s" * 99, 30, 60, attributes={"step": 8}),
            Row(3, rank=4),
        ]
        for width in (60, 80, 140):
            text = render(frame_with(0, rows=rows), width, 24)
            lines = text.plain.splitlines()
            title = next(i for i, line in enumerate(lines) if "SCOPE" in line)
            assert lines[title].split()[:2] == ["RANK", "PID"]
            assert [line.split()[0] for line in lines[title + 1 : title + 4]] == ["12", "2", "4"]
            assert "\x1b" not in text.plain
            assert max(map(len, lines)) <= width
        assert 'train  step=7 at="\\u001b[2J"' in text.plain
        assert "RANK" not in render(frame_with(2), 80, 24).plain

    def test_what_a_client_wrote_does_nothing_to_the_terminal(self) -> None:
        frame = frame_with(0, rows=[Row(1, "\x1b[2J[red]evil[/red]\n", 1, 2)])
        assert "\\x1b[2J[red]evil[/red]\\n" in render(frame, 120, 24).plain

    def test_counts(self) -> None:
        plain = render(frame_with(2, kills=1, rejected={"json": 2, "init": 1}), 100, 24).plain
        assert "2 workers  2 timers set  1.5 records/s" in plain
        assert "1 kill  3 refused (2 json, 1 init)" in plain


def test_an_empty_history_is_a_frame_too(tmp_path: Path) -> None:
    frame = kept_frame(str(Script().save(tmp_path / "kept")))
    assert "no timers are set" in render(frame, 80, 24).plain
