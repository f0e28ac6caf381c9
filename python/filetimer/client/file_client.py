"""``FileTimerClient``: acquires and releases timers by writing records to a server's FIFO."""

from __future__ import annotations

import errno
import logging
import math
import os
import signal as signals
from os import getpid
from time import monotonic
from time import time as wall

from filetimer.api import TimerClient, TimerHandle
from filetimer.client.identity import own_identity
from filetimer.client.pipe import ClientPipe
from filetimer.client.stacks import offer_stacks, offer_stacks_again
from filetimer.client.tokens import new_token
from filetimer.wire.encoder import RecordEncoder

__all__ = ["FileTimerClient", "FileTimerHandle"]

logger = logging.getLogger("filetimer")

MAX_SCOPES = 1024  # plain timers whose deadline is remembered for their release


class FileTimerClient(TimerClient):
    """The client of :class:`FileTimerServer`, and of torch's.

    Args:
        file_path: the FIFO of the server.
        signal: what the server sends to this process when a timer expires; 0 or less: nothing,
            the expiry is only reported.
        timeout: longest wait of one acquire in seconds, while the pipe is full, or while a server
            that was not there yet starts.
        version: protocol version of the records, 2 or 1 (SPEC section 4).

    Safe to use from several threads, and in forked children, whose timers are their own.
    """

    def __init__(
        self,
        file_path: str,
        signal: int = signals.SIGKILL,
        *,
        timeout: float = 1.0,
        version: int = 2,
    ) -> None:
        if version not in (1, 2):
            raise ValueError(f"version must be 1 or 2, not {version!r}")
        if int(signal) > 64:
            raise ValueError(f"there is no signal {int(signal)}")
        self.timeout = timeout
        self._version = version
        self._signal = int(signal)
        self._pipe = ClientPipe(os.fspath(file_path), timeout)
        self._release_failed = False
        self._plain_deadlines: dict[str, float] = {}  # by scope, monotonic seconds
        self._encoder = self._new_encoder()

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Set the timer of this scope, to expire at ``expiration_time`` (Unix seconds).

        Raises BrokenPipeError when the record could not be delivered, RuntimeError when the scope
        is too long for a record, ValueError for an empty scope or a time that is negative or not
        finite.
        """
        if not 0 <= expiration_time < math.inf:
            raise ValueError(
                f"expiration_time must be a finite Unix time, 0 or more, not {expiration_time!r}"
            )
        deadline = monotonic() + (expiration_time - wall())
        self._acquire(scope_id, expiration_time, deadline, None, self.timeout)
        if len(self._plain_deadlines) >= MAX_SCOPES:
            self._plain_deadlines.clear()
        self._plain_deadlines[scope_id] = deadline

    def release(self, scope_id: str) -> None:
        """Take the timer of this scope back.  Never raises for a server that is gone."""
        deadline = self._plain_deadlines.pop(scope_id, 0.0)
        self._release(scope_id, None, deadline - monotonic())

    def begin(self, scope_id: str, after: float, *, wait: bool = True) -> TimerHandle:
        """Open a timer of its own.  Raises as :meth:`acquire`; BlockingIOError if not ``wait``."""
        return FileTimerHandle(self, scope_id, after, wait)

    def on_configure(self) -> None:
        """Let the server ask for the Python stacks of this process before it ends it."""
        offer_stacks(self._pipe.path)

    def close(self) -> None:
        """Close the pipe.  The next timer opens it again."""
        self._pipe.close()

    def _acquire(
        self, scope_id: str, expiration_time: float, deadline: float, token: int | None, wait: float
    ) -> None:
        encoder = self._encoder
        if encoder.pid != getpid():
            encoder = self._new_encoder()
            offer_stacks_again()
        if deadline < 0:  # it expired before this boot
            deadline = 0.0
        try:
            self._pipe.send(encoder.acquire(scope_id, expiration_time, deadline, token), wait)
        except OSError as error:
            if wait <= 0 and isinstance(error, BlockingIOError):
                raise
            raise BrokenPipeError(
                errno.EPIPE, f"the timer {scope_id!r} was not acquired: {error.strerror or error}"
            ) from None

    def _release(self, scope_id: str, token: int | None, wait: float) -> bool:
        """Send a release.  False only when the pipe is full; other failures are logged once."""
        try:
            encoder = self._encoder
            if encoder.pid != getpid():
                encoder, wait = self._new_encoder(), 0.0  # it cannot have a timer yet
            self._pipe.send(encoder.release(scope_id, token), wait)
        except BlockingIOError:
            return False
        except Exception as error:  # SPEC C-2: it must not disturb the guarded code
            self._log_release_failure(scope_id, error)
        return True

    def _new_encoder(self) -> RecordEncoder:
        """At the start, and in a forked child, which is another worker (SPEC C-6)."""
        start_time, pid_ns = own_identity()
        self._pipe.adopt()
        self._plain_deadlines.clear()
        self._encoder = RecordEncoder(self._version, getpid(), self._signal, start_time, pid_ns)
        return self._encoder

    def _log_release_failure(self, scope_id: str, error: Exception) -> None:
        level = logging.DEBUG if self._release_failed else logging.WARNING
        self._release_failed = True
        logger.log(level, "the timer %r was not released: %s", scope_id, error)


class FileTimerHandle:
    """One open timer of a :class:`FileTimerClient`."""

    __slots__ = ("_client", "_deadline", "_pid", "_scope_id", "_token")

    def __init__(self, client: FileTimerClient, scope_id: str, after: float, wait: bool) -> None:
        self._client = client
        self._scope_id = scope_id
        self._pid = getpid()
        self._token: int | None = new_token()
        self._deadline = 0.0
        self._send(after, client.timeout if wait else 0.0)

    def extend(self, after: float) -> None:
        """Move the deadline to ``after`` seconds from now.  Raises as ``begin`` does."""
        if self._token is None:
            raise RuntimeError(f"the timer {self._scope_id!r} has ended")
        if self._pid == getpid():  # SPEC C-6: a child does not touch its parent's timer
            self._send(after, self._client.timeout)

    def end(self, *, wait: bool = True) -> bool:
        """Release the timer, waiting for at most what it has left.  Never raises."""
        if self._token is None or self._pid != getpid():
            return True
        left = self._deadline - monotonic()
        delivered = self._client._release(self._scope_id, self._token, left if wait else 0.0)
        if delivered or left <= 0:
            self._token = None
            return True
        return False

    def _send(self, after: float, wait: float) -> None:
        if not math.isfinite(after):
            raise ValueError(f"after must be a finite number of seconds, not {after!r}")
        now = monotonic()
        deadline = now + after
        self._client._acquire(self._scope_id, max(0.0, wall() + after), deadline, self._token, wait)
        self._deadline = deadline
