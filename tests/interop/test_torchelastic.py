"""The module ``filetimer.torchelastic`` by itself, with a torch that is not there or is another."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import filetimer
from filetimer import torchelastic, torchrun_handler
from filetimer.cli.main import main
from filetimer.server.policy import Policy


class TorchsServer:
    """The interface of torch 2.13's."""

    def __init__(
        self,
        file_path: str,
        run_id: str,
        max_interval: float = 10,
        daemon: bool = True,
        log_event: Any = None,
    ) -> None:
        pass

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def run_once(self) -> None: ...

    def register_timers(self, timer_requests: list[Any]) -> None: ...

    def clear_timers(self, worker_pids: set[int]) -> None: ...

    def get_expired_timers(self, deadline: float) -> dict[int, list[Any]]:
        return {}

    @staticmethod
    def is_process_running(pid: int) -> bool:
        return False

    def get_last_progress_time(self) -> int:
        return 0


class WithAnotherParameter(TorchsServer):
    def __init__(self, file_path: str, run_id: str, cluster: str) -> None:
        pass


class WithoutRunId(TorchsServer):
    def __init__(self, file_path: str, max_interval: float = 10) -> None:
        pass


class WithAnotherMethod(TorchsServer):
    def pause(self) -> None: ...


@pytest.fixture
def torch_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., types.ModuleType]:
    """Puts a torch into place that has this server, or none."""

    def install(**attributes: Any) -> types.ModuleType:
        name = torchelastic.TIMER_PACKAGE
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module = types.ModuleType(".".join(parts[:end]))
            module.__path__ = []
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.delitem(sys.modules, torchelastic.AGENT_MODULE, raising=False)
        vars(module).update(attributes)
        return module

    for name in (torchelastic.ENABLE, "FILETIMER_PATH", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    return install


# Putting it into place.


def test_a_compatible_torch_gets_our_server(
    torch_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = torch_with(FileTimerServer=TorchsServer)
    monkeypatch.setenv("FILETIMER_PATH", "/of/an/outer/server")
    assert torchelastic.enable()
    assert timer.FileTimerServer is torchelastic.FileTimerServer
    assert os.environ[torchelastic.ENABLE] == "1"
    assert "FILETIMER_PATH" not in os.environ
    assert torchelastic.install()  # again: nothing more


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({}, "has no torch.distributed.elastic.timer.FileTimerServer"),
        ({"FileTimerServer": "gone"}, "has no torch.distributed.elastic.timer.FileTimerServer"),
        ({"FileTimerServer": WithAnotherParameter}, "has a parameter 'cluster'"),
        ({"FileTimerServer": WithoutRunId}, "has no parameter 'run_id'"),
        ({"FileTimerServer": WithAnotherMethod}, "has a method 'pause'"),
    ],
)
def test_an_incompatible_torch_keeps_its_own_and_one_warning_says_why(
    torch_with: Callable[..., Any],
    attributes: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    timer = torch_with(**attributes)
    assert not torchelastic.install()
    assert getattr(timer, "FileTimerServer", None) is attributes.get("FileTimerServer")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()
    assert "torch's own timer server stays" in record.getMessage()


def test_an_agent_that_looks_the_class_up_elsewhere_is_incompatible() -> None:
    timer = types.SimpleNamespace(FileTimerServer=TorchsServer)
    for agent, compatible in ((_agent("timer"), True), (_agent("imported"), False)):
        assert (torchelastic.incompatibility(timer, agent) is None) == compatible


def _agent(way: str) -> types.ModuleType:
    module = types.ModuleType("agent")
    call = {"timer": "timer.FileTimerServer()", "imported": "FileTimerServer()"}[way]
    if way == "imported":
        vars(module)["FileTimerServer"] = TorchsServer
    source = f"class LocalElasticAgent:\n  def _setup_local_watchdog(self):\n    {call}\n"
    exec(source, vars(module))
    return module


# The hook.


def test_the_hook_installs_when_switched_on(
    torch_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = torch_with(FileTimerServer=TorchsServer)
    monkeypatch.setenv("FILETIMER_TORCHRUN", "1")
    backend = torchrun_handler.register()
    assert timer.FileTimerServer is torchelastic.FileTimerServer
    with pytest.raises(ValueError, match="not a rendezvous backend"):
        backend(None)


@pytest.mark.parametrize(
    "variables",
    [{}, {"FILETIMER_TORCHRUN": "0"}, {"FILETIMER_TORCHRUN": "1", "TORCHELASTIC_RUN_ID": "x"}],
)
def test_the_hook_does_nothing_when_switched_off_or_in_a_worker(
    torch_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    timer = torch_with(FileTimerServer=TorchsServer)
    monkeypatch.delenv("FILETIMER_TORCHRUN", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    torchrun_handler.register()
    assert timer.FileTimerServer is TorchsServer
    assert torchelastic.ENABLE not in os.environ


def test_the_hook_never_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FILETIMER_TORCHRUN", "1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv(torchelastic.ENABLE, "to be restored")
    for name in ("torch", torchelastic.TIMER_PACKAGE):  # another test may have imported them
        monkeypatch.setitem(sys.modules, name, None)
    assert torchrun_handler.register()
    assert "filetimer is not used: ModuleNotFoundError" in caplog.text


def test_without_torch_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["torchrun", "train.py"]) == 2
    assert capsys.readouterr().err == (
        "filetimer torchrun: torch is not installed: pip install torch\n"
    )


# The server.


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "RANK": "7", "TORCHELASTIC_RUN_ID": "x"}
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        yield process
        process.kill()


class Agent:
    """As much of torch's agent as the server looks at."""

    def __init__(self, pid: int, error_file: str) -> None:
        worker = types.SimpleNamespace(id=pid, global_rank=5, local_rank=1)
        self._worker_group = types.SimpleNamespace(workers=[worker])
        self._pcontext = types.SimpleNamespace(error_files={1: error_file})
        self.seen: list[str] = []

    def log(self, name: str, request: Any) -> None:
        self.seen.append(name)


def reap(server: torchelastic.FileTimerServer, process: subprocess.Popen[bytes]) -> None:
    server.start()
    try:
        request = filetimer.FileTimerRequest(process.pid, "block", time.time(), signal.SIGKILL)
        server.register_timers([request])
        assert process.wait(10) == -signal.SIGKILL
    finally:
        server.stop()


def test_a_reaped_worker_is_named_in_the_log_and_in_the_agents_report(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent(sleeper.pid, str(tmp_path / "error.json"))
    reap(torchelastic.FileTimerServer(str(tmp_path / "f"), "x", 0.1, True, agent.log), sleeper)
    assert f"filetimer: reaped rank 5 (pid {sleeper.pid}): its timer 'block' expired" in caplog.text
    assert agent.seen == [
        "watchdog started",
        "timer expired",
        "kill worker process",
        "watchdog stopped",
    ]
    left = json.loads((tmp_path / "error.json").read_text())["message"]
    assert left["message"] == left["extraInfo"]["py_callstack"]
    assert f"reaped rank 5 (pid {sleeper.pid})" in left["message"]
    assert "'block'" in left["message"]
    assert "signal 9 (SIGKILL)" in left["message"]
    assert abs(int(left["extraInfo"]["timestamp"]) - time.time()) < 60
    assert sorted(os.listdir(tmp_path)) == ["error.json"]


def test_the_reason_that_a_worker_left_itself_stays(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    file = tmp_path / "error.json"
    file.write_text("its own")
    agent = Agent(sleeper.pid, str(file))
    reap(torchelastic.FileTimerServer(str(tmp_path / "f"), "x", log_event=agent.log), sleeper)
    assert file.read_text() == "its own"
    assert os.listdir(tmp_path) == ["error.json"]


@pytest.mark.parametrize("agent", [None, Agent(0, os.devnull)], ids=["no agent", "a stranger's"])
def test_a_worker_that_the_agent_does_not_know_is_named_by_its_environment(
    tmp_path: Path,
    sleeper: subprocess.Popen[bytes],
    caplog: pytest.LogCaptureFixture,
    agent: Agent | None,
) -> None:
    log_event = None if agent is None else agent.log
    reap(torchelastic.FileTimerServer(str(tmp_path / "f"), "x", log_event=log_event), sleeper)
    assert f"reaped rank 7 (pid {sleeper.pid})" in caplog.text


def test_an_agent_of_another_shape_does_no_harm(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent(sleeper.pid, str(tmp_path / "error.json"))
    agent._worker_group = types.SimpleNamespace(workers=None)
    reap(torchelastic.FileTimerServer(str(tmp_path / "f"), "x", log_event=agent.log), sleeper)
    assert f"reaped rank 7 (pid {sleeper.pid})" in caplog.text


def test_a_path_that_cannot_be_served_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("data")
    server = torchelastic.FileTimerServer(str(tmp_path / "file"), "x")
    server.start()
    assert "no worker of this agent is guarded" in caplog.text
    assert abs(server.get_last_progress_time() - time.time()) < 5
    server.stop()
    assert (tmp_path / "file").read_text() == "data"


def test_workers_are_told_that_the_server_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILETIMER_PATH", "/of/an/outer/server")
    path = str(tmp_path / "f")
    server = torchelastic.FileTimerServer(path, "x")
    server.start()
    assert os.environ["FILETIMER_PATH"] == path
    server.stop()
    assert "FILETIMER_PATH" not in os.environ


def test_policies_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {
        "REPORT_ONLY": "1",
        "REAP_TREE": "0",
        "HOLD_STOPPED": "",
        "WARN_AFTER": "0.8",
        "KILL_AFTER": "soon",
    }.items():
        monkeypatch.setenv(f"FILETIMER_{name}", value)
    server = torchelastic.FileTimerServer(str(tmp_path / "f"), "x")
    assert server._watchdog._policy == Policy(None, True, 0.8, False, False)
    assert "FILETIMER_KILL_AFTER must be a positive number" in caplog.text


def test_the_signals_of_the_agent_come_through_the_callback(tmp_path: Path) -> None:
    class SignalException(Exception):
        """torch's handlers raise one of this name in the main thread, wherever that is."""

    def log_event(name: str, request: Any) -> None:
        raise SignalException(name)

    server = torchelastic.FileTimerServer(str(tmp_path / "f"), "x", log_event=log_event)
    with pytest.raises(SignalException, match="watchdog started"):
        server.start()
    with pytest.raises(SignalException, match="watchdog stopped"):
        server.stop()
    server.stop()
    assert os.listdir(tmp_path) == []


def test_progress_is_seen(tmp_path: Path) -> None:
    server = torchelastic.FileTimerServer(str(tmp_path / "f"), "x", max_interval=0.1)
    server.start()
    try:
        first = server.get_last_progress_time()
        assert isinstance(first, int)
        give_up = time.monotonic() + 20
        while server.get_last_progress_time() <= first:
            assert time.monotonic() < give_up
            time.sleep(0.05)
    finally:
        server.stop()
