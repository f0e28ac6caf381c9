"""The mark that tells a client which process it is in (SPEC C-6), both kinds of it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable

import pytest

from filetimer.client import fork_mark

c_library = ctypes.PyDLL(None)  # keeps the GIL, and tells Python of no fork


@pytest.fixture(params=["page", "pid"])
def mark(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> fork_mark.ForkMark:
    if request.param == "pid":
        monkeypatch.setattr(fork_mark, "_takes_any_advice", lambda page: True)
    mark = fork_mark.new_fork_mark()
    assert isinstance(mark, mmap.mmap) == (request.param == "page"), "this kernel is before 4.14"
    return mark


@pytest.mark.parametrize("fork", [os.fork, c_library.fork])
def test_a_child_is_told_and_its_parent_keeps_the_mark(
    mark: fork_mark.ForkMark, fork: Callable[[], int]
) -> None:
    pid = fork()
    if pid == 0:
        os._exit(mark[0])
    assert os.waitpid(pid, 0)[1] == 0
    assert mark[0] == 1


def test_a_grandchild_is_told_of_its_parents_mark(mark: fork_mark.ForkMark) -> None:
    pid = os.fork()
    if pid == 0:
        own = fork_mark.new_fork_mark()
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(own[0] + mark[0])
        os._exit(os.waitpid(grandchild, 0)[1] or own[0] - 1)
    assert os.waitpid(pid, 0)[1] == 0
