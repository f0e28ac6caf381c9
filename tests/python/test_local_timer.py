"""``LocalTimerServer`` and ``LocalTimerClient`` over real queues and every start method."""

from __future__ import annotations

import multiprocessing as mp
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support import PATIENCE, EventList, census, eventually

import filetimer as timer
from filetimer.server.process import ProcessHandle

METHODS = ["fork", "spawn", "forkserver"]


def hang(queue: Any) -> None:
    timer.configure(timer.LocalTimerClient(queue))
    with timer.expires(after=0.3, scope="stuck"):
        time.sleep(600)


def behave(queue: Any) -> None:
    timer.configure(timer.LocalTimerClient(queue))
    for _ in range(3):
        with timer.expires(after=1.5, scope="outer"), timer.expires(after=600, scope="outer"):
            time.sleep(0.01)
    time.sleep(2)


def nested(queue: Any) -> None:
    timer.configure(timer.LocalTimerClient(queue))
    with timer.expires(after=0.3, scope="s"), timer.expires(after=600, scope="s"):
        time.sleep(600)


def leave(queue: Any) -> None:
    timer.LocalTimerClient(queue).acquire("left", time.time() + 60)


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> Any:
    return mp.get_context(request.param)


@pytest.fixture
def queue(context: Any) -> Any:
    return context.Queue()


@pytest.fixture
def server(queue: Any, events: EventList) -> Iterator[timer.LocalTimerServer]:
    server = timer.LocalTimerServer(queue, max_interval=1, on_event=events)
    server.start()
    yield server
    server.stop()


def run(context: Any, target: Any, queue: Any) -> int:
    process = context.Process(target=target, args=(queue,))
    process.start()
    process.join(3 * PATIENCE)
    return int(process.exitcode)


def test_a_hung_worker_is_killed(
    context: Any, queue: Any, server: timer.LocalTimerServer, events: EventList
) -> None:
    assert run(context, hang, queue) == -signal.SIGKILL
    (died,) = events.wait_for("worker died")
    assert died.scope_id == "stuck"


def test_a_worker_that_releases_lives(
    context: Any, queue: Any, server: timer.LocalTimerServer, events: EventList
) -> None:
    assert run(context, behave, queue) == 0
    assert events.named("timer expired") == []


def test_an_inner_block_does_not_hide_the_outer(
    context: Any, queue: Any, server: timer.LocalTimerServer
) -> None:
    assert run(context, nested, queue) == -signal.SIGKILL


def test_a_worker_that_exits_is_forgotten(
    context: Any, queue: Any, server: timer.LocalTimerServer, events: EventList
) -> None:
    assert run(context, leave, queue) == 0
    eventually(lambda: events.named("worker exited") or events.named("timer refused"))
    assert server.get_expired_timers(time.time() + 120) == {}
    assert events.named("kill worker process") == []


def test_a_managers_queue_will_do() -> None:
    with mp.get_context("spawn").Manager() as manager:
        queue = manager.Queue()
        server = timer.LocalTimerServer(queue)
        server.start()
        assert run(mp.get_context("spawn"), hang, queue) == -signal.SIGKILL
        server.stop()
        eventually(lambda: threading.active_count() == 1)


def test_stop_is_immediate_and_leaves_nothing() -> None:
    queue: Any = mp.get_context("spawn").Queue()
    before = census()
    server = timer.LocalTimerServer(queue, max_interval=3600, daemon=False)
    server.start()
    with pytest.raises(RuntimeError, match="stop"):
        server.start()
    started = time.monotonic()
    server.stop()
    server.stop()
    assert time.monotonic() - started < 60
    assert census() == before


def test_the_public_methods(events: EventList) -> None:
    context = mp.get_context("spawn")
    server = timer.LocalTimerServer(context.Queue(), on_event=events)
    process = context.Process(target=time.sleep, args=(600,))
    process.start()
    pid = process.pid
    request = timer.TimerRequest(pid, "s", time.time() + 60)
    server.register_timers([request])
    assert server.get_expired_timers(time.time()) == {}
    assert server.get_expired_timers(time.time() + 120) == {pid: [request]}
    server.clear_timers({pid, 999_999})
    assert server.get_expired_timers(time.time() + 120) == {}
    server.register_timers([request, timer.TimerRequest("not a pid", "s", 1.0)])
    assert server._reap_worker(pid) is True
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    assert server._reap_worker(999_999) is True


def test_the_request_queue() -> None:
    queue: Any = mp.get_context("spawn").Queue()
    requests = timer.MultiprocessingRequestQueue(queue)
    assert requests.get(5, 0.01) == []
    for i in range(3):
        queue.put(timer.TimerRequest(i, "s", 1.0))
    eventually(lambda: requests.size() == 3)
    got: list[Any] = []
    while len(got) < 3:  # the queue's own thread may lag behind its count
        batch = requests.get(2, PATIENCE)
        assert 1 <= len(batch) <= 2
        got += [request.worker_id for request in batch]
    assert got == [0, 1, 2]


def test_one_that_only_reports_signals_nobody(context: Any, queue: Any, events: EventList) -> None:
    server = timer.LocalTimerServer(queue, on_event=events, report_only=True, warn_after=0.01)
    server.start()
    worker = context.Process(target=hang, args=(queue,))
    worker.start()
    try:
        (expired,) = events.wait_for("timer expired")
        assert expired.detail == "SIGKILL was not sent"
        assert events.wait_for("timer overdue")[0].pid == worker.pid
        assert worker.is_alive()
    finally:
        worker.kill()
        worker.join()
        server.stop()


def test_to_reap_one_that_cannot_be_signalled_raises_nothing(
    sleeper: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = timer.LocalTimerServer(mp.get_context("spawn").Queue())
    server.register_timers([timer.TimerRequest(sleeper.pid, "s", time.time() + 60)])

    def refuse(process: ProcessHandle, signum: int) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(ProcessHandle, "send_signal", refuse)
        assert not server._reap_worker(sleeper.pid)
    assert sleeper.poll() is None
    assert server._reap_worker(sleeper.pid)
    assert sleeper.wait(PATIENCE) == -signal.SIGKILL
    assert server._reap_worker(sleeper.pid)  # it is gone already
    server.clear_timers({sleeper.pid})
    server._watchdog.close()
