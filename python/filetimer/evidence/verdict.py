"""Who waits, and who is elsewhere.

In a collective hang all ranks but one wait at the same place for the one that never came.  So the
workers are grouped by where they are: by the innermost Python line of the thread that hangs, or,
where there are no stacks, by the scope that is open and the kernel function waited in.  The largest
group that is larger than all others together waits; the rest is elsewhere.

Native stacks are there for a few of the workers only, and name functions in another way (by their
class, for one): so the stacks that workers wrote themselves come first, and names do not count.
"""

from __future__ import annotations

from collections.abc import Iterable

from filetimer.evidence.model import Frame, Member, Stack

__all__ = ["elsewhere", "hanging_stack", "one_of_each_place", "verdict", "where"]

SHOWN = 3  # frames of each kind


def hanging_stack(member: Member, stacks: list[Stack]) -> Stack | None:
    """Of these stacks, that which most likely hangs: in a scope's file, else the main thread's."""
    stacks = [stack for stack in stacks if stack.frames]
    files = {scope.scope_id.rpartition("#")[0] for scope in member.open} - {""}
    for stack in stacks:
        if any(frame.file in files for frame in stack.frames):
            return stack
    mains = [stack for stack in stacks if "MainThread" in stack.thread]
    # faulthandler lists the main thread last, since it is the oldest.
    return mains[0] if mains else (stacks[-1] if stacks else None)


def _innermost(member: Member) -> list[Frame]:
    """The frames to show of a hang, innermost first: native ones, then Python's."""
    stack = hanging_stack(member, member.native or member.python)
    if stack is None:
        return []
    python = [frame for frame in stack.frames if not frame.native]
    first = stack.frames.index(python[0]) if python else len(stack.frames)
    return _named(stack.frames[:first])[:SHOWN] + python[:SHOWN]


def _named(frames: list[Frame]) -> list[Frame]:
    """Without those of which only the address is known, unless that is all that is known."""
    named = [frame for frame in frames if not frame.function.startswith(("0x", "???"))]
    return named or frames[:1]


def where(member: Member) -> str | None:
    """Where a worker is, in words."""
    frames = _innermost(member)
    if frames:
        return " < ".join(map(str, frames))
    waits = next((task.wchan for task in member.tasks if task.wchan), None)
    return f"{waits} (kernel)" if waits else None


def verdict(members: list[Member]) -> list[str]:
    """The comparison of the group, in lines of text; none for a worker alone."""
    if len(members) < 2:
        return []
    groups = _by_place(members)
    waiting = _majority(groups)
    if waiting is None:
        lines = [f"{len(members)} workers are in {len(groups)} different places:"]
        return lines + [f"  {_names(group)}: {_place(group[0])}" for group in groups]
    lines = [f"{len(waiting)} of {len(members)} workers are at the same place: {_names(waiting)}"]
    lines.append(f"  {_place(waiting[0])}")
    for member in elsewhere(members):
        lines.append(f"elsewhere: {member.name}")
        lines.append(f"  {_place(member)}")
    return lines


def elsewhere(members: list[Member]) -> list[Member]:
    """Those that are not where most are; none when there is no such place."""
    groups = _by_place(members)
    waiting = _majority(groups)
    if waiting is None:
        return []
    return [member for group in groups if group is not waiting for member in group]


def one_of_each_place(members: list[Member]) -> list[Member]:
    """A worker for each place where there are some; where it can be, one that has expired."""
    ordered = sorted(members, key=lambda member: not member.expired)
    return [group[0] for group in reversed(_by_place(ordered))]


def _by_place(members: Iterable[Member]) -> list[list[Member]]:
    groups: dict[object, list[Member]] = {}
    for member in members:
        groups.setdefault(_key(member), []).append(member)
    return sorted(groups.values(), key=len, reverse=True)


def _key(member: Member) -> object:
    stack = hanging_stack(member, member.python or member.native)
    for frame in stack.frames if stack is not None else ():
        if not frame.native:
            return frame.file, frame.line
    scopes = tuple(sorted({scope.scope_id for scope in member.open}))
    return scopes, member.tasks[0].wchan if member.tasks else None


def _majority(groups: list[list[Member]]) -> list[Member] | None:
    total = sum(map(len, groups))
    largest = groups[0]
    return largest if len(largest) > 1 and len(largest) > total - len(largest) else None


def _place(member: Member) -> str:
    scopes = ", ".join(repr(scope.scope_id) for scope in member.open)
    place = where(member) or "stacks are not known"
    return f"{place}; in scope {scopes}" if scopes else f"{place}; no scope is open"


def _names(members: list[Member]) -> str:
    ranks = [member.rank for member in members if member.rank is not None]
    if len(ranks) == len(members):
        return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, sorted(ranks)))}"
    return ", ".join(member.name for member in members)
