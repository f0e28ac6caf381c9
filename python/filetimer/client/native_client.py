"""``NativeTimerClient``: what ``FileTimerClient`` does, done by ``filetimer.h``.

Each call is tried once in a way that never waits and keeps the GIL.  Where that does not suffice
(a full pipe, a server that has not started) the call goes on in slices, between which Python sees
to its signals; only then does anything here cost more than the call itself.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import signal as signals
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from filetimer.api import Attributes, TimerClient, TimerHandle
from filetimer.client.stacks import offer_stacks
from filetimer.wire.encoder import encode_attributes, well_formed

try:
    from filetimer._native import ffi, lib
except ModuleNotFoundError as error:
    cure = (
        "it needs the package cffi: `pip install cffi`"
        if error.name == "_cffi_backend"
        else "this installation has no filetimer._native: install a C compiler, then "
        "`pip install --force-reinstall --no-cache-dir filetimer`"
    )
    raise ImportError(
        f"filetimer.NativeTimerClient cannot be used: {cure}", name=error.name
    ) from None

if TYPE_CHECKING:
    from filetimer._native import Pointer

__all__ = ["NativeTimerClient", "NativeTimerHandle"]

logger = logging.getLogger("filetimer")

MAX_SCOPES = 1024  # scopes whose text is kept encoded
SLICE = 0.1  # seconds that one call may wait in C, where Python's signal handlers do not run
CONNECT_RETRY = 0.01  # seconds between attempts while a server starts
INIT_FLAGS = 0  # of filetimer_init; tests set FILETIMER_MASK_SIGPIPE

_NOT_THERE = (-errno.EPIPE, -errno.ENOENT)

_new = ffi.new
_HANDLE = ffi.typeof("filetimer_handle *")
_quick_acquire, _quick_release = lib.quick_acquire, lib.quick_release
_quick_begin, _quick_end = lib.quick_begin, lib.quick_end


class NativeTimerClient(TimerClient):
    """The client of :class:`FileTimerServer`, in C: the fastest one.

    Args:
        file_path: the FIFO of the server.
        signal: what the server sends to this process when a timer expires; 0 or less: nothing,
            the expiry is only reported.
        timeout: longest wait of one acquire in seconds, while the pipe is full, or while a server
            that was not there yet starts.

    Safe to use from several threads, and in forked children, whose timers are their own.  Its
    records are of protocol version 2.  Importing it raises ImportError where the package was
    installed without a C compiler.
    """

    def __init__(
        self, file_path: str, signal: int = signals.SIGKILL, *, timeout: float = 1.0
    ) -> None:
        self.timeout = timeout
        self._path = os.fspath(file_path)
        self._client = ffi.gc(_new("filetimer_client *"), lib.close_pipe)
        self._scopes: dict[str, Pointer] = {}
        self._attributes: Attributes = {}
        self._encoded = b""
        self._connect_until: float | None = None  # monotonic; until a server may first turn up
        self._release_failed = False
        path = os.fsencode(self._path)
        if not path or b"\0" in path:
            raise ValueError(f"file_path must be the path of a FIFO, not {file_path!r}")
        flags = INIT_FLAGS | lib.FILETIMER_ONE_SHOT  # until the server is known for one of ours
        result = lib.filetimer_init(self._client, path, int(signal), flags)
        if result == -errno.ENAMETOOLONG:
            raise ValueError(f"file_path is too long: {len(path)} bytes")
        if result == -errno.EINVAL and int(signal) > 64:
            raise ValueError(f"there is no signal {int(signal)}")
        _clients.add(self)

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Set the timer of this scope, to expire at ``expiration_time`` (Unix seconds).

        Raises BrokenPipeError when the record could not be delivered, RuntimeError when the scope
        is too long for a record, ValueError for an empty scope or a time that is negative or not
        finite.
        """
        try:
            scope = self._scopes[scope_id]
        except KeyError:
            scope = self._new_scope(scope_id)
        result = _quick_acquire(scope, expiration_time)
        if result <= 0:
            self._acquire_after(result, scope, expiration_time, scope_id)

    def release(self, scope_id: str) -> None:
        """Take the timer of this scope back.  Never raises for a server that is gone."""
        try:
            try:
                scope = self._scopes[scope_id]
            except KeyError:
                scope = self._new_scope(scope_id)
            result = _quick_release(scope)
            if result <= 0:
                self._release_after(result, scope, scope_id)
        except Exception as error:  # SPEC C-2: it must not disturb the guarded code
            self._log_release_failure(scope_id, str(error))

    def begin(
        self,
        scope_id: str,
        after: float,
        *,
        wait: bool = True,
        attributes: Attributes | None = None,
    ) -> TimerHandle:
        """Open a timer of its own.  Raises as :meth:`acquire`; BlockingIOError if not ``wait``."""
        try:
            scope = self._scopes[scope_id]
        except KeyError:
            scope = self._new_scope(scope_id)
        if attributes:
            encoded = encode_attributes({**self._attributes, **attributes})
            scope = self._encode_scope(scope_id, encoded)
        timer = _new(_HANDLE)
        result = _quick_begin(timer, scope, after)
        if result <= 0:
            self._begin_after(result, timer, scope, after, scope_id, wait)
        return NativeTimerHandle(self, scope, timer)

    def set_attributes(self, attributes: Attributes) -> None:
        """What all timers that begin from now on say of themselves; those of ``begin`` add to it.

        Raises ValueError for what SPEC R-12 does not allow.
        """
        self._encoded = encode_attributes(attributes)
        self._attributes = dict(attributes)
        before, self._scopes = self._scopes, {}
        for scope_id, scope in before.items():
            if scope.deadline_us:
                self._new_scope(scope_id).deadline_us = scope.deadline_us

    def on_configure(self) -> None:
        """Let the server ask for the Python stacks of this process before it ends it."""
        offer_stacks(self._path)

    def close(self) -> None:
        """Close the pipe, while no other thread uses the client.  The next timer opens it again."""
        lib.close_pipe(self._client)

    def _new_scope(self, scope_id: str) -> Pointer:
        if not scope_id:
            raise ValueError("scope_id must not be empty")  # SPEC R-11
        self._look_at_server()
        if len(self._scopes) >= MAX_SCOPES:
            self._scopes.clear()
        scope = self._scopes[scope_id] = self._encode_scope(scope_id, self._encoded)
        return scope

    def _encode_scope(self, scope_id: str, attributes: bytes) -> Pointer:
        """A scope with these attributes, which all acquires in it carry."""
        text = well_formed(scope_id).encode()
        fields = {"client": self._client, "length": len(text), "text": text}
        scope = _new("native_scope *", fields)
        pairs = attributes[1:-1]  # without the braces
        lib.set_attributes(scope, pairs, len(pairs))
        return scope

    def _look_at_server(self) -> None:
        """Where it is of this package, keep the pipe open: SPEC C-10."""
        if self._client.flags_ & lib.FILETIMER_ONE_SHOT:
            lib.keep_open_if_locked(self._client)

    # What is rare is in methods of its own.  A lambda makes an object of each variable around it
    # that it mentions, at every call: in acquire and release, a twentieth of what a pair costs.

    def _acquire_after(
        self, result: int, scope: Pointer, expiration_time: float, scope_id: str
    ) -> None:
        """Go on with an acquire whose first attempt had this ``result``.  Raises as it does."""
        if not 0 <= expiration_time < math.inf:
            raise ValueError(
                f"expiration_time must be a finite Unix time, 0 or more, not {expiration_time!r}"
            )
        self._acquire_patiently(
            lambda seconds: lib.acquire(scope, expiration_time, seconds),
            result,
            scope_id,
            self.timeout,
        )

    def _release_after(self, result: int, scope: Pointer, scope_id: str) -> None:
        """Go on with such a release."""
        left = _seconds_until(scope.deadline_us)
        result = _in_slices(lambda seconds: lib.release(scope, seconds), result, left)
        if result < 0:
            self._log_release_failure(scope_id, self._why(result))

    def _begin_after(
        self,
        result: int,
        timer: Pointer,
        scope: Pointer,
        after: float,
        scope_id: str,
        wait: bool,
    ) -> None:
        """Go on with such a begin.  Raises as it does."""
        _check_after(after)
        self._acquire_patiently(
            lambda seconds: lib.begin(timer, scope, after, seconds),
            result,
            scope_id,
            self.timeout if wait else 0.0,
        )

    def _extend_after(self, result: int, timer: Pointer, after: float, scope_id: str) -> None:
        """Go on with such an extension of a timer.  Raises as a begin does."""
        _check_after(after)
        self._acquire_patiently(
            lambda seconds: lib.extend(timer, after, seconds), result, scope_id, self.timeout
        )

    def _acquire_patiently(
        self, attempt: Callable[[float], int], result: int, scope_id: str, wait: float
    ) -> None:
        """Go on with an acquire whose first attempt had this ``result``.  Raises where it fails.

        ``attempt`` waits on a full pipe for the seconds that it is given.
        """
        give_up = time.monotonic() + wait  # SPEC C-1
        while result in _NOT_THERE and self._may_turn_up() and time.monotonic() < give_up:
            time.sleep(CONNECT_RETRY)
            self._look_at_server()
            result = attempt(0.0)
        result = _in_slices(attempt, result, give_up - time.monotonic())
        if result > 0:
            return
        if result == -errno.EMSGSIZE:  # SPEC F-2
            raise RuntimeError(
                f"the timer record for scope {scope_id[:40]!r}... is longer than what a pipe "
                "keeps in one piece: use a shorter scope"
            )
        if wait <= 0 and self._is_to_be_tried_again(result):
            raise BlockingIOError(errno.EAGAIN, self._why(result))
        if result in _NOT_THERE:
            self._scopes.clear()  # a server that comes is looked at before the next timer
        raise BrokenPipeError(
            errno.EPIPE, f"the timer {scope_id!r} was not acquired: {self._why(result)}"
        )

    def _is_to_be_tried_again(self, result: int) -> bool:
        return result == -errno.EAGAIN or (result in _NOT_THERE and self._may_turn_up())

    def _may_turn_up(self) -> bool:
        """Whether the first server may still be starting: for ``timeout`` after the first record"""
        now = time.monotonic()
        if self._connect_until is None:
            self._connect_until = now + self.timeout
        return self._client.inode_ == 0 and now < self._connect_until

    def _end(self, timer: Pointer, result: int, scope_id: str, wait: bool) -> bool:
        """Go on with a release whose first attempt had this ``result``.  False: try again."""
        left = _seconds_until(timer.deadline_us)
        if wait:
            result = _in_slices(lambda seconds: lib.end(timer, seconds), result, left)
        if result == -errno.EAGAIN:
            return wait or left <= 0  # it has expired by now
        if result < 0 and result != -errno.ECHILD:  # SPEC C-6: it is the parent's
            self._log_release_failure(scope_id, self._why(result))
        return True

    def _why(self, result: int) -> str:
        """The result of a call as a sentence."""
        if result in _NOT_THERE:
            return f"no timer server is serving {self._path}"
        if result == -errno.EAGAIN:
            return f"the timer pipe {self._path} is full: its server is not reading"
        if result == -errno.EINVAL:  # SPEC C-4, as EPERM; all arguments were checked
            return f"{self._path} is not a FIFO: is this a timer path?"
        if result == -errno.EPERM:
            return f"the FIFO {self._path} belongs to a stranger"
        return f"{self._path}: {os.strerror(-result)}"

    def _log_release_failure(self, scope_id: str, why: str) -> None:
        level = logging.DEBUG if self._release_failed else logging.WARNING
        self._release_failed = True
        logger.log(level, "the timer %r was not released: %s", scope_id, why)


class NativeTimerHandle:
    """One open timer of a :class:`NativeTimerClient`."""

    __slots__ = ("_client", "_scope", "_timer")

    def __init__(self, client: NativeTimerClient, scope: Pointer, timer: Pointer) -> None:
        self._client = client
        self._scope = scope  # the timer points into it
        self._timer: Pointer | None = timer

    def extend(self, after: float) -> None:
        """Move the deadline to ``after`` seconds from now.  Raises as ``begin`` does."""
        timer = self._timer
        if timer is None:
            raise RuntimeError(f"the timer {_text(self._scope)!r} has ended")
        result = lib.quick_extend(timer, after)
        if result > 0 or result == -errno.ECHILD:  # SPEC C-6: a child leaves it to its parent
            return
        self._client._extend_after(result, timer, after, _text(self._scope))

    def end(self, *, wait: bool = True) -> bool:
        """Release the timer, waiting for at most what it has left.  Never raises."""
        timer = self._timer
        if timer is None:
            return True
        result = _quick_end(timer)
        if result < 0 and not self._client._end(timer, result, _text(self._scope), wait):
            return False
        self._timer = None
        return True


def _in_slices(attempt: Callable[[float], int], result: int, seconds: float) -> int:
    """Repeat what met a full pipe, for so many seconds."""
    give_up = time.monotonic() + seconds
    while result == -errno.EAGAIN and (left := give_up - time.monotonic()) > 0:
        result = attempt(min(left, SLICE))
    return result


def _text(scope: Pointer) -> str:
    return bytes(ffi.buffer(scope.text, scope.length)).decode()


def _seconds_until(deadline_us: int) -> float:
    return deadline_us / 1e6 - time.monotonic()


def _check_after(after: float) -> None:
    if not math.isfinite(after):
        raise ValueError(f"after must be a finite number of seconds, not {after!r}")


_clients: weakref.WeakSet[NativeTimerClient] = weakref.WeakSet()


def _forget_scopes() -> None:
    """In a forked child: the plain timers whose deadlines they remember are its parent's."""
    for client in list(_clients):
        client._scopes.clear()


os.register_at_fork(after_in_child=_forget_scopes)
