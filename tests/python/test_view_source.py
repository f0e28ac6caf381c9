"""Which journal a view is about, when nobody or somebody says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from journals import Script

from filetimer.runtime import journal_path, runtime_directory
from filetimer.server.process import read_stat
from filetimer.views.source import NoServer, choose_journal, load


@pytest.fixture
def runtime() -> Path:
    return Path(runtime_directory(create=True))


def leave(runtime: Path, name: str, *, alive: bool) -> str:
    """The journal of a server; this process stands in for one that lives."""
    stat = read_stat(os.getpid())
    assert stat is not None
    server = {"pid": os.getpid(), "start_time": stat[1]} if alive else {}
    path = f"/jobs/{name}"
    return str(Script(path=path, **server).save(Path(journal_path(path, str(runtime)))))


def test_the_only_one_that_runs(runtime: Path) -> None:
    leave(runtime, "dead", alive=False)
    running = leave(runtime, "running", alive=True)
    assert choose_journal() == running


def test_one_that_died_where_none_runs(runtime: Path) -> None:
    dead = leave(runtime, "dead", alive=False)
    (runtime / "broken.journal").write_text("no journal")
    assert choose_journal() == dead


def test_none() -> None:
    with pytest.raises(NoServer, match="no timer server is running: start one"):
        choose_journal()


def test_several(runtime: Path) -> None:
    for i in range(12):
        leave(runtime, f"dead{i}", alive=False)
    with pytest.raises(NoServer, match=r"12 timer servers have died, name one: .* and 4 more"):
        choose_journal()
    for i in range(2):
        leave(runtime, f"running{i}", alive=True)
    with pytest.raises(NoServer) as caught:
        choose_journal()
    assert "2 timer servers are running" in str(caught.value)
    assert "/jobs/running0" in str(caught.value)
    assert "dead" not in str(caught.value)


def test_one_that_is_named(runtime: Path, tmp_path: Path) -> None:
    leave(runtime, "one", alive=True)
    two = leave(runtime, "two", alive=False)
    assert choose_journal("/jobs/two") == two
    assert choose_journal(journal="kept") == "kept"
    with pytest.raises(NoServer, match="torch's own cannot"):
        choose_journal("/jobs/three")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NoServer, match="is a file"):
        choose_journal(str(file))


def test_loading(runtime: Path, tmp_path: Path) -> None:
    header, history = load(leave(runtime, "one", alive=False))
    assert (header["path"], history.complete, history.spans) == ("/jobs/one", True, [])
    (tmp_path / "text").write_text("text")
    for path, says in [("nosuch", "there is no"), ("text", "not a timer journal"), ("", "cannot")]:
        with pytest.raises(NoServer, match=says):
            load(str(tmp_path / path))
