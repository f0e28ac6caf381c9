"""Say what this host offers to timers, what will degrade without it, and how to mend that.

Every line is one check: ok, degraded (it works, with the limit that is named) or broken.

exit status: 0, or 1 when something is broken.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import platform
import select
import stat
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass

from filetimer.cli.errors import require_linux
from filetimer.client.environment import path_from_env
from filetimer.client.pipe import _has_nosignal
from filetimer.runtime import VARIABLE, runtime_directory
from filetimer.server import events, process
from filetimer.server.events import Event, describe_lateness
from filetimer.server.file_server import FileTimerServer
from filetimer.wire import MAX_SENT

__all__ = ["Check", "add_arguments", "execute"]

OK, DEGRADED, BROKEN = "ok", "degraded", "broken"
WANTED_PIPE = 1 << 20  # bytes: thousands of records may wait while the server is busy
CAP_SYS_PTRACE = 19
TRIAL = 10.0  # seconds for the trial worker to be reaped


@dataclass(frozen=True)
class Check:
    """One finding.  ``remedy`` says what to do where ``status`` is not ok."""

    name: str
    status: str
    detail: str
    remedy: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("--json", action="store_true", help="print one JSON array of checks")


def execute(options: argparse.Namespace) -> int:
    """Print all checks; return 1 when something is broken."""
    require_linux()
    checks = [_safely(name, check) for name, check in CHECKS.items()]
    if options.json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        print("\n".join(map(_in_words, checks)))
    return 1 if any(check.status == BROKEN for check in checks) else 0


def _safely(name: str, check: Callable[[], Finding]) -> Check:
    try:
        return Check(name, *check())
    except Exception as error:  # a host may refuse anything; the other checks still count
        return Check(name, DEGRADED, f"cannot be told: {error}", "run it with more rights")


def _in_words(check: Check) -> str:
    line = f"{check.status:9} {check.name}: {check.detail}"
    return line if check.remedy is None else f"{line}\n{'':9} -> {check.remedy}"


Finding = tuple[str, str, str | None]


def _ok(detail: str) -> Finding:
    return OK, detail, None


def _python() -> Finding:
    return _ok(f"{platform.python_version()} on Linux {platform.release()} {platform.machine()}")


def _pidfd() -> Finding:
    remedies = {
        "start_time": "use Linux 5.3 or later, and let seccomp pass pidfd_open",
        "pid": "mount /proc, use Linux 5.3 or later, and let seccomp pass pidfd_open",
    }
    capability = process.capability()
    if capability == "pidfd":
        return _ok("workers are held by pidfd: a recycled pid cannot be hit")
    return DEGRADED, f"workers are told apart by {capability} only", remedies[capability]


def _nosignal() -> Finding:
    if _has_nosignal():
        return _ok("records are written with RWF_NOSIGNAL")
    return (
        DEGRADED,
        "no RWF_NOSIGNAL: a program that does not ignore SIGPIPE pays for masking it",
        "Linux 6.18 has it; nothing to do where SIGPIPE is ignored, as Python does",
    )


def _pipe_size() -> Finding:
    reader, writer = os.pipe()
    try:
        size = fcntl.fcntl(writer, getattr(fcntl, "F_SETPIPE_SZ", 1031), WANTED_PIPE)
    except OSError:
        size = fcntl.fcntl(writer, getattr(fcntl, "F_GETPIPE_SZ", 1032))
    finally:
        os.close(reader)
        os.close(writer)
    if size >= WANTED_PIPE:
        return _ok(f"{size} bytes of records may wait")
    return (
        DEGRADED,
        f"only {size} bytes of records may wait: large bursts make clients wait",
        f"sysctl fs.pipe-max-size={WANTED_PIPE}, and more fs.pipe-user-pages-soft",
    )


def _pipe_buf() -> Finding:
    if select.PIPE_BUF >= MAX_SENT:
        return _ok(f"writes of up to {select.PIPE_BUF} bytes stay whole")
    return (
        BROKEN,
        f"writes stay whole only up to {select.PIPE_BUF} bytes; a record may have {MAX_SENT}",
        "use Linux",
    )


def _ptrace() -> Finding:
    scope = _read("/proc/sys/kernel/yama/ptrace_scope")
    status = _read("/proc/self/status") or ""
    effective = next(int(x.split()[1], 16) for x in status.splitlines() if x.startswith("CapEff"))
    if effective >> CAP_SYS_PTRACE & 1 and scope != "3":
        return _ok("debuggers and stack dumpers may attach (CAP_SYS_PTRACE)")
    if scope in (None, "0"):
        return _ok("debuggers and stack dumpers may attach to processes of the same user")
    remedy = "sysctl kernel.yama.ptrace_scope=0, or give the container --cap-add=SYS_PTRACE"
    return DEGRADED, f"Yama's ptrace_scope is {scope}: stacks of others are out of reach", remedy


def _proc() -> Finding:
    try:
        own = os.readlink("/proc/self")
    except OSError:
        return DEGRADED, "/proc is not mounted: start times are unknown", "mount -t proc proc /proc"
    if own != str(os.getpid()):
        return (
            BROKEN,
            "/proc shows another pid namespace: workers cannot be identified",
            "mount -t proc proc /proc in this namespace (unshare --mount-proc)",
        )
    return _ok("/proc shows this pid namespace")


def _pid_namespace() -> Finding:
    inode = os.stat("/proc/self/ns/pid").st_ino
    status = _read("/proc/self/status") or ""
    pids = next((x.split()[1:] for x in status.splitlines() if x.startswith("NSpid")), [])
    nested = " (nested)" if len(pids) > 1 else ""
    return _ok(f"{inode}{nested}: a server here reaps workers of this namespace only")


def _time_namespace() -> Finding:
    offsets = _read("/proc/self/timens_offsets")
    if offsets is None or all(line.split()[1:] == ["0", "0"] for line in offsets.splitlines()):
        return _ok("clocks are not shifted")
    return (
        DEGRADED,
        "this time namespace has shifted clocks: a server outside refuses its workers",
        "run the server in the same time namespace as its workers",
    )


def _timer_slack() -> Finding:
    path = f"/proc/{threading.get_native_id()}/timerslack_ns"
    try:
        with open(path, "r+") as file:
            before = file.read().strip()
            file.write("1")
        with open(path, "w") as file:
            file.write(before)
    except OSError as error:
        return (
            DEGRADED,
            f"timer slack cannot be set ({error.strerror}): kills are up to 0.05 ms later",
            "mount /proc writable",
        )
    return _ok("timer slack can be set: deadlines are met to some 0.05 ms")


def _runtime() -> Finding:
    """Servers make it when they start; so does this check."""
    try:
        directory = runtime_directory(create=True)
    except OSError as error:
        remedy = f"set {VARIABLE} to a directory of your own, in memory"
        return DEGRADED, f"there is no private runtime directory: {error}", remedy
    free = os.statvfs(directory)
    if _is_in_memory(directory):
        return _ok(f"{directory}, in memory, {free.f_bavail * free.f_frsize >> 20} MiB free")
    return (
        DEGRADED,
        f"{directory} lies on a disk, which may stall",
        f"mount a tmpfs at /dev/shm, or set {VARIABLE} to a directory on one",
    )


def _children() -> Finding:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    value = ctypes.c_int()
    get_death_signal, get_subreaper = 2, 37
    if prctl is not None and not any(
        prctl(option, ctypes.byref(value), 0, 0, 0) for option in (get_death_signal, get_subreaper)
    ):
        return _ok("workers die with `filetimer run`, and their orphans are adopted")
    remedy = "let seccomp pass prctl"
    return DEGRADED, "prctl is refused: workers may outlive a `filetimer run` that dies", remedy


def _trial() -> Finding:
    """A server, a lock, a FIFO and a worker, in earnest."""
    died = threading.Event()
    seen: list[Event] = []

    def on_event(event: Event) -> None:
        seen.append(event)
        if event.name in (events.WORKER_DIED, events.TIMER_REFUSED, events.KILL_FAILED):
            died.set()

    with tempfile.TemporaryDirectory(prefix="filetimer-") as directory:
        server = FileTimerServer(os.path.join(directory, "trial"), "doctor", on_event=on_event)
        server.start()
        try:
            _sacrifice(os.path.join(directory, "trial"), died)
        finally:
            server.stop()
    killed = next((event for event in seen if event.name == events.KILL_WORKER), None)
    if died.is_set() and killed is not None:
        return _ok(f"a trial worker was reaped {describe_lateness(killed.late or 0.0)}")
    what = "; ".join(event.describe() for event in seen) or "no event"
    return BROKEN, f"a trial worker was not reaped: {what}", "mend what is not ok above"


def _sacrifice(path: str, done: threading.Event) -> None:
    """Start a worker that hangs under a timer; it is gone at the end, reaped or not."""
    program = (
        "import filetimer, os, signal\n"
        "filetimer.configure_from_env()\n"
        "with filetimer.expires(0.05, 'trial'): signal.pause()\n"
    )
    environment = {**os.environ, "FILETIMER_PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", program], environment)
    try:
        done.wait(TRIAL)
    finally:
        os.kill(pid, 9)  # it was not waited for, so the pid is its own still
        os.waitpid(pid, 0)


def _server() -> Finding:
    path = path_from_env()
    if path is None:
        return _ok("no path is set (FILETIMER_PATH): guarded scripts run unguarded")
    start_one = f"start one: filetimer serve {path}; or unset the variable"
    try:
        status = os.stat(path)
    except OSError as error:
        return BROKEN, f"{path} is set, but {error.strerror}: acquires fail", start_one
    if not stat.S_ISFIFO(status.st_mode):
        return BROKEN, f"{path} is set, but is not a FIFO", "set the path of a timer server"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return BROKEN, f"no server reads {path} ({error.strerror}): acquires fail", start_one
    holder = _lock_holder(status)
    who = "a server that holds no lock, such as torch's," if holder is None else f"pid {holder}"
    return _ok(f"{who} answers at {path}")


def _lock_holder(status: os.stat_result) -> int | None:
    """The pid that holds the flock of this file (SPEC S-18); None: nobody in sight."""
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in (_read("/proc/locks") or "").splitlines():
        fields = line.split()
        if fields[1:2] == ["FLOCK"] and device in fields:
            return int(fields[4])
    return None


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": _python,
    "pidfd": _pidfd,
    "RWF_NOSIGNAL": _nosignal,
    "pipe size": _pipe_size,
    "PIPE_BUF": _pipe_buf,
    "ptrace": _ptrace,
    "/proc": _proc,
    "pid namespace": _pid_namespace,
    "time namespace": _time_namespace,
    "timer slack": _timer_slack,
    "runtime directory": _runtime,
    "child processes": _children,
    "trial": _trial,
    "server": _server,
}


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def _is_in_memory(path: str) -> bool:
    mounts = [line.split() for line in (_read("/proc/self/mounts") or "").splitlines()]
    real = os.path.realpath(path)
    covering = [m for m in mounts if os.path.commonpath([real, m[1]]) == m[1]]
    return bool(covering) and max(covering, key=lambda m: len(m[1]))[2] in ("tmpfs", "ramfs")
