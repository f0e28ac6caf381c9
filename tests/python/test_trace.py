"""The trace against the format, and on the axis of torch's profiler."""

from __future__ import annotations

import json
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from journals import WALL, Script, training_job

from filetimer.replay import History, load_history
from filetimer.server.timers import Now
from filetimer.views.trace import QUARTER, add_to, trace

# What the Trace Event Format requires of the kinds of events that we write.
EVENT = {
    "type": "object",
    "required": ["ph", "name", "pid", "tid", "ts", "args"],
    "properties": {
        "name": {"type": "string"},
        "pid": {"type": "integer", "minimum": 1},
        "tid": {"type": "integer", "minimum": 0},
        "ts": {"type": "number", "minimum": 0},
        "args": {"type": "object"},
    },
    "oneOf": [
        {
            "required": ["dur", "cat"],
            "properties": {"ph": {"const": "X"}, "dur": {"type": "number", "minimum": 0}},
        },
        {
            "required": ["s", "cat"],
            "properties": {"ph": {"const": "i"}, "s": {"enum": ["g", "p", "t"]}},
        },
        {
            "properties": {
                "ph": {"const": "M"},
                "name": {"enum": ["process_name", "thread_name", "process_sort_index"]},
                "args": {"anyOf": [{"required": ["name"]}, {"required": ["sort_index"]}]},
            }
        },
    ],
}
SCHEMA = {
    "type": "object",
    "required": ["traceEvents", "displayTimeUnit", "baseTimeNanoseconds"],
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "traceEvents": {"type": "array", "items": EVENT},
    },
}


def history_of(script: Script, tmp_path: Path) -> History:
    now = Now(script.at, script.at + WALL)
    return load_history(str(script.save(tmp_path / "journal")), now)[1]


def of_kind(found: dict[str, Any], ph: str) -> list[dict[str, Any]]:
    return [event for event in found["traceEvents"] if event["ph"] == ph]


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_it_is_what_the_format_says(workers: int, tmp_path: Path) -> None:
    history = history_of(training_job(workers, 20), tmp_path)
    found = json.loads(json.dumps(trace(history), allow_nan=False))
    jsonschema.validate(found, SCHEMA)
    assert len(of_kind(found, "X")) == len(history.spans) > 20 * workers
    assert {e["name"] for e in of_kind(found, "i")} >= {"timer expired", "kill worker process"}
    named = {(e["pid"], e["tid"]) for e in of_kind(found, "M") if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in of_kind(found, "X")} == named


def test_times_are_microseconds_of_the_wall_clock_since_the_base(tmp_path: Path) -> None:
    script = Script(at=1000.25)
    script.block(7, "step", 10, took=0.5)
    found = trace(history_of(script, tmp_path))
    base = found["baseTimeNanoseconds"]
    assert base % (QUARTER * 10**9) == 0
    (block,) = of_kind(found, "X")
    assert block["dur"] == 500_000
    assert base // 1000 + block["ts"] == round((WALL + 1000.25) * 1e6)
    assert block["args"]["allowed_seconds"] == 10
    assert block["args"]["headroom"] == 0.95


def test_ranks_restarts_and_attributes(tmp_path: Path) -> None:
    script = training_job(2, 20, ranks=True)
    script.block(5001, "saved", 60, took=1, attributes={"step": 7})
    found = json.loads(json.dumps(trace(history_of(script, tmp_path))))
    jsonschema.validate(found, SCHEMA)
    names = {e["pid"]: e["args"]["name"] for e in of_kind(found, "M") if e["tid"] == 0 and
             e["name"] == "process_name"}  # fmt: skip
    assert names[4001] == "rank 1 (pid 4001)"
    assert names[5001] == "rank 1 (pid 5001)"
    order = [e for e in of_kind(found, "M") if e["name"] == "process_sort_index"]
    assert {e["pid"]: e["args"]["sort_index"] for e in order}[5001] == 1
    restarts = [e for e in of_kind(found, "i") if e["name"] == "restart 1"]
    assert [(e["pid"], e["args"]["rank"]) for e in restarts] == [(5000, 0), (5001, 1)]
    first = min(e["ts"] for e in of_kind(found, "X") if e["pid"] == 5001)
    assert restarts[1]["ts"] == first - 500_000
    (saved,) = [e for e in of_kind(found, "X") if e["name"] == "saved"]
    assert saved["args"]["attributes"] == {"step": 7}


def test_slices_of_a_row_nest(tmp_path: Path) -> None:
    """Threads overlap, so they get rows of their own; a viewer cannot show it otherwise."""
    script = Script()
    script.acquire(7, "outer", 60)
    script.at += 1
    script.block(7, "inner", 60, took=1)
    script.acquire(7, "other thread", 60)
    script.at += 1
    script.release(7, "outer")
    script.at += 1
    script.release(7, "other thread")
    script.acquire(7, "open", 60)
    found = trace(history_of(script, tmp_path))
    rows: dict[int, list[str]] = {}
    for block in of_kind(found, "X"):
        rows.setdefault(block["tid"], []).append(block["name"])
    assert list(rows.values()) == [["outer", "inner", "open"], ["other thread"]]


def test_rows_nest_whatever_the_job(tmp_path: Path) -> None:
    found = trace(history_of(training_job(3), tmp_path))
    rows: dict[int, list[tuple[float, float]]] = {}
    for block in of_kind(found, "X"):
        rows.setdefault(block["tid"], []).append((block["ts"], block["ts"] + block["dur"]))
    for row in rows.values():
        for (_, end), (begin, later_end) in pairwise(row):
            assert begin >= end or later_end <= end


def test_in_a_trace_of_torch_it_is_on_its_axis_and_keeps_its_names(tmp_path: Path) -> None:
    script = Script()
    script.block(7, "step", 10, took=1)
    theirs = {
        "schemaVersion": 1,
        "baseTimeNanoseconds": 1_790_857_026_000_000_000,
        "traceEvents": [
            {"ph": "M", "name": "process_name", "pid": 7, "tid": 0, "ts": 0, "args": {"name": "p"}},
            {"ph": "X", "name": "aten::add", "pid": 7, "tid": 7, "ts": 5.5, "dur": 1.0},
        ],
    }
    found = add_to(theirs, history_of(script, tmp_path))
    assert found["traceEvents"][:2] == theirs["traceEvents"]
    assert found["schemaVersion"] == 1
    assert [e["args"]["name"] for e in of_kind(found, "M") if e["tid"] == 0] == ["p"]
    ours = of_kind(found, "X")[1]
    assert 1_790_857_026_000_000 + ours["ts"] == round((WALL + 1000) * 1e6)


@pytest.mark.parametrize("other", [{}, {"traceEvents": {}}, [], "text", None])
def test_what_is_no_trace(other: Any) -> None:
    with pytest.raises(ValueError, match="traceEvents"):
        add_to(other, History())


def test_torchs_profiler_writes_the_same_base_and_clock(tmp_path: Path) -> None:
    try:
        import torch
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip("needs torch")
    with torch.profiler.profile() as profile:
        before = time.time_ns()
        with torch.profiler.record_function("marked"):
            time.sleep(0.01)
        after = time.time_ns()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    found = json.loads((tmp_path / "trace.json").read_text())
    base = found["baseTimeNanoseconds"]
    assert base % (QUARTER * 10**9) == 0
    (marked,) = [e for e in found["traceEvents"] if e["name"] == "marked" and e["ph"] == "X"]
    slack = 50_000_000  # nanoseconds: the profiler's clock is calibrated against the wall clock
    assert before - slack <= base + marked["ts"] * 1000 <= after + slack
