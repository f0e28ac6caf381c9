"""``LocalTimerClient``: acquires and releases timers through a ``multiprocessing`` queue."""

from __future__ import annotations

import errno
import os
import time
from typing import Any

from filetimer.api import Attributes, TimerClient, TimerHandle, TimerRequest
from filetimer.client.identity import own_identity
from filetimer.client.tokens import new_token

__all__ = ["LocalTimerClient", "LocalTimerRequest"]


class LocalTimerRequest(TimerRequest):
    """A request that also says what SPEC section 3 adds in version 2; None where unknown."""

    __slots__ = ("deadline", "pid_ns", "start_time", "token")

    def __init__(
        self,
        worker_id: int,
        scope_id: str,
        expiration_time: float,
        deadline: float | None = None,
        start_time: int | None = None,
        pid_ns: int | None = None,
        token: int | None = None,
    ) -> None:
        super().__init__(worker_id, scope_id, expiration_time)
        self.deadline = deadline
        self.start_time, self.pid_ns = start_time, pid_ns
        self.token = token


class LocalTimerClient(TimerClient):
    """The client of :class:`LocalTimerServer`.

    Args:
        mp_queue: the ``multiprocessing`` queue that the server reads, from any start method.

    A worker that is killed while it holds the queue's lock blocks the others: that is the nature
    of these queues.  :class:`FileTimerClient` has no such weakness.
    """

    def __init__(self, mp_queue: Any) -> None:
        super().__init__()
        self._mp_queue = mp_queue
        self._identity: tuple[int, int | None, int | None] | None = None

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Set the worker's timer of this scope to expire at ``expiration_time`` (Unix seconds)."""
        deadline = time.monotonic() + (expiration_time - time.time())
        self._put(scope_id, expiration_time, deadline, None)

    def release(self, scope_id: str) -> None:
        """Take the worker's timer of this scope back."""
        self._put(scope_id, -1, None, None)

    def begin(
        self,
        scope_id: str,
        after: float,
        *,
        wait: bool = True,
        attributes: Attributes | None = None,
    ) -> TimerHandle:
        """Open a timer of its own that expires ``after`` seconds from now."""
        return _LocalHandle(self, scope_id, after)

    def _put(
        self, scope_id: str, expiration_time: float, deadline: float | None, token: int | None
    ) -> None:
        pid = os.getpid()
        if self._identity is None or self._identity[0] != pid:
            self._identity = (pid, *own_identity())
        _, start_time, pid_ns = self._identity
        request = LocalTimerRequest(
            pid, scope_id, expiration_time, deadline, start_time, pid_ns, token
        )
        try:
            self._mp_queue.put(request)
        except (OSError, ValueError, EOFError) as error:
            raise BrokenPipeError(
                errno.EPIPE, f"the timer {scope_id!r} could not be sent: {error}"
            ) from error


class _LocalHandle:
    __slots__ = ("_client", "_pid", "_scope_id", "_token")

    def __init__(self, client: LocalTimerClient, scope_id: str, after: float) -> None:
        self._client, self._scope_id = client, scope_id
        self._pid, self._token = os.getpid(), new_token()
        self.extend(after)

    def extend(self, after: float) -> None:
        if self._pid == os.getpid():  # SPEC C-6
            self._client._put(
                self._scope_id,
                max(0.0, time.time() + after),
                time.monotonic() + after,
                self._token,
            )

    def end(self, *, wait: bool = True) -> bool:
        if self._pid == os.getpid():
            try:
                self._client._put(self._scope_id, -1, None, self._token)
            except OSError as error:
                from filetimer.api import logger

                logger.warning("the timer %r was not released: %s", self._scope_id, error)
        return True
