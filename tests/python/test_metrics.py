"""Metrics: what they count, and that Prometheus' own parsers take them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from journals import WALL, Script, training_job
from prometheus_client import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from support import StartWorker, eventually
from test_file_server import record, write_line

import filetimer as timer
from filetimer.server import events
from filetimer.server.loop import read_clocks
from filetimer.server.timers import Now
from filetimer.views.metrics import OTHER, Exporter, journal_finder


def export(script: Script, tmp_path: Path, **options: int) -> Exporter:
    journal = str(script.save(tmp_path / "journal"))
    exporter = Exporter(lambda: journal, **options)
    exporter.update(Now(script.at, script.at + WALL))
    return exporter


def value(exporter: Exporter, name: str, **labels: str) -> float | None:
    found: float | None = exporter.registry.get_sample_value(name, labels)
    return found


def check_with_parsers(exporter: Exporter) -> None:
    strict = openmetrics.generate_latest(exporter.registry).decode()
    families = list(openmetrics_parser.text_string_to_metric_families(strict))
    assert {family.name for family in families} >= {"filetimer_up", "filetimer_records"}
    text = generate_latest(exporter.registry).decode()
    assert len(list(text_string_to_metric_families(text))) >= len(families)


def test_a_job(tmp_path: Path) -> None:
    script = training_job(4, 20)
    script.chunk(b"nonsense\n")
    script.event(events.TIMER_REFUSED, pid=1, scope_id="s", code="init")
    exporter = export(script, tmp_path)
    steps = 4 * 10 + 4 * 20
    durations = "filetimer_scope_duration_seconds"
    assert value(exporter, f"{durations}_count", scope="train step") == steps
    assert value(exporter, f"{durations}_bucket", scope="train step", le="10.0") == steps
    assert 0 < value(exporter, f"{durations}_bucket", scope="train step", le="0.5") < steps
    headroom = "filetimer_scope_headroom_ratio"
    assert value(exporter, f"{headroom}_bucket", scope="train step", le="0.0") == 0
    assert value(exporter, f"{headroom}_count", scope="train step") == steps
    assert value(exporter, "filetimer_scope_ended_total", scope="train step", how="killed") == 1
    assert value(exporter, "filetimer_scope_ended_total", scope="all_reduce", how="exited") == 3
    assert value(exporter, "filetimer_kills_total") == 1
    assert value(exporter, "filetimer_expirations_total") == 1
    assert value(exporter, "filetimer_lateness_seconds_bucket", le="0.00025") == 1
    assert value(exporter, "filetimer_kill_lateness_seconds_count") == 1
    assert value(exporter, "filetimer_rejections_total", reason="json") == 1
    assert value(exporter, "filetimer_rejections_total", reason="init") == 1
    blocks = 2 * steps + 8 + 3  # of train step, all_reduce, load data and checkpoint
    assert value(exporter, "filetimer_records_total") == 2 * blocks + 4  # four hung
    assert value(exporter, "filetimer_up") == 0
    check_with_parsers(exporter)


def test_nothing_is_counted_twice(tmp_path: Path) -> None:
    script = training_job(2)
    exporter = export(script, tmp_path)
    before = generate_latest(exporter.registry)
    exporter.update(Now(script.at, script.at + WALL))
    assert generate_latest(exporter.registry) == before


def test_scopes_are_bounded_and_may_hold_anything(tmp_path: Path) -> None:
    script = Script()
    odd = 'a "quoted" \\ scope\nof two lines, \N{SNOWMAN}'
    for scope in (odd, "x" * 500, *(f"step {i}" for i in range(1000))):
        script.block(1, scope, 10, took=0.1)
    exporter = export(script, tmp_path, max_scopes=5)
    counts = [
        sample
        for family in exporter.registry.collect()
        for sample in family.samples
        if sample.name == "filetimer_scope_duration_seconds_count"
    ]
    assert len(counts) == 6
    assert {s.labels["scope"]: s.value for s in counts}[OTHER] == 1002 - 5
    assert max(len(s.labels["scope"]) for s in counts) <= 120
    check_with_parsers(exporter)


def test_a_span_that_began_before_the_history_is_no_duration(tmp_path: Path) -> None:
    script = Script()
    script._content.clear()
    script.begin_file(script.line(1, "s", 60), began=1.0)
    script.at += 1
    script.release(1, "s")
    exporter = export(script, tmp_path)
    assert value(exporter, "filetimer_scope_ended_total", scope="s", how="released") == 1
    assert value(exporter, "filetimer_scope_duration_seconds_count", scope="s") is None


def test_it_outlives_servers(
    fifo_path: str, sleeper: subprocess.Popen[str], start_worker: StartWorker
) -> None:
    exporter = Exporter(journal_finder(fifo_path))
    assert not exporter.update(read_clocks())
    check_with_parsers(exporter)
    for round_number in (1, 2):
        server = timer.FileTimerServer(fifo_path, f"run {round_number}")
        server.start()
        write_line(fifo_path, record(sleeper.pid, 60))
        eventually(
            lambda n=round_number: (
                exporter.update(read_clocks())
                and value(exporter, "filetimer_records_total") == n
                and value(exporter, "filetimer_active_timers") == 1
            )
        )
        server.stop()
        assert not exporter.update(read_clocks())
        assert value(exporter, "filetimer_up") == 0
        assert value(exporter, "filetimer_active_timers") == 0
    labels = {"path": fifo_path, "run_id": "run 2"}
    (server_info,) = [f for f in exporter.registry.collect() if f.name == "filetimer_server"]
    assert labels.items() <= server_info.samples[0].labels.items()


def test_without_a_path_it_takes_the_server_that_comes(
    fifo_path: str, sleeper: subprocess.Popen[str]
) -> None:
    exporter = Exporter(journal_finder(None))
    for path in (fifo_path, fifo_path + ".other"):
        assert not exporter.update(read_clocks())
        server = timer.FileTimerServer(path, "test")
        server.start()
        eventually(lambda: exporter.update(read_clocks()))
        server.stop()


def test_a_worker_that_is_gone_has_no_active_timers(
    server: timer.FileTimerServer, sleeper: subprocess.Popen[str]
) -> None:
    exporter = Exporter(journal_finder(server._file_path))
    write_line(server._file_path, record(sleeper.pid, 60))
    eventually(
        lambda: exporter.update(read_clocks()) and value(exporter, "filetimer_active_timers") == 1
    )
    sleeper.kill()
    sleeper.wait()
    exporter.update(read_clocks())
    assert value(exporter, "filetimer_active_timers") == 0
