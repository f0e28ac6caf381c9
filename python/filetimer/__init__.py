"""filetimer: a worker that hangs past its deadline is reaped.

``import filetimer as timer`` gives what ``torch.distributed.elastic.timer`` gives, and more.  The
client side is imported at once and is small; the server side, and what needs the compiled module,
are imported when they are first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from filetimer import debug_info_logging
from filetimer.api import (
    RequestQueue,
    TimerClient,
    TimerHandle,
    TimerRequest,
    TimerServer,
    configure,
)
from filetimer.client.environment import configure_from_env
from filetimer.client.file_client import FileTimerClient
from filetimer.client.local_client import LocalTimerClient
from filetimer.client.noop_client import NoopTimerClient
from filetimer.guard import expires, extend
from filetimer.native_files import get_include
from filetimer.requests import FileTimerRequest

if TYPE_CHECKING:
    from filetimer.client.native_client import NativeTimerClient
    from filetimer.server.events import Event
    from filetimer.server.file_server import FileTimerServer
    from filetimer.server.local_server import LocalTimerServer, MultiprocessingRequestQueue

__version__ = "0.1.0"

__all__ = [
    "Event",
    "FileTimerClient",
    "FileTimerRequest",
    "FileTimerServer",
    "LocalTimerClient",
    "LocalTimerServer",
    "MultiprocessingRequestQueue",
    "NativeTimerClient",
    "NoopTimerClient",
    "RequestQueue",
    "TimerClient",
    "TimerHandle",
    "TimerRequest",
    "TimerServer",
    "configure",
    "configure_from_env",
    "debug_info_logging",
    "expires",
    "extend",
    "get_include",
]

_IMPORTED_LATE = {
    "Event": "filetimer.server.events",
    "FileTimerServer": "filetimer.server.file_server",
    "LocalTimerServer": "filetimer.server.local_server",
    "MultiprocessingRequestQueue": "filetimer.server.local_server",
    "NativeTimerClient": "filetimer.client.native_client",
}


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_LATE:
        raise AttributeError(f"module 'filetimer' has no attribute {name!r}")
    value = getattr(importlib.import_module(_IMPORTED_LATE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
