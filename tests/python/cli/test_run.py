"""``filetimer run``: workers under a server of their own, with real processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess

import pytest

from .conftest import wait_until

HANG = "time.sleep(600)\n"
GUARDED_HANG = "with filetimer.expires(0.2, 'the block'): time.sleep(600)\n"


def lines(output: bytes) -> list[bytes]:
    return sorted(output.splitlines())


def test_workers_get_their_environment(bench):
    names = [
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "FILETIMER_RESTART_COUNT",
        "MASTER_ADDR",
        "MASTER_PORT",
        "FILETIMER_PATH",
        "TORCHELASTIC_TIMER_FILE",
    ]
    worker = bench.script(f"import json; print(json.dumps([os.environ[n] for n in {names}]))")
    result = bench("run", "--workers", "3", "--", *worker)
    assert result.returncode == 0
    values = [json.loads(line[4:]) for line in lines(result.stdout)]
    for rank, (r, local, size, local_size, restart, address, port, path, torch) in enumerate(
        values
    ):
        assert (r, local, size, local_size) == (str(rank), str(rank), "3", "3")
        assert (restart, address) == ("0", "127.0.0.1")
        assert port == values[0][6]
        assert 0 < int(port) < 65536
        assert path == torch == values[0][7]
        assert path.startswith(str(bench.runtime))
    bench.assert_nothing_left()


def test_the_pipe_is_private(bench):
    worker = bench.script(
        "path = os.environ['FILETIMER_PATH']\n"
        "print(os.stat(path).st_mode, os.stat(os.path.dirname(path)).st_mode)\n"
    )
    fifo, directory = map(int, bench("run", "--", *worker).stdout[4:].split())
    assert stat.S_ISFIFO(fifo)
    assert (stat.S_IMODE(fifo), stat.S_IMODE(directory)) == (0o600, 0o700)


def test_a_missing_runtime_directory_is_made(bench):
    bench.environment["FILETIMER_RUNTIME_DIR"] = str(bench.runtime / "new")
    assert bench("run", "--", "true").returncode == 0
    assert list((bench.runtime / "new").iterdir()) == []


def test_a_runtime_directory_of_others_is_one_sentence(bench):
    bench.runtime.chmod(0o777)
    result = bench("run", "--", "true")
    assert (result.returncode, result.stderr.count(b"\n")) == (125, 1)
    assert b"cannot make a private directory" in result.stderr


def test_output_is_prefixed_line_by_line_and_kept_apart(bench):
    worker = bench.script(
        "sys.stdout.buffer.write(b'\\xff\\x00 one\\n\\ntwo without an end')\n"
        "sys.stderr.buffer.write(b'\\xfe err\\n')\n"
    )
    result = bench("run", "--workers", "2", "--", *worker)
    one_rank = [b"[%d] \xff\x00 one", b"[%d] ", b"[%d] two without an end"]
    assert lines(result.stdout) == sorted(line % rank for rank in (0, 1) for line in one_rank)
    assert lines(result.stderr) == [b"[0] \xfe err", b"[1] \xfe err"]


def test_long_lines_are_whole_up_to_a_limit_and_lose_nothing(bench):
    worker = bench.script("print('x' * 50_000); print('y' * 200_000)")
    first, *rest = bench("run", "--", *worker).stdout.split(b"\n")[:-1]
    assert first == b"[0] " + b"x" * 50_000
    assert all(line.startswith(b"[0] ") for line in rest)
    assert b"".join(line[4:] for line in rest) == b"y" * 200_000


def test_standard_input_is_closed(bench):
    assert bench("run", "--", *bench.script("sys.exit(len(sys.stdin.read()))")).returncode == 0


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(7 * rank)", 7),
        ("rank and os.kill(os.getpid(), signal.SIGTERM)", 143),
    ],
)
def test_the_status_is_that_of_the_worker_that_failed(bench, program, status):
    result = bench("run", "--workers", "2", "--", *bench.script(program))
    assert result.returncode == status
    assert (b"rank 1 " in result.stderr) == (status != 0)
    bench.assert_nothing_left()


def test_a_failure_stops_the_others(bench):
    worker = bench.script("if rank: sys.exit(3)\n" + HANG)
    assert bench("run", "--workers", "3", "--", *worker).returncode == 3
    bench.assert_nothing_left()


REAPED = re.compile(
    rb"^filetimer: rank 1 \(pid (\d+)\) was reaped in scope 'the block', "
    rb"(\d+\.\d+) m?s past its deadline \(SIGKILL\)",
    re.MULTILINE,
)


def test_a_hung_worker_is_reaped(bench):
    worker = bench.script("print(os.getpid())\nif not rank: time.sleep(600)\n" + GUARDED_HANG)
    events = bench.directory / "events.jsonl"
    events.write_text('{"v": 1, "name": "server died", "time": 1.0, "detail": "from before"}\n')
    result = bench("run", "--workers", "2", "--events", str(events), "--", *worker)
    assert result.returncode == 124
    (match,) = REAPED.finditer(result.stderr)
    assert b"[1] " + match[1] in lines(result.stdout)
    written = [json.loads(line) for line in events.read_text().splitlines()]
    assert written[0]["detail"] == "from before"  # it appends
    (kill,) = [event for event in written if event["name"] == "kill worker process"]
    assert (kill["pid"], kill["scope_id"], kill["signal"]) == (int(match[1]), "the block", 9)
    assert kill["late"] >= 0
    started = [event for event in written if event["name"] == "worker started"]
    assert [(event["rank"], event["restart"]) for event in started] == [(0, 0), (1, 0)]
    assert started[1]["pid"] == kill["pid"]
    bench.assert_nothing_left()


def test_a_hang_that_holds_the_gil_is_reaped(bench):
    worker = bench.script(
        "import ctypes\n"
        "with filetimer.expires(0.2): ctypes.PyDLL(None).read(os.pipe()[0], bytes(1), 1)"
    )
    assert bench("run", "--", *worker).returncode == 124


def test_the_group_is_restarted_and_finishes(bench):
    worker = bench.script(
        "print('attempt', attempt)\n"
        "if attempt: sys.exit(0)\n"
        "if not rank: time.sleep(600)\n" + GUARDED_HANG
    )
    result = bench("run", "--workers", "2", "--max-restarts", "2", "--", *worker)
    assert result.returncode == 0
    assert lines(result.stdout) == [b"[%d] attempt %d" % (r, a) for r in (0, 1) for a in (0, 1)]
    assert b"restart 1 of 2" in result.stderr
    bench.assert_nothing_left()


def test_reaping_uses_the_restarts_up(bench):
    worker = bench.script("print(attempt)\n" + GUARDED_HANG)
    result = bench("run", "--max-restarts", "2", "--", *worker)
    assert result.returncode == 124
    assert result.stdout == b"[0] 0\n[0] 1\n[0] 2\n"
    assert result.stderr.count(b"was reaped") == 3


def test_an_ordinary_failure_restarts_too(bench):
    worker = bench.script("sys.exit(3 if attempt < 2 else 4)")
    result = bench("run", "--max-restarts", "2", "--", *worker)
    assert result.returncode == 4
    assert result.stderr.count(b"ended with status 3") == 2


def test_a_peer_that_dies_of_the_reaping_does_not_hide_it(bench):
    """Rank 0 sees the connection close and fails, maybe before rank 1's death is complete."""
    fifo = bench.directory / "between"
    os.mkfifo(fifo)
    worker = bench.script(
        f"file = open({str(fifo)!r}, 'r' if rank == 0 else 'w')\n"
        "if rank == 0: file.read(); sys.exit(5)\n"
        "def die_slowly(*_): file.close(); time.sleep(600)\n"
        "signal.signal(signal.SIGTERM, die_slowly)\n"
        "filetimer.configure_from_env(signal=signal.SIGTERM)\n" + GUARDED_HANG
    )
    result = bench("run", "--workers", "2", "--kill-after", "1", "--", *worker)
    assert result.returncode == 124


def test_a_reaping_that_is_reported_late_is_still_one(bench):
    """The worker's death is seen before the server has said that it is the server's doing."""
    program = (
        "import sys, time; from filetimer.server import reaper; from filetimer.cli import main\n"
        "report = reaper.Reaper.report\n"
        "reaper.Reaper.report = lambda *arguments: time.sleep(1) or report(*arguments)\n"
        "sys.exit(main.main(sys.argv[1:]))\n"
    )
    result = bench("run", "--", *bench.script(GUARDED_HANG), program=("-c", program))
    assert result.returncode == 124
    assert b"was reaped" in result.stderr


def test_a_reaped_child_of_a_shell_counts_as_its_worker(bench):
    python, path = bench.script(GUARDED_HANG)
    result = bench("run", "--", "sh", "-c", f"{python} {path}; exit $?")
    assert result.returncode == 124
    assert b"was reaped" in result.stderr


def test_a_report_only_timer_is_told_and_nobody_dies(bench):
    worker = bench.script(
        "filetimer.configure_from_env(signal=0)\n"
        "with filetimer.expires(0.05, 'slow'): time.sleep(2)\n"
    )
    result = bench("run", "--", *worker)
    assert result.returncode == 0
    assert b"timer expired" in result.stderr
    assert b"'slow'" in result.stderr


def test_a_worker_that_outlives_its_signal_is_killed(bench):
    worker = bench.script(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "filetimer.configure_from_env(signal=signal.SIGTERM)\n" + GUARDED_HANG
    )
    result = bench("run", "--kill-after", "0.3", "--", *worker)
    assert result.returncode == 124
    assert b"kill escalated" in result.stderr


def test_a_worker_that_outlives_sigkill_does_not_hold_the_job(bench):
    """The server's signals get lost here, as if the worker were stuck in the kernel."""
    (bench.directory / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'filetimer.server' in sys.orig_argv:\n"
        "    from filetimer.server import process, reaper\n"
        "    process.ProcessHandle.send_signal = lambda self, signum: None\n"
        "    reaper.UNKILLABLE_AFTER = 0.2\n"
    )
    bench.environment["PYTHONPATH"] = str(bench.directory)
    worker = bench.script(GUARDED_HANG)
    result = bench("run", "--", *worker)
    assert result.returncode == 124
    assert b"worker unkillable" in result.stderr
    bench.assert_nothing_left()


STUBBORN_FAMILY = (
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "quick = [sys.executable, '-c', 'import signal, time\\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\ntime.sleep(600)']\n"
    "subprocess.Popen(quick)\n"
    "subprocess.Popen(quick, process_group=0) if sys.version_info >= (3, 11) else None\n"
    "subprocess.Popen(quick, start_new_session=True)\n"
    "time.sleep(0.5)\n"
)


@pytest.mark.parametrize("ending", ["sys.exit(0)", "sys.exit(3)", "os.abort()", GUARDED_HANG])
def test_nothing_that_a_worker_has_started_stays(bench, ending):
    """Also not what ignores SIGTERM, is in another process group, or in another session."""
    bench("run", "--kill-after", "0.3", "--", *bench.script(STUBBORN_FAMILY + ending))
    assert bench.survivors() == []
    bench.assert_nothing_left()


def test_workers_have_time_to_end_when_they_are_stopped(bench):
    worker = bench.script(
        "def end(*_): time.sleep(0.5); print('saved', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "ready = os.environ['FILETIMER_PATH'] + '.ready'\n"
        "if rank == 0: open(ready, 'w').close(); time.sleep(600)\n"
        "while not os.path.exists(ready): time.sleep(0.01)\n"
        "sys.exit(3)\n"
    )
    result = bench("run", "--workers", "2", "--kill-after", "60", "--", *worker)
    assert (result.returncode, result.stdout) == (3, b"[0] saved\n")


def started(bench, *arguments: str, before: str = ""):
    """``run`` with two workers that are up, each with a child."""
    worker = bench.script(before + "subprocess.Popen(['sleep', '600'])\nprint('up')\n" + HANG)
    process = bench.popen("run", "--workers", "2", *arguments, "--", *worker)
    for _ in range(2):
        assert process.stdout.readline().endswith(b"up\n")
    return process


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_run_and_all_it_started(bench, signum):
    process = started(bench, "--max-restarts", "3")
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert f"{signum.name}: stopping the group".encode() in err
    assert b"restarting" not in err
    bench.assert_nothing_left()


def test_a_second_signal_ends_the_patience(bench):
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    process = started(bench, "--kill-after", "600", before=deaf)
    process.send_signal(signal.SIGTERM)
    assert b"stopping" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    bench.assert_nothing_left()


def test_a_signal_while_the_group_is_stopped_prevents_the_restart(bench):
    worker = bench.script(
        "deaf = os.environ['FILETIMER_PATH'] + '.deaf'\n"
        "while rank and not os.path.exists(deaf): time.sleep(0.01)\n"
        "if rank: sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(deaf, 'w').close()\n"
        "print('up')\n" + HANG
    )
    arguments = ("--workers", "2", "--max-restarts", "5", "--kill-after", "600")
    process = bench.popen("run", *arguments, "--", *worker)
    process.stdout.readline()
    assert b"ended with status 3" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"restarting" not in err
    bench.assert_nothing_left()


def test_sigkill_of_run_leaves_no_worker(bench):
    worker = bench.script("print('up')\n" + HANG)
    process = bench.popen("run", "--workers", "2", "--", *worker)
    for _ in range(2):
        process.stdout.readline()
    process.kill()
    process.wait()
    wait_until(lambda: not bench.survivors(), "the workers are gone")


def test_a_given_path_is_served_and_removed(bench):
    path = bench.directory / "mine"
    worker = bench.script(f"sys.exit(os.environ['FILETIMER_PATH'] != {str(path)!r})")
    assert bench("run", "--path", "mine", "--", *worker).returncode == 0
    assert not path.exists()


def test_a_path_that_cannot_be_served_is_one_sentence(bench):
    (bench.directory / "file").write_text("precious")
    for path, says in (("file", b"not a FIFO"), ("no/such", b"No such file")):
        result = bench("run", "--path", path, "--", "true")
        assert result.returncode == 125
        assert result.stderr.count(b"\n") == 1
        assert says in result.stderr
    assert (bench.directory / "file").read_text() == "precious"


def test_an_events_file_that_cannot_be_written_is_one_sentence(bench):
    result = bench("run", "--events", "no/such", "--", "true")
    assert (result.returncode, result.stderr.count(b"\n")) == (125, 1)


@pytest.mark.parametrize(("command", "status"), [("nosuch-program", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_run_is_one_sentence(bench, command, status):
    result = bench("run", "--workers", "2", "--", command)
    assert result.returncode == status
    assert result.stderr.count(b"\n") == 1
    assert f"cannot run {command!r}".encode() in result.stderr
    bench.assert_nothing_left()


def test_a_limit_of_the_system_is_one_sentence(bench):
    prefix = ("prlimit", "--nofile=20")
    result = bench("run", "--workers", "9", "--", "sleep", "600", prefix=prefix)
    assert (result.returncode, result.stderr.count(b"\n")) == (125, 1)
    assert b"cannot start the workers: Too many open files" in result.stderr
    bench.assert_nothing_left()


def test_output_that_nobody_reads_any_more_does_not_end_the_job(bench):
    done = bench.directory / "done"
    worker = bench.script(
        f"print('x' * 300_000); time.sleep(0.3); print(); open({str(done)!r}, 'w')"
    )
    process = bench.popen("run", "--", *worker)
    process.stdout.close()
    assert process.wait(60) == 0
    assert done.exists()


def test_output_that_stands_still_does_not_stop_the_supervisor(bench):
    """Rank 0 floods a pipe that nobody reads; rank 1 is reaped and the group ends all the same."""
    worker = bench.script("while rank == 0: print('x' * 1000)\ntime.sleep(0.5)\n" + GUARDED_HANG)
    with open(bench.directory / "err", "wb") as err:
        process = bench.popen("run", "--workers", "2", "--", *worker, stderr=err)
        assert process.wait(60) == 124
    bench.assert_nothing_left()


def test_the_signal_mask_and_sigpipe_of_workers_are_as_usual(bench):
    command = ("grep", "-E", "SigBlk|SigIgn", "/proc/self/status")
    usual = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    worker = bench("run", "--", *command).stdout
    assert worker.replace(b"[0] ", b"") == usual


UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc")


def require_unshare() -> None:
    if shutil.which("unshare") and subprocess.run([*UNSHARE, "true"], check=False).returncode == 0:
        return
    message = "a private pid namespace needs unshare(1) and the right to use it"
    pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


def test_as_pid_1_it_reaps_orphans_and_ends_with_all_it_started(bench):
    require_unshare()
    orphan = "import os; os.fork() or os.setsid() and os._exit(0); os._exit(0)"
    worker = bench.script(
        f"for _ in range(5): subprocess.run([sys.executable, '-c', {orphan!r}])\n"
        "subprocess.run('sleep 600 & sleep 0.1 &', shell=True)\n"  # both are orphans at once
        "def zombies():\n"
        "    return [p for p in os.listdir('/proc') if p.isdecimal() and is_zombie(p)]\n"
        "def is_zombie(p):\n"
        "    try: stat = open(f'/proc/{p}/stat').read()\n"
        "    except OSError: return False\n"  # it is gone
        "    return stat.rpartition(')')[2].split()[:2] == ['Z', '1']\n"
        "time.sleep(1)\n"
        "give_up = time.monotonic() + 30\n"
        "while zombies() and time.monotonic() < give_up: time.sleep(0.05)\n"
        "print(os.getppid(), len(zombies()))\n" + GUARDED_HANG
    )
    result = bench("run", "--kill-after", "0.3", "--", *worker, prefix=UNSHARE)
    assert result.stdout == b"[0] 1 0\n"
    assert result.returncode == 124, result.stderr
    bench.assert_nothing_left()


def test_as_pid_1_it_ends_on_sigterm(bench):
    require_unshare()
    worker = bench.script("print('up')\n" + HANG)
    process = bench.popen("run", "--", *worker, prefix=UNSHARE)
    process.stdout.readline()
    (init,) = [int(pid) for pid in children_of(process.pid)]
    os.kill(init, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    bench.assert_nothing_left()


def children_of(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def test_nested_in_another_server_it_serves_its_own(bench):
    bench.serve()
    worker = bench.script(f"print(os.environ['FILETIMER_PATH'])\n{GUARDED_HANG}")
    result = bench("run", "--", *worker)
    assert result.returncode == 124
    assert str(bench.runtime).encode() in result.stdout
