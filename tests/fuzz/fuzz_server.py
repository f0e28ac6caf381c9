"""Fuzz a live server: forged bytes at full rate from several writers, amid workers that must act.

    unshare --user --map-root-user --pid --fork --mount-proc \\
        python tests/fuzz/fuzz_server.py --seconds 600

Forged records name any process of this user, and a server kills what a valid record names.  So
this program runs only as the first process of a private pid namespace in which it is alone: it is
then pid 1, which SPEC S-11 protects, and no stranger can be named.  Elsewhere it refuses to run.

What must hold:

L-1  Every *condemned* worker (its own record said: kill me at T) dies of the signal that it asked
     for, not before T, and at most ``LATE`` seconds after.
L-2  Every *spared* worker (its release, or its next acquire, was in the pipe before T; or T is far
     away; or its timer is report-only; or what named it was not its own) lives on ``LATE`` / 4
     seconds after T.
L-3  The server lives to the end and then ends with status 0; it refused ``init`` and ``self``, for
     both were named; it stayed below ``MAX_RSS``; it logged rejections at a limited rate
     (SPEC X-1, X-2).

How a verdict can be certain although any bytes are written by anybody.  A forged line may, by
chance, be a valid record that condemns a worker, and the kill would be right.  So:

* Workers and writers get pids of one number of digits, ``protected`` (seven, where ``pid_max``
  allows), which forged bytes never have in a row: :func:`deface` adds one to each such run.
* A forged write ends with LF or with a byte that is no digit, so that runs of two writes do not
  add up; one of more than PIPE_BUF bytes, which the kernel may cut anywhere, has no digits at all.
* So no line names a protected pid but those that workers write themselves, of up to PIPE_BUF bytes
  and ended by LF.  What comes before such a line, in the same line, can only be white space, or
  costs the first attempt and not the second (SPEC F-7): a JSON text that ends with the record's
  last brace begins with its first.

Decoys are processes with short pids, which forged records may kill; they are replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mutations

from filetimer.wire.encoder import RecordEncoder

WRITERS = 3
WORKERS = 12  # at any time
DECOYS = 4
LATE = 8.0  # seconds: a generous bound, not a measure
START_PATIENCE = 60.0  # seconds until a worker's records are in the pipe that all are filling
MAX_RSS = 150  # MiB; it takes 30, and for a while what a full pipe of 1 MiB makes
MAX_LOGGED = 13  # rejections in ten seconds: ten, the count of the others, and an edge
DECOY_LIFE = 5.0  # seconds: forged timers with ever new scopes pile up meanwhile, not for ever
PIPE_BUF = 4096
LAST_PID = "/proc/sys/kernel/ns_last_pid"
FIRST_DECOY = 300  # the last pid before the decoys

SERVER = """
import json, logging, sys
from filetimer import FileTimerServer
logging.basicConfig(filename=sys.argv[2], format="%(message)s")
server = FileTimerServer(sys.argv[1], "fuzz", max_interval=1)
server.start()
print("ready", flush=True)
sys.stdin.read()
server.stop()
print(json.dumps([[*key, count] for key, count in server.counts.items()]))
"""


# ------------------------------------------------------------------------------- what workers say


class Voice:
    """What a worker writes about itself, and what others could write about it."""

    def __init__(self, pid: int, rng: random.Random) -> None:
        self.pid, self.rng = pid, rng
        self.start_time = start_time_of(pid)
        self.pid_ns = os.stat("/proc/self/ns/pid").st_ino
        self.scope = rng.choice(("train.py#120", "é", "}{", '{"version":', "a" * 900))

    def acquire(
        self,
        after: float,
        signum: int = signal.SIGKILL,
        token: int | None = None,
        version: int = 2,
    ) -> bytes:
        encoder = RecordEncoder(version, self.pid, signum, self.start_time, self.pid_ns)
        return encoder.acquire(self.scope, time.time() + after, time.monotonic() + after, token)

    def release(self, token: int | None = None) -> bytes:
        encoder = RecordEncoder(2, self.pid, 9, self.start_time, self.pid_ns)
        return encoder.release(self.scope, token)

    def not_mine(self) -> bytes:
        """A line with this pid, and with a start or a namespace that is another's (SPEC S-12)."""
        other = self.start_time + self.rng.choice((-1, 1, 1000))
        start, pid_ns = self.rng.choice(((other, self.pid_ns), (self.start_time, self.pid_ns + 1)))
        forger = RecordEncoder(2, self.pid, 9, start, pid_ns)
        if self.rng.random() < 0.5:
            return forger.release(self.scope)
        return forger.acquire(self.scope, time.time() - 1, max(0.0, time.monotonic() - 1))


@dataclass(frozen=True)
class Kind:
    """A way to live: what to write, and what must come of it.

    ``lines`` is called with a voice and with ``after``, the seconds until T.  ``signum`` is what a
    condemned worker dies of; None: it is spared.  ``hurry``: it must be quicker than T to be
    spared.
    """

    name: str
    lines: Callable[[Voice, float], list[bytes]]
    signum: int | None
    hurry: bool = False


KINDS = (
    Kind("expires", lambda v, t: [v.acquire(t)], signal.SIGKILL),
    Kind("expires by SIGTERM", lambda v, t: [v.acquire(t, signal.SIGTERM)], signal.SIGTERM),
    Kind("version 1 expires", lambda v, t: [v.acquire(t, version=1)], signal.SIGKILL),
    Kind("brought forward", lambda v, t: [v.acquire(3600), v.acquire(t)], signal.SIGKILL),
    Kind(
        "another token is released",
        lambda v, t: [v.acquire(t, token=1), v.acquire(t, token=2), v.release(2), v.release()],
        signal.SIGKILL,
    ),
    Kind(
        "released by a forger",
        lambda v, t: [v.acquire(t), v.not_mine(), v.not_mine(), v.not_mine()],
        signal.SIGKILL,
    ),
    Kind("released", lambda v, t: [v.acquire(t), v.release()], None, hurry=True),
    Kind("token released", lambda v, t: [v.acquire(t, token=9), v.release(9)], None, hurry=True),
    Kind(
        "version 1 released",
        lambda v, t: [v.acquire(t, version=1), v.release()],
        None,
        hurry=True,
    ),
    Kind("extended", lambda v, t: [v.acquire(t), v.acquire(3600)], None, hurry=True),
    Kind("not yet", lambda v, t: [v.acquire(3600)], None),
    Kind("report-only", lambda v, t: [v.acquire(t, 0)], None),
    Kind(
        "condemned by a forger",
        lambda v, t: [v.acquire(3600), v.not_mine(), v.not_mine(), v.not_mine()],
        None,
    ),
)


# -------------------------------------------------------------------------------------- processes


def start_time_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def fork_after(last_pid: int, child: Callable[[], None]) -> int:
    """Fork a child, which gets the first free pid after ``last_pid``, and ends after ``child``."""
    Path(LAST_PID).write_text(str(last_pid))
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        child()
        status = 0
    finally:
        os._exit(status)


def sleep_for_ever() -> None:
    while True:
        signal.pause()


@dataclass
class Worker:
    """A child that lives as its kind says.  Times are monotonic seconds."""

    pid: int
    kind: Kind
    report: int  # the pipe on which it says T, and then when all its lines were in the FIFO
    started: float
    heard: bytes = b""

    def __str__(self) -> str:
        return f"worker {self.pid} ({self.kind.name})"

    def hear(self) -> None:
        """Take in what the worker says."""
        while select.select([self.report], [], [], 0)[0]:
            text = os.read(self.report, 100)
            if not text:
                return
            self.heard += text

    @property
    def deadline(self) -> float | None:
        """T, once it was heard."""
        said = self.heard.split(b"\n")
        return float(said[0]) if len(said) > 1 else None

    @property
    def written(self) -> float | None:
        """When its last line was in the FIFO, once that was heard."""
        said = self.heard.split(b"\n")
        return float(said[1]) if len(said) > 2 else None


def live(kind: Kind, path: str, report: int, seed: int) -> None:
    """The life of a worker: write, report, sleep."""
    rng = random.Random(seed)
    fifo = os.open(path, os.O_WRONLY)
    voice = Voice(os.getpid(), rng)
    after = rng.choice((0.3, 1.0, 2.0))
    os.write(report, b"%f\n" % (time.monotonic() + after))  # the lines' T is not before this
    for line in kind.lines(voice, after):
        assert os.write(fifo, line) == len(line)  # blocks while the pipe is full
    os.write(report, b"%f\n" % time.monotonic())
    os.close(fifo)
    sleep_for_ever()


# -------------------------------------------------------------------------------------- forgeries


def deface(data: bytes, protected: int) -> bytes:
    """Leave no run of exactly ``protected`` digits."""
    return re.sub(rb"(?<!\d)\d{%d}(?!\d)" % protected, rb"\g<0>0", data)


def forge(rng: random.Random, names: list[bytes], protected: int) -> bytes:
    """Bytes for one write, which name no protected process."""
    if rng.random() < 0.02:  # beyond PIPE_BUF: in pieces, and without digits
        return re.sub(rb"\d", b"x", mutations.stream(rng) * 30)[: rng.randint(4097, 60_000)] + b"-"
    if rng.random() < 0.05:  # as many lines, all different, as fit
        shortest = b"\n".join(rng.randbytes(3) for _ in range(PIPE_BUF // 4 - 100))
        return deface(shortest, protected) + b"\n"
    data = b""
    while rng.random() < 0.9 and len(data) < PIPE_BUF:
        one = mutations.stream(rng) if rng.random() < 0.7 else _valid(rng)
        data += re.sub(rb"4242", rng.choice(names), one)
    data = deface(data[: PIPE_BUF - 200], protected)[: PIPE_BUF - 2]
    return data + rng.choice((b"\n", b"\n", b"\n", b" ", b'"', b"\xff", b'{"version":', b"-"))


def _valid(rng: random.Random) -> bytes:
    """Lines that a server must apply, some of them at once."""
    lines = b""
    for _ in range(rng.randint(1, 20)):
        due = rng.random() < 0.001
        encoder = RecordEncoder(rng.choice((1, 2)), 4242, rng.choice((9, 15, 0)))
        after = -1.0 if due else 3600.0
        scope = f"scope {rng.randrange(50)}"
        if rng.random() < 0.5:
            lines += encoder.release(scope)
        else:
            lines += encoder.acquire(scope, time.time() + after, time.monotonic() + after)
    return lines


def write_for_ever(path: str, seed: int, names: list[bytes], protected: int) -> None:
    """The life of a writer of forgeries."""
    rng = random.Random(seed)
    fifo = os.open(path, os.O_WRONLY)
    while True:
        data = forge(rng, names, protected)
        for _ in range(rng.choice((1, 1, 1, 3, 50))):
            os.write(fifo, data)


# ------------------------------------------------------------------------------------------ the run


@dataclass
class Run:
    """One run; ``judged`` counts the workers that had their verdict, by kind."""

    path: str
    log: Path
    rng: random.Random
    protected: int  # digits of a protected pid
    workers: list[Worker] = field(default_factory=list)
    decoys: dict[int, float] = field(default_factory=dict)  # pid: when it started
    writers: set[int] = field(default_factory=set)
    ended: dict[int, tuple[int, float]] = field(default_factory=dict)  # pid: wait status, when
    judged: Counter[str] = field(default_factory=Counter)
    rss: int = 0  # MiB, the highest
    latest: float = 0.0  # seconds, of a kill, as seen from here
    killed_decoys: int = 0

    def go(self, seconds: float) -> None:
        command = [sys.executable, "-c", SERVER, self.path, str(self.log)]
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == "ready\n"
        self.last_protected = 10 ** (self.protected - 1)
        names = [b"1", b"%d" % self.server.pid, b"0", b"-1", b"299"]
        names += [b"%d" % (FIRST_DECOY + 1 + number) for number in range(DECOYS)] * 3
        for _ in range(WRITERS):
            self.start_writer(names)
        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds or self.workers:
            if now < began + seconds:
                self.populate(now)
            self.observe()
            self.judge()
            time.sleep(0.01)
        for pid in [*self.writers, *self.decoys]:
            os.kill(pid, signal.SIGKILL)
        self.check_end(time.monotonic() - began)

    def start_writer(self, names: list[bytes]) -> None:
        seed = self.rng.getrandbits(32)
        self.writers.add(
            self.protect(lambda: write_for_ever(self.path, seed, names, self.protected))
        )

    def start_worker(self, now: float) -> None:
        kind, seed = self.rng.choice(KINDS), self.rng.getrandbits(32)
        ours, theirs = os.pipe()
        pid = self.protect(lambda: live(kind, self.path, theirs, seed))
        os.close(theirs)
        self.workers.append(Worker(pid, kind, ours, now))

    def protect(self, child: Callable[[], None]) -> int:
        """Fork a child with a pid that no forged record has."""
        self.last_protected = fork_after(self.last_protected, child)
        assert len(str(self.last_protected)) == self.protected, "out of protected pids"
        return self.last_protected

    def populate(self, now: float) -> None:
        while len(self.workers) < WORKERS:
            self.start_worker(now)
        for pid, since in self.decoys.items():
            if now > since + DECOY_LIFE:
                os.kill(pid, signal.SIGKILL)  # it is reaped later: the pid is still its own
        while len(self.decoys) < DECOYS:
            pid = fork_after(FIRST_DECOY, sleep_for_ever)
            assert pid <= FIRST_DECOY + 100, "a decoy with a protected pid"
            self.decoys[pid] = now

    def observe(self) -> None:
        """Reap whoever has ended; look at the server."""
        for worker in self.workers:
            worker.hear()  # before its end is looked at: it may have ended since
        for pid in [*self.decoys, *self.writers, *(worker.pid for worker in self.workers)]:
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if not reaped:
                continue
            assert pid not in self.writers, f"a writer was killed: wait status {status}"
            self.ended[pid] = status, time.monotonic()
            if pid in self.decoys:
                del self.decoys[pid], self.ended[pid]
                self.killed_decoys += 1
        assert self.server.poll() is None, f"L-3: the server died: {self.server.returncode}"
        with open(f"/proc/{self.server.pid}/status") as file:
            kib = next(line.split()[1] for line in file if line.startswith("VmRSS:"))
        self.rss = max(self.rss, int(kib) // 1024)
        assert self.rss < MAX_RSS, f"L-3: the server takes {self.rss} MiB"

    def judge(self) -> None:
        """Give the verdict on each worker for which it is time."""
        for worker in list(self.workers):
            if self.has_verdict(worker):
                os.close(worker.report)
                self.workers.remove(worker)

    def has_verdict(self, worker: Worker) -> bool:
        now = time.monotonic()
        signum = worker.kind.signum
        if worker.pid in self.ended:
            status, when = self.ended.pop(worker.pid)
            worker.hear()  # it wrote before it ended
            self.check_death(worker, status, when)
            return True
        deadline, written = worker.deadline, worker.written
        if deadline is None or written is None:
            assert now < worker.started + START_PATIENCE, f"L-1: {worker} cannot write"
        elif signum is not None:
            due = max(deadline, written)
            assert now < due + LATE, f"L-1: {worker} lives on {now - due:.1f} s after its deadline"
        elif now > deadline + LATE / 4:
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            self.judged[worker.kind.name] += 1
            return True
        return False

    def check_death(self, worker: Worker, status: int, when: float) -> None:
        kind, deadline, written = worker.kind, worker.deadline, worker.written
        assert os.WIFSIGNALED(status), f"{worker} ended by itself, with status {status}"
        assert deadline is not None, f"L-2: {worker} was killed before it wrote"
        assert when >= deadline, f"L-1: {worker} died {deadline - when:.3f} s early"
        if kind.hurry and (written is None or written >= deadline):
            self.judged["spared too late, in a full pipe"] += 1
            return
        assert status == kind.signum, f"L-1, L-2: {worker} was killed, with status {status}"
        self.latest = max(self.latest, when - max(deadline, written or deadline))
        self.judged[kind.name] += 1

    def check_end(self, seconds: float) -> None:
        """The rest of L-3, and what was done."""
        output, _ = self.server.communicate(timeout=60)
        assert self.server.returncode == 0, f"L-3: the server ended with {self.server.returncode}"
        counts = Counter({(name, code): count for name, code, count in json.loads(output)})
        by_name: Counter[str] = Counter()
        for (name, _), count in counts.items():
            by_name[name] += count
        for reason in ("init", "self"):
            assert counts["timer refused", reason], f"L-3: {reason} was never refused"
        log = self.log.read_text(errors="replace")
        logged = len(re.findall("^(?:record rejected|timer refused)", log, re.MULTILINE))
        assert 0 < logged <= MAX_LOGGED * (seconds / 10 + 1), f"L-3: {logged} were logged"
        for bad in ("callback failed", "server degraded", "worker unkillable", "kill failed"):
            assert not by_name[bad], f"L-3: {bad}"
        silent = {kind.name for kind in KINDS} - self.judged.keys()
        assert seconds < 60 or not silent, f"never tried: {silent}"
        print(
            f"server: {seconds:.0f} s, {by_name['record rejected']} lines rejected, "
            f"{by_name['timer refused']} timers refused, {logged} of both logged, "
            f"{self.killed_decoys} decoys killed; {sum(self.judged.values())} workers judged; "
            f"latest kill {self.latest * 1000:.0f} ms late; server at most {self.rss} MiB"
        )
        for name, count in sorted(self.judged.items()):
            print(f"server: {count:6} {name}")


def is_alone() -> bool:
    """Whether this is pid 1 of a pid namespace, and /proc shows it and no other process."""
    others = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    return os.getpid() == 1 and os.readlink("/proc/self") == "1" and not others


def protected_digits() -> int:
    """The most digits of which a pid has 20,000 numbers to choose from."""
    pid_max = int(Path("/proc/sys/kernel/pid_max").read_text())
    return len(str(pid_max - 20_000))


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz a live server in a private pid namespace.")
    parser.add_argument("--seconds", type=float, default=600, help="for how long (default: 600)")
    parser.add_argument("--seed", type=int, help="default: another one each time")
    options = parser.parse_args()
    if not is_alone():
        print(
            "fuzz_server.py forges records that have a server kill any process of this user, so it "
            "runs only alone in a private pid namespace: unshare --user --map-root-user --pid "
            "--fork --mount-proc python tests/fuzz/fuzz_server.py (or: make fuzz-server)",
            file=sys.stderr,
        )
        return 2
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    print(f"server: {options.seconds:g} s, --seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="filetimer-fuzz-") as folder:
        os.environ["FILETIMER_RUNTIME_DIR"] = f"{folder}/runtime"
        log = Path(folder, "log")
        run = Run(f"{folder}/timers", log, random.Random(seed), protected_digits())
        run.go(options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
