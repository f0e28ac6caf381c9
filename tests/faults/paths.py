"""What else may be at the path of a FIFO, and who else may want it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from faults.fault import Fault, Result, Scale
from faults.fleet import PATIENCE, Fleet, bare_server, serve, start_bare


def occupied(scale: Scale) -> Result:
    """Whatever is at the path is refused, in one sentence, and left as it is."""
    result = Result()
    for _ in range(scale.pick(3, 1)):
        for name, make in _OCCUPANTS.items():
            with contextlib.suppress(OSError):
                Path("there").unlink()
            if Path("there").is_dir():
                Path("there").rmdir()
            try:
                make()
            except PermissionError:
                continue  # no second user here
            result.injected += 1
            before = _look()
            _see_refused(name, result)
            result.check(_look() == before, f"{name}: it was changed")
    result.note = ", ".join(_OCCUPANTS)
    return result


def _file() -> None:
    Path("there").write_text("data")


def _directory() -> None:
    Path("there").mkdir()


def _link_to(target: str) -> Callable[[], None]:
    return lambda: Path("there").symlink_to(target)


def _link_to_fifo() -> None:
    if not Path("fifo").exists():
        os.mkfifo("fifo", 0o600)
    Path("there").symlink_to("fifo")


def _fifo_of_another() -> None:
    os.mkfifo("there", 0o666)
    os.chown("there", 65534, 65534)


def _socket() -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("there")


_OCCUPANTS: dict[str, Callable[[], None]] = {
    "file": _file,
    "directory": _directory,
    "link to a file": _link_to("/etc/hostname"),
    "link to nothing": _link_to("/nonexistent/file"),
    "link to a FIFO": _link_to_fifo,
    "another user's FIFO": _fifo_of_another,
    "socket": _socket,
}


def _look() -> tuple[object, ...]:
    status = os.lstat("there")
    content = Path("there").read_text() if Path("there").is_file() else ""
    return status.st_mode, status.st_ino, status.st_uid, status.st_mtime_ns, content


def _see_refused(name: str, result: Result) -> None:
    command = [sys.executable, "-m", "filetimer", "serve", "there"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        result.breach(f"{name}: it was served")
        return
    lines = ended.stderr.strip().splitlines()
    result.check(ended.returncode > 0, f"{name}: status {ended.returncode}")
    result.check(len(lines) == 1 and "there" in lines[0], f"{name}: it said {ended.stderr!r}")


def two_servers(scale: Scale) -> Result:
    """The second one is refused, and the first one goes on; also when that one is stopped."""
    result = Result()
    with serve("timers", result), Fleet("timers") as fleet:
        for _ in range(scale.pick(5, 1)):
            for _ in range(2):
                fleet.start("pairs(0.5)\nhang(0.5)")
                fleet.start("pairs(1.0)\nidle()")
            command = [sys.executable, "-m", "filetimer", "serve", "timers"]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            result.injected += 1
            said = "another server" in ended.stderr
            result.check(ended.returncode > 0 and said, f"it said {ended.stderr!r}")
        fleet.judge(result)
    return result


_FORK = """
import os, time
if os.fork() == 0:
    for fd in 0, 1, 2:
        os.close(fd)
    time.sleep(600)
"""


def forked_server(scale: Scale) -> Result:
    """A child of the first server's program lives on: the next one is not kept out."""
    result = Result()
    for _ in range(scale.pick(5, 1)):
        first = start_bare("timers", setup=_FORK)
        first.die()
        result.injected += 1
        with bare_server("timers", result), Fleet("timers") as fleet:
            fleet.start("pairs(0.2)\nhang(1.0)")
            fleet.start("pairs(0.2)\nidle()")
            fleet.judge(result)
    return result


STARTERS = 4
_RACER = """
import sys
from filetimer import FileTimerServer
server = FileTimerServer("timers", "race")
print("ready", flush=True)
sys.stdin.readline()
try:
    server.start()
except BlockingIOError:
    print("refused", flush=True)
else:
    print("serves", flush=True)
    sys.stdin.readline()
    server.stop()
"""


def race(scale: Scale) -> Result:
    """Servers that start at the same instant: one of them serves, and its FIFO is whole."""
    result = Result(note=f"{STARTERS} a time")
    pipe = subprocess.PIPE
    for _ in range(scale.pick(15, 2)):
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", _RACER],
                stdin=pipe,
                stdout=pipe,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(STARTERS)
        ]
        _hear_all(racers)
        for racer in racers:
            _tell(racer)
        said = _hear_all(racers)
        result.injected += 1
        result.check(sorted(said) == ["refused"] * (STARTERS - 1) + ["serves"], f"they are {said}")
        with Fleet("timers") as fleet:
            fleet.start("hang(0.2)")
            fleet.judge(result)
        for racer, word in zip(racers, said, strict=True):
            if word == "serves":
                _tell(racer)
            racer.communicate()
            result.check(racer.returncode == 0, f"a racer ended with {racer.returncode}")
        result.check(not os.path.lexists("timers"), "the FIFO is left")
    left = [name for name in os.listdir(".") if name.endswith(".tmp")]
    result.check(not left, f"files are left: {left}")
    return result


def _hear_all(racers: list[subprocess.Popen[str]]) -> list[str]:
    return [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]


def _tell(racer: subprocess.Popen[str]) -> None:
    assert racer.stdin is not None
    racer.stdin.write("go\n")
    racer.stdin.flush()


FAULTS = [
    Fault("something else at the FIFO's path", occupied),
    Fault("second server at the same path", two_servers),
    Fault("server killed while a forked child of it lives", forked_server),
    Fault("servers that race to create the FIFO", race),
]
