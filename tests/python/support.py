"""What the tests of the package share: patience, and events that can be waited for."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable

from filetimer.server.events import Event

PATIENCE = 20.0  # seconds: a bound for what should take milliseconds, on any machine


class EventList(list[Event]):
    """Events as they come, and a way to wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self._came = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._came:
            self.append(event)
            self._came.notify_all()

    def named(self, name: str) -> list[Event]:
        return [event for event in list(self) if event.name == name]

    def wait_for(self, name: str, count: int = 1) -> list[Event]:
        with self._came:
            came = self._came.wait_for(lambda: len(self.named(name)) >= count, PATIENCE)
        assert came, f"expected {count} of {name!r}, got {list(self)}"
        return self.named(name)


StartWorker = Callable[..., "subprocess.Popen[str]"]


def eventually(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never came true"
        time.sleep(0.005)
