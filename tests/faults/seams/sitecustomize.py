"""Faults inside a server: Python imports this at its start, where PYTHONPATH leads to it.

``FAULTS_SEAM`` names a file.  When a server passes the seam that the file names, it removes the
file and kills itself with SIGKILL: once, so that its successor lives.

``FAULTS_CLOCK`` names a file with one number: by how many seconds the wall clock was stepped.  It
is read whenever somebody asks for the time, and so are the times of files.

``FAULTS_MUTANT`` breaks the server for good, for the tests of the faults themselves.
"""

import os
import signal
import sys
import time

_real_stat, _real_fstat, _real_time = os.stat, os.fstat, time.time


def _is_server() -> bool:
    return "filetimer.server" in sys.orig_argv or "faults.server" in sys.orig_argv


def _install_seams(path: str) -> None:
    from filetimer.server import journal, reaper, watchdog

    def die_at(seam: str) -> None:
        try:
            with open(path) as file:
                if file.read() != seam:
                    return
            os.unlink(path)
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: object, name: str, before: str = "", after: str = "") -> None:
        original = getattr(owner, name)

        def dying(*arguments, **keywords):
            if before:
                die_at(before)
            result = original(*arguments, **keywords)
            if after:
                die_at(after)
            return result

        setattr(owner, name, dying)

    around(journal.os, "pread", after="after the read")
    around(journal.os, "pwrite", before="before the commit")
    around(journal.Journal, "take", after="after the commit")
    around(watchdog.Watchdog, "receive", after="after applying")
    around(journal.os, "rename", "before compaction's rename", "after compaction's rename")
    around(reaper.Reaper, "signal", "before the signal", "after the signal")

    full = journal.Journal.is_full.fget

    def is_full(self: journal.Journal) -> bool:
        try:
            with open(path) as file:
                return "compaction" in file.read() or full(self)
        except FileNotFoundError:
            return full(self)

    journal.Journal.is_full = property(is_full)


def _install_clock(path: str) -> None:
    def step() -> float:
        with open(path) as file:
            return float(file.read() or 0)

    def stepped(status: os.stat_result) -> os.stat_result:
        fields = list(status)
        fields[7:10] = [int(value + step()) for value in fields[7:10]]
        exact = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
        for name in ("st_atime", "st_mtime", "st_ctime"):
            exact[name] += step()
        return os.stat_result(fields, exact)

    time.time = lambda: _real_time() + step()
    os.stat = lambda *arguments, **keywords: stepped(_real_stat(*arguments, **keywords))
    os.fstat = lambda fd: stepped(_real_fstat(fd))


def _install_mutant(name: str) -> None:
    from filetimer.server import recovery, timers

    if name == "forgets":  # a successor that knows nothing
        recovery.read_journal = _raise_os_error
    elif name == "deaf":  # a release does nothing
        original = timers.TimerTable.apply

        def apply(self, records, now):
            original(self, [record for record in records if record.expiration_time >= 0], now)

        timers.TimerTable.apply = apply
    elif name == "early":  # by more than a busy server is late
        next_deadline, expire = timers.TimerTable.next_deadline, timers.TimerTable.expire

        def earlier(self):
            deadline = next_deadline(self)
            return None if deadline is None else deadline - 5.0

        timers.TimerTable.next_deadline = earlier
        timers.TimerTable.expire = lambda self, now: expire(self, now + 5.0)
    elif name != "none":
        raise ValueError(name)


def _raise_os_error(*arguments: object) -> None:
    raise OSError("a mutant")


if _is_server():
    if "FAULTS_SEAM" in os.environ:
        _install_seams(os.environ["FAULTS_SEAM"])
    if "FAULTS_MUTANT" in os.environ:
        _install_mutant(os.environ["FAULTS_MUTANT"])
if "FAULTS_CLOCK" in os.environ:
    _install_clock(os.environ["FAULTS_CLOCK"])
