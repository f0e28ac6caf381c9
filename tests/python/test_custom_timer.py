"""Writing a timer server and client of one's own, as documented."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE

import filetimer as timer

EXAMPLE = Path(__file__).parents[2] / "python/examples/unix_socket_timer.py"


def test_the_example_over_a_unix_socket_reaps_a_hung_worker() -> None:
    result = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=60
    )
    assert (result.stdout, result.returncode) == ("the worker ended with -15\n", 0), result.stderr


def test_the_pair_in_the_example_is_under_sixty_lines() -> None:
    text = EXAMPLE.read_text()
    pair = text[text.index("class SocketQueue") : text.index("def worker")]
    assert len([line for line in pair.splitlines() if line.strip()]) < 60


class ListQueue(timer.RequestQueue):
    def __init__(self) -> None:
        self.requests: list[timer.TimerRequest] = []
        self.asked: list[tuple[int, float]] = []

    def size(self) -> int:
        return len(self.requests)

    def get(self, size: int, timeout: float) -> list[timer.TimerRequest]:
        self.asked.append((size, timeout))
        if not self.requests:
            time.sleep(timeout)
        taken, self.requests[:] = self.requests[:size], self.requests[size:]
        return taken


class OneShotServer(timer.TimerServer):
    """``answers``: what ``_reap_worker`` returns or raises, one after the other."""

    def __init__(self, answers: list[Any]) -> None:
        self.queue = ListQueue()
        super().__init__(self.queue, max_interval=0.01)
        self.timers: dict[Any, timer.TimerRequest] = {}
        self.answers = answers
        self.reaped: list[Any] = []
        self.done = threading.Event()

    def register_timers(self, timer_requests: list[timer.TimerRequest]) -> None:
        self.timers.update({request.worker_id: request for request in timer_requests})

    def clear_timers(self, worker_ids: set[Any]) -> None:
        for worker_id in worker_ids:
            del self.timers[worker_id]
            self.done.set()

    def get_expired_timers(self, deadline: float) -> dict[Any, list[timer.TimerRequest]]:
        return {w: [t] for w, t in self.timers.items() if t.expiration_time <= deadline}

    def _reap_worker(self, worker_id: Any) -> bool:
        self.reaped.append(worker_id)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)


@pytest.mark.parametrize(
    ("answers", "attempts"),
    [
        ([True], 1),
        ([False, False, True], 3),
        ([ValueError("an exception counts as reaped")], 1),
    ],
)
def test_reap_worker_says_whether_to_try_again(answers: list[Any], attempts: int) -> None:
    server = OneShotServer(answers)
    server.queue.requests.append(timer.TimerRequest("w", "s", time.time() - 1))
    server.start()
    assert server.done.wait(PATIENCE)
    server.stop()
    assert server.reaped == ["w"] * attempts


def test_the_loop_asks_for_what_waits_and_at_least_one() -> None:
    server = OneShotServer([])
    server.queue.requests += [timer.TimerRequest(i, "s", time.time() + 600) for i in range(5)]
    server.start()
    while len(server.queue.asked) < 3:
        time.sleep(0.001)
    server.stop()
    assert server.queue.asked[0] == (5, 0.01)
    assert server.queue.asked[-1][0] == 1
    assert len(server.timers) == 5


def test_a_pass_that_fails_does_not_end_the_loop() -> None:
    class Failing(OneShotServer):
        failed = 0

        def get_expired_timers(self, deadline: float) -> dict[Any, list[timer.TimerRequest]]:
            self.failed += 1
            if self.failed < 3:
                raise OSError("for a moment")
            return super().get_expired_timers(deadline)

    server = Failing([True])
    server.queue.requests.append(timer.TimerRequest("w", "s", time.time() - 1))
    server.start()
    assert server.done.wait(PATIENCE)
    server.stop()


def test_start_twice_and_stop_twice() -> None:
    server = OneShotServer([])
    server.start()
    with pytest.raises(RuntimeError, match="stop"):
        server.start()
    server.stop()
    server.stop()
    server.start()
    server.stop()
    assert threading.active_count() == 1


def test_requests_compare_by_value() -> None:
    assert timer.TimerRequest(1, "s", 2.0) == timer.TimerRequest(1, "s", 2.0)
    assert timer.TimerRequest(1, "s", 2.0) != timer.TimerRequest(1, "t", 2.0)
    assert timer.FileTimerRequest(1, "s", 2.0, 9) != timer.FileTimerRequest(1, "s", 2.0, 15)
    assert timer.FileTimerRequest(1, "s", 2.0).worker_pid == 1
