"""Servers that run out of disk, descriptors, threads or memory: they keep what they have.

They say what they lack, and the program that embeds one is not brought down by any of it.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from faults.fault import Fault, Result, Scale
from faults.fleet import Fleet, ServerProcess, bare_server, eventually, serve
from faults.load import Load


def disk_full(scale: Scale) -> Result:
    """The journal is on a disk of 64 KiB, which it fills; nothing that was read is lost."""
    result = Result(note="64 KiB")
    for turn in range(scale.pick(5, 1)):
        _mount("size=64k")
        with serve(f"timers-{turn}", result) as server, Fleet(f"timers-{turn}") as fleet:
            load = Load(fleet, (0.5, 1.5))
            _until_degraded(server, load, "journal", result)
            until = time.monotonic() + 1
            while time.monotonic() < until:  # and new ones
                load.keep_up()
                time.sleep(0.01)
            load.finish()
            fleet.judge(result)
        _unmount()
    return result


def disk_read_only(scale: Scale) -> Result:
    """There can be no journal from the beginning."""
    result = Result()
    for turn in range(scale.pick(5, 1)):
        _mount("ro")
        with serve(f"timers-{turn}", result) as server, Fleet(f"timers-{turn}") as fleet:
            result.injected += 1
            for _ in range(4):
                fleet.start("pairs(0.3)\nhang(0.3)")
                fleet.start("pairs(0.3)\nidle()")
            fleet.judge(result)
            result.check(server.said("server degraded", "journal"), "no word of the journal")
        _unmount()
    return result


def _mount(option: str) -> None:
    Path("runtime").mkdir(mode=0o700, exist_ok=True)
    options = f"mode=700,{option}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", "runtime"], check=True)


def _unmount() -> None:
    subprocess.run(["umount", "runtime"], check=True)


def _until_degraded(server: ServerProcess, load: Load, code: str, result: Result) -> None:
    def degraded() -> bool:
        load.keep_up()
        time.sleep(0.01)
        return server.said("server degraded", code)

    try:
        eventually(degraded, "it is degraded")
        result.injected += 1
    except TimeoutError:
        result.breach(f"no word of the {code}")


_NO_DESCRIPTORS = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        os.open(os.devnull, os.O_RDONLY)
except OSError:
    pass
"""


def no_descriptors(scale: Scale) -> Result:
    """The program that embeds the server has opened all that it may."""
    return _limited(scale, _NO_DESCRIPTORS, "descriptors")


# RLIMIT_NPROC does not bind root, so the refusals are made up: what Python raises there.
_NO_THREADS = """
import _posixsubprocess, errno, os, subprocess, threading
def refuse(*arguments, **keywords):
    raise RuntimeError("can't start new thread")
def refuse_process(*arguments):
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
threading._start_new_thread = refuse
subprocess._fork_exec = _posixsubprocess.fork_exec = refuse_process
os.fork = os.posix_spawn = refuse_process
"""


def no_threads(scale: Scale) -> Result:
    """No thread and no process can be started, though evidence is asked for."""
    return _limited(scale, _NO_THREADS, "evidence", evidence="evidence")


def _limited(scale: Scale, setup: str, code: str, **options: object) -> Result:
    result = Result()
    for turn in range(scale.pick(5, 1)):
        path = f"timers-{turn}"
        with bare_server(path, result, setup=setup, **options) as server, Fleet(path) as fleet:
            result.injected += 1
            for client in ("python", "version 1") * 2:
                fleet.start("pairs(0.3)\nhang(0.3)", client=client)
                fleet.start("pairs(1.0)\nidle()", client=client)
            fleet.judge(result)
            result.check(server.said("server degraded", code), f"no word of the {code}")
            result.check(server.process.poll() is None, "the program was brought down")
    return result


_START_WITHOUT_THREADS = """
import threading
from filetimer import FileTimerServer
allowed = threading._start_new_thread
def refuse(*arguments, **keywords):
    raise RuntimeError("can't start new thread")
threading._start_new_thread = refuse
try:
    FileTimerServer("second", "faults").start()
except (RuntimeError, OSError):
    pass
threading._start_new_thread = allowed
again = FileTimerServer("second", "faults")
again.start()
"""


def start_without_threads(scale: Scale) -> Result:
    """A server that cannot start its thread says so, and leaves nothing in the way of the next."""
    result = Result()
    for _ in range(scale.pick(5, 1)):
        with (
            bare_server("timers", result, setup=_START_WITHOUT_THREADS),
            Fleet("second") as fleet,
        ):
            result.injected += 1
            fleet.start("hang(0.3)")
            fleet.judge(result)
        result.check(not Path("second").exists(), "its FIFO is still there")
    return result


_LITTLE_MEMORY = """
import resource
with open("/proc/self/statm") as file:
    pages = int(file.read().split()[0])
limit = pages * resource.getpagesize() + ({mib} << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""
_ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}  # an arena of its own would be room for a thread
# More than 10,000 timers of one worker are refused, whatever memory there is.
_GREEDY = """
client.timeout = 20
for n in range(9_000):
    begin(600, "x" * 50 + str(n))
say("full")
idle()
"""


def little_memory(scale: Scale) -> Result:
    """Workers that take more timers than there is memory for, beside those that hang."""
    mib, greedy = scale.pick((8, 6), (2, 2))
    result = Result(note=f"{mib} MiB more than at its start")
    for turn in range(1):
        path = f"timers-{turn}"
        with (
            bare_server(
                path, result, setup=_LITTLE_MEMORY.format(mib=mib), environment=_ONE_ARENA
            ) as server,
            Fleet(path) as fleet,
        ):
            for _ in range(4):
                fleet.start("input()\nhang(6)").tell()
            for worker in fleet.workers:
                worker.hear("hangs")
            for _ in range(greedy):
                fleet.start(_GREEDY, must_live=True)
            for worker in fleet.workers[4:]:
                worker.hear("full")
            fleet.judge(result)
            try:
                eventually(lambda server=server: server.said("server degraded", "memory"), "", 10)
                result.injected += 1
            except TimeoutError:
                result.breach("no word of the memory")
            result.check(server.process.poll() is None, "the program was brought down")
    return result


FAULTS = [
    Fault("disk of the journal full", disk_full),
    Fault("disk of the journal read-only", disk_read_only),
    Fault("no descriptor left", no_descriptors),
    Fault("no thread and no process to be had", no_threads),
    Fault("no thread for the server itself", start_without_threads),
    Fault("memory limit reached", little_memory, 240),
]
