"""``expires``: the guarded block, as context manager and as decorator, sync and async.

Every entry opens a timer of its own (:meth:`filetimer.TimerClient.begin`), so blocks may nest,
recurse and run in several threads or tasks in one scope, and none hides another's deadline.
The open blocks of a thread or task form a stack in a context variable: that is how an exit finds
the entry it belongs to, and how :func:`extend` finds the innermost block.
"""

from __future__ import annotations

import errno
import functools
import math
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

from filetimer.api import Attributes, TimerClient, TimerHandle, begin_shared, configured_client

__all__ = ["expires", "extend"]

F = TypeVar("F", bound=Callable[..., Any])

ASYNC_RETRY = 0.002  # seconds between attempts while the pipe is full


class _OpenBlock:
    """One entered block: a link of the stack in :data:`_open_blocks`."""

    __slots__ = ("guard", "handle", "outer")

    def __init__(self, guard: expires, handle: TimerHandle, outer: _OpenBlock | None) -> None:
        self.guard, self.handle, self.outer = guard, handle, outer


_open_blocks: ContextVar[_OpenBlock | None] = ContextVar("filetimer_open_blocks", default=None)


def extend(after: float) -> None:
    """Give the innermost open block ``after`` seconds from now.

    For long loops that make progress.  Raises RuntimeError outside a block, ValueError when
    ``after`` is not a finite number, BrokenPipeError when it cannot be delivered.
    """
    block = _open_blocks.get()
    if block is None:
        raise RuntimeError("extend() needs an open block: call it inside `with expires(...)`")
    block.handle.extend(finite_seconds(after))


class expires:
    """Guard a block: the worker may be reaped if the block runs longer than ``after`` seconds.

    Args:
        after: allowed duration in seconds, a finite number.
        scope: names the block in logs; by default ``file#line`` of the caller.
        client: the timer client; by default the one given to ``configure``.
        attributes: a few names and values that are shown with the timer, such as ``{"step": 7}``,
            beside those of :func:`~filetimer.configure`.

    ``with expires(60):``, ``async with expires(60):`` and ``@expires(60)`` (functions and
    coroutine functions; each call has a timer of its own) all work.  ``as timer`` binds a handle
    with ``extend(after)``.  The body's own exception always comes through.

    Raises:
        ValueError: ``after`` is not a finite number, or ``scope`` is empty.
        RuntimeError: on entry, when no client is configured, or the scope is too long to send.
        BrokenPipeError: on entry, when the server cannot be reached: the block is not entered.
    """

    __slots__ = ("_after", "_attributes", "_client", "_entered", "_scope")

    def __init__(
        self,
        after: float,
        scope: str | None = None,
        client: TimerClient | None = None,
        *,
        attributes: Attributes | None = None,
    ) -> None:
        self._after = finite_seconds(after)
        if scope is None:
            caller = sys._getframe(1)  # inspect.stack() costs a hundred times more
            scope = f"{caller.f_code.co_filename}#{caller.f_lineno}"
        elif not isinstance(scope, str) or not scope:
            raise ValueError(f"scope must be a non-empty string, not {scope!r}")
        self._scope = scope
        self._client = client
        self._attributes = attributes
        self._entered: list[_OpenBlock] = []

    def __enter__(self) -> TimerHandle:
        client = self._client or configured_client()
        try:
            if self._attributes is None:
                handle = client.begin(self._scope, self._after)
            else:
                handle = client.begin(self._scope, self._after, attributes=self._attributes)
        except AttributeError:
            if hasattr(client, "begin"):
                raise
            handle = begin_shared(client, self._scope, self._after)  # torch's own client
        return self._opened(handle)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed().end()

    async def __aenter__(self) -> TimerHandle:
        """As ``__enter__``, but a full pipe is awaited, so that the event loop goes on."""
        import asyncio

        client = self._client or configured_client()
        give_up = time.monotonic() + getattr(client, "timeout", 0.0)
        while True:
            try:
                handle = _begin_unblocking(client, self._scope, self._after, self._attributes)
            except BlockingIOError as error:
                if time.monotonic() >= give_up:
                    raise BrokenPipeError(
                        errno.EPIPE, f"the timer {self._scope!r} was not acquired: {error.strerror}"
                    ) from None
                await asyncio.sleep(ASYNC_RETRY)
            else:
                return self._opened(handle)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        handle = self._closed()
        if not handle.end(wait=False):
            import asyncio

            while not handle.end(wait=False):
                await asyncio.sleep(ASYNC_RETRY)

    def __call__(self, function: F) -> F:
        """Decorate: every call of ``function`` is a guarded block."""
        import inspect

        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{function.__qualname__} is a generator, whose body runs between calls: "
                "use `with expires(...)` inside it"
            )
        after, scope, client = self._after, self._scope, self._client
        attributes = self._attributes

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded_coroutine(*args: Any, **kwargs: Any) -> Any:
                async with expires(after, scope, client, attributes=attributes):
                    return await function(*args, **kwargs)

            return guarded_coroutine  # type: ignore[return-value]

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with expires(after, scope, client, attributes=attributes):
                return function(*args, **kwargs)

        return guarded  # type: ignore[return-value]

    def _opened(self, handle: TimerHandle) -> TimerHandle:
        block = _OpenBlock(self, handle, _open_blocks.get())
        _open_blocks.set(block)
        self._entered.append(block)
        return handle

    def _closed(self) -> TimerHandle:
        """Take the entry that this exit belongs to off the stack."""
        top = _open_blocks.get()
        if top is not None and top.guard is self:
            _open_blocks.set(top.outer)
            self._entered.remove(top)
            return top.handle
        return self._closed_out_of_order(top)

    def _closed_out_of_order(self, top: _OpenBlock | None) -> TimerHandle:
        """Interleaved generators, or an exit in another context than its entry's."""
        inner, block = None, top
        while block is not None and block.guard is not self:
            inner, block = block, block.outer
        if block is None:
            return self._entered.pop().handle
        if inner is not None:
            inner.outer = block.outer
        self._entered.remove(block)
        return block.handle


def _begin_unblocking(
    client: TimerClient, scope: str, after: float, attributes: Attributes | None
) -> TimerHandle:
    if hasattr(client, "begin"):
        if attributes is None:
            return client.begin(scope, after, wait=False)
        return client.begin(scope, after, wait=False, attributes=attributes)
    return begin_shared(client, scope, after)


def finite_seconds(after: object) -> float:
    """``after`` as a float.  Raises ValueError unless it is a finite number of seconds."""
    try:
        seconds = float(after)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds) or isinstance(after, (str, bytes)):
        raise ValueError(f"after must be a finite number of seconds, not {after!r}")
    return seconds
