"""Events for programs: their schema, their documentation, and files that are rotated."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from event_schema import SCHEMA, check_events, validator
from jsonschema import Draft202012Validator

from filetimer.server import events
from filetimer.server.event_file import EventFile
from filetimer.server.events import Event, EventReporter

DOCUMENT = SCHEMA.with_name("events.md").read_text()
NAMES = {
    value
    for name, value in vars(events).items()
    if name.isupper() and isinstance(value, str) and not name.startswith("_")
}


def described() -> dict[str, tuple[set[str], set[str]]]:
    """By name, the fields that the schema allows and those that it demands."""
    found = {}
    for shape in json.loads(SCHEMA.read_text())["$defs"].values():
        name = shape["properties"]["name"]
        fields = set(shape["properties"]) - {"v", "time", "name"}
        for one in name.get("enum", [name.get("const")]):
            found[one] = fields, set(shape.get("required", ()))
    return found


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


def test_every_name_is_in_the_schema_and_no_other() -> None:
    assert set(described()) == NAMES


def test_every_field_is_in_the_schema_and_no_other() -> None:
    fields = set(Event.__struct_fields__) | {"v"}
    assert set(json.loads(SCHEMA.read_text())["properties"]) | {"name"} == fields
    assert set().union(*(allowed for allowed, _ in described().values())) == fields - {
        "v", "time", "name",
    }  # fmt: skip


def test_the_document_says_what_the_schema_says() -> None:
    rows = re.findall(r"^\| (`[a-z].*?) \| .*? \|(.*)\|$", DOCUMENT.split("| field |")[0], re.M)
    written = {
        name: (set(re.findall(r"`(\w+)`", fields)), set(re.findall(r"`(\w+)`\?", fields)))
        for names, fields in rows
        for name in re.findall(r"`(.*?)`", names)
    }
    assert set(written) == NAMES
    for name, (allowed, required) in described().items():
        fields, optional = written[name]
        if name not in ("worker exited", "timer refused", "record rejected"):  # of two shapes
            assert fields == allowed, name
            assert fields - optional == required, name
        assert required <= fields, name
    for field in {"v", "name", "time"}.union(*(allowed for allowed, _ in described().values())):
        assert re.search(rf"^\|[^|]*`{field}`[^|]*\|", DOCUMENT.split("| field |")[1], re.M), field


@pytest.mark.parametrize(
    "line",
    [
        {"v": 2, "name": "watchdog started", "time": 1.0},
        {"v": 1, "name": "watchdog begun", "time": 1.0},
        {"v": 1, "name": "watchdog started"},
        {"v": 1, "name": "watchdog started", "time": 1.0, "pid": 5},
        {"v": 1, "name": "worker exited", "time": 1.0, "pid": None, "detail": "x"},
        {"v": 1, "name": "timer refused", "time": 1.0, "code": "init"},
    ],
)
def test_the_schema_refuses(line: dict[str, Any]) -> None:
    assert list(validator().iter_errors(line))


def test_what_is_summed_up_is_described_too() -> None:
    seen: list[Event] = []
    reporter = EventReporter(on_event=seen.append)
    for _ in range(2 * events.MAX_SINGLE):
        reporter.report(events.RECORD_REJECTED, code="json", detail="x")
        reporter.report(events.TIMER_REFUSED, code="init", pid=1, scope_id="s", expiration_time=1.0)
    reporter.flush(float("inf"))
    assert {event.name for event in seen if event.count} == events.LIMITED
    check_events(seen)


def test_torchs_callback_gets_what_it_always_got() -> None:
    called: list[tuple[str, Any]] = []
    reporter = EventReporter(lambda name, request: called.append((name, request)))
    reporter.report(events.WATCHDOG_STARTED)
    fields = {"pid": 7, "scope_id": "s", "expiration_time": 5.0, "signal": 9, "late": 0.1}
    for name in sorted(NAMES - {events.WATCHDOG_STARTED}):
        reporter.report(name, **fields)
    assert [name for name, _ in called] == [
        "watchdog started", "kill worker process", "timer expired", "watchdog stopped",
    ]  # fmt: skip
    assert called[0][1] is None
    assert called[1][1].to_json() == (
        '{"version": 1, "pid": 7, "scope_id": "s", "expiration_time": 5.0, "signal": 9}'
    )


class TestFile:
    def lines(self, *paths: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    def test_version_comes_first(self, tmp_path: Path) -> None:
        file = EventFile(str(tmp_path / "e"))
        file(Event("watchdog started", time=1.5))
        file.close()
        assert (tmp_path / "e").read_text() == '{"v": 1, "name": "watchdog started", "time": 1.5}\n'
        assert oct((tmp_path / "e").stat().st_mode) == oct(0o100600)

    def test_a_renamed_file_is_followed_by_a_new_one(self, tmp_path: Path) -> None:
        file = EventFile(str(tmp_path / "e"))
        file(Event("server died", detail="1"))
        (tmp_path / "e").rename(tmp_path / "e.1")
        file(Event("server died", detail="2"))
        (tmp_path / "e").unlink()
        file(Event("server died", detail="3"))
        file.close()
        assert [e["detail"] for e in self.lines(tmp_path / "e.1", tmp_path / "e")] == ["1", "3"]

    def test_the_descriptor_survives_a_change_of_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        file = EventFile("e")
        monkeypatch.chdir("/")
        (tmp_path / "e").rename(tmp_path / "e.1")
        file(Event("server died", detail="x"))
        file.close()
        assert len(self.lines(tmp_path / "e")) == 1

    def test_where_no_new_file_can_be_made_events_go_on_to_the_old_one(
        self, tmp_path: Path
    ) -> None:
        directory = tmp_path / "d"
        directory.mkdir()
        file = EventFile(str(directory / "e"))
        directory.rename(tmp_path / "moved")
        file(Event("server died", detail="x"))
        with pytest.raises(FileNotFoundError):
            file.reopen()
        file(Event("server died", detail="y"))
        file.close()
        assert [e["detail"] for e in self.lines(tmp_path / "moved/e")] == ["x", "y"]

    def test_no_event_is_lost_and_none_is_torn_while_others_rotate(self, tmp_path: Path) -> None:
        path, each, rotations = tmp_path / "e", 400, 40
        file = EventFile(str(path))

        def write(writer: int) -> None:
            for i in range(each):
                file(Event("server died", detail=f"{writer}.{i}"))

        writers = [threading.Thread(target=write, args=(writer,)) for writer in range(3)]
        for writer in writers:
            writer.start()
        for i in range(rotations):
            os.rename(path, tmp_path / f"e.{i}")
            if i % 2:
                file.reopen()
            else:
                file(Event("server died", detail=f"rotated.{i}"))
        for writer in writers:
            writer.join()
        file.close()
        rotated = [tmp_path / f"e.{i}" for i in range(rotations)]
        details = [event["detail"] for event in self.lines(*rotated, path)]
        written = [f"{writer}.{i}" for writer in range(3) for i in range(each)]
        written += [f"rotated.{i}" for i in range(0, rotations, 2)]
        assert sorted(details) == sorted(written)

    def test_half_a_line_on_a_full_disk_swallows_no_other(self, tmp_path: Path) -> None:
        """In a child, whose files may grow to 150 bytes, and then further."""
        code = (
            "import resource as r, sys\n"
            "from filetimer.server.event_file import EventFile\n"
            "from filetimer.server.events import Event\n"
            "file = EventFile(sys.argv[1])\n"
            "hard = r.getrlimit(r.RLIMIT_FSIZE)[1]\n"
            "r.setrlimit(r.RLIMIT_FSIZE, (150, hard))\n"
            "for i in range(4):\n"
            "    try: file(Event('server died', detail=str(i)))\n"
            "    except OSError as error: print(error.strerror)\n"
            "r.setrlimit(r.RLIMIT_FSIZE, (hard, hard))\n"
            "file(Event('server died', detail='last'))\n"
        )
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
        path = tmp_path / "e"
        printed = subprocess.check_output([sys.executable, "-c", code, str(path)], text=True)
        assert printed.splitlines() == ["No space left on device", "File too large"]
        *whole, torn, last = path.read_text().splitlines()
        assert [json.loads(line)["detail"] for line in [*whole, last]] == ["0", "1", "last"]
        with pytest.raises(ValueError, match=r"JSON|Expecting|Unterminated"):
            json.loads(torn)

    @pytest.mark.parametrize("name", ["/dev/null", "/dev/full"])
    def test_what_is_no_file_is_not_followed(self, name: str) -> None:
        file = EventFile(name)
        for _ in range(2):
            if name == "/dev/full":
                with pytest.raises(OSError, match="No space"):
                    file(Event("server died", detail="x"))
            else:
                file(Event("server died", detail="x"))
        file.close()
