"""The reference driver: the whole of SPEC.md in one file, in all four roles, for reading.

It stands alone (no import of filetimer) and favours plainness over speed: it is what the vectors
are checked against, and what a new implementation may be compared with. `--wrong NAME` makes it
break one rule, so that the kit can be shown to notice; `--list` prints the names. Every wrong
behaviour is one `if wrong("...")` beside the rule that it breaks.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import math
import os
import random
import re
import select
import signal
import stat
import struct
import sys
import termios
import threading
import time

WRONG = ""


def wrong(name):
    """Whether this run is to break the rule."""
    return name == WRONG


class Refused(Exception):
    """What a driver answers with {"error": ...}."""


# ====================================================================================== codec

MARKER = b'{"version":'
SEND_LIMIT, RECEIVE_LIMIT = 4096, 4097  # SPEC F-2, F-4


class Bad(Exception):
    """A line that is no record; the argument is the code."""


def integer(low, high):
    def valid(value):
        if wrong("takes-true-for-one") and isinstance(value, bool):
            return low <= value <= high
        if wrong("accepts-integers-with-fraction") and isinstance(value, float):
            return value.is_integer() and low <= value <= high
        return type(value) is int and low <= value <= high  # SPEC R-3

    return valid


def number(value):
    if type(value) not in (int, float):
        return False
    try:  # SPEC R-4
        finite = math.isfinite(float(value)) or wrong("accepts-infinite-numbers")
        return finite or wrong("accepts-nan")
    except OverflowError:
        return False


EXACT = 2**53 - 1
FIELDS = {  # in the order of the codes (SPEC E-1)
    "version": integer(1, EXACT),
    "pid": integer(1, 2**31 - 1),
    "scope_id": lambda value: isinstance(value, str),
    "expiration_time": number,
    "signal": integer(-(2**31), 64),
    "deadline": lambda value: number(value) and value >= 0,
    "start_time": integer(0, EXACT),
    "pid_ns": integer(0, EXACT),
    "token": integer(0, EXACT),
}
REQUIRED = list(FIELDS)[:5]


def no_constant(name):
    if wrong("accepts-nan"):
        return float(name)
    raise Bad("json")  # SPEC R-5


def first_pair_wins(pairs):
    return dict(reversed(pairs))


def parse(line):
    """The known fields of a line without its LF."""
    limit = SEND_LIMIT if wrong("rejects-4097-bytes") else RECEIVE_LIMIT
    if len(line) >= limit and not wrong("accepts-lines-of-any-length"):
        raise Bad("oversize")
    try:
        text = line.decode("utf-8", "replace" if wrong("repairs-invalid-utf8") else "strict")
    except UnicodeDecodeError:
        raise Bad("utf8") from None
    if wrong("skips-a-byte-order-mark"):
        text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    hook = first_pair_wins if wrong("takes-the-first-of-repeated-fields") else None
    try:
        value = json.loads(text, parse_constant=no_constant, object_pairs_hook=hook)
    except (ValueError, RecursionError):
        raise Bad("json") from None
    if not isinstance(value, dict):
        raise Bad("object")
    if not value.keys() >= set(REQUIRED):
        raise Bad("missing_field")
    if wrong("rejects-unknown-fields") and not value.keys() <= FIELDS.keys():
        raise Bad("json")
    if wrong("rejects-newer-versions") and value["version"] not in (1, 2):
        raise Bad("bad_version")
    if wrong("wants-version-first") and next(iter(value)) != "version":
        raise Bad("json")
    fields = list(FIELDS)
    if wrong("checks-fields-in-another-order"):
        fields.reverse()
    for field in fields:
        if field in value and not FIELDS[field](value[field]):
            raise Bad("bad_" + field)
    record = {field: value[field] for field in FIELDS if field in value}
    if not wrong("keeps-half-surrogate-pairs"):  # SPEC R-8
        halves = re.compile("[\ud800-\udfff]")
        record["scope_id"] = halves.sub("\N{REPLACEMENT CHARACTER}", record["scope_id"])
    return record


class Decoder:
    """Bytes in whatever pieces to verdicts (SPEC section 2), in bounded memory."""

    def __init__(self):
        self.buffer = b""
        self.cut = False  # the buffer is only the end of its line

    def feed(self, data):
        if wrong("ends-a-line-at-every-read") and data and not data.endswith(b"\n"):
            data += b"\n"
        if wrong("ends-lines-at-carriage-return"):
            data = data.replace(b"\r", b"\n")
        if wrong("ends-lines-at-unicode-separators"):
            data = data.replace("\N{LINE SEPARATOR}".encode(), b"\n")
        *lines, rest = (self.buffer + data).split(b"\n")
        verdicts = []
        for line in lines:
            verdicts += self.judge(line)
            self.cut = False
        if len(rest) >= RECEIVE_LIMIT and not wrong("keeps-a-line-without-end-in-memory"):
            rest, self.cut = rest[-RECEIVE_LIMIT + 1 :], True  # SPEC F-4, F-7
        self.buffer = rest
        if wrong("loses-the-lines-beside-a-bad-one") and any("error" in v for v in verdicts):
            verdicts = [v for v in verdicts if "error" in v]
        return verdicts

    def judge(self, line):
        if wrong("skips-blank-lines") and not line.strip():
            return []
        try:
            if self.cut:
                raise Bad("oversize")
            return [{"record": parse(line)}]
        except Bad as bad:
            return [{"error": str(bad)}, *self.rescue(line)]

    def rescue(self, line):
        """SPEC F-7: half a line of a dead writer must not swallow the next writer's record."""
        if wrong("rescues-nothing"):
            return []
        find = line.find if wrong("rescues-from-the-first-marker") else line.rfind
        start = find(MARKER, 0 if self.cut else 1)
        if start < 0:
            return []
        try:
            return [{"record": parse(line[start:])}]
        except Bad:
            return []


def encode(record):
    """A line that a sender may write, or Refused."""
    for field in FIELDS:
        if field in record and not FIELDS[field](record[field]):
            raise Refused("bad_" + field)
    if not record["scope_id"]:
        raise Refused("SPEC R-11: the scope is empty")
    ordered = {field: record[field] for field in FIELDS if field in record}
    if wrong("writes-version-last"):
        ordered["version"] = ordered.pop("version")
    text = json.dumps(ordered)
    if wrong("writes-newlines-raw"):
        text = text.replace("\\n", "\n")
    if wrong("writes-a-decimal-comma"):
        text = re.sub(r"(\d)\.(\d)", r"\1,\2", text)
    if wrong("writes-a-field-twice"):
        text = text[:-1] + f', "pid": {record["pid"]}}}'
    line = text.encode() + (b"" if wrong("forgets-the-newline") else b"\n")
    if len(line) > SEND_LIMIT and not wrong("sends-lines-of-any-length"):
        raise Refused("SPEC F-2: the line is longer than PIPE_BUF")
    return line


# ===================================================================================== server


UNKILLABLE_AFTER = 5  # SPEC S-14, in seconds


class Timer:
    def __init__(self, record, now, wall):
        self.scope_id, self.token = record["scope_id"], record.get("token")
        self.signal = record["signal"]
        self.expiration_time = record["expiration_time"]
        if "deadline" in record and not wrong("ignores-deadline"):
            self.deadline = record["deadline"]  # SPEC S-5
        else:
            self.deadline = now + (record["expiration_time"] - wall)

    def expired(self, now, wall):
        if wrong("kills-at-the-wall-clock"):
            return self.expiration_time <= wall
        if wrong("expires-a-step-late"):
            return self.deadline < now
        return self.deadline <= now  # SPEC S-6


class Worker:
    def __init__(self, process):
        self.process = process
        self.timers = {}
        self.next_signal = None  # (when, SIGKILL or None for the report), after a signal


class Rules:
    """SPEC section 6, without a clock, a file or a process of its own.

    The host finds processes, knows whether one still lives, and sends signals. A process is an
    object with pid, start_time, uid, time_ns and zombie; two objects are two processes.
    """

    def __init__(self, host, kill_after=None):
        self.host, self.kill_after = host, kill_after
        self.decoder = Decoder()
        self.workers = {}
        self.rejected = 0
        self.events = []

    def wake(self, data, now, wall):
        """What was in the FIFO, then what has expired. Returns the events."""
        self.events = []
        self.notice_exits()
        if wrong("expires-before-it-reads"):
            self.expire(now, wall)
        self.take(data, now, wall)
        self.expire(now, wall)  # SPEC S-7
        self.escalate(now)
        return self.events

    def take(self, data, now, wall):
        """Only what the bytes say: nothing expires."""
        for verdict in self.decoder.feed(data):
            if "error" in verdict:
                self.rejected += 1
                self.tell("rejected", code=verdict["error"])
            else:
                self.apply(verdict["record"], now, wall)

    def next_deadline(self):
        due = [timer.deadline for w in self.workers.values() for timer in w.timers.values()]
        due += [w.next_signal[0] for w in self.workers.values() if w.next_signal]
        return min(due, default=math.inf)

    def tell(self, event, **fields):
        self.events.append({"event": event, **fields})

    def notice_exits(self):
        """SPEC S-10; a zombie has exited."""
        if wrong("kills-a-recycled-pid"):
            return
        for pid, worker in list(self.workers.items()):
            if not self.host.alive(worker.process):
                del self.workers[pid]
                if worker.next_signal or worker.process in self.host.unkillable:
                    self.tell("dead", pid=pid)

    def apply(self, record, now, wall):
        release = record["expiration_time"] < 0  # SPEC R-9
        if wrong("takes-negative-zero-for-a-release"):
            release = math.copysign(1, record["expiration_time"]) < 0
        if release:
            self.release(record)
        else:
            self.acquire(record, now, wall)

    def key(self, record):
        """SPEC S-2."""
        if wrong("ignores-tokens"):
            return record["scope_id"], None
        if wrong("one-timer-a-worker"):
            return "", None
        return record["scope_id"], record.get("token")

    def release(self, record):
        worker = self.workers.get(record["pid"])
        if worker is None or not self.is_of(record, worker.process):
            return
        if wrong("a-release-clears-every-scope"):
            worker.timers.clear()
        worker.timers.pop(self.key(record), None)  # SPEC S-4

    def is_of(self, record, process):
        """SPEC S-12."""
        if wrong("believes-releases-of-former-processes"):
            return True
        same_start = record.get("start_time", process.start_time) == process.start_time
        return same_start and record.get("pid_ns", self.host.pid_ns) == self.host.pid_ns

    def acquire(self, record, now, wall):
        pid = record["pid"]
        process = self.host.find(pid)
        if reason := self.refusal(record, process):
            self.tell("refused", pid=pid, scope_id=record["scope_id"], reason=reason)
            return
        worker = self.workers.setdefault(pid, Worker(process))
        key = self.key(record)
        if wrong("keeps-the-first-of-two-acquires") and key in worker.timers:
            return
        if wrong("an-inner-timer-hides-the-outer"):
            worker.timers.clear()
        worker.timers[key] = Timer(record, now, wall)  # SPEC S-3

    def refusal(self, record, process):
        """SPEC S-11, in its order."""
        host = self.host

        def differs(field, own):
            return record.get(field, own) != own

        tests = (
            ("init", lambda: record["pid"] == 1),
            ("self", lambda: record["pid"] == host.pid),
            ("foreign_pid_ns", lambda: differs("pid_ns", host.pid_ns)),
            ("no_process", lambda: process is None),
            ("zombie", lambda: process.zombie),
            ("start_time", lambda: differs("start_time", process.start_time)),
            ("foreign_uid", lambda: process.uid != host.uid),
            ("foreign_time_ns", lambda: process.time_ns != host.time_ns),
        )
        for reason, applies in tests:
            if not wrong("does-not-refuse-" + reason.replace("_", "-")) and applies():
                return reason
        return None

    def expire(self, now, wall):
        for pid, worker in list(self.workers.items()):
            expired = [key for key, timer in worker.timers.items() if timer.expired(now, wall)]
            expired.sort(key=lambda key: worker.timers[key].deadline)
            timers = [worker.timers[key] for key in expired]
            for timer in timers:
                told = {} if timer.token is None else {"token": timer.token}
                self.tell("expired", pid=pid, scope_id=timer.scope_id, **told)
            if wrong("the-last-deadline-decides"):
                timers.reverse()
            deciding = [t for t in timers if t.signal > 0 or wrong("kills-for-report-only")]
            if deciding:
                self.kill(worker, deciding[0].signal or 9, now)  # SPEC S-8
                if wrong("signals-again-and-again"):
                    continue
                if not wrong("keeps-the-other-timers-after-a-kill"):
                    worker.timers.clear()
            elif expired and wrong("report-only-clears-the-worker"):
                worker.timers.clear()
            for key in expired:  # SPEC S-9
                worker.timers.pop(key, None)

    def kill(self, worker, number, now):
        if wrong("kills-with-sigkill-whatever-is-asked"):
            number = 9
        self.host.send(worker.process, number)
        self.tell("signal", pid=worker.process.pid, signal=number)
        if wrong("kills-itself-after-a-kill"):
            self.host.send_self(number)
        if self.kill_after is not None and not wrong("never-escalates"):
            last = number == signal.SIGKILL and not wrong("sends-sigkill-twice")
            after = (UNKILLABLE_AFTER, None) if last else (self.kill_after, signal.SIGKILL)
            worker.next_signal = (now + after[0], after[1])

    def escalate(self, now):
        """SPEC S-14."""
        for worker in self.workers.values():
            if worker.next_signal and worker.next_signal[0] <= now:
                if worker.next_signal[1] is None:
                    worker.next_signal = None
                    self.host.unkillable.append(worker.process)
                    self.tell("unkillable", pid=worker.process.pid)
                else:
                    self.host.send(worker.process, signal.SIGKILL)
                    self.tell("signal", pid=worker.process.pid, signal=int(signal.SIGKILL))
                    worker.next_signal = (now + UNKILLABLE_AFTER, None)


class VirtualProcess:
    def __init__(self, pid, start_time, uid, time_ns, zombie=False):
        self.pid, self.start_time, self.uid, self.time_ns = pid, start_time, uid, time_ns
        self.zombie = zombie


class VirtualHost:
    """The process table of a timeline."""

    def __init__(self, server, processes):
        self.pid, self.uid = server["pid"], server["uid"]
        self.pid_ns, self.time_ns = server["pid_ns"], server["time_ns"]
        self.table = {entry["pid"]: VirtualProcess(**entry) for entry in processes}
        self.unkillable = []

    def find(self, pid):
        return self.table.get(pid)

    def alive(self, process):
        return self.table.get(process.pid) is process and not process.zombie

    def send(self, process, number):
        pass  # the event is all there is

    send_self = send


def timeline(server, processes, steps):
    host = VirtualHost(server, processes)
    rules = Rules(host, server.get("kill_after"))
    events = []
    for step in steps:
        if "exit" in step:
            host.table.pop(step["exit"], None)
        if "zombie" in step:
            host.table[step["zombie"]].zombie = True
        if "spawn" in step:
            process = VirtualProcess(**step["spawn"])
            host.table[process.pid] = process
        data = bytes.fromhex(step.get("receive", ""))
        events.append(rules.wake(data, step["at"]["monotonic"], step["at"]["wall"]))
    return events


# ================================================================================ live server


def start_time_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


class RealProcess:
    """A process held by its pidfd: what the pid may name later is another one."""

    def __init__(self, pid):
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.zombie = bool(select.select([self.pidfd], [], [], 0)[0])
        try:
            self.start_time = start_time_of(pid)
            self.uid = os.stat(f"/proc/{pid}").st_uid
            self.time_ns = os.stat(f"/proc/{pid}/ns/time").st_ino
        except OSError:
            self.zombie = True

    def __del__(self):
        os.close(self.pidfd)


class RealHost:
    def __init__(self, uid):
        self.pid, self.uid = os.getpid(), uid
        self.pid_ns = os.stat("/proc/self/ns/pid").st_ino
        self.time_ns = os.stat("/proc/self/ns/time").st_ino
        self.known = {}
        self.unkillable = []

    def find(self, pid):
        try:
            if pid not in self.known or not self.alive(self.known[pid]):
                self.known[pid] = RealProcess(pid)
            return self.known[pid]
        except OSError:
            return None

    def alive(self, process):
        return not select.select([process.pidfd], [], [], 0)[0]

    def send(self, process, number):
        try:
            signal.pidfd_send_signal(process.pidfd, number)
        except ProcessLookupError:
            pass

    def send_self(self, number):
        os.kill(os.getpid(), number)


class Server:
    """A FIFO, a lock and a thread around the rules."""

    def __init__(self, path, kill_after=None):
        self.path = path
        self.made = False
        self.fifo = self.open()
        self.rules = Rules(RealHost(os.fstat(self.fifo).st_uid), kill_after)
        self.told = []
        self.wake_read, self.wake_write = os.pipe()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def open(self):
        if wrong("removes-whatever-is-at-the-path") and os.path.exists(self.path):
            os.remove(self.path)
        try:
            state = os.lstat(self.path)
        except FileNotFoundError:
            return self.make()
        ours = state.st_uid == os.geteuid() or wrong("serves-foreign-fifos")
        if not (stat.S_ISFIFO(state.st_mode) and ours):
            raise Refused("SPEC S-15: not a FIFO of this user")
        return self.hold(self.path)

    def make(self):
        """SPEC S-16: complete, and locked, before it has its name."""
        temporary = f"{self.path}.{os.getpid()}.tmp"
        os.mkfifo(temporary, 0o600)
        os.chmod(temporary, 0o644 if wrong("makes-a-readable-fifo") else 0o600)
        fifo = self.hold(temporary)
        os.rename(temporary, self.path)
        self.made = True
        return fifo

    def hold(self, path):
        mode = os.O_RDONLY if wrong("does-not-hold-the-writing-end") else os.O_RDWR
        fifo = os.open(path, mode | os.O_NONBLOCK)  # SPEC S-17
        try:
            if not wrong("takes-no-lock"):
                fcntl.flock(fifo, fcntl.LOCK_EX | fcntl.LOCK_NB)  # SPEC S-18
        except BlockingIOError:
            os.close(fifo)
            raise Refused("SPEC S-15: another server serves this path") from None
        return fifo

    def serve(self):
        poller = select.poll()
        poller.register(self.fifo, select.POLLIN)
        poller.register(self.wake_read, select.POLLIN)
        while True:
            poller.poll(self.sleep_time())
            if select.select([self.wake_read], [], [], 0)[0]:
                return
            self.told += self.rules.wake(self.read(), time.monotonic(), time.time())

    def sleep_time(self):
        if any(worker.next_signal for worker in self.rules.workers.values()):
            return 10  # deaths are noticed by looking; a server of consequence polls the pidfds
        due = self.rules.next_deadline() - time.monotonic()
        return max(0, math.ceil(min(due, 3600) * 1000))

    def read(self):
        """What is in the FIFO at this instant, and no more (SPEC S-7)."""
        if wrong("reads-until-a-line-ends") and self.rules.decoder.buffer:
            select.select([self.fifo], [], [])
        available = struct.unpack("i", fcntl.ioctl(self.fifo, termios.FIONREAD, b"\0" * 4))[0]
        data = os.read(self.fifo, available) if available else b""
        while wrong("lets-a-flood-postpone-a-kill") and data and self.more(1):
            self.rules.take(data, time.monotonic(), time.time())
            data = os.read(self.fifo, 65536)
        if wrong("takes-end-of-file-for-a-release"):
            self.notice_end_of_file(data)
        return data

    def more(self, seconds):
        return bool(select.select([self.fifo], [], [], seconds)[0])

    def notice_end_of_file(self, data):
        """As a server does that reads until the last client has closed."""
        if not data and self.rules.workers:
            self.rules.workers.clear()

    def stop(self):
        os.write(self.wake_write, b".")
        self.thread.join()
        ours = os.fstat(self.fifo)
        with contextlib.suppress(FileNotFoundError):
            now = os.lstat(self.path)
            same = (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino)
            if (self.made and same) or wrong("removes-what-it-did-not-make"):  # SPEC S-15
                os.remove(self.path)
        for fd in (self.fifo, self.wake_read, self.wake_write):
            os.close(fd)


# ===================================================================================== client

ACQUIRE_WAIT = 2  # SPEC C-1: seconds that an acquire waits for room in the pipe


class Client:
    def __init__(self, path, version):
        self.version = version
        self.path = path or self.path_from_environment()
        self.fd = -1
        self.pid = -1
        if wrong("creates-the-path") and not os.path.exists(self.path):
            os.mkfifo(self.path)
        self.left = {}  # (pid, scope, token) to the deadline: how long a release may wait
        if not wrong("writes-to-any-file"):
            self.check(os.stat(self.path))

    def path_from_environment(self):
        """SPEC T-1, C-9."""
        names = ["FILETIMER_PATH", "TORCHELASTIC_TIMER_FILE"]
        if wrong("prefers-torchs-variable"):
            names.reverse()
        for name in names:
            if os.environ.get(name) or (wrong("takes-an-empty-variable") and name in os.environ):
                return os.environ[name]
        if wrong("guesses-a-path"):
            guess = os.path.join(os.environ.get("TMPDIR", "/tmp"), "filetimer.fifo")
            open(guess, "a").close()
            return guess
        raise Refused("SPEC C-9: no path")

    def check(self, state):
        """SPEC C-4."""
        if not stat.S_ISFIFO(state.st_mode):
            raise Refused("SPEC C-4: not a FIFO")
        if state.st_uid not in (0, os.geteuid()) and not wrong("writes-to-foreign-fifos"):
            raise Refused("SPEC C-4: a FIFO of somebody else")

    def acquire(self, scope, after, number, token=None, wait=ACQUIRE_WAIT):
        now = time.monotonic()
        record = {**self.identity(), "scope_id": scope, "signal": number}
        record["expiration_time"] = round(time.time() + after, 6)
        if self.version == 2:
            record["deadline"] = round(now + after, 6)
        self.send(record, token, wait)
        self.left[record["pid"], scope, token] = now + after

    def release(self, scope, token=None, wait=None, identity=None):
        """Whether it was delivered; never an error (SPEC C-2)."""
        record = {
            **(identity or self.identity()),
            "scope_id": scope,
            "expiration_time": -1,
            "signal": 0,
        }
        if wrong("releases-with-its-signal"):
            record["signal"] = 9
        deadline = self.left.pop((record["pid"], scope, token), 0)
        if wait is None:
            wait = max(0, deadline - time.monotonic())
        try:
            self.send(record, token, wait)
        except OSError:
            if wrong("raises-from-release"):
                raise
            return False
        return True

    def identity(self):
        """SPEC C-6: asked anew after a fork."""
        if self.pid != os.getpid() and not (wrong("caches-the-pid-over-fork") and self.pid > 0):
            self.pid = os.getpid()
            self.start_time = start_time_of(self.pid)
        pid = threading.get_native_id() if wrong("writes-the-thread-id") else self.pid
        identity = {"version": self.version, "pid": pid}
        if self.version == 2:
            identity["start_time"] = self.start_time + wrong("guesses-its-start-time")
            identity["pid_ns"] = os.stat("/proc/self/ns/pid").st_ino
        return identity

    def send(self, record, token, wait):
        if token is not None:
            record["token"] = token
        line = encode(record)
        if wrong("waits-for-a-server"):
            wait = math.inf
        if wrong("gives-up-on-a-full-pipe-at-once"):
            wait = 0
        deadline = time.monotonic() + wait
        if self.fd < 0:
            self.fd = self.open()
        while True:
            try:
                return self.write(line)
            except BrokenPipeError:
                self.reopen()
            except BlockingIOError:
                if time.monotonic() >= deadline and not wrong("blocks-on-a-full-pipe"):
                    raise
                time.sleep(0.002)

    def open(self):
        flags = os.O_WRONLY if wrong("waits-for-a-server") else os.O_WRONLY | os.O_NONBLOCK
        fd = os.open(self.path, flags)
        os.set_inheritable(fd, wrong("leaks-its-descriptor"))  # SPEC C-5
        if not wrong("writes-to-any-file"):
            self.check(os.fstat(fd))
        return fd

    def reopen(self):
        """SPEC C-5: onto the same number, which at no time is free for somebody else's file."""
        if wrong("reopens-by-close-and-open"):
            os.close(self.fd)
            self.fd = -1
            self.fd = self.open()
            return
        fresh = self.open()
        os.dup2(fresh, self.fd, inheritable=False)
        os.close(fresh)

    def write(self, line):
        """One write (SPEC F-3), and no SIGPIPE left behind (SPEC C-3)."""
        if wrong("lets-sigpipe-through"):
            return os.write(self.fd, line)
        pending = signal.SIGPIPE in signal.sigpending()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
        try:
            if wrong("writes-in-two-pieces"):
                os.write(self.fd, line[:-1])
                return os.write(self.fd, line[-1:])
            return os.write(self.fd, line)
        except BrokenPipeError:
            if not pending:
                signal.sigtimedwait([signal.SIGPIPE], 0)
            raise
        finally:
            if not wrong("leaves-sigpipe-blocked"):
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Guard:
    """SPEC C-8, C-6."""

    def __init__(self, client, scope, after, wait):
        self.client, self.scope, self.pid = client, scope, os.getpid()
        self.token = random.SystemRandom().getrandbits(53) if client.version == 2 else None
        if wrong("one-token-for-every-guard"):
            self.token = 1
        client.acquire(scope, after, 9, self.token, wait)
        self.identity = client.identity()

    def leave(self, wait):
        if wrong("releases-without-the-token"):
            self.token = None
        if self.pid != os.getpid() and not wrong("a-child-releases-its-parents-guard"):
            return True
        return self.client.release(self.scope, self.token, wait, self.identity)


# ===================================================================================== driver

HELLO = {"name": "reference driver", "language": "Python", "versions": [1, 2]}
HELLO["roles"] = ["codec", "timeline", "client", "server"]


class Driver:
    """One method for each op of driver.md."""

    def __init__(self):
        self.client = self.server = None
        self.guards = {}
        self.in_handler = False

    def answer(self, request):
        method = getattr(self, "op_" + request.pop("op"), None)
        if method is None:
            return {"unsupported": "no such op"}
        try:
            return method(**request)
        except (Refused, OSError) as error:
            return {"error": str(error)}

    def op_hello(self):
        return {**HELLO, "pid": os.getpid()}

    def op_noop(self):
        return {"ok": True}

    def op_decode(self, reads):
        if wrong("hangs"):
            time.sleep(3600)
        if wrong("crashes"):
            os._exit(3)
        decoder = Decoder()
        return {"results": [v for read in reads for v in decoder.feed(bytes.fromhex(read))]}

    def op_encode(self, record):
        return {"hex": encode(record).hex()}

    def op_timeline(self, server, processes, steps):
        return {"events": timeline(server, processes, steps)}

    def op_open(self, version, path=None):
        if self.client and self.client.fd >= 0:
            os.close(self.client.fd)
        self.client = None
        self.client = Client(path, version)
        return {"ok": True}

    def op_acquire(self, scope_id, after, signal):
        if self.client is None:
            raise Refused("no client is open")
        self.client.acquire(scope_id, after, signal, wait=self.waiting(ACQUIRE_WAIT))
        return {"ok": True}

    def op_release(self, scope_id):
        if self.client is None:
            return {"ok": False, "why": "no client is open"}
        return {"ok": self.client.release(scope_id, wait=self.waiting(None))}

    def waiting(self, usual):
        """SPEC C-1: in a signal handler nothing waits."""
        return usual if not self.in_handler or wrong("waits-in-a-signal-handler") else 0

    def op_enter(self, guard, scope_id, after):
        wait = self.waiting(ACQUIRE_WAIT)
        self.guards[guard] = Guard(self.client, scope_id, after, wait)
        return {"ok": True}

    def op_leave(self, guard):
        # A child's leave goes through its own copy of the guard.
        return {"ok": self.guards[guard].leave(self.waiting(None))}

    def op_fork(self, do):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write, json.dumps([self.answer(request) for request in do]).encode())
            os._exit(0)
        os.close(write)
        with open(read) as replies:
            told = json.load(replies)
        os.waitpid(pid, 0)
        return {"ok": True, "pid": pid, "replies": told}

    def op_thread(self, do):
        replies = []
        thread = threading.Thread(target=lambda: replies.extend(map(self.answer, do)))
        thread.start()
        thread.join()
        return {"ok": True, "replies": replies}

    def op_handler(self, do):
        replies = []

        def handler(number, frame):
            self.in_handler = True
            replies.extend(map(self.answer, do))
            self.in_handler = False

        signal.signal(signal.SIGUSR1, handler)
        signal.raise_signal(signal.SIGUSR1)
        return {"ok": True, "replies": replies}

    def op_close_fd(self, fd):
        os.close(fd)
        return {"ok": True}

    def op_start(self, path, kill_after=None):
        self.server = Server(path, kill_after)
        return {"ok": True, "pid": os.getpid()}

    def op_events(self):
        told, self.server.told = self.server.told, []
        return {"events": told[-100:], "rejected": self.server.rules.rejected}

    def op_stop(self):
        self.server.stop()
        self.server = None
        return {"ok": True}


def names_of_wrongs():
    with open(__file__) as source:
        text = source.read()
    names = set(re.findall(r'wrong\("([a-z0-9-]+)"\)', text))
    reasons = ["init", "self", "zombie", "start-time"]
    reasons += ["foreign-pid-ns", "foreign-uid", "foreign-time-ns"]
    return sorted(names | {"does-not-refuse-" + reason for reason in reasons})


def main():
    global WRONG
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wrong", choices=names_of_wrongs(), metavar="NAME", default="")
    parser.add_argument("--list", action="store_true", help="print the wrong behaviours")
    options = parser.parse_args()
    if options.list:
        print("\n".join(names_of_wrongs()))
        return
    WRONG = options.wrong
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as driver.md asks
    driver = Driver()
    for line in sys.stdin:
        print(json.dumps(driver.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
