"""Journals that no server wrote: any job, of any size, on a virtual clock."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from filetimer.server import events
from filetimer.server.events import Event
from filetimer.server.journal import chunk_line, event_line, journal_header
from filetimer.server.timers import Now

WALL = 1_800_000_000.0  # Unix seconds at monotonic 0


class Script:
    """Writes what a server would have written down.  ``at``: monotonic seconds."""

    def __init__(self, at: float = 1000.0, path: str = "/tmp/job/timers", **server: Any) -> None:
        self.at = at
        self._server = {"path": path, "pid": 2**22 + 1, "start_time": 1, **server}
        self._content = bytearray()
        self.ends: list[int] = []  # of the chunks
        self.begin_file()

    def begin_file(self, *state: bytes, began: float | None = None) -> None:
        """A file's header, of a server that ``began`` then, and its state: lines of timers."""
        server = dict(self._server)
        began = self.at if began is None else began
        self._content += journal_header(
            server.pop("path"), "synthetic", Now(began, began + WALL), **server
        )
        self.chunk(b"".join(state))

    def chunk(self, data: bytes, *, own: bool = False) -> None:
        self._content += chunk_line(len(data), Now(self.at, self.at + WALL), own=own) + data
        self.ends.append(len(self._content))

    def line(self, pid: int, scope: str, after: float | None, **fields: Any) -> bytes:
        """A record that acquires for ``after`` seconds, or releases."""
        record = {"version": 2, "pid": pid, "scope_id": scope, "start_time": 7}
        if after is None:
            record |= {"expiration_time": -1, "signal": 0}
        else:
            deadline = self.at + after
            record |= {"expiration_time": deadline + WALL, "deadline": deadline, "signal": 9}
        return json.dumps(record | fields).encode() + b"\n"

    def acquire(self, pid: int, scope: str, after: float, **fields: Any) -> None:
        self.chunk(self.line(pid, scope, after, **fields))

    def release(self, pid: int, scope: str, **fields: Any) -> None:
        self.chunk(self.line(pid, scope, None, **fields))

    def block(self, pid: int, scope: str, after: float, took: float, **fields: Any) -> None:
        """A block that is entered, takes its time, and is left."""
        self.acquire(pid, scope, after, **fields)
        self.at += took
        self.release(pid, scope, **fields)

    def event(self, name: str, **fields: Any) -> None:
        event = Event(name, time=self.at + WALL, **fields)
        self.chunk(event_line(event.to_dict()), own=True)

    def kill(self, pid: int, scope: str, *, late: float = 0.0001, signal: int = 9) -> None:
        """The timer of this scope has run out, and its worker is killed."""
        fields = {"pid": pid, "scope_id": scope, "signal": signal, "late": late}
        self.event(events.TIMER_EXPIRED, **fields)
        self.event(events.KILL_WORKER, **fields)
        self.at += 0.001
        self.event(events.WORKER_DIED, **fields)

    def save(self, path: Path) -> Path:
        path.write_bytes(self._content)
        return path


def training_job(
    workers: int, steps: int = 40, *, restart: bool = True, ranks: bool = False, seed: int = 1
) -> Script:
    """A group that trains; halfway one rank hangs, is reaped, and the group starts anew.

    ``ranks``: its job has added at the end which process was which rank.
    """
    chance = random.Random(seed)
    script = Script()
    todo: list[tuple[float, bytes]] = []
    started: list[tuple[float, int, int, int]] = []  # when, pid, rank, restart
    script.at = start = 1000.0
    born = int(start * os.sysconf("SC_CLK_TCK"))
    pids = [4000 + rank for rank in range(workers)]
    hang = steps // 2 if restart else None

    def add(pid: int, scope: str, after: float, at: float, took: float) -> float:
        script.at = at
        todo.append((at, script.line(pid, scope, after, start_time=born)))
        todo.append((at + took, script.line(pid, scope, None, start_time=born)))
        return at + took + 0.005

    for attempt in range(2 if restart else 1):
        at = dict.fromkeys(pids, start)
        started += [(start - 0.5 * attempt, pid, i, attempt) for i, pid in enumerate(pids)]
        for pid in pids:
            at[pid] = add(pid, "load data", 60, at[pid], 2 + chance.random())
        for step in range(steps):
            if attempt == 0 and step == hang:
                break
            for pid in pids:
                took = chance.lognormvariate(-0.7, 0.15) + (3 if step == 0 else 0)
                at[pid] = add(pid, "train step", 10, at[pid], took)
            together = max(at.values())
            for pid in pids:
                took = together - at[pid] + 0.02 + chance.expovariate(50)
                at[pid] = add(pid, "all_reduce", 60, at[pid], took)
            if step % 10 == 9:
                for pid in pids[:1]:
                    at[pid] = add(pid, "checkpoint", 30, at[pid], 1.5)
        _write(script, todo)
        todo.clear()
        if restart and attempt == 0:
            script.at = max(at.values())
            stuck = pids[min(1, workers - 1)]
            for pid in pids:
                scope, after = ("train step", 10) if pid == stuck else ("all_reduce", 60)
                script.acquire(pid, scope, after, start_time=born)
            script.at += 10
            script.kill(stuck, "train step")
            for pid in pids:
                if pid != stuck:
                    script.at += 0.001
                    script.event(events.WORKER_EXITED, pid=pid)
            start = script.at + 2
            born = int((start - 1) * os.sysconf("SC_CLK_TCK"))
            pids = [pid + 1000 for pid in pids]
    last = script.at
    for script.at, pid, rank, attempt in started if ranks else ():
        script.event(events.WORKER_STARTED, pid=pid, rank=rank, restart=attempt)
    script.at = last
    return script


def _write(script: Script, todo: list[tuple[float, bytes]]) -> None:
    for at, line in sorted(todo):
        script.at = at
        script.chunk(line)
