"""What a fault is, and what came of injecting it.

A module of faults has ``FAULTS``, a list of :class:`Fault`; the runner (``__main__``) lists the
modules.  ``run`` is called in a process of its own, in a pid namespace of its own that ends with
it, with an empty runtime directory and an empty working directory.  What it raises counts as a
promise that was broken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
MAX_PROBLEMS = 20  # sentences that are kept of one fault


@dataclass(frozen=True)
class Scale:
    """How much is run: ``scale.pick(full, quick)`` is the size for this run."""

    quick: bool

    def pick(self, full: T, quick: T) -> T:
        """One of the two."""
        return quick if self.quick else full


@dataclass
class Result:
    """What came of one fault.

    ``lost``: timers that ran out, and whose worker was not reaped.  ``wrong``: processes that were
    signalled and should not have been, or before their deadline.  ``broken``: anything else that
    was promised and did not hold: a client error, a server that says nothing of what it lacks.
    ``late``: workers that came back after their own deadlines, because the machine was busy, and
    were reaped for that: there is no verdict on these, so they must be few.
    ``lateness``: of the latest death, in seconds past its deadline; None: nobody was to die.
    ``skipped``: why it cannot be injected here.
    """

    injected: int = 0
    timers: int = 0
    lost: int = 0
    wrong: int = 0
    broken: int = 0
    late: int = 0
    lateness: float | None = None
    note: str = ""
    skipped: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all held."""
        judged = self.late <= 1 + self.timers // 50
        return judged and not (self.lost or self.wrong or self.broken) and self.injected > 0

    def saw_lateness(self, seconds: float) -> None:
        """A worker died so many seconds past its deadline."""
        self.lateness = seconds if self.lateness is None else max(self.lateness, seconds)

    def lose(self, problem: str) -> None:
        """A timer was lost."""
        self.lost += 1
        self._say(problem)

    def blame(self, problem: str) -> None:
        """A process was signalled wrongly."""
        self.wrong += 1
        self._say(problem)

    def breach(self, problem: str) -> None:
        """Another promise was broken."""
        self.broken += 1
        self._say(problem)

    def check(self, holds: object, problem: str) -> None:
        """``problem`` unless it holds."""
        if not holds:
            self.breach(problem)

    def _say(self, problem: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Result:
        """What :meth:`to_dict` took apart."""
        return cls(**fields)


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    ``name`` says what is injected.  ``limit`` is in seconds: a run that takes longer is ended, and
    counts as broken.  ``alone``: its lateness says nothing while others run beside it.
    """

    name: str
    run: Callable[[Scale], Result]
    limit: float = 120.0
    alone: bool = False
