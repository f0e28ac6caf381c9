"""Signals as something to wait for, not to be interrupted by.

They are blocked, in every thread that starts later, and taken one at a time.  That works for pid 1
of a container, too, which gets no signal that it does not wait for.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from types import TracebackType

__all__ = ["ENDINGS", "WaitedSignals"]

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what asks a command to end


class WaitedSignals:
    """While it is entered, ``signals`` are waited for; those that are ignored stay ignored.

    ``outer_mask`` is the signal mask from before, which children shall have.  Enter it in the main
    thread, before any other thread starts.
    """

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self._signals = {s for s in signals if signal.getsignal(s) is not signal.SIG_IGN}
        self.outer_mask: set[int] = set()

    def __enter__(self) -> WaitedSignals:
        self.outer_mask = set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while signal.sigtimedwait(self._signals, 0) is not None:
            pass  # came too late: what it asks for is done
        signal.pthread_sigmask(signal.SIG_SETMASK, self.outer_mask)

    def wait(self, seconds: float | None = None) -> signal.struct_siginfo | None:
        """The next signal; None after ``seconds``."""
        if seconds is None:
            return signal.sigwaitinfo(self._signals)
        return signal.sigtimedwait(self._signals, max(0.0, seconds))
