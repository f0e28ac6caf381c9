"""``python -m filetimer.server``: a timer server as the child of a process that holds its pipe.

The parent (``supervisor.held_server``) gives the options as JSON, and then speaks in lines: on
standard input a word asks for the same word back once the pass in progress is over, and the end of
the input asks for the end.  On standard output, each line is a JSON object with one key: ``ready``,
``error`` (an errno and a sentence), ``event``, or ``settled``.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import resource
import signal
import sys
import threading
from typing import Any

from filetimer.server.events import Event
from filetimer.server.file_server import FileTimerServer

MAX_UNSENT = 10_000  # messages that wait for a parent that does not read


class _Messages:
    """Writes messages in a thread of its own: a parent that is stopped stops no kill."""

    def __init__(self) -> None:
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_UNSENT)
        self._thread = threading.Thread(target=self._run, name="filetimer-messages", daemon=True)
        self._thread.start()

    def send(self, **message: Any) -> None:
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            pass  # the parent has ten thousand to read before this one

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            try:
                os.write(1, json.dumps(message).encode("ascii") + b"\n")
            except OSError:
                return  # nobody is there any more


def _allow_all_descriptors() -> None:
    """A pidfd for each worker: this process has no other use for its descriptors."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """Serve until the input ends; the exit status."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    sys.setswitchinterval(0.0005)  # the messages' thread must not keep the server's waiting
    _allow_all_descriptors()
    logging.getLogger("filetimer").setLevel(logging.ERROR)  # the parent writes the events
    options = json.loads(sys.argv[1])
    messages = _Messages()

    def on_event(event: Event) -> None:
        messages.send(event=event.to_dict())

    server = FileTimerServer(**options, on_event=on_event)
    try:
        server.start()
    except OSError as error:
        messages.send(error=[error.errno or 0, error.strerror or str(error)])
        messages.close()
        return 1
    messages.send(ready=os.getpid())
    for line in sys.stdin:
        server.settle()
        messages.send(settled=line.strip())
    server.stop()
    messages.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
