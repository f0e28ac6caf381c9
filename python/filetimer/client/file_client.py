"""``FileTimerClient``: acquires and releases timers by writing records to a server's FIFO."""

from __future__ import annotations

import errno
import logging
import os
import signal as signals
from math import inf
from time import monotonic
from time import time as wall

from filetimer.api import Attributes, TimerClient, TimerHandle
from filetimer.client.fork_mark import new_fork_mark
from filetimer.client.identity import own_identity
from filetimer.client.pipe import RWF_NOSIGNAL, ClientPipe, pwritev, write_masked
from filetimer.client.stacks import offer_stacks, offer_stacks_again
from filetimer.client.tokens import new_token
from filetimer.wire import MAX_SENT
from filetimer.wire.encoder import RecordEncoder, Templates, encode_attributes, too_long

__all__ = ["FileTimerClient", "FileTimerHandle"]

logger = logging.getLogger("filetimer")


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

    # A pair is two system calls and little else, so that every call of a Python function between
    # them shows: each costs about a tenth of a write.  Hence acquire, release and the handle make
    # the first attempt at a write themselves, look for templates themselves, and ask a mark
    # instead of getpid which process they are in.  What is rare is in methods of its own.

    _encoder: RecordEncoder

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
        self._nosignal = self._pipe.nosignal
        self._release_failed = False
        self._attributes: Attributes = {}
        self._encoded = b""
        self._become()

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Set the timer of this scope, to expire at ``expiration_time`` (Unix seconds).

        Raises BrokenPipeError when the record could not be delivered, RuntimeError when the scope
        is too long for a record, ValueError for an empty scope or a time that is negative or not
        finite.
        """
        if not 0.0 <= expiration_time < inf:
            raise ValueError(
                f"expiration_time must be a finite Unix time, 0 or more, not {expiration_time!r}"
            )
        templates = (self._mark[0] and self._known.get(scope_id)) or self._templates(scope_id)
        deadline = monotonic() + (expiration_time - wall())
        # Below zero: it expired before this boot.
        record = templates.acquire % (expiration_time, deadline if deadline > 0.0 else 0.0)
        if len(record) > MAX_SENT:
            raise too_long(record, scope_id)
        try:
            if self._nosignal:
                pwritev(self._pipe.fd, (record,), -1, RWF_NOSIGNAL)
            else:
                write_masked(self._pipe.fd, record)
        except OSError as error:
            self._acquire_after(error, record, scope_id, self.timeout)
        templates.deadline = deadline

    def release(self, scope_id: str) -> None:
        """Take the timer of this scope back.  Never raises for a server that is gone."""
        try:
            templates = (self._mark[0] and self._known.get(scope_id)) or self._templates(scope_id)
            deadline, templates.deadline = templates.deadline, 0.0
            try:
                if self._nosignal:
                    pwritev(self._pipe.fd, (templates.release,), -1, RWF_NOSIGNAL)
                else:
                    write_masked(self._pipe.fd, templates.release)
            except OSError as error:
                self._release_after(error, templates.release, scope_id, deadline - monotonic())
        except Exception as error:  # SPEC C-2: it must not disturb the guarded code
            self._log_release_failure(scope_id, error)

    def begin(
        self,
        scope_id: str,
        after: float,
        *,
        wait: bool = True,
        attributes: Attributes | None = None,
    ) -> TimerHandle:
        """Open a timer of its own.  Raises as :meth:`acquire`; BlockingIOError if not ``wait``."""
        if attributes:
            templates = self._templates_with(scope_id, attributes)
        else:
            templates = self._templates(scope_id)
        return FileTimerHandle(self, scope_id, templates, after, wait)

    def set_attributes(self, attributes: Attributes) -> None:
        """What all timers that begin from now on say of themselves; those of ``begin`` add to it.

        Raises ValueError for what SPEC R-12 does not allow.
        """
        self._encoded = encode_attributes(attributes)
        self._attributes = dict(attributes)
        before = self._encoder.known
        self._encoder = self._new_encoder()
        for scope_id, templates in list(before.items()):
            if templates.deadline:
                self._encoder.learn(scope_id).deadline = templates.deadline
        self._known = self._encoder.known

    def on_configure(self) -> None:
        """Let the server ask for the Python stacks of this process before it ends it."""
        offer_stacks(self._pipe.path)

    def close(self) -> None:
        """Close the pipe.  The next timer opens it again."""
        self._pipe.close()

    def _templates(self, scope_id: str) -> Templates:
        """The templates of a scope, in this process, where a look at ``_known`` did not do."""
        if not self._mark[0]:
            self._become()
        return self._known.get(scope_id) or self._encoder.learn(scope_id)

    def _become(self) -> None:
        """Speak for this process: at the start, and in a forked child (SPEC C-6)."""
        self._pipe.adopt()
        self._encoder = self._new_encoder()
        self._known = self._encoder.known
        self._mark = new_fork_mark()  # last: other threads look at it first
        offer_stacks_again()

    def _new_encoder(self) -> RecordEncoder:
        identity = own_identity()
        return RecordEncoder(self._version, os.getpid(), self._signal, *identity, self._encoded)

    def _templates_with(self, scope_id: str, attributes: Attributes) -> Templates:
        """Templates of a scope for one timer, with attributes beside those of all timers."""
        self._templates(scope_id)  # in a forked child: become it
        return self._encoder.templates(
            scope_id, encode_attributes({**self._attributes, **attributes})
        )

    def _acquire_after(self, error: OSError, record: bytes, scope_id: str, wait: float) -> None:
        """Go on with an acquire whose first attempt to write failed.  Raises as ``begin``."""
        try:
            self._pipe.send_after(error, record, wait)
        except OSError as lasting:
            if wait <= 0 and isinstance(lasting, BlockingIOError):
                raise
            raise BrokenPipeError(
                errno.EPIPE,
                f"the timer {scope_id!r} was not acquired: {lasting.strerror or lasting}",
            ) from None

    def _release_after(self, error: OSError, record: bytes, scope_id: str, wait: float) -> bool:
        """Go on with such a release.  False: the pipe is still full.  Other failures are logged."""
        try:
            self._pipe.send_after(error, record, wait)
        except BlockingIOError:
            return False
        except Exception as lasting:  # SPEC C-2
            self._log_release_failure(scope_id, lasting)
        return True

    def _log_release_failure(self, scope_id: str, error: Exception) -> None:
        level = logging.DEBUG if self._release_failed else logging.WARNING
        self._release_failed = True
        logger.log(level, "the timer %r was not released: %s", scope_id, error)


class FileTimerHandle:
    """One open timer of a :class:`FileTimerClient`."""

    __slots__ = ("_client", "_deadline", "_mark", "_scope_id", "_templates", "_token")

    def __init__(
        self,
        client: FileTimerClient,
        scope_id: str,
        templates: Templates,
        after: float,
        wait: bool,
    ) -> None:
        self._client = client
        self._scope_id = scope_id
        self._templates = templates
        self._mark = client._mark
        self._token: int | None = new_token()
        self._arm(after, client.timeout if wait else 0.0)

    def extend(self, after: float) -> None:
        """Move the deadline to ``after`` seconds from now.  Raises as ``begin`` does."""
        if self._token is None:
            raise RuntimeError(f"the timer {self._scope_id!r} has ended")
        if self._mark[0]:  # SPEC C-6: a child does not touch its parent's timer
            self._arm(after, self._client.timeout)

    def end(self, *, wait: bool = True) -> bool:
        """Release the timer, waiting for at most what it has left.  Never raises."""
        if self._token is None or not self._mark[0]:
            return True
        client = self._client
        record = self._templates.release_token % self._token
        try:
            if client._nosignal:
                pwritev(client._pipe.fd, (record,), -1, RWF_NOSIGNAL)
            else:
                write_masked(client._pipe.fd, record)
        except OSError as error:
            left = self._deadline - monotonic()
            sent = client._release_after(error, record, self._scope_id, left if wait else 0.0)
            if not sent and left > 0 and not wait:
                return False
        self._token = None
        return True

    def _arm(self, after: float, wait: float) -> None:
        if not -inf < after < inf:
            raise ValueError(f"after must be a finite number of seconds, not {after!r}")
        client = self._client
        deadline = monotonic() + after
        expiration_time = wall() + after
        record = self._templates.acquire_token % (
            expiration_time if expiration_time > 0 else 0.0,
            deadline if deadline > 0.0 else 0.0,
            self._token,
        )
        if len(record) > MAX_SENT:
            raise too_long(record, self._scope_id)
        try:
            if client._nosignal:
                pwritev(client._pipe.fd, (record,), -1, RWF_NOSIGNAL)
            else:
                write_masked(client._pipe.fd, record)
        except OSError as error:
            client._acquire_after(error, record, self._scope_id, wait)
        self._deadline = deadline
