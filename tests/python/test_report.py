"""The report: its model, its page, and what a browser makes of it in light and dark."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import pytest
from journals import WALL, Script, training_job

from filetimer.replay import History, load_history
from filetimer.server import events
from filetimer.server.timers import Now
from filetimer.views import report as report_module
from filetimer.views.report import Report, bars, make_report
from filetimer.views.report_charts import COLOURS
from filetimer.views.report_page import page


def loaded(script: Script, tmp_path: Path) -> tuple[dict[str, Any], History]:
    now = Now(script.at, script.at + WALL)
    return load_history(str(script.save(tmp_path / "journal")), now)


def report_on(script: Script, tmp_path: Path) -> Report:
    return make_report(*loaded(script, tmp_path))


class TestModel:
    @pytest.mark.parametrize("workers", [1, 2, 64])
    def test_a_restarted_group_has_a_row_for_each_worker(
        self, workers: int, tmp_path: Path
    ) -> None:
        report = report_on(training_job(workers, 20), tmp_path)
        labels = [row.label for row in report.timeline.rows]
        assert labels == [f"{4000 + rank} → {5000 + rank}" for rank in range(workers)]
        assert (report.workers, report.kills) == (2 * workers, 1)
        ((row, span),) = report.timeline.ran_out
        assert (row, span.scope_id, span.how) == (min(1, workers - 1), "train step", "killed")
        assert len(report.timeline.kills) == 1
        assert report.timeline.still_open == []

    @pytest.mark.parametrize("workers", [2, 64])
    def test_ranks_have_rows_and_restarts_are_known(self, workers: int, tmp_path: Path) -> None:
        report = report_on(training_job(workers, 20, ranks=True), tmp_path)
        rows = report.timeline.rows
        assert [row.label for row in rows] == [f"rank {rank}" for rank in range(workers)]
        assert rows[1].title == "pids 4001 → 5001"
        assert (report.ranks, report.workers) == (workers, 2 * workers)
        (restart,) = report.timeline.restarts
        assert report.timeline.kills[0] < restart < report.timeline.end
        assert all(len(row.starts) == 1 for row in rows)  # the line of the restart says the other

    def test_a_rank_that_the_worker_says_itself(self, tmp_path: Path) -> None:
        """In the order of ranks, and those that say none come last."""
        script = Script()
        for pid, said in [(5, None), (7, {"rank": 1, "step": 1}), (9, {"rank": 0})]:
            fields = {} if said is None else {"attributes": said}
            script.acquire(pid, "s", 60, **fields)
        script.block(7, "s2", 60, took=1, attributes={"rank": 1, "step": 2})
        rows = report_on(script, tmp_path).timeline.rows
        assert [row.label for row in rows] == ["rank 0", "rank 1", "5"]
        assert rows[1].title == "pid 7, rank=1"  # what all blocks say
        assert report_on(script, tmp_path).timeline.restarts == []

    def test_workers_side_by_side_have_rows_of_their_own(self, tmp_path: Path) -> None:
        """One that is only idle, and not gone, has not been replaced."""
        script = Script()
        tick = os.sysconf("SC_CLK_TCK")
        script.block(7, "s", 10, took=1, start_time=int(script.at * tick) - 500)
        script.at += 5
        script.block(8, "s", 10, took=1, start_time=int(script.at * tick) - 1000)
        labels = [row.label for row in report_on(script, tmp_path).timeline.rows]
        assert sorted(labels) == ["7", "8"]

    def test_what_was_close_what_ran_out_and_what_is_open(self, tmp_path: Path) -> None:
        script = Script()
        script.block(7, "easy", 10, took=1)
        script.block(7, "close", 10, took=9)
        script.acquire(7, "reported", 1, signal=0)
        script.at += 1
        script.event(events.TIMER_EXPIRED, pid=7, scope_id="reported", signal=0, late=0.0)
        script.acquire(7, "open", 60)
        timeline = report_on(script, tmp_path).timeline
        assert [span.scope_id for _, span in timeline.close] == ["close"]
        assert [span.scope_id for _, span in timeline.ran_out] == ["reported"]
        assert [span.scope_id for _, span in timeline.still_open] == ["open"]

    def test_of_too_many_rows_those_with_a_kill_are_shown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(report_module, "MAX_ROWS", 3)
        script = Script()
        for pid in range(1, 9):
            script.acquire(pid, "s", 1 if pid == 7 else 60)
        script.at += 1
        script.kill(7, "s")
        timeline = report_on(script, tmp_path).timeline
        assert [row.label for row in timeline.rows] == ["1", "2", "7"]
        assert timeline.hidden == 5
        assert [row for row, _ in timeline.ran_out] == [2]

    def test_durations_and_deadlines(self, tmp_path: Path) -> None:
        report = report_on(training_job(4, 40), tmp_path)
        found = {durations.scope_id: durations for durations in report.durations}
        step = found["train step"]
        assert (len(step.first), len(step.later)) == (8, 4 * 58)
        assert (step.allowed, step.ran_out) == ([10.0], 1)
        assert step.suggested is not None
        assert max(step.later) < step.suggested
        assert min(step.first) > 3

    def test_bars_are_bounded_whatever_there_was(self, tmp_path: Path) -> None:
        script = Script()
        for i in range(20_000):
            script.block(7, f"scope {i % 3}", 10, took=0.001)
        script.block(7, "long", 10, took=9)
        timeline = report_on(script, tmp_path).timeline
        found = bars(timeline)
        assert len(found) < 1600
        long = next(bar for bar in found if bar.scope_id == "long")
        assert long.end - long.begin == pytest.approx(9, abs=1e-3)
        covered = sum(bar.end - bar.begin for bar in found)
        assert covered == pytest.approx(timeline.end - timeline.begin, rel=0.02)

    def test_a_gap_stays_a_gap(self, tmp_path: Path) -> None:
        script = Script()
        for _ in range(2):
            for _ in range(1000):
                script.block(7, "s", 10, took=0.001)
            script.at += 8
        found = bars(report_on(script, tmp_path).timeline)
        assert [round(bar.end - bar.begin, 1) for bar in found] == [1.0, 1.0]


class TestPage:
    def test_it_loads_nothing_and_is_well_formed(self, tmp_path: Path) -> None:
        text = page(report_on(training_job(2), tmp_path))
        assert "default-src 'none'" in text
        assert re.findall(r"<(?:script|link|img|iframe|object)\b", text) == []
        assert [ref for ref in re.findall(r'(?:href|src)="([^"]*)', text) if ref[0] != "#"] == []
        assert re.findall(r"@import|url\((?!#)", text) == []
        charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
        assert len(charts) == 2
        for chart in charts:
            ElementTree.fromstring(chart)
        used = set(re.findall(r"var\(--(\w+)\)", text))
        assert used <= set(COLOURS)
        assert {"fg", "grid", "alarm", "s0", "s1"} <= used
        assert "#0f1e" not in text  # every stand-in became a variable

    def test_titles_axes_units_and_legends(self, tmp_path: Path) -> None:
        text = page(report_on(training_job(2), tmp_path))
        for words in (
            "Timeline of the workers",
            "time since the beginning (seconds)",
            "worker (pid)",
            "ran out, worker killed",
            "new process",
            "deadline that passed",
            "duration (seconds)",
            "blocks",
            "deadline suggested",
            "first call",
            "kill worker process",
        ):
            assert words in text, words

    def test_ranks_restarts_and_what_a_pointer_is_told(self, tmp_path: Path) -> None:
        script = training_job(2, 20, ranks=True)
        script.acquire(77, "<open>", 60, attributes={"rank": 1, "step": 7})
        script.at += 1
        text = page(report_on(script, tmp_path))
        for words in (
            ">rank 0</text>",
            "restart of the group",
            "pid 4001, rank 1, scope &#x27;train step&#x27;",
            "<title>pids 4001 → 5001 → 77</title>",
            "<title>rank 1 (pid 4001): train step</title></use>",
            "<title>rank 1 (pid 77): &lt;open&gt;, rank=1 step=7</title></use>",
        ):
            assert words in text, words
        assert "new process" in text  # the last one: no restart explains it

    def test_a_deadline_off_the_picture_harms_nothing(self, tmp_path: Path) -> None:
        script = Script()
        script.acquire(7, "s", -900.0)
        script.block(8, "t", 10, took=1)
        text = page(report_on(script, tmp_path))
        assert "deadline that passed" not in text
        assert "<title>pid 7: s</title></use>" in text  # still set at the end

    def test_the_size_of_a_page_with_64_workers(self, tmp_path: Path) -> None:
        assert len(page(report_on(training_job(64, 40), tmp_path))) < 2_000_000

    def test_what_clients_wrote_is_text(self, tmp_path: Path) -> None:
        script = Script()
        script.block(7, "<script>alert(1)</script> & $x^2$ \x1b[2J \N{SNOWMAN}", 10, took=1)
        text = page(report_on(script, tmp_path))
        assert "<script" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x^2$ \\x1b[2J \N{SNOWMAN}" in text

    @pytest.mark.parametrize("open_too", [False, True])
    def test_a_job_without_a_block_that_ended(self, open_too: bool, tmp_path: Path) -> None:
        script = Script()
        if open_too:
            script.acquire(7, "s", 10)
        text = page(report_on(script, tmp_path))
        assert ("none came to its end" if open_too else "No block was guarded") in text


@pytest.fixture(scope="module")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = [path for name in names if (path := shutil.which(name))]
    if not found:
        message = "needs a browser: Debian's package chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found[0]


def screenshot(browser: str, html: Path, *, dark: bool) -> Any:
    """What the page looks like in that theme: rows of pixels, each red, green, blue in 0..1."""
    picture = html.with_suffix(".png")
    subprocess.run(
        [
            browser,
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            "--host-resolver-rules=MAP * ~NOTFOUND",  # no network
            f"--user-data-dir={html.parent / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            *("--window-size=1280,2600", f"--screenshot={picture}", html.as_uri()),
        ],
        check=True,
        capture_output=True,
        timeout=100,
    )
    return matplotlib.image.imread(picture)[..., :3]


def count(pixels: Any, colour: str) -> int:
    """How many pixels have this very colour."""
    wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    near = abs(pixels - wanted) < 1.5 / 255
    return int(near.all(axis=-1).sum())


@pytest.fixture(params=[(2, False), (64, False), (64, True)])
def html(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "report.html"
    path.write_text(
        page(report_on(training_job(request.param[0], ranks=request.param[1]), tmp_path))
    )
    yield path
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_a_browser(chromium: str, html: Path, dark: bool) -> None:
    """The theme is the reader's, and everything that matters is on the picture."""
    pixels = screenshot(chromium, html, dark=dark)
    total = pixels.shape[0] * pixels.shape[1]
    assert count(pixels, COLOURS["bg"][dark]) > total / 3
    assert count(pixels, COLOURS["bg"][not dark]) < total / 100
    for name in ("fg", "alarm", "grid"):
        assert count(pixels, COLOURS[name][dark]) > 30, name
    for name in ("s0", "s1", "s2", "s3"):  # the scopes of the timeline
        assert count(pixels, COLOURS[name][dark]) > 500, name
