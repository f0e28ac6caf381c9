"""``Policy``: what a server does beyond the protocol's defaults.  All of it is off unless asked."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Policy"]


@dataclass(frozen=True)
class Policy:
    """The options of a server that say what becomes of a stuck worker.

    Args:
        kill_after: seconds after which a worker that outlives its signal is sent SIGKILL; None:
            never.
        report_only: report every expiry, and signal nobody.
        warn_after: report a timer as overdue before it expires: below 1, after that fraction of
            the time that it allows; from 1 on, after so many seconds.  None: never.
        reap_tree: signal a stuck worker's descendants with it.
        hold_stopped: while a worker is stopped (SIGSTOP, a debugger), its deadlines wait.  Timers
            that were moved by that give no warning.
    """

    kill_after: float | None = None
    report_only: bool = False
    warn_after: float | None = None
    reap_tree: bool = False
    hold_stopped: bool = False

    def __post_init__(self) -> None:
        if self.kill_after is not None and not 0 <= self.kill_after < math.inf:
            raise ValueError(f"kill_after must be a number of seconds: {self.kill_after!r}")
        if self.warn_after is not None and not 0 < self.warn_after < math.inf:
            raise ValueError(
                "warn_after must be a fraction below 1, or a number of seconds from 1 on: "
                f"{self.warn_after!r}"
            )
