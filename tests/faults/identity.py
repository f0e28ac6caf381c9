"""Who is killed: the process that acquired, and nobody else."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from faults.fault import Fault, Result, Scale
from faults.fleet import Fleet, FleetWorker, HeldServerProcess, bare_server, eventually, serve, stop

TAKE = "timer = begin(0.8)\nsay('taken')\nidle()"
DRAIN = 0.1  # seconds in which a server reads what is in its pipe
VERSIONS = ("python", "version 1")


def write_records(path: str, *records: dict[str, object]) -> None:
    """Records as any process could write them."""
    fd = os.open(path, os.O_WRONLY)
    try:
        for record in records:
            os.write(fd, json.dumps(record).encode() + b"\n")
    finally:
        os.close(fd)


def record(pid: int, after: float = 0.0, **more: object) -> dict[str, object]:
    """One that has ``pid`` killed after so many seconds."""
    at = time.time() + after
    required = {"version": 2, "pid": pid, "scope_id": "x", "expiration_time": at, "signal": 9}
    return {**required, **more}


# Recycled pids.


def recycled(scale: Scale) -> Result:
    """A worker dies with a timer out; its pid goes to a bystander, or to a worker that hangs."""
    result = Result(note="versions 1 and 2, while the server runs, is stopped, and is replaced")
    with serve("timers", result) as server:
        for _ in range(scale.pick(4, 1)):
            for client in VERSIONS:
                for pause in (_running, _stopped, _replaced):
                    _recycle(server, client, pause, result)
    return result


def _recycle(server: HeldServerProcess, client: str, pause, result: Result) -> None:
    with Fleet("timers") as fleet:
        taking = [fleet.start(f"input()\n{TAKE}", client=client) for _ in range(2)]
        for worker in taking:
            worker.tell()
            worker.hear("taken")
        time.sleep(DRAIN)  # a pid of version 1 must not be recycled in the tick of its record
        resume = pause(server)
        for worker in taking:
            worker.process.kill()
            worker.process.communicate()
            eventually(lambda worker=worker: worker.died_at is not None, "it is dead")
            result.timers += int(worker.slate.acquired)
        victims = list(taking)
        fleet.workers.clear()  # they died by our hand
        fleet.bystander("the new owner of a pid", pid=victims[0].pid)
        hangs = fleet.start("input()\nhang(1.5)", pid=victims[1].pid, client=client)
        result.injected += 2
        resume()
        time.sleep(0.9)  # until the deadlines of the dead have passed
        hangs.tell()
        fleet.judge(result)


def _running(server: HeldServerProcess):
    return lambda: None


def _stopped(server: HeldServerProcess):
    pid = server.pid
    stop(pid)
    return lambda: os.kill(pid, signal.SIGCONT)


def _replaced(server: HeldServerProcess):
    """No server lives for as long as the process that would replace it is stopped."""
    stop(server.process.pid)
    os.kill(server.pid, signal.SIGKILL)
    return lambda: os.kill(server.process.pid, signal.SIGCONT)


def recycled_unread(scale: Scale) -> Result:
    """The worker dies before its record is read, and its pid is given away before that, too."""
    result = Result(note="versions 1 and 2")
    with serve("timers", result) as server:
        for _ in range(scale.pick(6, 2)):
            for client in VERSIONS:
                with Fleet("timers") as fleet:
                    worker = fleet.start(f"input()\n{TAKE}", client=client)
                    resume = _stopped(server)
                    worker.tell()
                    worker.hear("taken")
                    time.sleep(0.05)  # start times count in hundredths
                    worker.process.kill()
                    worker.process.communicate()
                    fleet.workers.clear()
                    result.timers += 1
                    fleet.bystander("the new owner of a pid", pid=worker.pid)
                    result.injected += 1
                    resume()
                    time.sleep(0.9)
                    fleet.judge(result)
    return result


# Processes that change.


def ended(scale: Scale) -> Result:
    """Zombies: workers that have ended with a timer out, and that nobody has waited for."""
    result = Result()
    with bare_server("timers", result) as server:
        for _ in range(scale.pick(10, 2)):
            with Fleet("timers") as fleet:
                # `sleep` is the parent that does not wait.
                parent = fleet.start(
                    "pid = os.fork()\n"
                    "if pid == 0:\n    client.begin('x', 0.3)\n    os._exit(0)\n"
                    "say(str(pid))\nidle()",
                    must_live=True,
                )
                zombie = int(_line(parent))
                eventually(lambda zombie=zombie: _state(zombie) == "Z", "a zombie")
                result.injected += 1
                result.timers += 2
                write_records("timers", record(zombie))
                time.sleep(0.5)
                fleet.judge(result)
                said = server.said("timer refused", "zombie", f'"pid": {zombie},')
                result.check(said, "a zombie was not refused")
    return result


def changed(scale: Scale) -> Result:
    """The process that hangs has called exec, or took its timer in a thread that has ended."""
    result = Result(note="exec, a thread that ended, a main thread that ended")
    with bare_server("timers", result), Fleet("timers") as fleet:
        for _ in range(scale.pick(10, 2)):
            for code in (_EXEC, _THREAD, _NO_MAIN):
                fleet.start(code + "# and then it hangs(")
                result.injected += 1
        fleet.judge(result)
    return result


_EXEC = """
slate.hangs = 1
begin(0.5)
os.execvp("sleep", ["sleep", "600"])
"""
_THREAD = """
def take():
    slate.hangs = 1
    begin(0.5)
thread = threading.Thread(target=take)
thread.start()
thread.join()
idle()
"""
# The leader of the process ends, as by pthread_exit; /proc then says that the process is a zombie.
_NO_MAIN = """
import ctypes, platform
def take():
    while "Z" not in open(f"/proc/{os.getpid()}/stat").read().rpartition(")")[2]:
        time.sleep(0.01)
    hang(0.5)
threading.Thread(target=take).start()
ctypes.CDLL(None).syscall({"x86_64": 60}.get(platform.machine(), 93), 0)
"""


def forked(scale: Scale) -> Result:
    """A child inherits its parent's guard, and leaves it; or has a timer of its own."""
    result = Result()
    with bare_server("timers", result), Fleet("timers") as fleet:
        children = []
        for client in ("python", "python", "version 1") * scale.pick(6, 1):
            parent = fleet.start(_INHERIT, client=client)
            children.append(fleet_child(parent))
            fleet.start(_OWN, client=client)
            result.injected += 2
            result.timers += 1
        fleet.judge(result)
        for child in children:
            if _state(child) in ("Z", None):
                result.blame("a child was killed for its parent's timer")
        for worker in fleet.workers:
            if worker.process.poll() == 7:
                result.lose("the timer of a child did not reap it")
    return result


_INHERIT = """
if os.environ["FAULTS_CLIENT"] == "version 1":
    handle = None
    acquire(0.8)
else:
    handle = begin(0.8)
slate.hangs = 1
pid = os.fork()
if pid == 0:
    os.close(0), os.close(1), os.close(2)
    handle.end() if handle else client.release("block")
    idle()
say(str(pid))
idle()
"""
_OWN = """
begun = begin(30)
pid = os.fork()
if pid == 0:
    client.acquire("own", time.time() + 0.3)
    time.sleep(600)
until = time.monotonic() + 15
while time.monotonic() < until:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        end(begun)
        sys.exit(0 if status == signal.SIGKILL else 6)
    time.sleep(0.01)
os.kill(pid, signal.SIGKILL)
sys.exit(7)
"""


def fleet_child(parent: FleetWorker) -> int:
    """The pid that a worker says."""
    return int(_line(parent))


# Strangers.


def strangers(scale: Scale) -> Result:
    """Records name pids that no client of this server has."""
    result = Result(note="0, 1, -1, groups, the server, a thread, a wrong start time, another user")
    as_root = _may_change_user()
    if not as_root:
        result.skipped = "needs a second user"
        return result
    with bare_server("timers", result) as server, Fleet("timers") as fleet:
        for _ in range(scale.pick(20, 3)):
            innocent = fleet.bystander("a bystander")
            nobody = fleet.bystander("another user's process", user=65534)
            threaded = fleet.start(
                "threading.Thread(target=idle).start()\nsay(str(max(map(int, "
                "os.listdir('/proc/self/task')))))\nidle()",
                must_live=True,
            )
            tid = int(_line(threaded))
            group = os.getpgid(innocent.pid)
            pids = [0, 1, -1, -group, server.pid, -server.pid, tid, nobody.pid, 2**31, 2**31 - 1]
            records = [record(pid) for pid in pids]
            records.append(record(innocent.pid, start_time=1))
            records.append(record(innocent.pid, pid_ns=1))
            write_records("timers", *records)
            result.injected += len(records)
            result.timers += len(records)
        eventually(lambda: server.said("timer refused", "foreign_uid"), "the refusals")
        fleet.judge(result)
        for reason in ("init", "self", "no_process", "foreign_uid", "start_time", "foreign_pid_ns"):
            result.check(server.said("timer refused", reason), f"nobody was refused for {reason}")
        result.check(server.process.poll() is None, "the server ended")
    return result


def _may_change_user() -> bool:
    uids = Path("/proc/self/uid_map").read_text().split()
    return int(uids[2]) > 65534


NESTED = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
_TWIN = """
open("/proc/sys/kernel/ns_last_pid", "w").write(str({pid} - 1))
pid = os.fork()
if pid == 0:
    client.begin("x", 0.3)
    say(str(os.getpid()))
    idle()
os.wait()
"""


def foreign_namespaces(scale: Scale) -> Result:
    """A client in another namespace names a pid that means somebody else to the server."""
    result = Result(note="nested and outer pid namespace, shifted clocks")
    with bare_server("timers", result) as server, Fleet("timers") as fleet:
        for number in range(scale.pick(5, 1)):
            innocent = fleet.bystander("a namesake", pid=20_000 + 100 * number)
            code = _TWIN.format(pid=innocent.pid)
            twin = fleet.start(code, prefix=NESTED, must_live=True)
            twin.hear(str(innocent.pid))
            shifted = ("unshare", "--time", "--monotonic", "9", "--fork", "--kill-child")
            other = fleet.start(
                "client.begin('x', 0.3)\nsay('taken')\nidle()", prefix=shifted, must_live=True
            )
            other.hear("taken")
            result.injected += 2
            result.timers += 2
        time.sleep(1.0)
        fleet.judge(result)
        for reason in ("foreign_pid_ns", "foreign_time_ns"):
            result.check(server.said("timer refused", reason), f"nobody was refused for {reason}")
    _server_in_nested_namespace(result)
    return result


def _server_in_nested_namespace(result: Result) -> None:
    with bare_server("nested", result, prefix=NESTED) as server, Fleet("nested") as fleet:
        outer = fleet.start("client.begin('x', 0.3)\nsay('taken')\nidle()", must_live=True)
        outer.hear("taken")
        result.injected += 1
        result.timers += 1
        time.sleep(0.6)
        fleet.judge(result)
        result.check(server.said("timer refused", "foreign_pid_ns"), "it was not refused")


def _line(worker: FleetWorker) -> str:
    assert worker.process.stdout is not None
    return worker.process.stdout.readline()


def _state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


FAULTS = [
    Fault("pid recycled after its worker's death", recycled, 300),
    Fault("pid recycled before its record was read", recycled_unread),
    Fault("worker ended, a zombie", ended),
    Fault("worker whose process changed before its deadline", changed),
    Fault("fork with a guard inherited", forked),
    Fault("records that name strangers", strangers),
    Fault("records from other namespaces", foreign_namespaces),
]
