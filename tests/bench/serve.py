"""``python -m bench.serve ours|torch PATH``: the servers under test, each in a process.

Says ``ready``; then answers each line ``cpu`` with the CPU seconds of the process so far, and each
line ``timers`` with the number of live timers and of events that refused something.  Ends with its
standard input.  With ``torch-each``, the process forks a torch server for each line that is a path,
says ``ready``, and says ``gone`` when it has died: torch's server kills its own process after the
worker's.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from typing import Any

REFUSALS = ("record rejected", "timer refused", "kill failed")  # events of ours


def main() -> None:
    kind, path = sys.argv[1:3]
    logging.getLogger("filetimer").setLevel(logging.CRITICAL)  # of kills, which are meant here
    if kind == "torch-each":
        _one_for_each_path()
        return
    server: Any = _ours(path) if kind == "ours" else _torchs(path)
    server.start()
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "cpu\n":
            print(time.process_time(), flush=True)
        elif kind == "ours":
            live = sum(len(w.timers) for w in server._watchdog.table.workers.values())
            refused = sum(n for (name, _), n in server.counts.items() if name in REFUSALS)
            print(live, refused, flush=True)
        else:
            print(len(server._timers), 0, flush=True)
    server.stop()


def _ours(path: str) -> Any:
    from filetimer import FileTimerServer

    return FileTimerServer(path, "bench")


def _torchs(path: str) -> Any:
    from torch.distributed.elastic.timer import FileTimerServer

    return FileTimerServer(path, "bench", max_interval=0.1)


def _one_for_each_path() -> None:
    _torchs("/nonexistent")  # the import, once
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            server = _torchs(line.strip())
            server.start()
            print("ready", flush=True)
            signal.alarm(60)  # should it not kill itself
            signal.pause()
        os.waitpid(child, 0)
        print("gone", flush=True)


if __name__ == "__main__":
    main()
