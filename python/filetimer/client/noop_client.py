"""``NoopTimerClient``: for running a guarded script where there is no timer server."""

from __future__ import annotations

from filetimer.api import Attributes, TimerClient, TimerHandle

__all__ = ["NoopTimerClient"]


class _NoopHandle:
    __slots__ = ()

    def extend(self, after: float) -> None:
        pass

    def end(self, *, wait: bool = True) -> bool:
        return True


_HANDLE = _NoopHandle()


class NoopTimerClient(TimerClient):
    """Guards nothing, and says so by its name."""

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Do nothing."""

    def release(self, scope_id: str) -> None:
        """Do nothing."""

    def begin(
        self,
        scope_id: str,
        after: float,
        *,
        wait: bool = True,
        attributes: Attributes | None = None,
    ) -> TimerHandle:
        """A handle that does nothing."""
        return _HANDLE
