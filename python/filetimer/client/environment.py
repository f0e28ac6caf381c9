"""Which timer server this process was told about (SPEC T-1)."""

from __future__ import annotations

import os
import signal as signals

from filetimer.api import Attributes, TimerClient, configure
from filetimer.client.file_client import FileTimerClient
from filetimer.client.noop_client import NoopTimerClient

__all__ = ["PATH_VARIABLES", "configure_from_env", "path_from_env"]

PATH_VARIABLES = ("FILETIMER_PATH", "TORCHELASTIC_TIMER_FILE")


def path_from_env() -> str | None:
    """The FIFO's path: from the first of ``PATH_VARIABLES`` that is set and not empty."""
    return next(filter(None, map(os.environ.get, PATH_VARIABLES)), None)


def configure_from_env(
    signal: int = signals.SIGKILL, *, attributes: Attributes | None = None
) -> TimerClient:
    """Configure a client for the server that this process runs under, and return it.

    Where there is none (a laptop, a test), the client is a :class:`NoopTimerClient`, so that the
    same script runs everywhere.  ``signal``: what the server sends on expiry;
    ``attributes``: as in :func:`~filetimer.configure`.
    """
    path = path_from_env()
    client = NoopTimerClient() if path is None else FileTimerClient(path, signal)  # SPEC C-9
    configure(client, attributes=attributes)
    return client
