"""What a report is made of.  These classes, as JSON, are the report for programs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FORMAT", "Frame", "Member", "OpenScope", "PastScope", "Report", "Stack", "Task"]

FORMAT = 1


@dataclass(frozen=True)
class Frame:
    """One frame of a stack; ``line`` is 0 where it is not known, as in native code."""

    function: str
    file: str
    line: int
    native: bool = False

    def __str__(self) -> str:
        where = os.path.basename(self.file) + (f":{self.line}" if self.line else "")
        return f"{self.function} ({where})" if where else self.function


@dataclass(frozen=True)
class Stack:
    """One thread's frames, innermost first."""

    thread: str
    frames: list[Frame]
    owns_gil: bool = False


@dataclass(frozen=True)
class Task:
    """One thread, as the kernel sees it.  What was not permitted is None."""

    tid: int
    name: str
    state: str
    wchan: str | None
    syscall: str | None
    kernel_stack: list[str] | None


@dataclass(frozen=True)
class OpenScope:
    """A timer that is set, or was until it expired.  Seconds; ``since`` is None if not known."""

    scope_id: str
    since: float | None
    allowed: float | None
    left: float
    signal: int
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PastScope:
    """A scope that has ended, ``ago`` seconds before the report."""

    scope_id: str
    ago: float
    took: float
    allowed: float
    how: str


@dataclass
class Member:
    """One worker of the group."""

    pid: int
    start_time: int | None
    expired: bool
    rank: int | None = None
    command: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    state: str = "?"
    open: list[OpenScope] = field(default_factory=list)
    recent: list[PastScope] = field(default_factory=list)
    python: list[Stack] = field(default_factory=list)
    python_missing: str | None = "not asked for yet"
    native: list[Stack] = field(default_factory=list)
    native_source: str | None = None
    native_missing: str | None = "not asked for yet"
    tasks: list[Task] = field(default_factory=list)
    restart: int | None = None
    gpu: str | None = None

    @property
    def name(self) -> str:
        """The worker in words."""
        return f"pid {self.pid}" if self.rank is None else f"rank {self.rank} (pid {self.pid})"


@dataclass
class Report:
    """The whole report."""

    time: float
    host: str
    run_id: str
    fifo: str
    verdict: list[str] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    complete: bool = False
    format: int = FORMAT
