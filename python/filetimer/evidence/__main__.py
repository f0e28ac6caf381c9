"""``python -m filetimer.evidence``: looks at a hung worker and its group, and writes a report.

The server gives the task as one line of JSON on standard input, and may end this process at any
time: closing the input does, too.  The report is written twice, after what takes milliseconds
(/proc, and the Python stacks that workers write themselves) and after what may take seconds
(py-spy, pystack), and replaced in one step.  The last line on standard output says where it is.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from filetimer.evidence.gpu import ask_for_core_dump, wait_for_core_dump
from filetimer.evidence.model import Member, OpenScope, PastScope, Report
from filetimer.evidence.proc import describe_process
from filetimer.evidence.stacks import ask_for_stacks, native_stacks, offers, read_stacks
from filetimer.evidence.text import in_words
from filetimer.evidence.verdict import elsewhere, one_of_each_place, verdict, where
from filetimer.replay import History, load_history
from filetimer.server.journal import JournalError
from filetimer.server.timers import Now

__all__ = ["main"]

QUICK = 0.4  # of the budget, for what takes milliseconds
QUICK_MOST = 1.0  # seconds
AT_ONCE = 4  # py-spies
MOST_NATIVE = 16  # workers whose native stacks are looked at
RECENT = 10  # past scopes of each worker


def main() -> int:
    """Do the task on standard input."""
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_server, daemon=True).start()
    members = _members(task)
    report = Report(time.time(), os.uname().nodename, task["run_id"], task["fifo"])
    report.members = members
    now = time.monotonic()
    left = task["until"] - now
    _look_quickly(members, task, now + min(QUICK * left, QUICK_MOST))
    _write(report, task)
    until = task["until"] - 0.15 * left
    dumping = [member for member in members if _is_to_dump(member, task)]
    _look_at_native(members, until)
    for member in dumping:
        wait_for_core_dump(member, until)
    report.complete = True
    _write(report, task)
    return 0


def _end_with_server() -> None:
    sys.stdin.read()
    os._exit(1)


def _members(task: dict[str, Any]) -> list[Member]:
    """Those that the server knows, and those that offer their stacks: they may have no timer."""
    members = {
        known["pid"]: Member(known["pid"], known["start_time"], known["expired"])
        for known in task["group"]
    }
    for pid, offer in offers(task["stacks"]).items():
        if pid != task["server"]:
            members.setdefault(pid, Member(pid, offer.start_time, expired=False))
    return list(members.values())


def _look_quickly(members: list[Member], task: dict[str, Any], until: float) -> None:
    """All workers at once; one that cannot be looked at holds up none of the others for long."""
    known = offers(task["stacks"])
    asked = []
    for member in members:
        offer = known.get(member.pid)
        if offer is None:
            member.python_missing = "the process has not offered any (filetimer.configure)"
        else:
            member.python_missing = ask_for_stacks(offer)
            if member.python_missing is None:
                member.python_missing = "they were asked for"
                asked.append((offer, member))
    lookers = [
        threading.Thread(target=describe_process, args=(member,), daemon=True) for member in members
    ]
    for looker in lookers:
        looker.start()
    _add_scopes(members, task)
    read_stacks(asked, until)
    for looker in lookers:
        looker.join(max(0.0, until - time.monotonic()))


def _add_scopes(members: list[Member], task: dict[str, Any]) -> None:
    """Open scopes from the server; since when, and the scopes before, from its journal."""
    now = Now(time.monotonic(), time.time())
    try:
        history = load_history(task["journal"], now)[1] if task["journal"] else History()
    except (OSError, JournalError):
        history = History()
    timers = {known["pid"]: known["timers"] for known in task["group"]}
    begun = {
        (span.worker.pid, span.scope_id, span.token, round(span.deadline, 3)): span.begin
        for span in [*history.spans, *history.open.values()]
    }
    for member in members:
        member.open = [
            _open_scope(timer, member, begun, now) for timer in timers.get(member.pid, ())
        ]
        # Others may have expired since the server began this.
        member.expired |= any(scope.left <= 0 < scope.signal for scope in member.open)
        spans = [span for span in history.spans if span.worker.pid == member.pid]
        completed = [span for span in spans if span.completed]
        member.recent = [
            PastScope(
                span.scope_id,
                now[0] - (span.end or 0),
                span.duration(now[0]),
                span.allowed,
                span.how,
            )
            for span in reversed(completed[-RECENT:])
        ]


def _open_scope(timer: dict[str, Any], member: Member, begun: Any, now: Now) -> OpenScope:
    deadline = timer["deadline"]
    key = member.pid, timer["scope_id"], timer["token"], round(deadline, 3)
    begin = begun.get(key)
    return OpenScope(
        timer["scope_id"],
        None if begin is None else now.monotonic - begin,
        None if begin is None else deadline - begin,
        deadline - now.monotonic,
        timer["signal"],
        timer.get("attributes") or {},
    )


def _look_at_native(members: list[Member], until: float) -> None:
    """Native stacks of one worker of each place: those of its companions would be the same."""
    chosen = one_of_each_place(members)[:MOST_NATIVE]
    for member in members:
        if member not in chosen:
            member.native_missing = "they are looked at for one worker of each place"
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for member in chosen:
            pool.submit(_add_native, member, until)


def _add_native(member: Member, until: float) -> None:
    try:
        member.native, member.native_source = native_stacks(
            member.pid, max(0.0, until - time.monotonic())
        )
        member.native_missing = None
    except RuntimeError as error:
        member.native_missing = str(error)


def _is_to_dump(member: Member, task: dict[str, Any]) -> bool:
    return bool(task.get("gpu")) and member.expired and ask_for_core_dump(member)


def _write(report: Report, task: dict[str, Any]) -> None:
    """Both files, each in one step, and say where they are; the frames in any case."""
    report.verdict = verdict(report.members)
    stem = os.path.join(task["directory"], task["stem"])
    said: dict[str, Any] = {}
    try:
        os.makedirs(task["directory"], mode=0o700, exist_ok=True)
        _replace(stem + ".json", json.dumps(asdict(report), indent=1))
        _replace(stem + ".txt", in_words(report))
        said["report"] = stem + ".txt"
    except OSError as error:
        reason = error.strerror or str(error)
        said["problem"] = f"no report in {task['directory']}: {reason}"
    said["where"] = {member.pid: _summary(member, report.members) for member in report.members}
    print(json.dumps(said), flush=True)


def _summary(member: Member, members: list[Member]) -> str | None:
    """Where the worker is; and, when it waits like most others, who does not."""
    own = where(member)
    others = elsewhere(members)
    if own is None or member in others or not others:
        return own
    more = f", and {len(others) - 1} more" if len(others) > 1 else ""
    return f"{own}; elsewhere: {others[0].name} in {where(others[0]) or '?'}{more}"


def _replace(path: str, text: str) -> None:
    """Raises OSError.  The directory may be one to which others write: none of their files, and
    nothing that their links point at, is touched."""
    temporary = f"{path}.{os.urandom(4).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600)
    try:
        with open(fd, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads that hang in /proc must not be waited for
