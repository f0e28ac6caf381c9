"""The drivers of one run: a shared one for most cases, fresh ones where a case asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .link import STARTUP, Driver, DriverFault, Message

# What a client takes its path from (SPEC T-1): no driver inherits it from the runner's caller.
PATH_VARIABLES = ("FILETIMER_PATH", "TORCHELASTIC_TIMER_FILE")


def copy_of_environ() -> dict[str, str]:
    """`os.environ` at this moment, though another thread may be changing it (pytest does).

    Children are to be given this: one that inherits reads the array of the C library, which a
    change in another thread moves, and then it fails with "Bad address".
    """
    found = {name: os.environ.get(name) for name in list(os.environ)}
    return {name: value for name, value in found.items() if value is not None}


class Session:
    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self.command = command
        self.timeout = timeout
        self.version = 2
        self.log: list[tuple[Message, Message | str]] = []  # of the case that runs
        self._shared: Driver | None = None

    def environment(self, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {key: value for key, value in copy_of_environ().items() if key not in PATH_VARIABLES}
        return {**kept, **(changes or {})}

    @contextmanager
    def fresh(
        self, env: Mapping[str, str] | None = None, prefix: Sequence[str] = (), **options: Any
    ) -> Iterator[Driver]:
        """A driver of the case's own; `prefix` is a command that executes the driver's."""
        driver = self._start([*prefix, *self.command], self.environment(env), **options)
        try:
            yield driver
        finally:
            driver.close()

    @contextmanager
    def shared(self) -> Iterator[Driver]:
        """The driver of the case before, unless that one broke it."""
        if self._shared is None:
            self._shared = self._start(self.command, self.environment())
        try:
            yield self._shared
        except DriverFault:
            self.discard()
            raise

    def _start(self, command: Sequence[str], env: Mapping[str, str], **options: Any) -> Driver:
        """A driver that has said hello: what follows is no longer its start."""
        driver = Driver(command, env=env, timeout=self.timeout, **options)
        try:
            driver.hello = driver.request({"op": "hello"}, STARTUP)
        except DriverFault:
            driver.close()
            raise
        driver.log = self.log
        return driver

    def discard(self) -> None:
        """Ends the shared driver: the next case starts another one."""
        if self._shared is not None:
            self._shared.close()
            self._shared = None
