"""What all tests need: a process in which signals mean what they usually mean."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Started in the background, or by nohup, we and our children would ignore these."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
