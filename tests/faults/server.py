"""A bare server: ``python -m faults.server PATH EVENTS OPTIONS``, until standard input ends.

It stands for any program that embeds a server.  ``FAULTS_SETUP`` is code that the program runs once
the server has started, such as one that takes all its descriptors.
"""

from __future__ import annotations

import ast
import os
import sys

from filetimer import FileTimerServer
from filetimer.server.event_file import EventFile


def main() -> int:
    """Serve; the exit status is 0 whatever happens to the server."""
    path, events, options = sys.argv[1:]
    server = FileTimerServer(
        path, "faults", on_event=EventFile(events), **ast.literal_eval(options)
    )
    server.start()
    exec(os.environ.get("FAULTS_SETUP", ""), {"server": server})
    os.write(1, b"ready\n")
    sys.stdin.read()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
