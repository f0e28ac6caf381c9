"""Who is who, in real namespaces: nested, foreign, of another clock; and pids that are recycled.

Each scene runs as pid 1 of a pid namespace of its own, where pids can be chosen, and where nothing
can be signalled but what the scene has started.  It prints what became of whom.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE

PRELUDE = """
import json, os, signal, subprocess, sys, threading, time
import filetimer as timer

PATH, events, came = sys.argv[1], [], threading.Condition()
NAP = [sys.executable, "-c", "import time; time.sleep(600)"]

def heard(event):
    with came:
        events.append(event)
        came.notify_all()

def wait_for(*names):
    with came:
        assert came.wait_for(lambda: any(e.name in names for e in events), 20), events
    return next(e for e in events if e.name in names)

def serve(**options):
    server = timer.FileTimerServer(PATH, "scene", on_event=heard, **options)
    server.start()
    return server

def write(pid, after=0.1, **fields):
    "One record, by whoever; of version 1 unless there are fields."
    line = {"version": 2 if fields else 1, "pid": pid, "scope_id": "s",
            "expiration_time": time.time() + after, "signal": 9, **fields}
    fd = os.open(PATH, os.O_WRONLY)
    os.write(fd, json.dumps(line).encode() + b"\\n")
    os.close(fd)

def start_time(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[19])

def recycle(pid):
    "A bystander that has this pid."
    while True:
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(pid - 1))
        bystander = subprocess.Popen(NAP)
        if bystander.pid == pid:
            return bystander
        bystander.kill()
        bystander.wait()

def serve_apart(*holder):
    "The same in a process of its own."
    server = subprocess.Popen([sys.executable, "-c", SERVER, PATH, *holder],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline().startswith("watchdog started")
    return server

def lives(process):
    return process.poll() is None

def tell(**what):
    print(json.dumps(what), flush=True)
"""

# A server in a process of its own, which may have a holder.
SERVER = """
import sys, filetimer as timer
def tell(event):
    print(event.name, event.code, event.pid, flush=True)
timer.FileTimerServer(sys.argv[1], "own", on_event=tell, holder=(sys.argv[2:] or [None])[0]).start()
sys.stdin.read()
"""

# Hangs under a timer, in a process whose pid it prints: as it sees it itself.
HUNG = """
import os, sys, time, filetimer as timer
client = timer.FileTimerClient(sys.argv[1], version=int(sys.argv[2]))
print(os.getpid(), flush=True)
with timer.expires(0.1, client=client):
    time.sleep(600)
"""


def unshare(*options: str) -> list[str]:
    """The command that runs another one in new namespaces, as root of them."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, *options, "--fork", "--kill-child", "--"]


PRIVATE = ("--pid", "--mount-proc")


@functools.lru_cache
def is_permitted(*options: str) -> bool:
    try:
        return subprocess.run([*unshare(*options), "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def require(*options: str) -> None:
    if not is_permitted(*options):
        reason = f"unshare {' '.join(options)} is not permitted here"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def scene(tmp_path: Path) -> Any:
    """Runs code in a private pid namespace; returns what it tells."""

    def run(code: str) -> dict[str, Any]:
        require(*PRIVATE)
        program = PRELUDE + f"HUNG, SERVER = {HUNG!r}, {SERVER!r}\n" + textwrap.dedent(code)
        path = str(tmp_path / "timers")
        done = subprocess.run(
            [*unshare(*PRIVATE), sys.executable, "-c", program, path],
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    return run


VERSIONS = pytest.mark.parametrize("version", [1, 2])


@VERSIONS
def test_in_one_namespace_the_worker_is_reaped(scene: Any, version: int) -> None:
    assert scene(f"""
        serve()
        worker = subprocess.Popen([sys.executable, "-c", HUNG, PATH, "{version}"],
                                  stdout=subprocess.DEVNULL)
        tell(status=worker.wait(), reaped=wait_for("kill worker process").pid == worker.pid)
    """) == {"status": -9, "reaped": True}


def test_a_worker_in_a_nested_namespace_is_refused_and_its_namesake_lives(scene: Any) -> None:
    """The pid that it writes is one of its own namespace; here it is somebody else's."""
    require(*PRIVATE)
    told = scene("""
        bystanders = [subprocess.Popen(NAP) for _ in range(8)]
        serve()
        nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
        outer = subprocess.Popen(
            ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child", "--",
             sys.executable, "-c", nested, HUNG, PATH, "2"], stdout=subprocess.PIPE, text=True)
        pid = int(outer.stdout.readline())
        refused = wait_for("timer refused", "kill worker process")
        time.sleep(0.5)
        tell(
            name=refused.name, code=refused.code, same=refused.pid == pid,
            named=pid in [bystander.pid for bystander in bystanders],
            alive=all(map(lives, [*bystanders, outer])),
        )
    """)
    assert told == {
        "name": "timer refused",
        "code": "foreign_pid_ns",
        "same": True,
        "named": True,
        "alive": True,
    }


def test_a_server_in_a_nested_namespace_refuses_those_outside(scene: Any) -> None:
    told = scene("""
        server = subprocess.Popen(
            ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child", "--",
             sys.executable, "-c", SERVER, PATH],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        server.stdout.readline()
        worker = subprocess.Popen([sys.executable, "-c", HUNG, PATH, "2"],
                                  stdout=subprocess.DEVNULL)
        refused = server.stdout.readline().split()
        time.sleep(0.5)
        tell(said=refused[:3], same=refused[3] == str(worker.pid), alive=lives(worker))
    """)
    assert told == {"said": ["timer", "refused", "foreign_pid_ns"], "same": True, "alive": True}


@pytest.mark.parametrize(
    ("clock", "version", "code"),
    [
        ("--monotonic", 1, "foreign_time_ns"),
        ("--monotonic", 2, "foreign_time_ns"),
        ("--boottime", 1, "foreign_time_ns"),
        ("--boottime", 2, "start_time"),  # what it reads of itself is shifted, too
    ],
)
def test_a_worker_whose_clocks_are_shifted_is_refused(
    scene: Any, clock: str, version: int, code: str
) -> None:
    require("--time")
    told = scene(f"""
        serve()
        worker = subprocess.Popen(
            ["unshare", "--time", "{clock}", "5000", "--fork", "--kill-child", "--",
             sys.executable, "-c", HUNG, PATH, "{version}"], stdout=subprocess.PIPE, text=True)
        pid = int(worker.stdout.readline())
        refused = wait_for("timer refused", "kill worker process")
        time.sleep(0.5)
        tell(code=refused.code, same=refused.pid == pid, alive=lives(worker))
    """)
    assert told == {"code": code, "same": True, "alive": True}


def test_a_process_of_another_user_is_refused(scene: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    told = scene("""
        serve()
        nobody = subprocess.Popen(["sleep", "600"], user=65534, group=65534)
        write(nobody.pid)
        code = wait_for("timer refused", "kill worker process").code
        time.sleep(0.5)
        tell(code=code, alive=lives(nobody))
    """)
    assert told == {"code": "foreign_uid", "alive": True}


@VERSIONS
def test_a_pid_that_was_recycled_while_its_timer_ran(scene: Any, version: int) -> None:
    told = scene(f"""
        server = serve()
        worker = subprocess.Popen(NAP)
        fields = {{"start_time": start_time(worker.pid)}} if {version} == 2 else {{}}
        write(worker.pid, 1.5, **fields)
        while not server.get_expired_timers(time.time() + 60):
            time.sleep(0.01)
        worker.kill()
        worker.wait()
        bystander = recycle(worker.pid)
        time.sleep(2)
        tell(alive=lives(bystander), killed=[e.name for e in events if "kill" in e.name])
    """)
    assert told == {"alive": True, "killed": []}


@VERSIONS
def test_a_pid_that_was_recycled_before_a_stopped_server_read_its_record(
    scene: Any, version: int
) -> None:
    """SPEC S-10: for version 1 the time at which the pipe was last written to tells."""
    told = scene(
        f"""
    server = serve_apart()
    os.kill(server.pid, signal.SIGSTOP)
    worker = subprocess.Popen(NAP)
    time.sleep(0.1)
    fields = {{"start_time": start_time(worker.pid)}} if {version} == 2 else {{}}
    write(worker.pid, **fields)
    worker.kill()
    worker.wait()
    time.sleep(0.1)
    bystander = recycle(worker.pid)
    time.sleep(0.3)
    os.kill(server.pid, signal.SIGCONT)
    said = server.stdout.readline().split()
    time.sleep(0.5)
    tell(said=said[:3], same=said[3] == str(bystander.pid), alive=lives(bystander))
    """
    )
    code = "no_process" if version == 1 else "start_time"
    assert told == {"said": ["timer", "refused", code], "same": True, "alive": True}


def test_a_worker_that_wrote_to_a_stopped_server_is_reaped(scene: Any) -> None:
    """The counterpart: it lives, so the record is its own, even of version 1."""
    told = scene(
        """
    server = serve_apart()
    os.kill(server.pid, signal.SIGSTOP)
    worker = subprocess.Popen(NAP)
    time.sleep(0.1)
    write(worker.pid)
    time.sleep(0.5)
    os.kill(server.pid, signal.SIGCONT)
    tell(status=worker.wait(), said=server.stdout.readline().split()[:2])
    """
    )
    assert told == {"status": -9, "said": ["timer", "expired"]}


@VERSIONS
@pytest.mark.parametrize("read", [True, False], ids=["read", "unread"])
def test_a_pid_that_was_recycled_while_no_server_ran(scene: Any, version: int, read: bool) -> None:
    """The pipe is held, the server is killed, and its successor takes over, armed."""
    told = scene(f"""
        import fcntl
        os.mkfifo(PATH, 0o600)
        held = os.open(PATH, os.O_RDWR)
        server = serve_apart("me")
        worker = subprocess.Popen(NAP)
        time.sleep(0.1)
        fields = {{"start_time": start_time(worker.pid)}} if {version} == 2 else {{}}
        if {read}:
            write(worker.pid, 2.0, **fields)
            time.sleep(0.2)
        server.kill()
        server.wait()
        if not {read}:
            write(worker.pid, 2.0, **fields)
        worker.kill()
        worker.wait()
        time.sleep(0.1)
        bystander = recycle(worker.pid)
        time.sleep(0.3)
        serve(holder="me")
        time.sleep(2.5)
        tell(alive=lives(bystander), killed=[e.name for e in events if "kill" in e.name])
    """)
    assert told == {"alive": True, "killed": []}
