"""``filetimer run`` and ``serve``: --report-only, --warn-after, --reap-tree, --hold-stopped."""

from __future__ import annotations

import json
import subprocess

import pytest

from .conftest import PATIENCE, wait_until

HANGS = "with filetimer.expires(0.2, 'stuck'): time.sleep(600)\n"
WAITS = (
    "def wait_until_logged(name):\n"
    "    give_up = time.monotonic() + 20\n"
    "    while name not in open('log').read() and time.monotonic() < give_up: time.sleep(0.02)\n"
    "    time.sleep(0.3)\n"  # in which whatever else would come of it may come
)
HANGS_FOR_A_WHILE = (
    WAITS + "with filetimer.expires(0.1, 'slow'): wait_until_logged('timer expired')\n"
)
HAS_A_CHILD = "child = subprocess.Popen(['sleep', '600'])\n" + HANGS
STOPS_ITSELF = (
    "subprocess.Popen(['sh', '-c', f'sleep 2; kill -CONT {os.getpid()}'])\n"
    "with filetimer.expires(1, 'stopped'): os.kill(os.getpid(), signal.SIGSTOP)\n"
)


class Outcome:
    def __init__(self, status, events):
        self.status, self.events = status, events

    def named(self, name):
        return [event for event in self.events if event["name"] == name]


def under_run(bench, options, code):
    status = bench("run", "--events", "log", *options, "--", *bench.script(code)).returncode
    return Outcome(status, read_events(bench))


def under_serve(bench, options, code):
    server = bench.popen("serve", "p", "--events", "log", *options)
    wait_until((bench.directory / "p").exists, "the server makes its FIFO")
    environment = {**bench.environment, "FILETIMER_PATH": str(bench.directory / "p")}
    worker = subprocess.Popen(bench.script(code), env=environment, cwd=bench.directory)
    bench.started.append(worker)
    status = worker.wait(PATIENCE)
    server.terminate()
    server.communicate(timeout=PATIENCE)
    return Outcome(status, read_events(bench))


def read_events(bench):
    return [json.loads(line) for line in (bench.directory / "log").read_text().splitlines()]


@pytest.fixture(params=[under_run, under_serve], ids=["run", "serve"])
def act(request, bench):
    """Runs a worker under a command with these options; what came of it."""
    return lambda options, code: request.param(bench, options, code)


def test_report_only(act):
    outcome = act(["--report-only"], HANGS_FOR_A_WHILE)
    (expired,) = outcome.named("timer expired")
    assert (outcome.status, expired["scope_id"]) == (0, "slow")
    assert expired["detail"] == "SIGKILL was not sent"
    assert outcome.named("kill worker process") == []


def test_run_tells_what_would_have_been(bench):
    worker = bench.script(HANGS_FOR_A_WHILE)
    result = bench("run", "--events", "log", "--report-only", "--", *worker)
    assert b"timer expired" in result.stderr
    assert b"SIGKILL was not sent" in result.stderr


def test_report_only_collects_no_evidence(bench, act):
    assert act(["--report-only", "--evidence", "seen"], HANGS_FOR_A_WHILE).status == 0
    assert not (bench.directory / "seen").exists()


def test_warn_after(act):
    code = WAITS + "with filetimer.expires(30, 'slow'): wait_until_logged('timer overdue')\n"
    outcome = act(["--warn-after", "0.01"], code)
    (overdue,) = outcome.named("timer overdue")
    assert (outcome.status, overdue["scope_id"]) == (0, "slow")
    assert outcome.named("timer expired") == []


def test_reap_tree(bench, act):
    outcome = act(["--reap-tree", "--no-evidence"], HAS_A_CHILD)
    (kill,) = outcome.named("kill worker process")
    assert kill["detail"] == "and 1 descendants"
    wait_until(lambda: not bench.survivors(), "the child of the worker is gone")


def test_hold_stopped(act):
    outcome = act(["--hold-stopped"], STOPS_ITSELF)
    assert outcome.status == 0
    assert len(outcome.named("worker held")) == 1
    assert outcome.named("timer expired") == []


@pytest.mark.parametrize("command", [["run", "--", "true"], ["serve", "p"]])
@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf"])
def test_a_warning_time_that_makes_no_sense_is_refused(bench, command, value):
    result = bench(command[0], "--warn-after", value, *command[1:])
    assert result.returncode == 2
    assert b"--warn-after" in result.stderr


@pytest.mark.parametrize("command", ["run", "serve"])
def test_the_help_names_them(bench, command):
    text = bench(command, "--help").stdout.decode()
    for option in ("--report-only", "--warn-after", "--reap-tree", "--hold-stopped"):
        assert option in text
