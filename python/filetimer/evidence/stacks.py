"""Stacks of workers: from their own faulthandler, and from py-spy or pystack where permitted."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from filetimer.evidence.model import Frame, Member, Stack
from filetimer.server.process import open_process

__all__ = ["Offer", "ask_for_stacks", "native_stacks", "offers", "parse_dump", "read_stacks"]

STABLE = 0.03  # seconds without growth after which a dump is complete
LOOK = 0.01
MAX_DUMP = 1 << 20  # bytes
_NAME = re.compile(r"(\d+)-(\d+)-(\d+)-(\d+)")
_THREAD = re.compile(r"(?:Current thread|Thread) (0x[0-9a-f]+)(?: \[(.*)\])?")
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')


class Offer(NamedTuple):
    """A worker's offer to write its stacks (``client.stacks``)."""

    path: str
    pid: int
    start_time: int
    signum: int
    fd: int


def offers(directory: str) -> dict[int, Offer]:
    """The offers of workers that still run, by pid; those of dead ones are removed.

    None from a directory that somebody else may write to: an offer names a signal and a file.
    """
    found = {}
    for name in os.listdir(directory) if _is_private(directory) else ():
        match = _NAME.fullmatch(name)
        if match is not None:
            offer = Offer(os.path.join(directory, name), *map(int, match.groups()))
            if _is_current(offer):
                found[offer.pid] = offer
            else:
                _remove(offer.path)
    return found


def ask_for_stacks(offer: Offer) -> str | None:
    """Make the worker write its stacks; why not, where that is not safe.

    The signal would end a process that does not handle it, and the descriptor may be another
    file's by now: both are looked at first.  Like any signal with a handler, it makes a sleep, a
    poll or a select in C return early; locks, reads and writes go on.
    """
    process = open_process(offer.pid)
    if process is None:
        return "the process is gone"
    try:
        if process.zombie or process.start_time != offer.start_time:
            return "the process is gone"
        if not _catches(offer.pid, offer.signum):
            return f"the process does not handle signal {offer.signum} any more"
        if not os.path.samestat(os.stat(f"/proc/{offer.pid}/fd/{offer.fd}"), os.stat(offer.path)):
            return "the process has closed the file for its stacks"
        os.truncate(offer.path, 0)
        process.send_signal(offer.signum)
    except OSError as error:
        return f"the process could not be asked: {error.strerror}"
    finally:
        process.close()
    return None


def read_stacks(asked: Iterable[tuple[Offer, Member]], until: float) -> None:
    """Fill in the Python stacks of workers that were asked, as they come."""
    waiting = {offer: (member, 0, time.monotonic()) for offer, member in asked}
    while waiting and time.monotonic() < until:
        for offer, (member, size, since) in list(waiting.items()):
            now, grown = time.monotonic(), _size(offer.path)
            if grown != size:
                waiting[offer] = member, grown, now
            elif size and now - since >= STABLE:
                _fill_in(offer, member)
                del waiting[offer]
        time.sleep(LOOK)
    for offer, (member, size, _) in waiting.items():
        if size:
            _fill_in(offer, member)
        else:
            member.python_missing = "the process did not answer in time: it may be in the kernel"


def parse_dump(text: str) -> list[Stack]:
    """The stacks that faulthandler wrote."""
    stacks: list[Stack] = []
    for line in text.splitlines():
        if match := _THREAD.match(line):
            stacks.append(Stack(match[2] or match[1], []))
        elif stacks and (match := _FRAME.match(line)):
            number = int(match[2]) if match[2].isdecimal() else 0
            stacks[-1].frames.append(Frame(match[3], match[1], number))
    return stacks


def native_stacks(pid: int, seconds: float) -> tuple[list[Stack], str]:
    """Stacks with native frames, and what made them.  Raises RuntimeError with the reason."""
    give_up = time.monotonic() + seconds
    reasons = []
    for tool, arguments, parse in _TOOLS:
        program = _find(tool)
        if program is None:
            reasons.append(f"{tool} is not installed")
            continue
        left = give_up - time.monotonic()
        try:
            return parse(_run([program, *arguments, str(pid)], left)), tool
        except (subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
            reasons.append(f"{tool}: {_reason(error)}")
    raise RuntimeError("; ".join(reasons))


def _parse_py_spy(output: str) -> list[Stack]:
    stacks = []
    for thread in json.loads(output):
        frames = [_py_spy_frame(frame) for frame in thread["frames"]]
        name = thread.get("thread_name") or f"{thread['thread_id']:#x}"
        stacks.append(
            Stack(f"{name} (tid {thread.get('os_thread_id')})", frames, thread["owns_gil"])
        )
    return stacks


def _py_spy_frame(frame: dict[str, Any]) -> Frame:
    file = frame.get("filename") or ""
    return Frame(frame["name"], file, frame.get("line") or 0, not file.endswith((".py", ">")))


_PYSTACK_THREAD = re.compile(r"Traceback for thread (\d+)(?: \((.*?)\))? \[(.*)\]")
_PYSTACK_FRAME = re.compile(r'\s*\((Python|C)\) File "(.*)", line (\d+), in (.*)')
_PYSTACK_NATIVE = re.compile(r"(.*?)(?: \(inlined\))?(?: \((/.*)\))?\s*")


def _parse_pystack(output: str) -> list[Stack]:
    stacks: list[Stack] = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines():
        if match := _PYSTACK_THREAD.match(line):
            stacks.append(
                Stack(f"{match[2] or ''} (tid {match[1]})", [], "Has the GIL" in match[3])
            )
        elif stacks and (match := _PYSTACK_FRAME.match(line)):
            stacks[-1].frames.insert(0, _pystack_frame(match))  # it lists the outermost first
    if not stacks:
        raise ValueError("no stacks in its output")
    return stacks


def _pystack_frame(match: re.Match[str]) -> Frame:
    kind, file, line, function = match.groups()
    if kind == "Python":
        return Frame(function.strip(), file, int(line))
    name, library = _PYSTACK_NATIVE.fullmatch(function).groups()  # type: ignore[union-attr]
    return Frame(name, file if file != "???" else library or "", int(line), native=True)


_TOOLS = (
    ("py-spy", ("dump", "--json", "--native", "--pid"), _parse_py_spy),
    ("pystack", ("remote", "--native-all"), _parse_pystack),
    ("py-spy", ("dump", "--json", "--pid"), _parse_py_spy),
)


def _find(tool: str) -> str | None:
    """In the environment that the server runs in, or in PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), tool)
    return beside if os.access(beside, os.X_OK) else shutil.which(tool)


def _run(command: list[str], seconds: float) -> str:
    if seconds <= 0:
        raise subprocess.TimeoutExpired(command, seconds)
    ended = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
        check=True,
        env={**os.environ, "DEBUGINFOD_URLS": ""},  # a download would cost the budget
        preexec_fn=_die_with_parent,  # it must not outlive a collector that is killed
        text=True,
        errors="replace",
    )
    return ended.stdout


_prctl = getattr(ctypes.CDLL(None), "prctl", None)
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in str(error.stderr).splitlines() if line.strip()]
        return lines[0].strip() if lines else f"status {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return "it took too long"
    return str(error)


def _is_private(directory: str) -> bool:
    try:
        status = os.lstat(directory)
    except OSError:
        return False
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return ours and not status.st_mode & 0o022


def _is_current(offer: Offer) -> bool:
    process = open_process(offer.pid)
    if process is None:
        return False
    try:
        return not process.zombie and process.start_time == offer.start_time
    finally:
        process.close()


def _catches(pid: int, signum: int) -> bool:
    with open(f"/proc/{pid}/status") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt:"))
    return bool(caught >> signum - 1 & 1)


def _fill_in(offer: Offer, member: Member) -> None:
    with open(offer.path, "rb") as file:
        member.python = parse_dump(file.read(MAX_DUMP).decode("utf-8", "replace"))
    member.python_missing = None if member.python else "what the process wrote has no stacks"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
