"""The two clients of a FIFO, in Python and in C, against a pipe that the test reads itself.

What holds for one holds for the other: a test that takes ``client`` runs with both, and with both
ways of writing without SIGPIPE.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

import filetimer as timer
from filetimer.client import pipe as pipe_module

Client = timer.FileTimerClient | timer.NativeTimerClient if TYPE_CHECKING else timer.TimerClient


class Reader:
    """Both ends of the FIFO, as a server holds them."""

    def __init__(self, path: str, locked: bool = True) -> None:
        self.path = path
        if not os.path.exists(path):
            os.mkfifo(path)
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        if locked:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def raw(self) -> bytes:
        chunks = b""
        while True:
            try:
                chunks += os.read(self.fd, 1 << 20)
            except BlockingIOError:
                return chunks

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.raw().splitlines()]

    def fill(self) -> None:
        filler = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            while True:
                os.write(filler, b"x" * 4095 + b"\n")
        except BlockingIOError:
            os.close(filler)

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def reader(fifo_path: str) -> Iterator[Reader]:
    reader = Reader(fifo_path)
    yield reader
    try:
        reader.close()
    except OSError:
        pass


def need_native() -> Any:
    """The module of NativeTimerClient; where it was not compiled the test is skipped, or fails."""
    try:
        return importlib.import_module("filetimer.client.native_client")
    except ImportError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(params=["file", "native"])
def make(request: pytest.FixtureRequest) -> type[Client]:
    """The class of a client."""
    if request.param == "native":
        need_native()
        return timer.NativeTimerClient
    return timer.FileTimerClient


@pytest.fixture(params=["nosignal", "masked"])
def client(
    request: pytest.FixtureRequest,
    make: type[Client],
    fifo_path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Client:
    """The same tests over both clients and both ways of writing without SIGPIPE (SPEC C-3)."""
    if request.param == "nosignal" and not pipe_module._has_nosignal():
        pytest.skip("this kernel has no RWF_NOSIGNAL (Linux 6.18)")
    monkeypatch.setattr(pipe_module, "_has_nosignal", lambda: request.param == "nosignal")
    if make is not timer.FileTimerClient and request.param == "masked":
        native = need_native()
        monkeypatch.setattr(native, "INIT_FLAGS", native.lib.FILETIMER_MASK_SIGPIPE)
    return make(fifo_path, timeout=0.2)


def descriptor(client: Client) -> int:
    """The number that the client writes to; -1: none yet."""
    pipe = getattr(client, "_pipe", None)
    number: int = client._client.fd_ if pipe is None else pipe.fd
    return number


def own_start_time() -> int:
    return int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])


def test_acquire_and_release(client: Client, reader: Reader) -> None:
    client.acquire("s", time.time() + 60)
    client.release("s")
    acquire, release = reader.records()
    assert next(iter(acquire)) == "version"
    assert acquire["pid"] == release["pid"] == os.getpid()
    assert acquire["signal"] == signal.SIGKILL
    assert abs(acquire["expiration_time"] - time.time() - 60) < 5
    assert abs(acquire["deadline"] - time.monotonic() - 60) < 5
    assert acquire["start_time"] == own_start_time()
    assert acquire["pid_ns"] == os.stat("/proc/self/ns/pid").st_ino
    assert "token" not in acquire
    assert (release["expiration_time"], release["signal"]) == (-1, 0)


def test_attributes(client: Client, reader: Reader) -> None:
    client.set_attributes({"rank": 3})
    client.acquire("s", time.time() + 60)
    with timer.expires(60, "s", client) as plain:
        plain.extend(60)
    with timer.expires(60, "s", client, attributes={"step": 7, "rank": 4}) as own:
        own.extend(60)
    client.set_attributes({})
    client.acquire("t", time.time() + 60)
    found = [(r["signal"], r.get("attributes")) for r in reader.records()]
    of_all, of_one = {"rank": 3}, {"rank": 4, "step": 7}
    assert found == [
        (9, of_all), (9, of_all), (9, of_all), (0, None), (9, of_one), (9, of_one), (0, None),
        (9, None),
    ]  # fmt: skip


def test_attributes_that_are_not_allowed(client: Client, reader: Reader) -> None:
    with pytest.raises(ValueError, match="must be a string"):
        client.begin("s", 60, attributes={"loss": [1]})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="too many"):
        client.set_attributes(dict.fromkeys("abcdefghi", 1))
    client.begin("s", 60).end()
    assert ["attributes" in record for record in reader.records()] == [False, False]


def test_attributes_are_set_while_a_plain_timer_is_open(client: Client, reader: Reader) -> None:
    """Its release still waits for what the timer has left (SPEC C-1)."""
    client.acquire("s", time.time() + 60)
    client.set_attributes({"rank": 3})
    reader.raw()
    reader.fill()
    drained: list[bytes] = []  # the release too, if it comes while the pipe is being drained
    drain = threading.Timer(0.3, lambda: drained.append(reader.raw()))
    drain.start()
    client.release("s")
    drain.join()
    records = (drained[0] + reader.raw()).splitlines()
    assert json.loads(records[-1])["expiration_time"] == -1


def test_attributes_in_a_forked_child(client: Client, reader: Reader) -> None:
    client.set_attributes({"rank": 3})
    child = os.fork()
    if not child:
        with timer.expires(60, "s", client, attributes={"step": 1}), timer.expires(60, "s", client):
            pass
        os._exit(0)
    os.waitpid(child, 0)
    found = [(r["pid"], r.get("attributes")) for r in reader.records()]
    assert found == [
        (child, {"rank": 3, "step": 1}), (child, {"rank": 3}), (child, None), (child, None),
    ]  # fmt: skip


@pytest.mark.parametrize("asynchronous", [False, True])
def test_attributes_of_a_decorated_function(
    client: Client, reader: Reader, asynchronous: bool
) -> None:
    guard = timer.expires(60, "s", client, attributes={"step": 1})
    if asynchronous:

        @guard
        async def work() -> None:
            pass

        asyncio.run(work())
    else:
        guard(lambda: None)()
    assert reader.records()[0]["attributes"] == {"step": 1}


def test_version_1(fifo_path: str, reader: Reader) -> None:
    client = timer.FileTimerClient(fifo_path, signal=15, version=1)
    with timer.expires(60, scope="s", client=client):
        pass
    keys = ["version", "pid", "scope_id", "expiration_time", "signal"]
    assert [list(record) for record in reader.records()] == [keys, keys]


def test_each_block_has_a_token_of_its_own(client: Client, reader: Reader) -> None:
    with timer.expires(60, scope="s", client=client), timer.expires(60, scope="s", client=client):
        pass
    tokens = [record["token"] for record in reader.records()]
    assert tokens[0] != tokens[1]
    assert tokens[2:] == [tokens[1], tokens[0]]


def test_extend_keeps_the_token(client: Client, reader: Reader) -> None:
    with timer.expires(60, client=client):
        timer.extend(600)
    first, second, last = reader.records()
    assert first["token"] == second["token"] == last["token"]
    assert second["deadline"] - first["deadline"] > 500


def test_a_record_is_one_write_of_one_line(client: Client, reader: Reader) -> None:
    """SPEC F-1, F-3: what one read gets is whole lines."""
    for _ in range(20):
        client.acquire("s\n\"'\\é\u2028", time.time() + 60)
    lines = reader.raw().split(b"\n")
    assert lines[-1] == b""
    assert {json.loads(line)["scope_id"] for line in lines[:-1]} == {"s\n\"'\\é\u2028"}


def test_no_server_at_all_is_a_broken_pipe(client: Client, fifo_path: str) -> None:
    with pytest.raises(BrokenPipeError, match="no timer server"):
        client.acquire("s", time.time() + 60)
    assert not os.path.exists(fifo_path)  # SPEC T-2


def test_a_server_may_turn_up_after_its_client(make: type[Client], fifo_path: str) -> None:
    client = make(fifo_path, timeout=20)
    late: list[Reader] = []
    starter = threading.Timer(0.2, lambda: late.append(Reader(fifo_path)))
    starter.start()
    client.acquire("s", time.time() + 60)
    starter.join()
    assert len(late[0].records()) == 1
    late[0].close()


def test_a_server_that_is_gone_is_a_broken_pipe(client: Client, reader: Reader) -> None:
    client.acquire("s", time.time() + 60)
    reader.close()
    with pytest.raises(BrokenPipeError, match="not acquired"):
        client.acquire("s", time.time() + 60)


def test_a_release_without_a_server_is_logged_once(
    client: Client, reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    """SPEC C-2."""
    caplog.set_level(logging.WARNING, "filetimer")
    with timer.expires(60, client=client):
        reader.close()
    client.release("s")
    client.release("s")
    assert len(caplog.records) == 1
    assert "not released" in caplog.text


def test_the_descriptor_keeps_its_number_when_the_server_comes_back(
    client: Client, reader: Reader, fifo_path: str
) -> None:
    """SPEC C-5."""
    client.acquire("s", time.time() + 60)
    number = descriptor(client)
    reader.close()
    os.unlink(fifo_path)
    with pytest.raises(BrokenPipeError):
        client.acquire("s", time.time() + 60)
    back = Reader(fifo_path)
    client.acquire("s", time.time() + 60)
    assert descriptor(client) == number
    assert not os.get_inheritable(number)
    assert len(back.records()) == 1
    back.close()


def test_a_full_pipe_is_waited_for_but_not_forever(client: Client, reader: Reader) -> None:
    """SPEC C-1."""
    client.acquire("s", time.time() + 60)
    reader.fill()
    with pytest.raises(BrokenPipeError, match="full"):
        client.acquire("s", time.time() + 60)
    drain = threading.Timer(0.05, reader.raw)
    client.timeout = 20
    drain.start()
    client.acquire("s", time.time() + 60)
    drain.join()


def test_a_release_waits_for_no_more_than_its_timer_has_left(
    client: Client, reader: Reader
) -> None:
    handle = client.begin("s", 0.3)
    reader.fill()
    handle.end()  # comes back without an error although nobody ever reads
    handle = None  # type: ignore[assignment]
    reader.raw()


def test_async_code_does_not_block_its_loop_on_a_full_pipe(client: Client, reader: Reader) -> None:
    client.acquire("s", time.time() + 60)
    client.timeout = 20
    reader.fill()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1
            if ticks == 20:
                reader.raw()

    async def main() -> None:
        ticker = asyncio.create_task(tick())
        async with timer.expires(60, client=client):
            assert ticks >= 20
        ticker.cancel()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_long_scope_is_a_runtime_error(client: Client, reader: Reader) -> None:
    with pytest.raises(RuntimeError, match="shorter scope"):
        client.acquire("x" * 5000, time.time() + 60)
    assert reader.raw() == b""


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_expiration_time_is_checked(client: Client, value: float) -> None:
    with pytest.raises(ValueError, match="finite Unix time"):
        client.acquire("s", value)


def test_an_empty_scope_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="empty"):
        client.acquire("", time.time() + 60)


@pytest.mark.parametrize("kind", ["file", "directory", "socket"])
def test_what_is_not_a_fifo_is_refused(client: Client, fifo_path: str, kind: str) -> None:
    """SPEC C-4: and nothing is written to it."""
    if kind == "file":
        open(fifo_path, "w").close()
    elif kind == "directory":
        os.mkdir(fifo_path)
    else:
        socket.socket(socket.AF_UNIX).bind(fifo_path)
    with pytest.raises(BrokenPipeError, match="not acquired"):
        client.acquire("s", time.time() + 60)
    assert kind != "file" or os.path.getsize(fifo_path) == 0


def test_a_fifo_of_a_stranger_is_refused(
    client: Client, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SPEC C-4.  The FIFO's owner stays; it is we who become somebody else."""
    if os.geteuid() == 0:
        os.chown(reader.path, 12345, -1)
    elif not isinstance(client, timer.FileTimerClient):
        pytest.skip("only root can give a FIFO away")
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(BrokenPipeError, match="stranger"):
        client.acquire("s", time.time() + 60)


def test_sigpipe_never_kills_even_where_it_is_not_ignored(
    make: type[Client], fifo_path: str, reader: Reader
) -> None:
    """SPEC C-3, in a process of its own, over both ways of writing."""
    code = """
import os, signal, sys, time
import filetimer as timer
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
make = getattr(timer, sys.argv[2])
if sys.argv[1] == "masked":
    from filetimer.client import pipe
    pipe._has_nosignal = lambda: False
    if make is not timer.FileTimerClient:
        from filetimer.client import native_client
        native_client.INIT_FLAGS = native_client.lib.FILETIMER_MASK_SIGPIPE
client = make(os.environ["P"], timeout=0.1)
client.acquire("s", time.time() + 60)
input()
for _ in range(3):
    try:
        client.acquire("s", time.time() + 60)
    except BrokenPipeError:
        print("broken", flush=True)
assert signal.SIGPIPE not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
assert signal.SIGPIPE not in signal.sigpending()
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", code, way, make.__name__], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True, env={**os.environ, "P": fifo_path})
        for way in ("nosignal", "masked")
    ]  # fmt: skip
    seen = b""
    while seen.count(b"\n") < 2:
        seen += reader.raw()
        time.sleep(0.01)
    reader.close()
    for worker in workers:
        out, _ = worker.communicate("\n", timeout=60)
        assert (worker.returncode, out.split()) == (0, ["broken"] * 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_after_is_checked(client: Client, reader: Reader, value: float) -> None:
    with pytest.raises(ValueError, match="finite number of seconds"):
        client.begin("s", value)
    handle = client.begin("s", 60)
    with pytest.raises(ValueError, match="finite number of seconds"):
        handle.extend(value)
    assert len(reader.records()) == 1


@pytest.mark.parametrize("after", [-5.0, 0.0])
def test_a_time_that_has_passed_is_sent_all_the_same(
    client: Client, reader: Reader, after: float
) -> None:
    client.begin("s", after)
    client.acquire("s", time.time() + after)
    for record in reader.records():
        assert 0 <= record["deadline"] <= time.monotonic()
        assert 0 <= record["expiration_time"] <= time.time() + 1e-4  # SPEC R-4


@pytest.mark.parametrize(
    ("scope", "sent"),
    [("a\0b", "a\0b"), ("\udce9", "\ufffd"), ("\ud83d\ude00", "\ufffd\ufffd"), ("😀é", "😀é")],
)
def test_any_scope_comes_out_the_same(
    client: Client, reader: Reader, scope: str, sent: str
) -> None:
    """SPEC R-8.  A release matches its acquire, whatever characters there are."""
    client.acquire(scope, time.time() + 60)
    client.release(scope)
    assert [record["scope_id"] for record in reader.records()] == [sent, sent]


def test_a_handle_that_has_ended(client: Client, reader: Reader) -> None:
    handle = client.begin("s", 60)
    assert handle.end()
    assert handle.end()
    with pytest.raises(RuntimeError, match="has ended"):
        handle.extend(60)
    assert len(reader.records()) == 2


def test_without_waiting_a_full_pipe_is_said_so(client: Client, reader: Reader) -> None:
    handle = client.begin("s", 60)
    reader.fill()
    with pytest.raises(BlockingIOError, match="full"):
        client.begin("s", 60, wait=False)
    assert not handle.end(wait=False)
    reader.raw()
    assert handle.end(wait=False)
    assert len(reader.records()) == 1


def test_a_signal_handler_may_end_a_wait(client: Client, reader: Reader) -> None:
    """Ctrl-C at a full pipe: the wait of a release is long, and must not be deaf."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def end_and_be_interrupted() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        handle.end()

    handle = client.begin("s", 600)
    reader.fill()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            end_and_be_interrupted()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_after_close_the_next_timer_opens_the_pipe_again(client: Client, reader: Reader) -> None:
    client.acquire("s", time.time() + 60)
    number = descriptor(client)
    client.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    client.acquire("s", time.time() + 60)
    assert len(reader.records()) == 2


def test_a_release_by_another_thread(client: Client, reader: Reader) -> None:
    """SPEC C-7."""
    handle = client.begin("s", 60)
    thread = threading.Thread(target=handle.end)
    thread.start()
    thread.join()
    acquire, release = reader.records()
    assert acquire["token"] == release["token"]
    assert release["expiration_time"] == -1


def test_there_is_no_such_signal(make: type[Client], fifo_path: str) -> None:
    with pytest.raises(ValueError, match="no signal 65"):
        make(fifo_path, 65)


class TestFork:
    """SPEC C-6."""

    def in_child(self, action: Any) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(20)  # it must not outlive its test
                action()
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0

    def test_a_child_writes_its_own_pid_and_start_time(
        self, client: Client, reader: Reader
    ) -> None:
        client.acquire("parent", time.time() + 60)
        time.sleep(0.05)  # start times tick in hundredths of a second
        self.in_child(lambda: client.acquire("child", time.time() + 60))
        parent, child = reader.records()
        assert parent["pid"] == os.getpid() != child["pid"]
        assert child["start_time"] > parent["start_time"]

    def test_a_child_does_not_end_its_parents_timer(self, client: Client, reader: Reader) -> None:
        handle = client.begin("s", 60)
        self.in_child(handle.end)
        self.in_child(lambda: handle.extend(600))
        assert len(reader.records()) == 1

    def test_a_child_that_reused_the_number_keeps_its_file(
        self, client: Client, reader: Reader, tmp_path: Any
    ) -> None:
        client.acquire("parent", time.time() + 60)
        file = tmp_path / "checkpoint"

        def child() -> None:
            os.close(descriptor(client))
            fd = os.open(file, os.O_RDWR | os.O_CREAT)
            assert fd == descriptor(client)
            client.acquire("child", time.time() + 60)

        self.in_child(child)
        assert file.read_bytes() == b""
        assert [record["scope_id"] for record in reader.records()] == ["parent", "child"]

    def test_tokens_of_parent_and_child_differ(self, client: Client, reader: Reader) -> None:
        client.begin("s", 60)
        self.in_child(lambda: client.begin("s", 60))
        parent, child = (record["token"] for record in reader.records())
        assert abs(parent - child) > 1000

    def test_a_child_waits_for_nothing_on_behalf_of_its_parent(
        self, client: Client, reader: Reader
    ) -> None:
        """SPEC C-1: what the parent's timer has left is not the child's patience."""
        client.acquire("s", time.time() + 600)
        reader.fill()
        self.in_child(lambda: client.release("s"))


def test_a_server_without_a_lock_is_not_kept_waiting_for_the_end_of_the_file(
    make: type[Client], tmp_path: Any
) -> None:
    """SPEC C-10.  torch's server acts on no timer while a writer has the FIFO open."""
    reader = Reader(str(tmp_path / "fifo"), locked=False)
    before = set(os.listdir("/proc/self/fd"))
    client = make(reader.path)
    with timer.expires(60, "guarded", client):
        assert set(os.listdir("/proc/self/fd")) == before
    acquire, release = reader.records()
    assert acquire["token"] == release["token"]
    assert release["expiration_time"] == -1
    reader.close()


def test_the_fifo_is_kept_open_once_its_server_has_the_lock(
    make: type[Client], tmp_path: Any
) -> None:
    """SPEC C-10, for a server that comes after its client."""
    client = make(str(tmp_path / "fifo"), timeout=0.0)
    with pytest.raises(OSError, match="no timer server"):
        client.acquire("s", time.time() + 60)
    reader = Reader(str(tmp_path / "fifo"))
    client.acquire("s", time.time() + 60)
    assert descriptor(client) >= 0
    reader.close()
