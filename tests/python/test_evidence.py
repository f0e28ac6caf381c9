"""Evidence before the kill, with real processes that hang.  No right to ptrace is assumed."""

from __future__ import annotations

import errno
import json
import os
import shutil
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
from filetimer.evidence import stacks
from filetimer.evidence.model import Frame, Member, Stack
from filetimer.evidence.stacks import ask_for_stacks, offers, parse_dump
from filetimer.evidence.verdict import elsewhere, verdict, where
from filetimer.replay import find_journals, view_server
from filetimer.runtime import runtime_directory, stacks_directory
from filetimer.server import evidence as server_evidence
from filetimer.server.loop import read_clocks
from filetimer.wire.decoder import UNSET

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


DEADLOCK = """
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
"""


def test_a_deadlock_of_two_threads_shows_both(
    start_server: StartServer, start_worker: StartWorker, events: EventList
) -> None:
    start_server()
    start_worker(DEADLOCK)
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
        "print(flush=True); input()\n"  # ranks that expire far apart would be two incidents
        "if os.environ['RANK'] == '3': load_batch()\n"
        "with filetimer.expires(1.5, 'step'): all_reduce()\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, str(program)],
            env={**os.environ, "FILETIMER_PATH": fifo_path, "RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        for rank in range(4)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(b"go\n")
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


STUBBORN = (  # deaf to all that can be ignored, and it leaves its pipes open to a child
    sys.executable,
    "-c",
    "import signal, subprocess, sys, time\n"
    "for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):\n"
    "    signal.signal(s, signal.SIG_IGN)\n"
    "subprocess.Popen(['sleep', '20'])\n"
    "time.sleep(600)",
)


@pytest.mark.parametrize("command", [HANGING, STUBBORN], ids=["hanging", "stubborn"])
def test_a_collector_that_hangs_delays_the_kill_by_the_budget(
    start_server: StartServer,
    start_worker: StartWorker,
    events: EventList,
    command: tuple[str, ...],
) -> None:
    collect_with(start_server(evidence_budget=1.0), command)
    assert start_worker(HUNG_IN_C).wait(PATIENCE) == -signal.SIGKILL
    (kill,) = events.wait_for("kill worker process")
    assert kill.evidence is None
    assert kill.detail == "no evidence: its collector took longer than 1 s"
    assert 1.0 <= (kill.late or 0) < PATIENCE / 2


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
    """There is no report, but the event names the line, and why there is none."""
    (tmp_path / "file").write_text("")
    start_server(evidence=str(tmp_path / "file/x"))
    assert start_worker(HUNG_IN_C).wait(PATIENCE) == -signal.SIGKILL
    (kill,) = events.wait_for("kill worker process")
    assert kill.evidence is None
    assert "load_batch (<string>:7)" in (kill.where or "")
    assert kill.detail == f"no report in {tmp_path / 'file/x'}: Not a directory"


def test_the_disk_is_full(
    start_server: StartServer, start_worker: StartWorker, events: EventList, tmp_path: Path
) -> None:
    """No file may grow: what a full disk is to the collector."""
    no_space = ("/bin/sh", "-c", 'ulimit -f 0 && exec "$@"', "sh", *server_evidence.COLLECTOR)
    collect_with(start_server(), no_space)
    assert start_worker(HUNG_IN_C).wait(PATIENCE) == -signal.SIGKILL
    (kill,) = events.wait_for("kill worker process")
    assert kill.evidence is None
    assert "load_batch (<string>:7)" in (kill.where or "")
    assert (kill.detail or "").startswith(f"no report in {tmp_path / 'evidence'}: ")
    assert os.listdir(tmp_path / "evidence") == []


def test_links_in_a_directory_that_all_may_write_to_are_not_followed(
    start_server: StartServer, start_worker: StartWorker, events: EventList, tmp_path: Path
) -> None:
    directory, precious = tmp_path / "evidence", tmp_path / "precious"
    directory.mkdir()
    directory.chmod(0o1777)
    precious.write_text("precious")
    start_server()
    names = []
    for second in range(60):  # the names of the next reports can be foretold
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + second))
        names += [f"hang-{stamp}-{os.getpid()}-1{end}" for end in (".txt", ".json", ".txt.tmp")]
    for name in names:
        (directory / name).symlink_to(precious)
    assert start_worker(HUNG_IN_C).wait(PATIENCE) == -signal.SIGKILL
    (kill,) = events.wait_for("kill worker process")
    assert os.path.basename(kill.evidence or "") in names
    text, _ = report_of(kill)
    assert "load_batch" in text
    assert precious.read_text() == "precious"
    assert not os.path.islink(kill.evidence or "")


PY_SPY = shutil.which("py-spy") or shutil.which("py-spy", path=os.path.dirname(sys.executable))


def may_trace() -> bool:
    """Whether this process may trace one that it has not started."""
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.split("CapEff:")[1].split()[0], 16)
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    scope = int(yama.read_text()) if yama.exists() else 0
    return scope == 0 or (scope < 3 and bool(capabilities >> 19 & 1))  # CAP_SYS_PTRACE


@pytest.fixture
def native_stacks_there() -> None:
    if PY_SPY is None:
        how = "py-spy is not installed: pip install 'filetimer[stacks]'"
        pytest.fail(how) if os.environ.get("CI") else pytest.skip(how)
    if not may_trace():
        pytest.skip("nobody may trace a process here: kernel.yama.ptrace_scope")


def test_the_c_function_is_named_too_where_native_stacks_can_be_had(
    native_stacks_there: None,
    start_server: StartServer,
    start_worker: StartWorker,
    events: EventList,
) -> None:
    start_server()
    worker = start_worker(HUNG_IN_C)
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    (kill,) = events.wait_for("kill worker process")
    _, report = report_of(kill)
    (found,) = report["members"]
    assert found["native_missing"] is None
    native = [f for stack in found["native"] for f in stack["frames"] if f["native"]]
    assert "read" in [frame["function"].strip("_") for frame in native]
    innermost, _, rest = (kill.where or "").partition(" < ")
    assert "read" in innermost
    assert "load_batch (<string>:7)" in rest


@pytest.mark.parametrize("tool", ["py-spy", "pystack"])
def test_each_tool_names_the_c_function(
    native_stacks_there: None,
    start_server: StartServer,
    start_worker: StartWorker,
    tool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if stacks._find(tool) is None:
        pytest.skip(f"{tool} is not installed: pip install 'filetimer[stacks]'")
    monkeypatch.setattr(stacks, "_TOOLS", [t for t in stacks._TOOLS if t[0] == tool])
    start_server()
    monkeypatch.setenv("AFTER", "600")
    worker = start_worker(HUNG_IN_C.replace("def load_batch", "print(flush=True)\ndef load_batch"))
    assert worker.stdout is not None
    worker.stdout.readline()

    def both() -> bool:
        found, source = stacks.native_stacks(worker.pid, PATIENCE)
        names = [(f.function.strip("_"), f.native) for stack in found for f in stack.frames]
        return source == tool and ("read", True) in names and ("load_batch", False) in names

    eventually(both)


def test_a_deadlock_of_two_threads_with_native_stacks(
    native_stacks_there: None,
    start_server: StartServer,
    start_worker: StartWorker,
    events: EventList,
) -> None:
    start_server()
    start_worker(DEADLOCK)
    (kill,) = events.wait_for("kill worker process")
    _, report = report_of(kill)
    (found,) = report["members"]
    for function in ("first", "second"):
        (stack,) = [
            stack["frames"]
            for stack in found["native"]
            if any(frame["function"] == function for frame in stack["frames"])
        ]
        assert stack[0]["native"]  # the C function in which the lock is waited for


FAKE_GPU = """
import os, threading, time, filetimer
filetimer.configure_from_env()
os.mkfifo("corepipe")
def driver():
    with open("corepipe", "rb") as pipe:
        pipe.read(1)
    with open(f"core_{os.getpid()}.nvcudmp", "wb") as dump:
        dump.write(b"state of the GPU")
if os.environ["LISTENS"] == "1":
    threading.Thread(target=driver, daemon=True).start()
with filetimer.expires(0.3, "kernel"):
    time.sleep(600)
"""


@pytest.mark.parametrize(("asked", "listens"), [(True, True), (True, False), (False, True)])
def test_a_gpu_core_dump(
    start_server: StartServer,
    start_worker: StartWorker,
    events: EventList,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: bool,
    listens: bool,
) -> None:
    """With something that listens as the CUDA driver does; there is no GPU here."""
    start_server(gpu_core_dump=asked, evidence_budget=8.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LISTENS", str(int(listens)))
    monkeypatch.setenv("CUDA_COREDUMP_PIPE", "corepipe")
    monkeypatch.setenv("CUDA_COREDUMP_FILE", "core_%p.nvcudmp")
    worker = start_worker(FAKE_GPU)
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    (kill,) = events.wait_for("kill worker process")
    text, report = report_of(kill)
    dump = tmp_path / f"core_{worker.pid}.nvcudmp"
    gpu = report["members"][0]["gpu"]
    if not asked:
        assert gpu is None
    elif listens:
        assert gpu == f"core dump in {dump}"
        assert f"GPU: core dump in {dump}" in text
    else:  # nobody reads the pipe: a write that blocked would have cost the budget
        assert "cannot be written to" in gpu
        assert (kill.late or 0) < 7.0
    assert dump.exists() == (asked and listens)


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

    def held() -> list[str]:
        timers = view_server(journal, read_clocks()).timers
        return [timer.scope_id for timer in timers if timer.token is UNSET]

    eventually(lambda: held() == ["step"])
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

    def test_none_where_they_are_not_wanted(
        self, start_worker: StartWorker, fifo_path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FILETIMER_STACKS", "0")
        assert self.start(start_worker, fifo_path)[1] is None

    def test_none_is_taken_from_a_directory_of_somebody_else(
        self, start_worker: StartWorker, fifo_path: str
    ) -> None:
        _, offer = self.start(start_worker, fifo_path)
        os.chmod(os.path.dirname(offer.path), 0o777)
        assert offers(os.path.dirname(offer.path)) == {}

    def test_what_they_need_is_imported_only_where_they_are_offered(self) -> None:
        code = "import sys, filetimer; print([m for m in sys.argv[1:] if m in sys.modules])"
        modules = ["faulthandler", "hashlib", "tempfile", "msgspec"]
        printed = subprocess.check_output([sys.executable, "-c", code, *modules], text=True)
        assert printed == "[]\n"

    def test_a_worker_without_them_works(
        self, start_worker: StartWorker, fifo_path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FILETIMER_RUNTIME_DIR", "/proc/nowhere")
        worker, offer = self.start(start_worker, fifo_path)
        assert offer is None
        assert worker.communicate("") == ("", "")
        assert worker.returncode == 0

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


def _line(name: str) -> int:
    return sum(map(ord, name))


def test_the_output_of_pystack() -> None:
    output = (
        "Traceback for thread 7 (python) [Has the GIL] (most recent call last):\n"
        '    (Python) File "/a b/x.py", line 4, in load (batch)\n'
        "        read(1)\n"
        '    (C) File "Modules/callproc.c", line 923, in call (inlined) (/lib/c.so)\n'
        '    (C) File "???", line 0, in ffi_call (/lib/libffi.so.8)\n'
        '    (C) File "/lib/libffi.so.8", line 0, in ??? (/lib/libffi.so.8)\n'
        '    (C) File "read.c", line 26, in read\n\n'
    )
    frames = [
        Frame("read", "read.c", 26, native=True),
        Frame("???", "/lib/libffi.so.8", 0, native=True),
        Frame("ffi_call", "/lib/libffi.so.8", 0, native=True),
        Frame("call", "Modules/callproc.c", 923, native=True),
        Frame("load (batch)", "/a b/x.py", 4),
    ]
    assert stacks._parse_pystack(output) == [Stack("python (tid 7)", frames, owns_gil=True)]


class TestVerdict:
    def members(self, *functions: str) -> list[Member]:
        return [
            Member(
                100 + i, None, True, i, python=[Stack("0x1", [Frame(name, "m.py", _line(name))])]
            )
            for i, name in enumerate(functions)
        ]

    def test_one_is_elsewhere(self) -> None:
        members = self.members("wait", "wait", "load", "wait")
        assert elsewhere(members) == [members[2]]
        assert verdict(members)[0] == "3 of 4 workers are at the same place: ranks 0, 1, 3"

    def test_native_stacks_of_some_set_nobody_apart(self) -> None:
        """py-spy is asked about one of each place, and says more of it than faulthandler does."""
        members = self.members("wait", "wait", "load", "wait")
        members[0].native = [
            Stack(
                "MainThread (tid 1)",
                [
                    Frame("0x7f00", "libc.so.6", 0, native=True),
                    Frame("lock", "libpython.so", 0, native=True),
                    Frame("Condition.wait", "m.py", _line("wait")),
                ],
            )
        ]
        assert elsewhere(members) == [members[2]]
        assert where(members[0]) == "lock (libpython.so) < Condition.wait (m.py:437)"

    def test_addresses_are_better_than_nothing(self) -> None:
        (member,) = self.members("wait")
        member.native = [Stack("MainThread", [Frame("0x7f00", "libc.so.6", 0, native=True)] * 5)]
        assert where(member) == "0x7f00 (libc.so.6)"

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

    start_server(evidence_budget=3 * PATIENCE, max_interval=3 * PATIENCE)
    if lacking == "thread":
        monkeypatch.setattr(threading.Thread, "start", refuse)
    else:
        monkeypatch.setattr(server_evidence._Incident, "run", run)
    worker = start_worker(HUNG_IN_C)
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    (degraded,) = events.wait_for("server degraded")
    assert degraded.code == "evidence"
