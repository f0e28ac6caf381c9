"""The descendants of a stuck worker: what it has started, and what those have (SPEC S-23).

A data loader's processes hold the memory, and often the GPU, of the worker that they belong to.
They are found from the worker down, by parent, and in the worker's process group if it leads one,
which finds those whose own parent is gone.  One that left both, by a double fork into a session of
its own, is not found; nor is a child that is born in the very instant of the kill.

Each one is opened first and then looked at again, so that a recycled pid is never taken for a
descendant.
"""

from __future__ import annotations

import os

from filetimer.server.process import Listed, ProcessHandle, all_processes, open_process

__all__ = ["descendants"]


def descendants(worker: ProcessHandle) -> list[ProcessHandle]:
    """Handles of the living descendants, of the worker's user only.  Raises OSError."""
    before = all_processes()
    found = []
    for pid in _family(worker, before):
        process = open_process(pid)
        if process is None:
            continue
        if process.start_time == before[pid].start_time and _may_be_signalled(process, worker):
            found.append(process)
        else:
            process.close()
    # A child's link says who its parent is as long as that one lives, and so did this one.
    if worker.is_alive():
        return found
    for process in found:
        process.close()
    return []


def _may_be_signalled(process: ProcessHandle, worker: ProcessHandle) -> bool:
    return (
        process.pid not in (0, 1, os.getpid(), worker.pid)  # SPEC S-13
        and process.uid == worker.uid
        and (process.start_time or 0) >= (worker.start_time or 0)
        and not process.zombie
    )


def _family(worker: ProcessHandle, processes: dict[int, Listed]) -> list[int]:
    """Pids of the worker's descendants and of its process group, without its own."""
    by_parent: dict[int, list[int]] = {}
    for pid, listed in processes.items():
        by_parent.setdefault(listed.parent, []).append(pid)
    family = {worker.pid}
    pending = [worker.pid]
    pending += [pid for pid, listed in processes.items() if listed.group == worker.pid]
    while pending:
        pid = pending.pop()
        family.add(pid)
        pending += [child for child in by_parent.get(pid, ()) if child not in family]
    return sorted(family - {worker.pid} - _line_of(os.getpid(), processes))


def _line_of(pid: int, processes: dict[int, Listed]) -> set[int]:
    """A process and all it descends from: a worker may have started who serves it."""
    line: set[int] = set()
    while pid in processes and pid not in line:
        line.add(pid)
        pid = processes[pid].parent
    return line
