"""The live cases of the role client: the runner owns the FIFO and reads what arrives.

Each function is named after its case in `vectors/live/client.json`, which says what is tried.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import oracle, procfs
from .cases import Case
from .link import Driver, Message
from .session import Session
from .verdicts import Failure, expect

_STRANGER = 65534  # "nobody": some other user, of whom only a file is made
_FULL_PIPE_BOUND = 5.0  # seconds; SPEC C-1 asks for a bound, the kit for one that one can wait for
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LENGTHS_TRIED = 10  # a record's length varies with the trailing zeros of its times
_AT_ONCE = 0.8  # seconds; what "nothing waits" may take on a busy machine
_TRIED = 0.5  # seconds after which a client has met the full pipe, on a busy machine too

ACQUIRE: Message = {"op": "acquire", "scope_id": "a", "after": 60, "signal": 9}
RELEASE: Message = {"op": "release", "scope_id": "a"}


class Pipe:
    """A FIFO whose reader is the runner."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.mkfifo(path, 0o600)
        self._reader = -1
        self.listen()

    def listen(self) -> None:
        self._reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def leave(self) -> None:
        """The server goes: the FIFO has no reader any more.

        A process that another thread is just forking has the descriptor until its exec: so the
        kernel is asked whether there is still somebody.
        """
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1
            deadline = time.monotonic() + 5
            while self._has_reader() and time.monotonic() < deadline:
                time.sleep(0.001)

    def _has_reader(self) -> bool:
        try:
            os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            return error.errno != errno.ENXIO
        return True

    def read(self) -> bytes:
        data = b""
        while True:
            try:
                chunk = os.read(self._reader, 65536)
            except BlockingIOError:
                return data
            if not chunk:
                return data
            data += chunk

    def fill(self) -> None:
        """Until not one byte more goes in."""
        writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            for size in (4096, 1):
                try:
                    while True:
                        os.write(writer, b"#" * size)
                except BlockingIOError:
                    pass
        finally:
            os.close(writer)

    def leave_room_for(self, room: int) -> None:
        """One page, filled up to the last `room` bytes: there a further write goes in or waits."""
        fcntl.fcntl(self._reader, fcntl.F_SETPIPE_SZ, _PAGE)
        writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(writer, b"#" * (_PAGE - room))
        finally:
            os.close(writer)

    def drain_after_fill(self) -> bytes:
        return self.read().lstrip(b"#")


class Client:
    """A driver in the role client, and the FIFO that it is to write to."""

    def __init__(self, driver: Driver, pipe: Pipe, version: int) -> None:
        self.driver, self.pipe, self.version = driver, pipe, version
        self.pid = int(driver.hello.get("pid", driver.pid))

    def ask(self, message: Message, timeout: float | None = None) -> Message:
        return self.driver.request(message, timeout)

    def open(self, path: str | None = "") -> Message:
        """The FIFO of the case; None leaves the path to the environment."""
        message: Message = {"op": "open", "version": self.version}
        if path is not None:
            message["path"] = path or self.pipe.path
        return self.ask(message)

    def done(self, message: Message) -> Message:
        """Asks for what must succeed."""
        reply = self.ask(message)
        expect(reply.get("ok") is True, {"ok": True}, reply, message)
        return reply

    def opened(self) -> None:
        reply = self.open()
        expect(reply.get("ok") is True, {"ok": True}, reply, {"op": "open"})

    def lines(self) -> list[bytes]:
        return self.pipe.read().splitlines(keepends=True)

    def records(self, number: int, raw: bytes | None = None) -> list[oracle.Record]:
        """The records that arrived, which must be this many and free of a sender's faults."""
        data = self.pipe.read() if raw is None else raw
        lines = data.splitlines(keepends=True)
        faults = [
            f"SPEC {spec}: {what}" for line in lines for spec, what in oracle.sender_faults(line)
        ]
        expect(not faults, "lines that a sender may write", {"faults": faults, "lines": lines})
        expect(len(lines) == number, f"{number} records", lines)
        return [oracle.parse(line) for line in lines]


Check = Callable[["Bench"], None]
CHECKS: dict[str, Check] = {}


class Bench:
    """What a case has at hand."""

    def __init__(self, session: Session, folder: str) -> None:
        self.session, self.folder = session, folder
        self._pipes: list[Pipe] = []

    def pipe(self, name: str = "fifo") -> Pipe:
        pipe = Pipe(os.path.join(self.folder, name))
        self._pipes.append(pipe)
        return pipe

    @contextmanager
    def client(self) -> Iterator[Client]:
        """The shared driver with a client on a FIFO of this case."""
        with self.session.shared() as driver:
            client = Client(driver, self.pipe(), self.session.version)
            client.opened()
            yield client

    @contextmanager
    def fresh(self, env: Mapping[str, str] | None = None, **options: Any) -> Iterator[Client]:
        """A driver of the case's own, with a FIFO, and nothing opened."""
        with self.session.fresh(env, **options) as driver:
            yield Client(driver, self.pipe(), self.session.version)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.leave()


def run_client(case: Case, session: Session) -> None:
    check = CHECKS[case.name]
    with TemporaryDirectory(prefix="filetimer-") as folder:
        os.chmod(folder, 0o755)
        bench = Bench(session, folder)
        try:
            check(bench)
        finally:
            bench.close()


def _case(check: Check) -> Check:
    CHECKS[check.__name__.replace("_", "-")] = check
    return check


# --------------------------------------------------------------------------------------- records


@_case
def client_acquire_arrives(bench: Bench) -> None:
    with bench.client() as client:
        before = time.time()
        client.done(ACQUIRE)
        after = time.time()
        (record,) = client.records(1)
        told = {key: record[key] for key in ("pid", "scope_id", "signal")}
        want = {"pid": client.pid, "scope_id": "a", "signal": 9}
        expect(told == want, want, record)
        # The clock of a shell may tick in whole seconds.
        low, high = before + 60 - 1.001, after + 60 + 0.001
        expect(low <= record["expiration_time"] <= high, f"a time in [{low}, {high}]", record)


@_case
def client_release_arrives(bench: Bench) -> None:
    with bench.client() as client:
        client.done(ACQUIRE)
        client.done(RELEASE)
        first, second = client.records(2)
        expect(second["expiration_time"] < 0, "a release", second)
        same = ("pid", "scope_id", "token")
        want = {key: first.get(key) for key in same}
        expect({key: second.get(key) for key in same} == want, want, second)


@_case
def client_repeats_no_field(bench: Bench) -> None:
    with bench.client() as client:
        client.done(ACQUIRE)
        client.done(RELEASE)
        for line in client.lines():
            repeated = oracle.repeated_fields(line)
            expect(not repeated, "every field once", line)


@_case
def client_sends_the_version_asked_for(bench: Bench) -> None:
    with bench.client() as client:
        client.done(ACQUIRE)
        client.done(RELEASE)
        for line in client.lines():
            fields = json.loads(line)
            known = set(oracle.REQUIRED) | (set(oracle.OPTIONAL) if client.version == 2 else set())
            strange = [key for key in fields if key not in known and not key.startswith("x_")]
            expect(fields["version"] == client.version, f"version {client.version}", line)
            expect(not strange, f"only the fields of version {client.version}", line)


@_case
def client_identity_is_true(bench: Bench) -> None:
    with bench.client() as client:
        before = time.monotonic()
        client.done(ACQUIRE)
        client.done(RELEASE)
        after = time.monotonic()
        for record in client.records(2):
            _identity(record, client.pid)
            if "deadline" in record:
                low, high = before + 60 - 0.01, after + 60 + 0.01
                expect(low <= record["deadline"] <= high, f"a deadline in [{low}, {high}]", record)


def _identity(record: oracle.Record, pid: int) -> None:
    want = {"pid": pid, "start_time": procfs.start_time(pid), "pid_ns": procfs.pid_ns(pid)}
    for field, value in want.items():
        if field in record:
            expect(record[field] == value, {field: value}, record)


@_case
def client_escapes_the_scope(bench: Bench) -> None:
    with bench.client() as client:
        scopes = [
            'say "hi" \\ C:\\x',
            "two\nlines\ttab",
            "\u00e9\u4e2d",
            "\U0001f600",
            '{"version":',
        ]
        for scope in scopes:
            client.done({**ACQUIRE, "scope_id": scope})
        got = [record["scope_id"] for record in client.records(len(scopes))]
        expect(got == scopes, scopes, got)


@_case
def client_refuses_a_line_over_pipe_buf(bench: Bench) -> None:
    with bench.client() as client:
        reply = client.ask({**ACQUIRE, "scope_id": "s" * 5000})
        expect(reply.get("ok") is not True, "an error", reply)
        expect(not (data := client.pipe.read()), "no bytes", data[:200])


@_case
def client_refuses_an_empty_scope(bench: Bench) -> None:
    with bench.client() as client:
        client.ask({**ACQUIRE, "scope_id": ""})
        lines = client.lines()
        empty = [line for line in lines if not oracle.parse(line)["scope_id"]]
        expect(not empty, "no record with an empty scope_id", lines)


@_case
def client_one_write_a_record(bench: Bench) -> None:
    """The kernel keeps a write whole: one that finds too little room waits, or fails, entirely.

    So the pipe is given room for all of the record but its last byte. A record in one write stays
    out of it; of a record in several writes the first one is found there.
    """
    with bench.client() as client:
        client.done(ACQUIRE)
        length = len(client.pipe.read())
        for _ in range(_LENGTHS_TRIED):
            found, rest = _acquire_into_room_for(client, length - 1)
            whole = not found or found.endswith(b"\n")
            expect(whole, "nothing, or a whole line", found)
            arrived = len(found + rest)
            if arrived in (0, length):  # the record was as long as foreseen: that was the proof
                return
            length = arrived  # a digit more or less: once more


def _acquire_into_room_for(client: Client, room: int) -> tuple[bytes, bytes]:
    """What got into the pipe while it had this much room, and what after it was drained."""
    client.pipe.leave_room_for(room)
    found: list[bytes] = []
    timer = threading.Timer(_TRIED, lambda: found.append(client.pipe.drain_after_fill()))
    timer.start()
    try:
        client.ask(ACQUIRE)
    finally:
        timer.join()
    return found[0], client.pipe.read()


@_case
def client_writes_a_decimal_point_in_every_locale(bench: Bench) -> None:
    with bench.fresh({"LC_ALL": "de_DE.UTF-8"}) as client:
        client.opened()
        client.done({**ACQUIRE, "after": 60.5})
        client.records(1)


# ------------------------------------------------------------------------------------- the path


def _arrives(bench: Bench, environment: Callable[[Pipe, Pipe], dict[str, str]]) -> None:
    """Two FIFOs, the first of which is the one that the environment must lead to."""
    right, wrong = bench.pipe("right"), bench.pipe("wrong")
    with bench.fresh(environment(right, wrong)) as client:
        reply = client.open(None)
        expect(reply.get("ok") is True, {"ok": True}, reply)
        client.done(ACQUIRE)
        client.records(1, right.read())
        expect(not (data := wrong.read()), "nothing in the other FIFO", data)


@_case
def client_path_from_filetimer_path(bench: Bench) -> None:
    _arrives(bench, lambda right, _: {"FILETIMER_PATH": right.path})


@_case
def client_path_from_torchelastic_timer_file(bench: Bench) -> None:
    _arrives(bench, lambda right, _: {"TORCHELASTIC_TIMER_FILE": right.path})


@_case
def client_filetimer_path_comes_first(bench: Bench) -> None:
    _arrives(
        bench,
        lambda right, wrong: {"FILETIMER_PATH": right.path, "TORCHELASTIC_TIMER_FILE": wrong.path},
    )


@_case
def client_empty_variable_counts_as_unset(bench: Bench) -> None:
    _arrives(bench, lambda right, _: {"FILETIMER_PATH": "", "TORCHELASTIC_TIMER_FILE": right.path})


@_case
def client_guesses_no_path(bench: Bench) -> None:
    empty = os.path.join(bench.folder, "empty")
    os.mkdir(empty)
    before = set(os.listdir())
    with bench.fresh({"TMPDIR": empty}) as client:
        reply = client.open(None)
        if "error" not in reply:
            reply = client.ask(ACQUIRE)
        expect(reply.get("ok") is not True, "no acquire that is said to be delivered", reply)
        made = [*os.listdir(empty), *(set(os.listdir()) - before)]
        expect(not made, "nothing created", made)


@_case
def client_creates_nothing(bench: Bench) -> None:
    missing = os.path.join(bench.folder, "missing")
    with bench.session.shared() as driver:
        client = Client(driver, bench.pipe(), bench.session.version)
        _refused(client, missing)
        expect(not os.path.lexists(missing), "nothing at the path", os.listdir(bench.folder))


@_case
def client_refuses_a_regular_file(bench: Bench) -> None:
    file = Path(bench.folder, "precious")
    file.write_bytes(b"precious\n")
    with bench.session.shared() as driver:
        client = Client(driver, bench.pipe(), bench.session.version)
        _refused(client, str(file))
        client.ask(RELEASE)
        expect((data := file.read_bytes()) == b"precious\n", b"precious\n", data)


@_case
def client_refuses_a_foreign_fifo(bench: Bench) -> None:
    foreign = bench.pipe("foreign")
    os.chown(foreign.path, _STRANGER, _STRANGER)
    os.chmod(foreign.path, 0o666)
    with bench.session.shared() as driver:
        client = Client(driver, bench.pipe(), bench.session.version)
        _refused(client, foreign.path)
        expect(not (data := foreign.read()), "nothing arrives", data)


def _refused(client: Client, path: str) -> None:
    """SPEC C-4: by `open`, or by the first acquire."""
    reply = client.open(path)
    if "error" not in reply:
        reply = client.ask(ACQUIRE)
    expect(reply.get("ok") is not True, "an error from open or from acquire", reply)


# ------------------------------------------------------------------------- a server that is gone


@_case
def client_reports_a_missing_server(bench: Bench) -> None:
    with bench.session.shared() as driver:
        client = Client(driver, bench.pipe(), bench.session.version)
        client.pipe.leave()
        _refused(client, client.pipe.path)


@_case
def client_release_without_a_server_is_quiet(bench: Bench) -> None:
    with bench.client() as client:
        client.done(ACQUIRE)
        client.pipe.leave()
        reply = client.ask(RELEASE)
        expect("error" not in reply, "no error", reply)


@_case
def client_raises_no_sigpipe(bench: Bench) -> None:
    with bench.client() as client:
        before = procfs.signal_masks(client.pid)
        client.done(ACQUIRE)
        client.pipe.leave()
        client.ask(ACQUIRE)
        client.ask(RELEASE)
        client.done({"op": "noop"})  # a pending SIGPIPE that was let in would end the driver here
        after = procfs.signal_masks(client.pid)
        want = {name: bool(bits & procfs.SIGPIPE_BIT) for name, bits in before.items()}
        got = {name: bool(bits & procfs.SIGPIPE_BIT) for name, bits in after.items()}
        expect(got == want, want, got)


@_case
def client_finds_a_returned_server(bench: Bench) -> None:
    with bench.client() as client:
        client.done(ACQUIRE)
        client.records(1)
        client.pipe.leave()
        reply = client.ask(ACQUIRE)
        expect(reply.get("ok") is not True, "an error", reply)
        client.pipe.listen()
        client.done(ACQUIRE)
        client.records(1)


@_case
def client_reopens_onto_the_same_number(bench: Bench) -> None:
    # The shell leaves descriptor 3 behind: a number below that of the FIFO, to be freed later.
    with bench.fresh(prefix=("sh", "-c", 'exec 3</dev/null; exec "$@"', "sh")) as client:
        client.opened()
        client.done(ACQUIRE)
        before = procfs.descriptors_of(client.pid, client.pipe.path)
        client.done({"op": "close_fd", "fd": 3})
        client.pipe.leave()
        client.ask(ACQUIRE)
        client.pipe.listen()
        client.done(ACQUIRE)
        after = procfs.descriptors_of(client.pid, client.pipe.path)
        expect(set(after) <= set(before), {"descriptors": [*before]}, {"descriptors": [*after]})


@_case
def client_descriptor_is_close_on_exec(bench: Bench) -> None:
    with bench.client() as client:
        client.done(ACQUIRE)
        kept = procfs.descriptors_of(client.pid, client.pipe.path)
        expect(all(kept.values()), "FD_CLOEXEC on every descriptor of the FIFO", kept)


# ------------------------------------------------------------------------------------ a full pipe


@_case
def client_full_pipe_acquire_is_bounded(bench: Bench) -> None:
    with bench.client() as client:
        client.pipe.fill()
        reply = client.ask(ACQUIRE, _FULL_PIPE_BOUND)
        expect(reply.get("ok") is not True, "an error: the pipe is full", reply)
        expect(not (data := client.pipe.drain_after_fill()), "nothing arrives", data)


@_case
def client_full_pipe_acquire_waits(bench: Bench) -> None:
    with bench.client() as client:
        client.pipe.fill()
        drained: list[bytes] = []
        timer = threading.Timer(_TRIED, lambda: drained.append(client.pipe.read()))
        timer.start()
        try:
            reply = client.ask(ACQUIRE)
        finally:
            timer.join()
        expect(reply.get("ok") is True, {"ok": True}, reply, ACQUIRE)
        client.records(1, (drained[0] + client.pipe.read()).lstrip(b"#"))


def _release_into_a_full_pipe(client: Client) -> tuple[Message, float]:
    client.done({**ACQUIRE, "after": 1})
    client.pipe.read()
    client.pipe.fill()
    start = time.monotonic()
    reply = client.ask(RELEASE, _FULL_PIPE_BOUND)
    return reply, time.monotonic() - start


@_case
def client_full_pipe_release_is_bounded(bench: Bench) -> None:
    with bench.client() as client:
        _, took = _release_into_a_full_pipe(client)
        expect(took < 3, "at most what is left of the timer, 1 s, and 2 s", f"{took:.3f} s")


@_case
def client_full_pipe_release_is_quiet(bench: Bench) -> None:
    with bench.client() as client:
        reply, _ = _release_into_a_full_pipe(client)
        expect("error" not in reply, "no error", reply)


@_case
def client_in_a_signal_handler_waits_not(bench: Bench) -> None:
    with bench.client() as client:
        enter: Message = {"op": "enter", "guard": "g", "scope_id": "a", "after": 60}
        client.done(enter)
        client.pipe.read()
        client.pipe.fill()
        for message in ({**enter, "guard": "h"}, {"op": "leave", "guard": "g"}):
            start = time.monotonic()
            client.ask({"op": "handler", "do": [message]}, _FULL_PIPE_BOUND)
            took = time.monotonic() - start
            expect(took < _AT_ONCE, f"{message['op']} returns at once", f"{took:.3f} s")


# ------------------------------------------------------------------------------ forks and threads


@_case
def client_child_writes_its_own_pid(bench: Bench) -> None:
    with bench.client() as client:
        client.done(ACQUIRE)
        parent = procfs.start_time(client.pid)
        time.sleep(0.02)  # start times tick in 10 ms
        reply = client.done({"op": "fork", "do": [ACQUIRE]})
        first, second = client.records(2)
        expect(first["pid"] == client.pid, {"pid": client.pid}, first)
        expect(second["pid"] == reply["pid"], {"pid": reply["pid"]}, second)
        if "start_time" in second:
            expect(second["start_time"] > parent, f"a start_time after {parent}", second)


@_case
def client_child_releases_not_its_parents_timer(bench: Bench) -> None:
    with bench.client() as client:
        client.done(ACQUIRE)
        client.done({"op": "fork", "do": [RELEASE]})
        _names_only_the_acquire(client)


@_case
def client_child_leaves_not_its_parents_guard(bench: Bench) -> None:
    with bench.client() as client:
        client.done({"op": "enter", "guard": "g", "scope_id": "a", "after": 60})
        (acquire,) = client.records(1)
        client.done({"op": "fork", "do": [{"op": "leave", "guard": "g"}]})
        named = [r for line in client.lines() if (r := oracle.parse(line))["pid"] == client.pid]
        expect(not named, "no record of the child names the parent", named)
        client.done({"op": "leave", "guard": "g"})
        (release,) = client.records(1)
        want = (client.pid, "a", acquire.get("token"))
        expect((release["pid"], release["scope_id"], release.get("token")) == want, want, release)


def _names_only_the_acquire(client: Client) -> None:
    records = [oracle.parse(line) for line in client.lines()]
    named = [record for record in records if record["pid"] == client.pid]
    expect(len(named) == 1, "no record of the child names the parent", records)


@_case
def client_parent_is_itself_after_a_fork(bench: Bench) -> None:
    with bench.client() as client:
        client.done({"op": "fork", "do": [ACQUIRE]})
        client.done(ACQUIRE)
        record = client.records(2)[1]
        _identity(record, client.pid)


@_case
def client_thread_writes_the_process_id(bench: Bench) -> None:
    with bench.client() as client:
        client.done({"op": "thread", "do": [ACQUIRE]})
        client.done(RELEASE)
        pids = [record["pid"] for record in client.records(2)]
        expect(pids == [client.pid] * 2, [client.pid] * 2, pids)


# ---------------------------------------------------------------------------------------- guards


@_case
def client_guard_has_a_token(bench: Bench) -> None:
    with bench.client() as client:
        for guard in ("outer", "inner"):
            client.done({"op": "enter", "guard": guard, "scope_id": "a", "after": 60})
        for guard in ("inner", "outer"):
            client.done({"op": "leave", "guard": guard})
        records = client.records(4)
        tokens = [record.get("token") for record in records]
        paired = None not in tokens and tokens[0] != tokens[1] and tokens[2:] == tokens[1::-1]
        expect(paired, "tokens x, y, y, x", tokens)


@_case
def client_guard_releases_on_leaving(bench: Bench) -> None:
    with bench.client() as client:
        client.done({"op": "enter", "guard": "g", "scope_id": "a", "after": 60})
        client.done({"op": "leave", "guard": "g"})
        first, second = client.records(2)
        if first["expiration_time"] < 0 or second["expiration_time"] >= 0:
            raise Failure("an acquire and a release", [first, second])
        expect(first["scope_id"] == second["scope_id"] == "a", "scope_id a", [first, second])
