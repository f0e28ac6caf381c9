"""Fixtures of the tests that need torch.

Under CI its absence is a failure; elsewhere they are skipped.  (A plugin, not a conftest.py: other
directories import names from theirs, and there can be one module of that name.)
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch_jobs import Job

HOW_TO_GET_IT = "torch is not installed: pip install torch (a CPU build will do) to run these tests"


@pytest.fixture(scope="session")
def torch_there() -> None:
    if importlib.util.find_spec("torch") is None:
        if os.environ.get("CI"):
            pytest.fail(HOW_TO_GET_IT)
        pytest.skip(HOW_TO_GET_IT)


@pytest.fixture
def job(torch_there: None, tmp_path: Path) -> Iterator[Job]:
    with Job(tmp_path / "job") as one:
        yield one


@pytest.fixture
def other_job(torch_there: None, tmp_path: Path) -> Iterator[Job]:
    with Job(tmp_path / "other") as one:
        yield one
