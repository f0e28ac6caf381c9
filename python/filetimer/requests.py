"""``FileTimerRequest``: the request as torch's users and callbacks know it."""

from __future__ import annotations

import json

from filetimer.api import TimerRequest

__all__ = ["FileTimerRequest"]


class FileTimerRequest(TimerRequest):
    """A timer acquisition or release of a worker that is named by pid.

    Args:
        worker_pid: process id of the worker.
        scope_id: names the guarded block.
        expiration_time: Unix seconds; negative means release.
        signal: what reaps the worker; 0 or less means report only.
    """

    __slots__ = ("signal", "version")

    def __init__(
        self, worker_pid: int, scope_id: str, expiration_time: float, signal: int = 0
    ) -> None:
        super().__init__(worker_pid, scope_id, expiration_time)
        self.version = 1
        self.signal = signal

    @property
    def worker_pid(self) -> int:
        """Process id of the worker."""
        return int(self.worker_id)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FileTimerRequest):
            return NotImplemented
        return (self._fields(), self.version) == (other._fields(), other.version)

    __hash__ = None

    def __repr__(self) -> str:
        return (
            f"FileTimerRequest(worker_pid={self.worker_id!r}, scope_id={self.scope_id!r}, "
            f"expiration_time={self.expiration_time!r}, signal={self.signal!r})"
        )

    def to_json(self) -> str:
        """The version 1 record, without the newline, as torch writes it."""
        return json.dumps(
            {
                "version": self.version,
                "pid": self.worker_pid,
                "scope_id": self.scope_id,
                "expiration_time": self.expiration_time,
                "signal": self.signal,
            }
        )

    def _fields(self) -> tuple[object, ...]:
        return (self.worker_id, self.scope_id, self.expiration_time, self.signal)
