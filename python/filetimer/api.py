"""The timer interface: what a client, a queue and a server are, and ``expires``.

The names and signatures are those of ``torch.distributed.elastic.timer``, so that code written for
one runs on the other.  To write a timer of your own, subclass :class:`TimerServer` and
:class:`TimerClient`; the pairs in this package are such subclasses.

Two clocks appear here.  ``expiration_time`` is Unix time (``time.time()``, seconds), because that
is torch's interface; ``after`` is a duration in seconds.  Nothing in this module reads or writes a
pipe, and importing it imports no third-party package: it runs inside training workers.
"""

from __future__ import annotations

import abc
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

__all__ = [
    "Attributes",
    "RequestQueue",
    "TimerClient",
    "TimerHandle",
    "TimerRequest",
    "TimerServer",
    "configure",
    "configured_client",
]

logger = logging.getLogger("filetimer")


Attributes = Mapping[str, "str | int | float | bool"]


class TimerRequest:
    """An acquisition (``expiration_time`` >= 0, Unix seconds) or a release (< 0) of a timer."""

    __slots__ = ("expiration_time", "scope_id", "worker_id")

    def __init__(self, worker_id: Any, scope_id: str, expiration_time: float) -> None:
        self.worker_id = worker_id
        self.scope_id = scope_id
        self.expiration_time = expiration_time

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TimerRequest):
            return NotImplemented
        return (self.worker_id, self.scope_id, self.expiration_time) == (
            other.worker_id,
            other.scope_id,
            other.expiration_time,
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(worker_id={self.worker_id!r}, scope_id={self.scope_id!r}, "
            f"expiration_time={self.expiration_time!r})"
        )


class TimerHandle(Protocol):
    """One open timer, as :meth:`TimerClient.begin` returns it."""

    def extend(self, after: float) -> None:
        """Move the deadline to ``after`` seconds from now.  Raises as ``begin`` does."""

    def end(self, *, wait: bool = True) -> bool:
        """Release the timer; never raises.  False: not delivered now, and ``wait`` was False."""


class TimerClient(abc.ABC):
    """Acquires and releases timers for the worker that holds it."""

    @abc.abstractmethod
    def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Set the worker's timer of this scope to expire at ``expiration_time`` (Unix seconds)."""

    @abc.abstractmethod
    def release(self, scope_id: str) -> None:
        """Take the worker's timer of this scope back."""

    def begin(
        self,
        scope_id: str,
        after: float,
        *,
        wait: bool = True,
        attributes: Attributes | None = None,
    ) -> TimerHandle:
        """Open a timer of its own that expires ``after`` seconds from now.

        Several may be open in one scope, in several threads: none cancels another.  A client whose
        protocol can tell them apart overrides this; here, where all that reaches the server is one
        timer a scope, that one always carries the earliest deadline that is open.  ``wait=False``
        asks a client that would have to wait to raise ``BlockingIOError`` instead.
        ``attributes`` are a few names and values that people will see with the timer; a client
        whose protocol has no place for them leaves them out, as this one does.
        """
        return begin_shared(self, scope_id, after)

    def set_attributes(self, attributes: Attributes) -> None:  # noqa: B027, to override or not
        """What all timers that begin from now on say of themselves, where the protocol can."""

    def on_configure(self) -> None:  # noqa: B027, to override or not
        """Called by :func:`configure`: this is now the client of the process."""


class RequestQueue(abc.ABC):
    """Where a :class:`TimerServer` receives requests from."""

    @abc.abstractmethod
    def size(self) -> int:
        """The approximate number of requests that wait."""

    @abc.abstractmethod
    def get(self, size: int, timeout: float) -> list[TimerRequest]:
        """Up to ``size`` requests; waits at most ``timeout`` seconds for them."""


class TimerServer(abc.ABC):
    """Watches timers in a thread and reaps the workers whose timers have expired.

    Args:
        request_queue: where requests come from.
        max_interval: longest sleep of the loop, in seconds.
        daemon: whether the thread lets the interpreter exit without :meth:`stop`.
    """

    def __init__(
        self, request_queue: RequestQueue, max_interval: float, daemon: bool = True
    ) -> None:
        self._request_queue = request_queue
        self._max_interval = max_interval
        self._daemon = daemon
        self._watchdog_thread: threading.Thread | None = None
        self._stop_signaled = False

    @abc.abstractmethod
    def register_timers(self, timer_requests: list[TimerRequest]) -> None:
        """Take in requests, in order: acquisitions, and releases (``expiration_time`` < 0)."""

    @abc.abstractmethod
    def clear_timers(self, worker_ids: set[Any]) -> None:
        """Forget all timers of these workers."""

    @abc.abstractmethod
    def get_expired_timers(self, deadline: float) -> dict[Any, list[TimerRequest]]:
        """Per worker, the timers with ``expiration_time <= deadline`` (Unix seconds)."""

    @abc.abstractmethod
    def _reap_worker(self, worker_id: Any) -> bool:
        """Reap the worker.  False: try again at the next pass.  An exception counts as reaped."""

    def start(self) -> None:
        """Start the thread.  Raises RuntimeError if it runs already."""
        if self._watchdog_thread is not None:
            raise RuntimeError(f"this {type(self).__name__} was started before; stop() it first")
        logger.info("starting %s, max_interval=%s s", type(self).__name__, self._max_interval)
        self._stop_signaled = False
        self._watchdog_thread = threading.Thread(
            target=self._watchdog_loop, name="filetimer-watchdog", daemon=self._daemon
        )
        self._watchdog_thread.start()

    def stop(self) -> None:
        """End the thread: at once where the queue can be woken, else within ``max_interval``."""
        thread, self._watchdog_thread = self._watchdog_thread, None
        if thread is None:
            return
        self._stop_signaled = True
        wake = getattr(self._request_queue, "wake", None)
        if wake is not None:
            wake()
        thread.join()

    def _watchdog_loop(self) -> None:
        while not self._stop_signaled:
            try:
                self._run_watchdog()
            except Exception:
                logger.exception("a watchdog pass failed; the timers are kept")
                time.sleep(min(self._max_interval, 0.1))  # a lasting fault must not spin

    def _run_watchdog(self) -> None:
        size = max(1, self._request_queue.size())
        self.register_timers(self._request_queue.get(size, self._longest_wait()))
        now = time.time()
        reaped = set()
        for worker_id, expired in self.get_expired_timers(now).items():
            logger.info("worker %s: expired %s", worker_id, self._get_scopes(expired))
            if self._reap_worker_no_throw(worker_id):
                reaped.add(worker_id)
        self.clear_timers(reaped)

    def _longest_wait(self) -> float:
        """How long the next pass may sleep, in seconds.  Override to be on time."""
        return self._max_interval

    def _reap_worker_no_throw(self, worker_id: Any) -> bool:
        try:
            return self._reap_worker(worker_id)
        except Exception:
            logger.exception("reaping worker %s failed; its timers are dropped", worker_id)
            return True

    def _get_scopes(self, timer_requests: Iterable[TimerRequest]) -> list[str]:
        return [request.scope_id for request in timer_requests]


class _SharedScopes:
    """Deadlines that are open in each scope of a client with one timer a scope on the wire."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.open: dict[str, list[float]] = {}


class _SharedHandle:
    """A timer that shares its scope's one wire timer with the others that are open there."""

    __slots__ = ("_client", "_expiration_time", "_scope_id", "_scopes")

    def __init__(self, client: TimerClient, scopes: _SharedScopes, scope_id: str) -> None:
        self._client, self._scopes, self._scope_id = client, scopes, scope_id
        self._expiration_time: float | None = None

    def extend(self, after: float) -> None:
        expiration_time = max(0.0, time.time() + after)
        with self._scopes.lock:
            deadlines = self._scopes.open.setdefault(self._scope_id, [])
            before = self._expiration_time
            self._client.acquire(
                self._scope_id, min([expiration_time, *_without(deadlines, before)])
            )
            self._scopes.open[self._scope_id] = [*_without(deadlines, before), expiration_time]
            self._expiration_time = expiration_time

    def end(self, *, wait: bool = True) -> bool:
        with self._scopes.lock:
            rest = _without(self._scopes.open.get(self._scope_id, []), self._expiration_time)
            self._expiration_time = None
            try:
                if rest:
                    self._scopes.open[self._scope_id] = rest
                    self._client.acquire(self._scope_id, min(rest))
                else:
                    self._scopes.open.pop(self._scope_id, None)
                    self._client.release(self._scope_id)
            except Exception:
                logger.exception("timer %r could not be released", self._scope_id)
        return True


def _without(deadlines: list[float], one: float | None) -> list[float]:
    rest = list(deadlines)
    if one in rest:
        rest.remove(one)
    return rest


_shared_lock = threading.Lock()


def begin_shared(client: TimerClient, scope_id: str, after: float) -> TimerHandle:
    """``TimerClient.begin`` for a client that can only ``acquire`` and ``release`` by scope."""
    with _shared_lock:
        scopes: _SharedScopes | None = getattr(client, "_filetimer_scopes", None)
        if not isinstance(scopes, _SharedScopes):
            scopes = _SharedScopes()
            client._filetimer_scopes = scopes  # type: ignore[attr-defined]
    handle = _SharedHandle(client, scopes, scope_id)
    handle.extend(after)
    return handle


_client: TimerClient | None = None


def configure(timer_client: TimerClient, *, attributes: Attributes | None = None) -> None:
    """Make ``timer_client`` the one that ``expires`` uses in this process.

    ``attributes``: what all its timers say of themselves, such as ``{"rank": 3}``; up to eight
    strings, numbers and booleans of 256 bytes in all.  Raises ValueError for others.

    A :class:`~filetimer.FileTimerClient` also lets its server ask for the Python stacks of this
    process, by a signal that is free (see ``filetimer.client.stacks``); FILETIMER_STACKS=0 in the
    environment prevents that.
    """
    global _client
    if attributes is not None and hasattr(timer_client, "set_attributes"):  # torch's have none
        timer_client.set_attributes(attributes)
    _client = timer_client
    on_configure = getattr(timer_client, "on_configure", None)  # torch's own clients have none
    if on_configure is not None:
        on_configure()


def configured_client() -> TimerClient:
    """The client given to :func:`configure`.  Raises RuntimeError when there is none."""
    if _client is None:
        raise RuntimeError(
            "no timer client is configured: call filetimer.configure(client) or "
            "filetimer.configure_from_env() first"
        )
    return _client
