"""``expires`` against a client that writes down what it is asked, and against the pipe."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import filetimer as timer
from filetimer import api


class RecordingClient(timer.TimerClient):
    """A client that can only acquire and release by scope, as a user would write one."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, float]] = []

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        self.calls.append(("acquire", scope_id, expiration_time - time.time()))

    def release(self, scope_id: str) -> None:
        self.calls.append(("release", scope_id, 0.0))

    def summary(self) -> list[tuple[str, str, int]]:
        return [(what, scope, round(after / 10) * 10) for what, scope, after in self.calls]


class TokenClient(timer.TimerClient):
    """A client whose timers are told apart; ``live`` holds those that are open."""

    def __init__(self) -> None:
        self.live: dict[int, tuple[str, float]] = {}
        self.count = 0

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        raise AssertionError("expires begins timers of its own")

    def release(self, scope_id: str) -> None:
        raise AssertionError("expires ends timers of its own")

    def begin(self, scope_id: str, after: float, *, wait: bool = True) -> timer.TimerHandle:
        self.count += 1
        return _TokenHandle(self, self.count, scope_id, after)


class _TokenHandle:
    def __init__(self, client: TokenClient, token: int, scope: str, after: float) -> None:
        self._client, self._token, self._scope = client, token, scope
        self.extend(after)

    def extend(self, after: float) -> None:
        self._client.live[self._token] = (self._scope, after)

    def end(self, *, wait: bool = True) -> bool:
        del self._client.live[self._token]
        return True


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TokenClient:
    client = TokenClient()
    monkeypatch.setattr(api, "_client", client)
    return client


def open_afters(client: TokenClient) -> list[float]:
    return [after for _, after in client.live.values()]


def test_a_block_opens_and_closes_one_timer(client: TokenClient) -> None:
    with timer.expires(60, scope="s"):
        assert list(client.live.values()) == [("s", 60.0)]
    assert client.live == {}


def test_the_automatic_scope_is_file_and_line_of_the_caller(client: TokenClient) -> None:
    with timer.expires(after=60):
        ((scope, _),) = client.live.values()
    file, _, line = scope.rpartition("#")
    assert file == __file__
    assert "with timer.expires(after=60):" in Path(__file__).read_text().splitlines()[int(line) - 1]


def test_the_exception_of_the_body_comes_through(client: TokenClient) -> None:
    with pytest.raises(KeyError, match="mine"), timer.expires(60):
        raise KeyError("mine")
    assert client.live == {}


def test_nested_blocks_keep_both_deadlines(client: TokenClient) -> None:
    with timer.expires(10, scope="s"):
        with timer.expires(100, scope="s"):
            assert open_afters(client) == [10, 100]
        assert open_afters(client) == [10]


def test_one_guard_may_be_entered_again_inside_itself(client: TokenClient) -> None:
    guard = timer.expires(60)
    with guard:
        with guard:
            assert client.count == len(client.live) == 2
        assert list(client.live) == [1]


def test_a_recursive_function(client: TokenClient) -> None:
    @timer.expires(60, scope="recursion")
    def depth(n: int) -> int:
        return len(client.live) if n == 0 else depth(n - 1)

    assert depth(9) == 10
    assert client.live == {}


def test_a_decorated_function_keeps_its_name_and_result(client: TokenClient) -> None:
    @timer.expires(60)
    def double(x: int) -> int:
        """Twice."""
        return 2 * x

    assert (double(4), double.__name__, double.__doc__) == (8, "double", "Twice.")
    assert client.live == {}


def test_threads_in_one_guard_do_not_close_one_another(client: TokenClient) -> None:
    guard = timer.expires(60)
    first_in, second_out = threading.Event(), threading.Event()

    def first() -> None:
        with guard:
            first_in.set()
            second_out.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    first_in.wait(10)
    with guard:
        assert sorted(client.live) == [1, 2]
    assert list(client.live) == [1]
    second_out.set()
    thread.join()
    assert client.live == {}


def test_tasks_in_one_guard_do_not_close_one_another(client: TokenClient) -> None:
    guard = timer.expires(60)

    async def inner(order: list[str], name: str, wait: float) -> None:
        async with guard:
            await asyncio.sleep(wait)
            order.append(f"{name} {sorted(client.live)}")

    async def main() -> list[str]:
        order: list[str] = []
        await asyncio.gather(inner(order, "long", 0.2), inner(order, "short", 0.01))
        return order

    assert asyncio.run(main()) == ["short [1, 2]", "long [1]"]
    assert client.live == {}


def test_coroutine_functions_are_guarded_while_they_run(client: TokenClient) -> None:
    @timer.expires(60)
    async def live() -> int:
        await asyncio.sleep(0)
        return len(client.live)

    coroutine = live()
    assert client.live == {}
    assert asyncio.run(coroutine) == 1
    assert client.live == {}


def test_interleaved_generators_close_their_own(client: TokenClient) -> None:
    def guarded(scope: str) -> Any:
        with timer.expires(60, scope=scope):
            yield

    a, b = guarded("a"), guarded("b")
    next(a), next(b)
    a.close()
    assert [scope for scope, _ in client.live.values()] == ["b"]
    b.close()
    assert client.live == {}


def test_generator_functions_are_refused() -> None:
    with pytest.raises(TypeError, match="generator"):

        @timer.expires(60)
        def numbers() -> Any:
            yield 1


def test_extend_moves_the_innermost_deadline(client: TokenClient) -> None:
    with timer.expires(10, scope="outer"):
        with timer.expires(20, scope="inner") as handle:
            timer.extend(200)
            assert open_afters(client) == [10, 200]
            handle.extend(300)
            assert open_afters(client) == [10, 300]
        timer.extend(11)
        assert open_afters(client) == [11]


def test_extend_outside_a_block_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="inside"):
        timer.extend(10)


@pytest.mark.parametrize("after", [math.nan, math.inf, -math.inf, None, "60", b"1", [], 1j])
def test_after_must_be_a_finite_number(after: Any) -> None:
    with pytest.raises(ValueError, match="finite number of seconds"):
        timer.expires(after)


@pytest.mark.parametrize("scope", ["", 5, b"bytes"])
def test_scope_must_be_a_non_empty_string(scope: Any) -> None:
    with pytest.raises(ValueError, match="scope"):
        timer.expires(60, scope=scope)


def test_without_a_client_entering_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_client", None)
    guard = timer.expires(60)
    with pytest.raises(RuntimeError, match="configure"), guard:
        pass


def test_the_client_argument_wins(client: TokenClient) -> None:
    other = TokenClient()
    with timer.expires(60, client=other):
        assert (len(client.live), len(other.live)) == (0, 1)


class TestClientsWithOneTimerAScope:
    """All that such a client can send is one deadline a scope: it must be the earliest."""

    def test_a_block_is_one_acquire_and_one_release(self) -> None:
        client = RecordingClient()
        with timer.expires(60, scope="s", client=client):
            pass
        assert client.summary() == [("acquire", "s", 60), ("release", "s", 0)]

    def test_an_inner_block_does_not_hide_the_outer(self) -> None:
        client = RecordingClient()
        with timer.expires(60, scope="s", client=client):
            with timer.expires(600, scope="s", client=client):
                assert client.summary()[-1] == ("acquire", "s", 60)
            assert client.summary()[-1] == ("acquire", "s", 60)
        assert client.summary()[-1] == ("release", "s", 0)

    def test_the_outer_deadline_is_set_again_after_an_earlier_inner_one(self) -> None:
        client = RecordingClient()
        with timer.expires(600, scope="s", client=client):
            with timer.expires(60, scope="s", client=client):
                assert client.summary()[-1] == ("acquire", "s", 60)
            assert client.summary()[-1] == ("acquire", "s", 600)

    def test_a_failed_acquire_leaves_no_trace(self) -> None:
        class Failing(RecordingClient):
            def acquire(self, scope_id: str, expiration_time: float) -> None:
                raise BrokenPipeError

        client = Failing()
        with pytest.raises(BrokenPipeError), timer.expires(60, scope="s", client=client):
            raise AssertionError("the block must not be entered")
        assert client.calls == []

    def test_a_client_that_is_no_subclass_will_do(self) -> None:
        """torch's own client, for one."""

        class Duck:
            def __init__(self) -> None:
                self.calls: list[str] = []

            def acquire(self, scope_id: str, expiration_time: float) -> None:
                self.calls.append("acquire")

            def release(self, scope_id: str) -> None:
                self.calls.append("release")

        duck = Duck()
        with timer.expires(60, client=duck):  # type: ignore[arg-type]
            pass
        assert duck.calls == ["acquire", "release"]

    def test_a_release_that_fails_does_not_mask_the_body(self) -> None:
        class Failing(RecordingClient):
            def release(self, scope_id: str) -> None:
                raise OSError("gone")

        with pytest.raises(KeyError), timer.expires(60, client=Failing()):
            raise KeyError


def test_configure_from_env_without_a_path_guards_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_client", None)
    assert isinstance(timer.configure_from_env(), timer.NoopTimerClient)
    with timer.expires(60):
        timer.extend(5)


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"FILETIMER_PATH": "/a", "TORCHELASTIC_TIMER_FILE": "/b"}, "/a"),
        ({"FILETIMER_PATH": "", "TORCHELASTIC_TIMER_FILE": "/b"}, "/b"),
        ({"TORCHELASTIC_TIMER_FILE": "/b"}, "/b"),
    ],
)
def test_configure_from_env(
    environment: dict[str, str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SPEC T-1."""
    monkeypatch.setattr(api, "_client", None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client = timer.configure_from_env()
    assert isinstance(client, timer.FileTimerClient)
    assert client._pipe.path == path
