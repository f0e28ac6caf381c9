"""What a FIFO server receives: the pipe, the journal that it goes through, and the decoder."""

from __future__ import annotations

import os
import select
import shutil
import time
import weakref
from collections.abc import Callable, Iterable

from filetimer.runtime import journal_path, runtime_directory, stacks_directory
from filetimer.server import events
from filetimer.server.events import EventReporter
from filetimer.server.fifo import ServerFifo
from filetimer.server.journal import BOUND, Journal, State, journal_header
from filetimer.server.process import ProcessHandle, read_stat, this_host
from filetimer.server.recovery import Recovered, recover
from filetimer.server.sweep import sweep
from filetimer.server.timers import Host, Now, Worker
from filetimer.wire.decoder import LineDecoder, Received

__all__ = ["FifoSource"]

RETRY = 30.0  # seconds until a journal that failed is tried again
PIPE_BUF = select.PIPE_BUF

# One that writes without pause fills a small pipe again within microseconds, and others who wait
# for room wake up too late.  So it is emptied a few times in a row: now they are awake.
TURNS = 2
TURN = 0.00015  # seconds in between

STEADY = 0.005  # seconds that the clocks may drift apart between two looks


class FifoSource:
    """The records of one FIFO.  A journal that fails is given up, and that is reported once.

    ``journal_size`` is the journal's bound, in bytes.  ``keep_journal``: where to leave its history
    at the end.
    """

    def __init__(
        self,
        fifo: ServerFifo,
        reporter: EventReporter,
        journal_size: int = BOUND,
        keep_journal: str | None = None,
    ) -> None:
        self._fifo = fifo
        self._reporter = reporter
        self._journal_size, self._keep_journal = journal_size, keep_journal
        self._decoder = LineDecoder()
        self._taken = 0  # bytes, in this pass
        self._taken_at = 0.0  # seconds of this thread's CPU time
        self._undecoded: list[bytes] = []  # taken out of the pipe
        self._journal: Journal | None = None
        self._new_journal: Callable[[State, Now], Journal] | None = None
        self._retry_at = float("inf")
        self._offset = time.time() - time.monotonic()
        self._steady = True  # whether the clocks ran alike between the last two looks
        _sources.add(self)

    def open_journal(
        self, run_id: str, holder: str | None, now: Now
    ) -> list[Worker[ProcessHandle]]:
        """Keep a journal from now on; the workers that a dead predecessor's journal still had."""
        if not hasattr(os, "splice"):
            return []
        host = this_host()
        recovered = Recovered([], b"", armed=True)
        try:
            directory = runtime_directory(create=True)
            path = journal_path(self._fifo.path, directory)
            header = self._header(run_id, holder, host, now)
            self._new_journal = lambda state, now: Journal(
                path, header, state, now, self._journal_size
            )
            recovered = recover(path, self._fifo.path, holder, host, now)
            self._journal = self._new_journal(State(recovered.workers, recovered.unfinished), now)
            sweep(directory)
        except OSError as error:
            self._degraded(error)
            self._retry_at = now.monotonic + RETRY
        self._decoder.feed(recovered.unfinished)
        if recovered.workers:
            self._report_recovered(recovered)
        return recovered.workers

    def _header(self, run_id: str, holder: str | None, host: Host, now: Now) -> bytes:
        stat = read_stat(host.pid)
        return journal_header(
            self._fifo.path,
            run_id,
            now,
            holder,
            pid=host.pid,
            start_time=None if stat is None else stat[1],
            uid=host.uid,
            pid_ns=host.pid_ns,
            time_ns=host.time_ns,
        )

    def _report_recovered(self, recovered: Recovered) -> None:
        timers = sum(len(worker.timers) for worker in recovered.workers)
        how = (
            "armed"
            if recovered.armed
            else "report-only until acquired again: nobody held the pipe meanwhile, so that "
            "releases may have been lost"
        )
        self._reporter.report(
            events.RECOVERED,
            code="armed" if recovered.armed else "report_only",
            detail=f"{timers} timers of {len(recovered.workers)} workers, {how}",
        )

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._fifo.fd

    def receive(self, now: Now, urgent: bool) -> Received:
        """Everything that is in the pipe now; if it is ``urgent``, no more (SPEC S-7).

        Raises MemoryError; what had been taken then comes with the next calls, before the pipe.
        """
        offset, before = now.wall - now.monotonic, self._offset
        self._offset, self._steady = offset, abs(offset - before) < STEADY
        # What was taken must not be lost: it stays with us until all of it is decoded.  If memory
        # was short for that, it comes alone now: more would need more.
        if not self._undecoded:
            self._take_all(now, urgent)
        data = b"".join(self._undecoded)
        self._taken = len(data)
        if self._taken > PIPE_BUF:
            self._taken_at = time.thread_time()
        results = self._decoder.feed_fast(data)
        self._undecoded.clear()
        return results

    def _take_all(self, now: Now, urgent: bool) -> None:
        self._undecoded.append(self._take(now))
        self._fifo.resize()
        for _ in range(TURNS if self._fifo.is_small and not urgent else 0):
            if len(self._undecoded[-1]) <= self._fifo.capacity - PIPE_BUF:
                break  # nobody waits for room
            time.sleep(TURN)
            self._undecoded.append(self._take(now))

    def written_by(self, now: Now) -> float:
        """By when the last record in the pipe had been written, in monotonic seconds.

        The pipe's modification time tells, on the wall clock; of no use if that has just been set.
        """
        age = now.wall - os.fstat(self._fifo.fd).st_mtime
        steady = self._steady and abs(time.time() - time.monotonic() - self._offset) < STEADY
        return now.monotonic - age if steady and age > 0 else float("inf")

    def acted(self, now: Now, notes: bytes) -> None:
        """Write down that timers were acted on, and what is to be noted."""
        if self._journal is not None:
            try:
                self._journal.note(notes, now)
            except OSError as error:
                self._give_journal_up(error)

    def keep(self, workers: Iterable[Worker[ProcessHandle]], now: Now, moved: bool = False) -> None:
        """Compact the journal if it is full, or if deadlines ``moved``; begin one if it failed.

        The pass is at its end, so that it is known, too, how large the pipe should be.
        """
        if self._taken > PIPE_BUF:
            self._fifo.fit(self._taken, time.thread_time() - self._taken_at)
            self._taken = 0
        if self._journal is None:
            if now.monotonic >= self._retry_at:
                self._begin_again(State(workers, self._decoder.unfinished), now)
        elif moved or self._journal.is_full:
            try:
                self._journal.compact(State(workers, self._decoder.unfinished), now)
            except OSError as error:
                if moved or not self._journal.put_off():
                    self._give_journal_up(error)

    def close(self) -> None:
        """Remove the journal, and the FIFO if it was made here."""
        if self._journal is not None:
            try:
                self._journal.close(self._keep_journal)
            except OSError as error:
                self._reporter.degraded("history", f"its history is not kept: {error}")
        # What the workers left there for the collector: reaped ones could not remove it.
        stacks = stacks_directory(self._fifo.path, runtime_directory())
        shutil.rmtree(stacks, ignore_errors=True)
        self._fifo.close()

    @property
    def journal(self) -> str | None:
        """The path of the journal, while there is one."""
        return None if self._journal is None else self._journal.path

    def forget(self) -> None:
        """Close descriptors only.  A forked child calls this: its parent is the server."""
        if self._journal is not None:
            self._journal.forget()
        self._fifo.forget()

    def _take(self, now: Now) -> bytes:
        if self._journal is None:
            return self._fifo.read()
        try:
            return self._journal.take(self._fifo.fd, self._fifo.capacity, now)
        except BlockingIOError:
            return b""
        except OSError as error:  # the pipe still holds the bytes, or nearly all of them
            rescued = self._journal.rescue()
            self._give_journal_up(error)
            return rescued + self._fifo.read()

    def _give_journal_up(self, error: OSError) -> None:
        if self._journal is not None:
            self._journal.close()  # what it says is no longer so
            self._journal = None
        self._retry_at = time.monotonic() + RETRY
        self._degraded(error)

    def _begin_again(self, state: State, now: Now) -> None:
        self._retry_at = now.monotonic + RETRY
        if self._new_journal is None:
            return
        try:
            self._journal = self._new_journal(state, now)
        except OSError:
            return  # it was said before
        self._reporter.report(events.MENDED, code="journal", detail="it keeps a journal again")

    def _degraded(self, error: OSError) -> None:
        self._reporter.degraded(
            "journal",
            "no journal, so that this server cannot be looked at from outside, and a successor "
            f"would not know its timers: {error}",
        )


_sources: weakref.WeakSet[FifoSource] = weakref.WeakSet()


def _forget_all() -> None:
    for source in list(_sources):
        source.forget()


# A forked child would hold the lock and a reading end after the server's death.
os.register_at_fork(after_in_child=_forget_all)
