"""Evidence before the kill, with real processes that hang.  No right to ptrace is assumed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, EventList, StartWorker, eventually

import filetimer as timer
from filetimer.evidence.model import Frame, Member, Stack
from filetimer.evidence.stacks import ask_for_stacks, offers, parse_dump
from filetimer.evidence.verdict import elsewhere, verdict
from filetimer.replay import find_journals, view_server
from filetimer.runtime import runtime_directory, stacks_directory
from filetimer.server import evidence as server_evidence
from filetimer.server.loop import read_clocks

StartServer = Callable[..., timer.FileTimerServer]


@pytest.fixture
def start_server(fifo_path: str, events: EventList, tmp_path: Path) -> Iterator[StartServer]:
    servers: list[timer.FileTimerServer] = []

    def start(**options: Any) -> timer.FileTimerServer:
        directory = str(tmp_path / "evidence")
        options = {"evidence": directory, "evidence_budget": PATIENCE, **options}
        servers.append(timer.FileTimerServer(fifo_path, "test", on_event=events, **options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


HUNG_IN_C = """
import ctypes, os, filetimer
filetimer.configure_from_env()

def load_batch():
    reader, writer = os.pipe()
    ctypes.PyDLL(None).read(reader, ctypes.create_string_buffer(1), 1)  # holds the GIL

with filetimer.expires(60, "before"):
    pass
with filetimer.expires(float(os.environ.get("AFTER", "0.3")), "step"):
    load_batch()
"""


def report_of(event: timer.Event) -> tuple[str, dict[str, Any]]:
    assert event.evidence is not None
    path = Path(event.evidence)
    return path.read_text(), json.loads(path.with_suffix(".json").read_text())


def member(report: dict[str, Any], pid: int) -> dict[str, Any]:
    return next(member for member in report["members"] if member["pid"] == pid)


def test_a_hang_in_c_code_that_holds_the_gil(
    start_server: StartServer, start_worker: StartWorker, events: EventList
) -> None:
    start_server()
    worker = start_worker(HUNG_IN_C)
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    (kill,) = events.wait_for("kill worker process")
    assert kill.where is not None
    assert "load_batch (<string>:7)" in kill.where
    text, report = report_of(kill)
    (found,) = report["members"]
    assert report["complete"]
    assert (found["pid"], found["expired"], found["command"][:1]) == (
        worker.pid, True, [sys.executable],
    )  # fmt: skip
    frames = [frame for stack in found["python"] for frame in stack["frames"]]
    assert ("load_batch", 7) in [(frame["function"], frame["line"]) for frame in frames]
    (scope,) = found["open"]
    assert (scope["scope_id"], scope["signal"]) == ("step", signal.SIGKILL)
    assert 0.3 <= scope["since"] < PATIENCE
    (past,) = found["recent"]
    assert (past["scope_id"], past["how"]) == ("before", "released")
    assert found["tasks"][0]["tid"] == worker.pid
    assert "load_batch" in text
    assert oct(os.stat(kill.evidence or "").st_mode) == oct(0o100600)


def test_a_deadlock_of_two_threads_shows_both(
    start_server: StartServer, start_worker: StartWorker, events: EventList
) -> None:
    start_server()
    start_worker("""
        import threading, time, filetimer
        filetimer.configure_from_env()
        a, b = threading.Lock(), threading.Lock()
        def first():
            with a: time.sleep(0.1); b.acquire()
        def second():
            with b: time.sleep(0.1); a.acquire()
        with filetimer.expires(0.5, "deadlock"):
            threads = [threading.Thread(target=f) for f in (first, second)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
    """)
    (kill,) = events.wait_for("kill worker process")
    _, report = report_of(kill)
    (found,) = report["members"]
    functions = {f["function"] for stack in found["python"] for f in stack["frames"]}
    assert {"first", "second"} <= functions


def test_of_four_ranks_the_one_that_is_elsewhere_is_named(
    start_server: StartServer, fifo_path: str, events: EventList, tmp_path: Path
) -> None:
    """The one has no timer at all: it only offers its stacks."""
    start_server()
    program = tmp_path / "train.py"
    program.write_text(
        "import os, threading, filetimer\n"
        "filetimer.configure_from_env()\n"
        "def all_reduce(): a = threading.Lock(); a.acquire(); print(flush=True); a.acquire()\n"
        "def load_batch(): r, w = os.pipe(); print(flush=True); os.read(r, 1)\n"
        "if os.environ['RANK'] == '3': load_batch()\n"
        "with filetimer.expires(1.5, 'step'): all_reduce()\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, str(program)],
            env={**os.environ, "FILETIMER_PATH": fifo_path, "RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(4)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        kills = events.wait_for("kill worker process", 3)
        for kill in kills:
            text, report = report_of(kill)
            assert f"elsewhere: rank 3 (pid {workers[3].pid})" in "\n".join(report["verdict"])
            assert "ranks 0, 1, 2" in report["verdict"][0]
            assert "load_batch" in text
            assert "rank 3" in (kill.where or "")
        assert workers[3].poll() is None
        assert not member(report_of(kills[0])[1], workers[3].pid)["expired"]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


HANGING = (sys.executable, "-c", "import time; time.sleep(600)")


def collect_with(server: timer.FileTimerServer, command: tuple[str, ...]) -> None:
    server._watchdog.holding._collector._command = command  # type: ignore[union-attr]


def test_a_collector_that_hangs_delays_the_kill_by_the_budget(
    start_server: StartServer, start_worker: StartWorker, events: EventList
) -> None:
    collect_with(start_server(evidence_budget=1.0), HANGING)
    assert start_worker(HUNG_IN_C).wait(PATIENCE) == -signal.SIGKILL
    (kill,) = events.wait_for("kill worker process")
    assert kill.evidence is None
    assert 1.0 <= (kill.late or 0) < 2.0


def test_a_collector_that_hangs_delays_no_other_worker(
    start_server: StartServer, start_worker: StartWorker, events: EventList
) -> None:
    """The first one's collector hangs; the second worker expires later and is killed before."""
    real = server_evidence.COLLECTOR
    server = start_server(evidence_budget=6.0)
    collect_with(server, HANGING)
    code = "import time, filetimer as t, sys\nt.configure_from_env()\n"
    code += "with t.expires(float(sys.argv[1]), sys.argv[2]): time.sleep(600)"
    first = start_worker(code, "0.1", "hung collector")
    events.wait_for("timer expired")
    collect_with(server, real)
    time.sleep(2 * server_evidence.JOIN)
    second = start_worker(code, "0.1", "good collector")
    assert second.wait(PATIENCE) == -signal.SIGKILL
    assert first.poll() is None
    assert first.wait(PATIENCE) == -signal.SIGKILL
    assert [e.scope_id for e in events.wait_for("kill worker process", 2)] == [
        "good collector", "hung collector",
    ]  # fmt: skip


@pytest.mark.parametrize("command", [("/nonexistent",), ("/bin/false",), ("/bin/echo", "no json")])
def test_the_kill_happens_whatever_becomes_of_the_collector(
    start_server: StartServer,
    start_worker: StartWorker,
    events: EventList,
    command: tuple[str, ...],
) -> None:
    server = start_server()
    collect_with(server, command)
    worker = start_worker(HUNG_IN_C)
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    (kill,) = events.wait_for("kill worker process")
    assert kill.evidence is None
    assert (kill.late or 0) < PATIENCE / 2  # not the budget


def test_the_directory_cannot_be_made(
    start_server: StartServer, start_worker: StartWorker, events: EventList, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    start_server(evidence=str(tmp_path / "file/x"))
    assert start_worker(HUNG_IN_C).wait(PATIENCE) == -signal.SIGKILL
    assert events.wait_for("kill worker process")[0].evidence is None


def hold(
    start_server: StartServer,
    start_worker: StartWorker,
    events: EventList,
    code: str,
    budget: float = 600.0,
) -> tuple[timer.FileTimerServer, subprocess.Popen[str]]:
    """A worker whose signal is held back: its collector never ends."""
    server = start_server(evidence_budget=budget)
    collect_with(server, HANGING)
    worker = start_worker(code)
    events.wait_for("timer expired")
    return server, worker


def test_no_record_takes_a_held_signal_back(
    start_server: StartServer, start_worker: StartWorker, events: EventList
) -> None:
    """SPEC S-19: it is due in a second; the worker releases meanwhile, and goes on."""
    _, worker = hold(
        start_server, start_worker, events, """
        import time, filetimer as t
        t.configure_from_env()
        with t.expires(0.1, "late"): time.sleep(0.5)
        with t.expires(60, "next"): time.sleep(600)
        """, budget=2.0,
    )  # fmt: skip
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    assert [e.scope_id for e in events.wait_for("kill worker process")] == ["late"]


def test_a_stop_kills_what_is_held(
    start_server: StartServer, start_worker: StartWorker, events: EventList
) -> None:
    server, worker = hold(start_server, start_worker, events, HUNG_IN_C)
    server.stop()
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    assert len(events.named("kill worker process")) == 1


def test_a_worker_that_exits_while_it_is_held(
    start_server: StartServer, start_worker: StartWorker, events: EventList
) -> None:
    server, worker = hold(start_server, start_worker, events, HUNG_IN_C)
    worker.terminate()
    worker.wait(PATIENCE)
    events.wait_for("worker exited")
    server.stop()
    assert events.named("kill worker process") == []


def test_a_server_that_dies_while_it_holds_leaves_the_kill_to_its_successor(
    fifo_path: str, start_worker: StartWorker, start_server: StartServer, events: EventList
) -> None:
    code = (
        "import sys, time, filetimer as t\n"
        "import filetimer.server.evidence as e\n"
        "from filetimer.server.fifo import HeldFifo\n"
        "s = t.FileTimerServer(sys.argv[1], 'x', evidence='e', evidence_budget=1.5, holder='h')\n"
        "s._watchdog.holding._collector._command = (sys.executable, '-c',"
        " 'import time; time.sleep(9)')\n"
        "s.start(); time.sleep(600)"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, fifo_path])
    eventually(lambda: find_journals(fifo_path))
    worker = start_worker(HUNG_IN_C)
    (journal,) = find_journals(fifo_path)

    def scopes() -> list[tuple[str, int]]:
        view = view_server(journal, read_clocks())
        return [(t.scope_id, int(t.token)) for t in view.timers]  # type: ignore[arg-type]

    eventually(lambda: scopes() == [("step", 2**53 - 1)])
    keeper = os.open(fifo_path, os.O_RDWR)
    killed.kill()
    killed.wait()
    start_server(holder="h")
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    assert events.named("server recovered")[0].code == "armed"
    os.close(keeper)


def test_without_evidence_nothing_is_held(
    server: timer.FileTimerServer, start_worker: StartWorker, events: EventList
) -> None:
    assert start_worker(HUNG_IN_C).wait(PATIENCE) == -signal.SIGKILL
    (kill,) = events.wait_for("kill worker process")
    assert (kill.evidence, kill.where) == (None, None)


class TestOffers:
    """What ``configure`` registers, and the care that is taken before its signal is sent."""

    CODE = """
        import os, sys, signal, faulthandler, filetimer
        filetimer.configure_from_env()
        print(flush=True)
        {}
        print(flush=True)
        sys.stdin.read()
    """

    def offer(self, fifo_path: str, pid: int) -> Any:
        return offers(stacks_directory(fifo_path, runtime_directory())).get(pid)

    def start(
        self, start_worker: StartWorker, fifo_path: str, code: str = ""
    ) -> tuple[subprocess.Popen[str], Any]:
        worker = start_worker(self.CODE.format(code))
        assert worker.stdout is not None
        worker.stdout.readline()
        offer = self.offer(fifo_path, worker.pid)
        if worker.stdout.readline() == "":
            pytest.fail("the worker ended")
        return worker, offer

    def test_the_file_is_private_and_goes_with_the_process(
        self, start_worker: StartWorker, fifo_path: str
    ) -> None:
        worker, offer = self.start(start_worker, fifo_path)
        assert oct(os.stat(offer.path).st_mode) == oct(0o100600)
        assert oct(os.stat(os.path.dirname(offer.path)).st_mode) == oct(0o040700)
        worker.communicate("")
        assert worker.returncode == 0
        assert not os.path.exists(offer.path)

    def test_a_signal_that_is_taken_is_left_alone(
        self, start_worker: StartWorker, fifo_path: str
    ) -> None:
        code = """
            import signal, sys
            signal.signal(signal.SIGRTMAX - 2, print)
            import filetimer
            filetimer.configure_from_env()
            print(flush=True)
            sys.stdin.read()
        """
        worker = start_worker(code)
        assert worker.stdout is not None
        worker.stdout.readline()
        assert self.offer(fifo_path, worker.pid).signum == signal.SIGRTMAX - 3

    def test_a_program_that_was_replaced_is_not_signalled(
        self, start_worker: StartWorker, fifo_path: str
    ) -> None:
        code = "os.execlp('sh', 'sh', '-c', 'echo; cat')"
        worker, offer = self.start(start_worker, fifo_path, code)
        assert "does not handle" in str(ask_for_stacks(offer))
        assert worker.poll() is None

    def test_a_descriptor_that_is_another_file_now_is_not_written_to(
        self, start_worker: StartWorker, fifo_path: str, tmp_path: Path
    ) -> None:
        (tmp_path / "checkpoint").write_text("precious")
        code = (
            "from filetimer.client import stacks; fd = stacks._offered[2]; "
            f"os.dup2(os.open({str(tmp_path / 'checkpoint')!r}, os.O_RDWR), fd)"
        )
        worker, offer = self.start(start_worker, fifo_path, code)
        assert "has closed" in str(ask_for_stacks(offer))
        assert (tmp_path / "checkpoint").read_text() == "precious"
        assert worker.poll() is None

    def test_a_forked_child_offers_its_own(
        self, start_worker: StartWorker, fifo_path: str, server: timer.FileTimerServer
    ) -> None:
        code = (
            "child = os.fork()\n"
            "        if not child:\n"
            "            with filetimer.expires(60): print(os.getpid(), flush=True); "
            "sys.stdin.read(); os._exit(0)"
        )
        worker = start_worker(self.CODE.format(code))
        assert worker.stdout is not None
        words = [worker.stdout.readline().strip() for _ in range(3)]
        (child,) = (int(word) for word in words if word)
        parent = self.offer(fifo_path, worker.pid)
        assert self.offer(fifo_path, child).path != parent.path

    def test_what_dead_workers_left_is_removed(
        self, start_worker: StartWorker, fifo_path: str
    ) -> None:
        worker, offer = self.start(start_worker, fifo_path)
        worker.kill()
        worker.wait()
        assert self.offer(fifo_path, worker.pid) is None
        assert not os.path.exists(offer.path)

    def test_a_server_that_stops_leaves_nothing(
        self, start_worker: StartWorker, fifo_path: str, server: timer.FileTimerServer
    ) -> None:
        self.start(start_worker, fifo_path)
        server.stop()
        assert os.listdir(runtime_directory()) == []


def test_a_dump_of_faulthandler() -> None:
    dump = (
        "Thread 0x00007f (most recent call first):\n"
        '  File "/a b/x.py", line 3 in inner\n'
        '  File "/a b/x.py", line 9 in <module>\n\n'
        "Current thread 0x00007e [Main, thread] (most recent call first):\n"
        '  File "y.py", line ??? in f\n'
        "  ...\n"
    )
    assert parse_dump(dump) == [
        Stack("0x00007f", [Frame("inner", "/a b/x.py", 3), Frame("<module>", "/a b/x.py", 9)]),
        Stack("Main, thread", [Frame("f", "y.py", 0)]),
    ]


class TestVerdict:
    def members(self, *functions: str) -> list[Member]:
        return [
            Member(100 + i, None, True, i, python=[Stack("0x1", [Frame(name, "m.py", 5)])])
            for i, name in enumerate(functions)
        ]

    def test_one_is_elsewhere(self) -> None:
        members = self.members("wait", "wait", "load", "wait")
        assert elsewhere(members) == [members[2]]
        assert verdict(members)[0] == "3 of 4 workers are at the same place: ranks 0, 1, 3"

    def test_all_wait(self) -> None:
        assert elsewhere(self.members("wait", "wait")) == []

    def test_nobody_is_accused_without_a_majority(self) -> None:
        members = self.members("a", "a", "b", "b")
        assert elsewhere(members) == []
        assert verdict(members)[0] == "4 workers are in 2 different places:"

    def test_alone(self) -> None:
        assert verdict(self.members("a")) == []


@pytest.mark.parametrize("lacking", ["thread", "process"])
def test_a_server_that_cannot_collect_says_so_and_reaps(
    start_server: StartServer,
    start_worker: StartWorker,
    events: EventList,
    monkeypatch: pytest.MonkeyPatch,
    lacking: str,
) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("can't start new thread")

    def run(*arguments: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "no process can be started")

    start_server()
    worker = start_worker(HUNG_IN_C)
    if lacking == "thread":
        monkeypatch.setattr(threading.Thread, "start", refuse)
    else:
        monkeypatch.setattr(server_evidence._Incident, "run", run)
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    (degraded,) = events.wait_for("server degraded")
    assert degraded.code == "evidence"
