"""Which process was which rank: what a job adds to the history that it keeps, and its readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from event_schema import check_events
from journals import WALL, Script

from filetimer.replay import History, Noted, WorkerId, load_history
from filetimer.server.events import WORKER_EXITED, WORKER_STARTED, Event
from filetimer.server.journal import JournalError
from filetimer.server.timers import Now
from filetimer.supervisor.kept import Started, add_started
from filetimer.views.lanes import by_worker
from filetimer.views.ranks import Place, place_in, rank_by_pid, with_rank


def started(pid: int, rank: int, at: float) -> Started:
    event = Event(WORKER_STARTED, pid=pid, rank=rank, restart=0, time=at + WALL)
    return Started(Now(at, at + WALL), event)


def loaded(path: Path) -> History:
    return load_history(str(path), Now(9000.0, 9000.0 + WALL))[1]


class TestAdding:
    def test_to_the_history_of_this_run(self, tmp_path: Path) -> None:
        script = Script()
        script.block(7, "s", 10, took=1)
        path = script.save(tmp_path / "kept")
        added = [started(7, 0, 1000.0), started(8, 1, 1000.5)]
        add_started(str(path), "synthetic", added)
        history = loaded(path)
        assert history.started == [Noted(start.at.monotonic, start.event) for start in added]
        assert len(history.spans) == 1
        check_events(start.event for start in added)

    def test_not_to_that_of_another_run(self, tmp_path: Path) -> None:
        path = Script().save(tmp_path / "kept")
        before = path.read_bytes()
        add_started(str(path), "run-1", [started(7, 0, 1000.0)])
        assert path.read_bytes() == before

    def test_not_to_that_of_another_boot(self, tmp_path: Path) -> None:
        path = Script().save(tmp_path / "kept")
        first, rest = path.read_bytes().split(b"\n", 1)
        header = {**json.loads(first), "boot_id": "another"}
        before = json.dumps(header).encode() + b"\n" + rest
        path.write_bytes(before)
        add_started(str(path), "synthetic", [started(7, 0, 1000.0)])
        assert path.read_bytes() == before

    def test_not_to_another_file_and_no_file(self, tmp_path: Path) -> None:
        add_started(str(tmp_path / "none"), "synthetic", [started(7, 0, 1000.0)])
        assert list(tmp_path.iterdir()) == []
        other = tmp_path / "other"
        other.write_text("something else\n")
        with pytest.raises(JournalError):
            add_started(str(other), "synthetic", [started(7, 0, 1000.0)])
        assert other.read_text() == "something else\n"


class TestPlaces:
    def places(self, script: Script, tmp_path: Path, *added: Started) -> dict[int | None, Place]:
        path = script.save(tmp_path / "kept")
        add_started(str(path), "synthetic", added)
        history = loaded(path)
        found = place_in(history.started, by_worker([*history.spans, *history.open.values()]))
        return {worker.start_time: place for worker, place in found.items()}

    def test_of_a_pid_that_was_given_out_again(self, tmp_path: Path) -> None:
        script = Script()
        script.block(7, "s", 10, took=1, start_time=1)
        script.at = 1100.0
        script.block(7, "s", 10, took=1, start_time=2)
        first, second = started(7, 0, 999.0), started(7, 3, 1050.0)
        found = self.places(script, tmp_path, second, first)
        assert found == {1: Place(0, 0, 999.0), 2: Place(3, 0, 1050.0)}

    def test_what_the_job_noted_comes_before_what_the_worker_says(self, tmp_path: Path) -> None:
        script = Script()
        script.acquire(7, "s", 10, start_time=1, attributes={"rank": 9})
        assert self.places(script, tmp_path, started(7, 0, 1000.0)) == {1: Place(0, 0, 1000.0)}

    @pytest.mark.parametrize("said", [{"rank": "3"}, {"rank": -1}, {"rank": True}, {"rank": 1.5}])
    def test_what_is_no_rank(self, said: dict[str, object], tmp_path: Path) -> None:
        script = Script()
        script.acquire(7, "s", 10, attributes=said)
        assert self.places(script, tmp_path) == {}


def test_a_pid_of_several_ranks_has_none_in_events() -> None:
    starts = [started(7, 0, 1.0), started(7, 1, 2.0)]
    noted = [Noted(start.at.monotonic, start.event) for start in starts]
    ranks = rank_by_pid(noted, {WorkerId(8, None): 2})
    assert ranks == {8: 2}
    assert with_rank(Event(WORKER_EXITED, pid=8), ranks).describe().endswith(": pid 8, rank 2")
    assert with_rank(Event(WORKER_EXITED, pid=7), ranks).rank is None
