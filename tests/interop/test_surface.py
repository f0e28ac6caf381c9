"""The public surface of ``torch.distributed.elastic.timer``, compared with ours by inspection."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import filetimer

torch_timer = pytest.importorskip(
    "torch.distributed.elastic.timer", reason="needs torch: pip install torch==2.13.0"
)

PAIRS = {
    "FileTimerClient": ["acquire", "release"],
    "FileTimerRequest": ["to_json"],
    "FileTimerServer": [
        "start",
        "stop",
        "run_once",
        "register_timers",
        "clear_timers",
        "get_expired_timers",
        "get_last_progress_time",
        "is_process_running",
    ],
    "LocalTimerClient": ["acquire", "release"],
    "LocalTimerServer": ["start", "stop", "register_timers", "clear_timers", "get_expired_timers"],
    "TimerClient": ["acquire", "release"],
    "TimerRequest": [],
    "TimerServer": [
        "start",
        "stop",
        "register_timers",
        "clear_timers",
        "get_expired_timers",
        "_reap_worker",
    ],
}


def positional(function: Any) -> list[tuple[str, Any]]:
    """Names and defaults of what can be given by position."""
    return [
        (parameter.name, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]


@pytest.mark.parametrize("name", PAIRS)
def test_a_class_has_torchs_constructor_and_methods(name: str) -> None:
    theirs, ours = getattr(torch_timer, name), getattr(filetimer, name)
    assert positional(ours) == positional(theirs) or name == "TimerClient"
    for method in PAIRS[name]:
        their_method = getattr(theirs, method, None)
        if their_method is None:
            continue  # a module's function there
        assert positional(getattr(ours, method)) == positional(their_method), method


def test_everything_that_torch_exports_is_here() -> None:
    public = {name for name in dir(torch_timer) if not name.startswith("_")}
    modules = {"api", "file_based_local_timer", "local_timer"}
    assert {name for name in public - modules if not hasattr(filetimer, name)} == set()


def test_functions() -> None:
    assert positional(filetimer.configure) == positional(torch_timer.configure)
    assert positional(filetimer.expires) == positional(torch_timer.expires)
    ours = filetimer.debug_info_logging.log_debug_info_for_expired_timers
    theirs = torch_timer.debug_info_logging.log_debug_info_for_expired_timers
    assert positional(ours) == positional(theirs)


def test_a_request_is_the_same_json() -> None:
    arguments = (4242, 'sc"ope\né', 1767225600.123456, 9)
    ours, theirs = (module.FileTimerRequest(*arguments) for module in (filetimer, torch_timer))
    assert ours.to_json() == theirs.to_json()
    assert (ours.version, ours.worker_pid) == (theirs.version, theirs.worker_pid)
