"""The report for people: who hung where, then the group, then every worker."""

from __future__ import annotations

import time
from collections.abc import Iterator

from filetimer.evidence.model import Member, Report, Stack, Task
from filetimer.evidence.verdict import where
from filetimer.server.events import describe_attributes, describe_signal

__all__ = ["in_words"]


def in_words(report: Report) -> str:
    """The whole report."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(report.time))
    yield f"filetimer evidence, {when}, host {report.host}, run {report.run_id}"
    yield f"server at {report.fifo}"
    if not report.complete:
        yield "INCOMPLETE: the time for it was over"
    yield ""
    for member in filter(lambda member: member.expired, report.members):
        yield f"{member.name} is stuck in {where(member) or 'a place that is not known'}"
    if report.verdict:
        yield ""
        yield from report.verdict
    for member in sorted(report.members, key=lambda member: not member.expired):
        yield ""
        yield "=" * 78
        yield from _member(member)


def _member(member: Member) -> Iterator[str]:
    yield f"{member.name}{', expired' if member.expired else ''}"
    yield f"command: {' '.join(member.command) or '?'}"
    if member.restart is not None:
        yield f"restart: {member.restart}"
    if member.environment:
        yield "environment: " + " ".join(f"{k}={v}" for k, v in member.environment.items())
    yield ""
    yield "open scopes" if member.open else "no open scopes"
    for scope in member.open:
        since = "?" if scope.since is None else f"{scope.since:.3f} s"
        allowed = "?" if scope.allowed is None else f"{scope.allowed:.3f} s"
        due = f"due in {scope.left:.3f} s" if scope.left > 0 else f"due {-scope.left:.3f} s ago"
        extra = f", {describe_attributes(scope.attributes)}" if scope.attributes else ""
        yield (
            f"  {scope.scope_id!r} open for {since}, allowed {allowed}, {due}, "
            f"on expiry {describe_signal(scope.signal)}{extra}"
        )
    if member.recent:
        yield "recent scopes, the last one first"
        for past in member.recent:
            yield (
                f"  {past.scope_id!r} {past.how} {past.ago:.3f} s ago, took {past.took:.3f} s of "
                f"{past.allowed:.3f} s"
            )
    yield ""
    yield from _stacks("Python stacks (faulthandler)", member.python, member.python_missing)
    source = f"Python and native stacks ({member.native_source or 'py-spy, pystack'})"
    yield from _stacks(source, member.native, member.native_missing)
    if member.gpu is not None:
        yield f"GPU: {member.gpu}"
        yield ""
    yield "threads"
    for task in member.tasks:
        yield from _task(task)


def _stacks(title: str, stacks: list[Stack], missing: str | None) -> Iterator[str]:
    if missing is not None:
        yield f"{title}: none, {missing}"
        yield ""
        return
    yield f"{title}, innermost frame first"
    for stack in stacks:
        yield f"  thread {stack.thread}{', holds the GIL' if stack.owns_gil else ''}"
        for frame in stack.frames:
            at = f"{frame.file}:{frame.line}" if frame.line else frame.file
            yield f"    {frame.function}  {at}"
    yield ""


def _task(task: Task) -> Iterator[str]:
    yield (
        f"  {task.tid} {task.name}: state {task.state}, waits in {task.wchan or '-'}, "
        f"system call {task.syscall or '-'}"
    )
    for line in task.kernel_stack or ():
        yield f"      {line}"
