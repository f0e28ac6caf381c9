"""Attributes of timers: from a worker into what people and programs see."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, EventList, StartWorker, eventually

import filetimer as timer
from filetimer.replay import find_journals, view_server
from filetimer.server.events import describe_attributes
from filetimer.server.loop import read_clocks
from filetimer.wire.decoder import UNSET

HANGS = """
import sys, time, filetimer
filetimer.configure_from_env(signal=int(sys.argv[2]), attributes={"rank": 3, "device": "cuda:1"})
with filetimer.expires(float(sys.argv[1]), "step", attributes={"step": 120}):
    time.sleep(600)
"""
ATTRIBUTES = {"rank": 3, "device": "cuda:1", "step": 120}


def test_they_are_in_events_and_in_the_report(
    fifo_path: str, start_worker: StartWorker, events: EventList, tmp_path: Path
) -> None:
    server = timer.FileTimerServer(
        fifo_path, "test", on_event=events, evidence=str(tmp_path), evidence_budget=PATIENCE
    )
    server.start()
    worker = start_worker(HANGS, "0.2", "9")
    worker.wait(PATIENCE)
    (died,) = events.wait_for("worker died")
    server.stop()
    (expired,) = events.named("timer expired")
    (kill,) = events.named("kill worker process")
    assert died.attributes == expired.attributes == kill.attributes == ATTRIBUTES
    assert "rank=3 device=cuda:1 step=120" in kill.describe()
    text = Path(kill.evidence or "")
    report = json.loads(text.with_suffix(".json").read_text())
    assert report["members"][0]["open"][0]["attributes"] == ATTRIBUTES
    assert "rank=3 device=cuda:1 step=120" in text.read_text()


def list_json(fifo_path: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "filetimer", "list", "--json", fifo_path]
    timers: list[dict[str, Any]] = json.loads(subprocess.check_output(command))["timers"]
    return timers


def test_they_are_listed(
    server: timer.FileTimerServer, fifo_path: str, start_worker: StartWorker
) -> None:
    start_worker(HANGS, "600", "9")
    eventually(lambda: list_json(fifo_path))
    assert list_json(fifo_path)[0]["attributes"] == ATTRIBUTES
    command = [sys.executable, "-m", "filetimer", "list", fifo_path]
    last = subprocess.check_output(command, text=True).splitlines()[-1]
    assert last.endswith("step  rank=3 device=cuda:1 step=120")


def test_they_outlive_a_compaction_of_the_journal(
    fifo_path: str, start_worker: StartWorker
) -> None:
    server = timer.FileTimerServer(fifo_path, "test", journal_size=4096)
    server.start()
    start_worker(HANGS, "600", "9")
    eventually(lambda: list_json(fifo_path))
    (journal,) = find_journals(fifo_path)
    first = Path(journal).stat().st_ino
    client = timer.FileTimerClient(fifo_path)

    def compacted() -> bool:
        client.acquire("fill", read_clocks().wall + 600)
        return Path(journal).stat().st_ino != first

    eventually(compacted)
    found = [t.attributes for t in view_server(journal, read_clocks()).timers]
    assert found.count(ATTRIBUTES) == 1
    assert set(map(type, found)) <= {dict, type(UNSET)}
    server.stop()


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"rank": 3, "loss": 0.5, "ok": True}, "rank=3 loss=0.5 ok=true"),
        ({"a b": "c d", "": ""}, '"a b"="c d" ""=""'),
        ({"esc": "\x1b[2J", "nl": "a\nb"}, 'esc="\\u001b[2J" nl="a\\nb"'),
    ],
)
def test_words(attributes: dict[str, Any], words: str) -> None:
    assert describe_attributes(attributes) == words


def test_configure_checks_them_first(fifo_path: str) -> None:
    before = timer.FileTimerClient(fifo_path)
    timer.configure(before)
    with pytest.raises(ValueError, match="must be a string"):
        timer.configure(timer.FileTimerClient(fifo_path), attributes={"rank": None})  # type: ignore[dict-item]
    from filetimer.api import configured_client

    assert configured_client() is before


def test_clients_without_a_place_for_them_leave_them_out() -> None:
    client = timer.NoopTimerClient()
    timer.configure(client, attributes={"rank": 3})
    with timer.expires(60, attributes={"step": 1}):
        pass

    class Torchs:
        """Has acquire and release only."""

        def __init__(self) -> None:
            self.called: list[tuple[Any, ...]] = []

        def acquire(self, *arguments: Any) -> None:
            self.called.append(arguments)

        def release(self, *arguments: Any) -> None:
            self.called.append(arguments)

    own: Any = Torchs()
    timer.configure(own, attributes={"rank": 3})
    with timer.expires(60, "s", own, attributes={"step": 1}):
        pass
    assert [arguments[0] for arguments in own.called] == ["s", "s"]
