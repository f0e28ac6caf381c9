"""Jobs under a real torchrun, with our timer server in its agent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch_jobs import (
    FILETIMER_TORCHRUN,
    OURS,
    STOCK,
    TORCHRUN,
    Job,
    Result,
    free_port,
    lines_with,
    one_host,
    worker,
)

pytest_plugins = ["torch_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PLAIN = worker("plain")
INCLUDE = Path(__file__).parents[2] / "c" / "include"


def finished(result: Result) -> Result:
    assert result.status == 0, result.output
    return result


def reaped(result: Result) -> list[str]:
    """The lines in which our server says whom it reaped."""
    return list(lines_with(result.output, "filetimer: reaped"))


# One host: the agent restarts the group, the job goes on from its checkpoint.


@pytest.mark.parametrize("way", ["command", "variable"])
def test_a_rank_that_hangs_in_native_code_is_reaped_and_the_job_goes_on(
    job: Job, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = FILETIMER_TORCHRUN if way == "command" else TORCHRUN
    environment = {} if way == "command" else OURS
    arguments = [*one_host(2, 3), worker("train"), job.directory, 6]
    result = finished(job.run(command, *arguments, TEST_HANG="1", **environment))
    assert "finished: total 42, resumed from step 3" in result.output
    (line,) = reaped(result)
    assert re.search(r"reaped rank 1 \(pid \d+\): its timer 'stuck native call' expired", line)
    assert "signal 9 (SIGKILL) was sent" in line
    job.assert_clean()
    with capsys.disabled():
        print(f"\n    with filetimer ({way}): {result.outcome()}, resumed from its checkpoint")


@pytest.mark.parametrize("client", ["filetimer", "torch"])
def test_the_same_job_under_torchs_own_server(
    job: Job, client: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recorded, not judged: what it does is torch's affair and may change."""
    arguments = [*one_host(2, 3), worker("train"), job.directory, 6]
    job.start(TORCHRUN, *arguments, TEST_HANG="1", TEST_CLIENT=client, **STOCK)
    result = job.wait(25)
    time.sleep(1)
    left = job.processes()
    ranks = f"{len(left)} orphaned rank(s)" if result.status is not None else "all ranks waiting"
    done = "finished" if "finished:" in result.output else "not finished"
    with capsys.disabled():
        print(
            f"\n    with torch's own server ({client}'s client): {result.outcome()}, {done}, "
            f"{ranks}, {len(job.fifos())} FIFO(s) left"
        )


def test_used_up_restarts_end_in_a_report_of_rank_signal_and_scope(job: Job) -> None:
    result = job.run(TORCHRUN, *one_host(2, 1), PLAIN, "always", job.directory, **OURS)
    assert result.status == 1
    assert len(reaped(result)) == 2  # the first attempt and its one restart
    report = result.output[result.output.index("FAILED\n") :]
    assert re.search(
        r"rank      : 1 .*\n"
        r"  exitcode  : -9 .*\n"
        r".*\n"
        r"  traceback : filetimer reaped rank 1 \(pid \d+\): its timer 'exchange of gradients' "
        r"expired, and signal 9 \(SIGKILL\) was sent",
        report,
    ), report
    job.assert_clean()


def test_twenty_hangs_are_twenty_restarts_and_nothing_leaks(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    hangs = 20
    arguments = [*one_host(3, hangs), PLAIN, "in_turn", job.directory, hangs]
    result = finished(job.run(TORCHRUN, *arguments, timeout=150, **OURS))
    lines = reaped(result)
    assert len(lines) == hangs
    for attempt, line in enumerate(lines):
        assert f"reaped rank {attempt % 3} " in line
        assert f"'scope {attempt}'" in line
    censuses = [
        json.loads((job.directory / f"census-{attempt}.json").read_text())
        for attempt in range(hangs + 1)
    ]
    with capsys.disabled():
        print(f"\n    {hangs} restarts: {result.outcome()}; {censuses[1]} -> {censuses[-1]}")
    for what in ("fds", "threads"):
        counts = [census[what] for census in censuses]
        assert min(counts[-5:]) <= max(counts[1:6]), counts
    assert list(job.temporary.glob("watchdog_timer_*")) == []
    job.assert_clean()


# Two hosts.


def test_two_agents_restart_together_when_a_rank_of_the_second_hangs(
    job: Job, other_job: Job
) -> None:
    arguments = [
        "--nnodes=2",
        "--nproc-per-node=1",
        "--max-restarts=3",
        "--monitor-interval=0.05",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        "--rdzv-id=two",
        "--rdzv-conf=join_timeout=60,last_call_timeout=1",
        "--local-addr=127.0.0.1",
        worker("train"),
        job.directory,
        6,
    ]
    job.start(TORCHRUN, *arguments, **OURS)
    other_job.start(TORCHRUN, *arguments, TEST_HANG="0", **OURS)
    first, second = job.wait(90), other_job.wait(30)
    both = f"{first.output}\n=== second ===\n{second.output}"
    assert (first.status, second.status) == (0, 0), both
    assert "finished: total 42, resumed from step 3" in both
    assert (len(reaped(first)), len(reaped(second))) == (0, 1), both
    job.assert_clean()
    other_job.assert_clean()


# The end of a job.


def test_a_worker_that_exits_with_its_timer_armed_harms_nobody(job: Job) -> None:
    result = finished(
        job.run(TORCHRUN, *one_host(2, 0), PLAIN, "leave_armed", job.directory, **OURS)
    )
    assert reaped(result) == []
    job.assert_clean()


def test_a_stuck_worker_does_not_hold_up_the_agents_shutdown(job: Job) -> None:
    """torch waits for 30 seconds for a worker that is deaf to SIGTERM; the timer ends that."""
    arguments = [*one_host(2, 0), PLAIN, "during_shutdown", job.directory, 2.0]
    result = job.run(TORCHRUN, *arguments, **OURS)
    assert result.status == 1
    assert len(reaped(result)) == 1
    assert result.seconds < 25
    assert re.search(r"rank      : 0 .*\n  exitcode  : 3 ", result.output)
    job.assert_clean()


@pytest.mark.parametrize("ahead", [0.0, 0.1])
def test_the_agent_ends_when_told_to_while_timers_expire(job: Job, ahead: float) -> None:
    job.start(TORCHRUN, *one_host(3, 0), PLAIN, "terminated", job.directory, 0.7, **OURS)
    wait_until_armed(job, 3)
    time.sleep(0.7 - ahead)
    job.terminate()
    result = job.wait(20)
    assert result.status not in (None, 0, -9), result.output
    job.assert_clean()


def wait_until_armed(job: Job, ranks: int) -> None:
    give_up = time.monotonic() + 60
    while len(list(job.directory.glob("armed-*"))) < ranks:
        assert time.monotonic() < give_up, job.output()
        time.sleep(0.01)


# Clients, and ways to start workers.


def test_every_kind_of_client_is_served_in_one_job(job: Job) -> None:
    kinds = ["'our version 2'", "'our version 1'", '"torch\'s own"', '"ours in torch\'s expires"']
    kinds.append("'in C++'")
    library = compiled(worker("native_guard"), job.directory)
    ranks = len(kinds)
    arguments = [*one_host(ranks, ranks), PLAIN, "mixed", job.directory]
    result = finished(job.run(TORCHRUN, *arguments, timeout=120, TEST_NATIVE=str(library), **OURS))
    pattern = r"reaped rank (\d) .*its timer (.*) expired"
    found = [re.search(pattern, line) for line in reaped(result)]
    assert [match and match.groups() for match in found] == [
        (str(rank), scope) for rank, scope in enumerate(kinds)
    ]
    job.assert_clean()


def compiled(stem: Path, directory: Path) -> Path:
    """The shared object made from a C++ source with our header."""
    library = directory / "native.so"
    options = ["-std=c++17", "-shared", "-fPIC", f"-I{INCLUDE}", "-o", str(library)]
    subprocess.run(["c++", *options, str(stem.with_suffix(".cpp"))], check=True)
    return library


def test_redirected_streams(job: Job) -> None:
    logs = job.directory / "logs"
    arguments = [*one_host(2, 1), "--redirects=3", f"--log-dir={logs}"]
    result = finished(job.run(FILETIMER_TORCHRUN, *arguments, PLAIN, "once", job.directory))
    assert len(reaped(result)) == 1
    assert "done" not in result.output
    assert sorted(path.read_text() for path in logs.rglob("attempt_1/*/stdout.log")) == [
        f"rank {rank} of attempt 1 done\n" for rank in (0, 1)
    ]
    job.assert_clean()


def test_a_program_that_is_not_python_between_agent_and_worker(job: Job) -> None:
    """The worker that is reaped is then not the process that the agent knows."""
    script = job.directory / "train.sh"
    script.write_text('#!/bin/sh\n"$PYTHON" "$@"\nexit $?\n')
    script.chmod(0o755)
    arguments = [*one_host(2, 1), "--no-python", script, PLAIN, "once", job.directory]
    result = finished(job.run(TORCHRUN, *arguments, PYTHON=sys.executable, **OURS))
    (line,) = reaped(result)
    assert "reaped rank 0 " in line
    job.assert_clean()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_that_are_functions(job: Job, method: str) -> None:
    result = finished(job.run([sys.executable], worker("functions"), method))
    (line,) = reaped(result)
    assert "reaped rank 1 " in line
    assert "results {0: 'rank 0 of attempt 1', 1: 'rank 1 of attempt 1'}" in result.output
    job.assert_clean()


def test_the_example_of_torchs_documentation(job: Job) -> None:
    """A LocalTimerServer beside an agent of one's own, workers with ``expires``."""
    result = finished(job.run([sys.executable], worker("documented"), job.directory))
    assert "results {0: 'trained in attempt 1', 1: 'trained in attempt 1'}" in result.output
    assert len(list(lines_with(result.output, "kill worker process"))) == 1
    job.assert_clean()


# What can be seen of the agent's timer server.


def test_filetimer_list_finds_the_server_of_a_running_torchrun(job: Job) -> None:
    job.start(TORCHRUN, *one_host(2, 0), PLAIN, "terminated", job.directory, 60, **OURS)
    wait_until_armed(job, 2)
    give_up = time.monotonic() + 30
    while True:  # their records may not have been read yet
        listed = subprocess.run(
            [sys.executable, "-m", "filetimer", "list", "--json"],
            env={**os.environ, "FILETIMER_RUNTIME_DIR": str(job.runtime)},
            stdout=subprocess.PIPE,
            check=True,
        )
        (server,) = map(json.loads, listed.stdout.splitlines())
        if len(server["timers"]) >= 2 or time.monotonic() > give_up:
            break
    job.terminate()
    assert [timer["scope_id"] for timer in server["timers"]] == ["stuck when told to end"] * 2
    assert job.wait(20).status is not None
    job.assert_clean()


def test_the_health_check_and_the_event_log_of_the_agent(job: Job) -> None:
    result = finished(job.run([sys.executable], worker("observed"), job.directory))
    health = json.loads((job.directory / "health.json").read_text())
    assert health["types"] == ["int"]
    assert health["beats"] >= 3  # one a second while nothing happens
    assert health["first"] >= -2
    assert -5 <= health["last"] <= 1
    logged = re.findall(r'\{\\+"watchdog_event\\+": \\+"([a-z ]+)\\+"(.*?)\}', result.output)
    assert [name for name, _ in logged] == [
        "watchdog started",
        "timer expired",
        "kill worker process",
        "watchdog stopped",
        "watchdog started",
        "watchdog stopped",
    ], result.output
    about = logged[2][1].replace("\\", "")
    assert '"scope_id": "once"' in about
    assert '"signal": "9"' in about
    job.assert_clean()


# What does not change.


def test_without_the_variable_nothing_changes(job: Job) -> None:
    result = finished(job.run(TORCHRUN, *one_host(1, 0), PLAIN, "unguarded", job.directory))
    assert "client NoopTimerClient, loaded [], timer file none" in result.output
    assert "filetimer:" not in result.output


@pytest.mark.parametrize("environment", [OURS, {}], ids=["switched on", "switched off"])
def test_the_hook_does_nothing_in_a_worker(job: Job, environment: dict[str, str]) -> None:
    result = finished(
        job.run(TORCHRUN, *one_host(1, 0), PLAIN, "cheap", job.directory, **environment)
    )
    assert "server side loaded: False, hook called: True" in result.output
    assert "class of torch: torch.distributed.elastic.timer" in result.output


def test_arguments_output_and_status_are_torchruns(job: Job, other_job: Job) -> None:
    theirs = job.run(TORCHRUN, "--no-such-flag", "x.py")
    ours = other_job.run(FILETIMER_TORCHRUN, "--no-such-flag", "x.py")
    assert ours.status == theirs.status == 2
    assert ours.output.splitlines()[0].startswith("usage: torchrun ")
    assert (
        ours.output.splitlines()[-1].partition(":")[2]
        == (theirs.output.splitlines()[-1].partition(":")[2])
    )


def test_a_path_that_cannot_be_served_does_not_bring_the_agent_down(job: Job) -> None:
    precious = job.directory / "precious"
    precious.write_text("data")
    arguments = [*one_host(1, 0), PLAIN, "unguarded", job.directory]
    result = finished(job.run(TORCHRUN, *arguments, TORCHELASTIC_TIMER_FILE=str(precious), **OURS))
    assert "no worker of this agent is guarded" in result.output
    assert precious.read_text() == "data"
