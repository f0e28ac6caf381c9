"""``filetimer expires``: one command under a timer."""

from __future__ import annotations

import os
import pty
import signal
import sys

import pytest

from .conftest import wait_until


def log_of(bench) -> str:
    return (bench.directory / "serve.log").read_text()


@pytest.mark.parametrize("signum", ["KILL", "SIGTERM", "10"])
def test_a_command_that_takes_too_long_is_reaped(bench, signum):
    bench.serve()
    command = ("sh", "-c", "echo $$; exec sleep 600")
    result = bench("expires", "--after", "2", "--scope", "copy", "--signal", signum, "--", *command)
    assert result.returncode == 124
    wait_until(lambda: "worker died" in log_of(bench), "the death is confirmed")
    assert f"pid {int(result.stdout)}, scope 'copy'" in log_of(bench)  # the command's own pid


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("", 0),
        ("sys.exit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_the_status_is_the_command_s_own(bench, program, status):
    bench.serve()
    assert bench("expires", "--after", "60", "--", *bench.script(program)).returncode == status
    assert "timer expired" not in log_of(bench)


def test_the_timer_stands_before_the_command_starts(bench):
    """One that expires at once leaves the command no time to do anything."""
    bench.serve()
    result = bench("expires", "--after", "1e-9", "--", "sleep", "600")
    assert result.returncode == 124


def test_what_a_reaped_command_has_started_goes_with_it(bench):
    bench.serve()
    server = bench.survivors()
    result = bench("expires", "--after", "0.5", "--", "sh", "-c", "sleep 600 & sleep 600; true")
    assert result.returncode == 124
    wait_until(lambda: bench.survivors() == server, "only the server is left")


def test_what_a_command_leaves_in_the_background_stays(bench):
    bench.serve()
    result = bench(
        "expires", "--after", "60", "--", "sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"
    )
    assert result.returncode == 0
    os.kill(int(result.stdout), signal.SIGKILL)  # it is there, and ours to end


NOWHERE = ["FILETIMER_PATH", "missing", "file", "unserved fifo"]


@pytest.mark.parametrize("where", NOWHERE)
def test_without_a_server_it_warns_or_refuses(bench, where):
    arguments = ["expires", "--after", "0.1"]
    if where != "FILETIMER_PATH":
        arguments += ["--path", str(bench.directory / where)]
    if where == "file":
        (bench.directory / where).write_text("")
    if where == "unserved fifo":
        os.mkfifo(bench.directory / where)
    command = ["--", "sh", "-c", "sleep 0.3; echo ran; exit 7"]
    result = bench(*arguments, *command)
    assert (result.returncode, result.stdout) == (7, b"ran\n")
    assert result.stderr.count(b"\n") == 1
    assert b"warning" in result.stderr
    result = bench(*arguments, "--require", *command)
    assert (result.returncode, result.stdout) == (125, b"")
    assert result.stderr.count(b"\n") == 1
    assert b"--require" in result.stderr


def test_torch_s_variable_is_understood(bench):
    bench.environment["TORCHELASTIC_TIMER_FILE"] = str(bench.serve())
    del bench.environment["FILETIMER_PATH"]
    assert bench("expires", "--after", "0.3", "--", "sleep", "600").returncode == 124


@pytest.mark.parametrize(("command", "status"), [("nosuch-program", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_run_is_one_sentence(bench, command, status):
    bench.serve()
    result = bench("expires", "--after", "60", "--require", "--", command)
    assert (result.returncode, result.stderr.count(b"\n")) == (status, 1)


def test_a_scope_that_is_too_long_is_a_usage_error(bench):
    bench.serve()
    result = bench("expires", "--after", "60", "--scope", "x" * 5000, "--", "true")
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 1)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_go_through_to_the_command(bench, signum):
    bench.serve()
    worker = bench.script(
        f"signal.signal({int(signum)}, lambda *_: sys.exit(9))\n"
        "print('up', flush=True); time.sleep(600)\n"
    )
    process = bench.popen("expires", "--after", "60", "--", *worker)
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signum)
    assert process.wait(60) == 9


def test_ctrl_c_reaches_the_command_once(bench):
    """The terminal interrupts both; the wrapper must not pass on what the command has already."""
    bench.serve()
    worker = bench.script(
        "count = []\n"
        "signal.signal(signal.SIGINT, lambda *_: count.append(1))\n"
        "print('up', flush=True)\n"
        "while not count: time.sleep(0.05)\n"
        "time.sleep(0.5); print('interrupts', len(count), flush=True)\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(bench.directory)
        wrapper = [sys.executable, "-m", "filetimer", "expires", "--after", "60", "--", *worker]
        os.execvpe(wrapper[0], wrapper, bench.environment)
    seen = read_until(terminal, b"", b"up")
    os.write(terminal, b"\x03")
    seen = read_until(terminal, seen, b"interrupts")
    os.close(terminal)
    assert b"interrupts 1" in seen
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def read_until(terminal: int, seen: bytes, text: bytes) -> bytes:
    while text not in seen or not seen.endswith(b"\n"):
        seen += os.read(terminal, 4096)
    return seen


def test_the_command_does_not_outlive_the_wrapper(bench):
    bench.serve()
    server = bench.survivors()
    worker = bench.script("print('up', flush=True); time.sleep(600)")
    process = bench.popen("expires", "--after", "60", "--", *worker)
    process.stdout.readline()
    process.kill()
    process.wait()
    wait_until(lambda: bench.survivors() == server, "only the server is left")


def test_it_nests_in_run(bench):
    command = [sys.executable, "-m", "filetimer", "expires", "--after", "0.5", "--require", "--"]
    result = bench("run", "--", *command, "sleep", "600")
    assert result.returncode == 124
    assert b"was reaped in scope 'sleep'" in result.stderr
    bench.assert_nothing_left()
