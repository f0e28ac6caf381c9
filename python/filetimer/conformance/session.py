"""The drivers of one run: a shared one for most cases, fresh ones where a case asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .link import Driver, DriverFault, Message

# What a client takes its path from (SPEC T-1): no driver inherits it from the runner's caller.
PATH_VARIABLES = ("FILETIMER_PATH", "TORCHELASTIC_TIMER_FILE")


class Session:
    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self.command = command
        self.timeout = timeout
        self.version = 2
        self.log: list[tuple[Message, Message | str]] = []  # of the case that runs
        self._shared: Driver | None = None

    def environment(self, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in PATH_VARIABLES}
        return {**kept, **(changes or {})}

    @contextmanager
    def fresh(
        self, env: Mapping[str, str] | None = None, prefix: Sequence[str] = (), **options: Any
    ) -> Iterator[Driver]:
        """A driver of the case's own; `prefix` is a command that executes the driver's."""
        command = [*prefix, *self.command]
        driver = Driver(command, env=self.environment(env), timeout=self.timeout, **options)
        driver.log = self.log
        try:
            yield driver
        finally:
            driver.close()

    @contextmanager
    def shared(self) -> Iterator[Driver]:
        """The driver of the case before, unless that one broke it."""
        if self._shared is None:
            self._shared = Driver(self.command, env=self.environment(), timeout=self.timeout)
        self._shared.log = self.log
        try:
            yield self._shared
        except DriverFault:
            self.discard()
            raise

    def discard(self) -> None:
        """Ends the shared driver: the next case starts another one."""
        if self._shared is not None:
            self._shared.close()
            self._shared = None
