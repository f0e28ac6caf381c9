"""``filetimer serve``: a server alone, in the foreground."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from .conftest import wait_until


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_serves_until_it_is_asked_to_end(bench, signum):
    path = bench.serve()
    server = bench.started[0]
    worker = bench.script("with filetimer.expires(0.2, 'the block'): time.sleep(600)")
    assert bench("expires", "--after", "60", "--", *worker).returncode == 137
    server.send_signal(signum)
    assert server.wait(60) == 0
    assert not path.exists()
    log = (bench.directory / "serve.log").read_text().splitlines()
    for name in ("watchdog started", "timer expired", "kill worker process", "watchdog stopped"):
        assert sum(name in line for line in log) == 1, log
    assert "scope 'the block'" in "".join(log)
    bench.assert_nothing_left()


def test_events_and_escalation(bench):
    events = bench.directory / "events"
    process = bench.popen("serve", "p", "--events", str(events), "--kill-after", "0.2")
    wait_until((bench.directory / "p").exists, "the server makes its FIFO")
    worker = bench.script(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "filetimer.configure_from_env(signal=signal.SIGTERM)\n"
        "with filetimer.expires(0.1, 's'): time.sleep(600)\n"
    )
    bench.environment["FILETIMER_PATH"] = str(bench.directory / "p")
    assert bench("expires", "--after", "60", "--", *worker).returncode == 137
    process.terminate()
    process.communicate(timeout=60)
    names = [json.loads(line)["name"] for line in events.read_text().splitlines()]
    assert "kill escalated" in names
    assert (names[0], names[-1]) == ("watchdog started", "watchdog stopped")


def test_a_path_that_is_served_already_is_refused(bench):
    path = bench.serve()
    result = bench("serve", str(path))
    assert result.returncode == 125
    assert b"another server is serving" in result.stderr
    assert path.exists()


def test_a_path_that_holds_something_else_is_refused(bench):
    (bench.directory / "file").write_text("precious")
    result = bench("serve", "file")
    assert (result.returncode, result.stderr.count(b"\n")) == (125, 1)
    assert (bench.directory / "file").read_text() == "precious"


def test_a_log_that_nobody_reads_does_not_stop_the_server(bench):
    """Standard error is a full pipe; workers are reaped, and the server ends, all the same."""
    process = bench.popen("serve", "p")
    path = bench.directory / "p"
    wait_until(path.exists, "the server makes its FIFO")
    bench.environment["FILETIMER_PATH"] = str(path)
    flood = bench.script(
        "filetimer.configure_from_env(signal=0)\n"
        "for i in range(2000):\n"
        "    with filetimer.expires(0.0, f'{i}' * 20): pass\n"
    )
    assert bench("expires", "--after", "60", "--", *flood).returncode == 0
    assert bench("expires", "--after", "0.1", "--", "sleep", "600").returncode == 124
    process.terminate()
    assert process.wait(60) == 0
    assert not path.exists()


def test_event_files_are_rotated_and_no_event_is_lost(bench):
    """As logrotate does it: rename, then SIGHUP; or only rename."""
    events = bench.directory / "events"
    process = bench.popen("serve", "p", "--events", "events")
    path = bench.directory / "p"
    wait_until(path.exists, "the server makes its FIFO")
    bench.environment["FILETIMER_PATH"] = str(path)
    count = 300
    reports = bench.script(
        "client = filetimer.configure_from_env(signal=0)\n"
        f"for i in range({count}):\n"
        "    client.acquire(f'scope {i}', time.time())\n"
        "    time.sleep(0.005)\n"
        "sys.stdin.read()\n"  # timers go with their process
    )
    worker = bench.popen("expires", "--after", "60", "--", *reports, stdin=subprocess.PIPE)
    rotated = []

    def written():
        files = [*rotated, *([events] if events.exists() else [])]
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def expired():
        return [line["scope_id"] for line in written() if line["name"] == "timer expired"]

    while len(rotated) < 15:
        wait_until(lambda: events.exists() and events.stat().st_size, "there is an event")
        rotated.append(bench.directory / f"events.{len(rotated)}")
        events.rename(rotated[-1])
        if len(rotated) % 2:
            process.send_signal(signal.SIGHUP)
            wait_until(events.exists, "the file is opened anew at once")
    wait_until(lambda: len(expired()) == count, "all have expired")
    worker.communicate(b"")
    process.terminate()
    assert process.wait(60) == 0
    assert expired() == [f"scope {i}" for i in range(count)]
    names = [line["name"] for line in written()]
    assert (names[0], names[-1]) == ("watchdog started", "watchdog stopped")
    bench.assert_nothing_left()


def test_a_hangup_that_cannot_open_the_file_anew_ends_nothing(bench):
    directory = bench.directory / "log"
    directory.mkdir()
    process = bench.popen("serve", "p", "--events", "log/events")
    wait_until((bench.directory / "p").exists, "the server makes its FIFO")
    wait_until((directory / "events").exists, "the file is there")
    directory.rename(bench.directory / "moved")
    process.send_signal(signal.SIGHUP)
    line = b""
    while b"events go on to the file of before" not in line:
        line = process.stderr.readline()
        assert line
    process.terminate()
    assert process.wait(60) == 0
    written = (bench.directory / "moved/events").read_text().splitlines()
    assert json.loads(written[-1])["name"] == "watchdog stopped"
