"""The driver of filetimer itself: `python -m filetimer.conformance.driver [--client native]`.

It tries `FileTimerClient`; with `--client native`, `NativeTimerClient` and nothing else.  One
method for each op of `protocol/driver.md`; nothing here judges, and nothing here mends what the
package does.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import filetimer
from filetimer.api import TimerClient, TimerHandle
from filetimer.client.environment import path_from_env
from filetimer.server import events
from filetimer.server.events import Event, EventReporter
from filetimer.server.policy import Policy
from filetimer.server.timers import Host, Now, TimerTable
from filetimer.server.watchdog import Watchdog
from filetimer.wire.decoder import UNSET, LineDecoder, Record, Rejection
from filetimer.wire.encoder import RecordEncoder

Message = dict[str, Any]

HELLO: Message = {
    "name": f"filetimer {filetimer.__version__}",
    "language": "Python",
    "versions": [1, 2],
    "roles": ["codec", "timeline", "client", "server"],
    "skips": {
        "refuses-pid-zero": "the encoder is given the process's own pid only",
        "refuses-signal-65": "FileTimerClient refuses it before the encoder sees it",
        "refuses-an-empty-scope": "FileTimerClient refuses it before the encoder sees it",
        "refuses-token-two-to-the-53": "tokens are drawn by the package",
        "writes-no-field-it-was-not-given": "version 2 of the encoder always has a deadline",
    },
}

HELLO_NATIVE: Message = {
    "name": f"filetimer.NativeTimerClient {filetimer.__version__}",
    "language": "Python and C",
    "versions": [2],
    "roles": ["client"],
}


# ---------------------------------------------------------------------------------------- codec


def decode(reads: list[str]) -> Message:
    decoder = LineDecoder()
    results = [result for read in reads for result in decoder.feed(bytes.fromhex(read))]
    return {"results": [_verdict(result) for result in results]}


def _verdict(result: Record | Rejection) -> Message:
    if isinstance(result, Rejection):
        return {"error": result.code}
    judged = (name for name in result.__struct_fields__ if name != "attributes")  # SPEC R-12
    fields = ((name, getattr(result, name)) for name in judged)
    return {"record": {name: value for name, value in fields if value is not UNSET}}


def encode(record: Message) -> Message:
    encoder = RecordEncoder(
        record["version"],
        record["pid"],
        record["signal"],
        record.get("start_time"),
        record.get("pid_ns"),
    )
    scope, token = record["scope_id"], record.get("token")
    if record["expiration_time"] < 0:
        line = encoder.release(scope, token)
    else:
        line = encoder.acquire(scope, record["expiration_time"], record.get("deadline", 0), token)
    return {"hex": line.hex()}


# ------------------------------------------------------------------------------------- timeline


class VirtualProcess:
    """What `server.process.ProcessHandle` is to the watchdog."""

    pidfd: int | None = None

    def __init__(
        self,
        signalled: Callable[[int, int], None],
        pid: int,
        start_time: int,
        uid: int,
        time_ns: int,
    ) -> None:
        self.pid = pid
        self.start_time: int | None = start_time
        self.uid: int | None = uid
        self.time_ns: int | None = time_ns
        self.zombie = False
        self.gone = False
        self._signalled = signalled

    def send_signal(self, signum: int) -> None:
        if self.gone:
            raise ProcessLookupError
        self._signalled(self.pid, signum)

    def is_alive(self) -> bool:
        return not (self.gone or self.zombie)

    def state(self) -> str | None:
        return None if self.gone else "Z" if self.zombie else "S"

    def close(self) -> None:
        pass


class Timeline:
    """The watchdog on virtual clocks, with virtual processes."""

    def __init__(self, server: Message, processes: list[Message]) -> None:
        self.events: list[Message] = []
        self.table: dict[int, VirtualProcess] = {}
        for entry in processes:
            self.spawn(entry)
        host = Host(server["pid"], server["uid"], server["pid_ns"], server["time_ns"])
        reporter = EventReporter(on_event=self.report)
        policy = Policy(kill_after=server.get("kill_after"))
        self.watchdog: Any = Watchdog(host, reporter, policy=policy)
        self.watchdog.table = TimerTable[Any](host, self.table.get, self.watchdog)
        self.decoder = LineDecoder()

    def step(self, step: Message) -> list[Message]:
        self.events = []
        now = Now(step["at"]["monotonic"], step["at"]["wall"])
        ended = self.change(step)
        self.watchdog.receive(self.decoder.feed(bytes.fromhex(step.get("receive", ""))), now)
        if ended is not None:
            self.watchdog.process_exited(ended, now)
        self.watchdog.enforce(now.monotonic)
        return self.events

    def change(self, step: Message) -> VirtualProcess | None:
        """What happens to the process table; the process that has ended by it."""
        if "zombie" in step:
            process = self.table[step["zombie"]]
            process.zombie = True
            return process
        if "exit" in step:
            return self.end(step["exit"])
        if "spawn" in step:
            ended = self.end(step["spawn"]["pid"])
            self.spawn(step["spawn"])
            return ended
        return None

    def end(self, pid: int) -> VirtualProcess | None:
        process = self.table.pop(pid, None)
        if process is not None:
            process.gone = True
        return process

    def spawn(self, entry: Message) -> None:
        identity = {key: value for key, value in entry.items() if key != "zombie"}
        process = VirtualProcess(self.signalled, **identity)
        process.zombie = entry.get("zombie", False)
        self.table[process.pid] = process

    def signalled(self, pid: int, signum: int) -> None:
        self.events.append({"event": "signal", "pid": pid, "signal": int(signum)})

    def report(self, event: Event) -> None:
        if (told := _told(event)) is not None:
            self.events.append(told)


def _told(event: Event) -> Message | None:
    """The event in the words of driver.md; None for one that it has no word for."""
    if event.name == events.RECORD_REJECTED:
        return {"event": "rejected", "code": event.code}
    timer = {"pid": event.pid, "scope_id": event.scope_id}
    if event.name == events.TIMER_REFUSED:
        return {"event": "refused", **timer, "reason": event.code}
    if event.name == events.TIMER_EXPIRED:
        token = {} if event.token is None else {"token": event.token}
        return {"event": "expired", **timer, **token}
    if event.name == events.WORKER_DIED:
        return {"event": "dead", "pid": event.pid}
    if event.name == events.WORKER_UNKILLABLE:
        return {"event": "unkillable", "pid": event.pid}
    return None


def timeline(server: Message, processes: list[Message], steps: list[Message]) -> Message:
    run = Timeline(server, processes)
    return {"events": [run.step(step) for step in steps]}


# --------------------------------------------------------------------------------------- client


Connect = Callable[[str, int], TimerClient]  # given a path and a version


def connect_file(path: str, version: int) -> TimerClient:
    return filetimer.FileTimerClient(path, version=version)


def connect_native(path: str, version: int) -> TimerClient:
    return filetimer.NativeTimerClient(path)  # it has version 2 only


class Client:
    """Ops of the role client. A handler and a forked child use the same objects."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect
        self.client: TimerClient = filetimer.NoopTimerClient()
        self.guards: dict[str, TimerHandle] = {}
        self.in_handler = False

    def open(self, version: int, path: str | None = None) -> Message:
        if not isinstance(self.client, filetimer.NoopTimerClient):
            self.client.close()  # type: ignore[attr-defined]
        self.client = filetimer.NoopTimerClient()
        path = path or path_from_env()
        if path is None:
            return self.unguarded()
        self.client = self.connect(path, version)
        return {"ok": True}

    def unguarded(self) -> Message:
        return {"ok": False, "why": "no path: the client is a NoopTimerClient"}

    def acquire(self, scope_id: str, after: float, signal: int) -> Message:
        if isinstance(self.client, filetimer.NoopTimerClient):
            return self.unguarded()
        self.client.acquire(scope_id, time.time() + after)
        return {"ok": True}

    def release(self, scope_id: str) -> Message:
        self.client.release(scope_id)
        return {"ok": True}

    def enter(self, guard: str, scope_id: str, after: float) -> Message:
        self.guards[guard] = self.client.begin(scope_id, after, wait=not self.in_handler)
        return {"ok": True}

    def leave(self, guard: str) -> Message:
        return {"ok": self.guards[guard].end(wait=not self.in_handler)}


# ---------------------------------------------------------------------------------------- server


class Server:
    """Ops of the role server."""

    def __init__(self) -> None:
        self.server: filetimer.FileTimerServer | None = None
        self.told: list[Message] = []

    def start(self, path: str, kill_after: float | None = None) -> Message:
        server = filetimer.FileTimerServer(
            path, "conformance", on_event=self.report, kill_after=kill_after
        )
        server.start()
        self.server = server
        return {"ok": True, "pid": os.getpid()}

    def report(self, event: Event) -> None:
        told = _told(event)
        if told is not None and told["event"] != "rejected":
            self.told.append(told)

    def events(self) -> Message:
        told, self.told = self.told, []
        counts = {} if self.server is None else self.server.counts
        rejected = sum(n for (name, _), n in counts.items() if name == events.RECORD_REJECTED)
        return {"events": told, "rejected": rejected}

    def stop(self) -> Message:
        if self.server is not None:
            self.server.stop()
            self.server = None
        return {"ok": True}


# ---------------------------------------------------------------------------------------- driver


class Driver:
    def __init__(self, hello: Message = HELLO, connect: Connect = connect_file) -> None:
        self.client, self.server = Client(connect), Server()
        self.ops: dict[str, Callable[..., Message]] = {
            "hello": lambda: {**hello, "pid": os.getpid()},
            "noop": lambda: {"ok": True},
            "decode": decode,
            "encode": encode,
            "timeline": timeline,
            "fork": self.fork,
            "thread": self.thread,
            "handler": self.handler,
            "close_fd": self.close_fd,
        }
        for name in ("open", "acquire", "release", "enter", "leave"):
            self.ops[name] = getattr(self.client, name)
        for name in ("start", "events", "stop"):
            self.ops[name] = getattr(self.server, name)

    def answer(self, request: Message) -> Message:
        arguments = {key: value for key, value in request.items() if key != "op"}
        op = self.ops.get(request["op"])
        if op is None:
            return {"unsupported": request["op"]}
        try:
            return op(**arguments)
        except (OSError, RuntimeError, ValueError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def fork(self, do: list[Message]) -> Message:
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

    def thread(self, do: list[Message]) -> Message:
        replies: list[Message] = []
        thread = threading.Thread(target=lambda: replies.extend(map(self.answer, do)))
        thread.start()
        thread.join()
        return {"ok": True, "replies": replies}

    def handler(self, do: list[Message]) -> Message:
        replies: list[Message] = []

        def handle(number: int, frame: object) -> None:
            self.client.in_handler = True
            replies.extend(map(self.answer, do))
            self.client.in_handler = False

        signal.signal(signal.SIGUSR1, handle)
        signal.raise_signal(signal.SIGUSR1)
        return {"ok": True, "replies": replies}

    def close_fd(self, fd: int) -> Message:
        os.close(fd)
        return {"ok": True}


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a client must live with it (SPEC C-3)
    parser = argparse.ArgumentParser(prog="python -m filetimer.conformance.driver")
    parser.add_argument("--client", choices=["file", "native"], default="file")
    native = parser.parse_args().client == "native"
    driver = Driver(HELLO_NATIVE, connect_native) if native else Driver()
    for line in sys.stdin:
        print(json.dumps(driver.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
