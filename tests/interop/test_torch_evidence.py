"""A collective that hangs: the report names the rank that is elsewhere."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from torch_jobs import FILETIMER_TORCHRUN, Job, Result, one_host, worker

pytest_plugins = ["torch_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

RUN = [sys.executable, "-m", "filetimer", "run", "--workers", "4"]


def check(result: Result, directory: Path, stuck: int) -> None:
    assert result.status != 0, result.output
    texts = sorted(directory.glob("hang-*.txt"))
    assert texts, result.output
    waiting = ", ".join(str(rank) for rank in range(4) if rank != stuck)
    for text in texts:
        report = json.loads(text.with_suffix(".json").read_text())
        said = "\n".join(report["verdict"])
        assert f"3 of 4 workers are at the same place: ranks {waiting}\n" in said
        assert re.search(rf"elsewhere: rank {stuck} \(pid \d+\)\n", said), said
        assert re.search(r"load_batch \(collective.py:\d+\); in scope 'load'", said), said
        assert said.index("all_reduce (distributed_c10d.py") < said.index("elsewhere")
        assert said in text.read_text()
    assert f"elsewhere: rank {stuck} (pid" in result.output
    assert "load_batch (collective.py" in result.output


@pytest.mark.parametrize("stuck", [0, 2])
def test_under_filetimer_run(job: Job, tmp_path: Path, stuck: int) -> None:
    result = job.run(
        [*RUN, "--evidence", str(tmp_path / "e"), "--", sys.executable],
        worker("collective"),
        TEST_STUCK=str(stuck),
    )
    assert result.status == 124, result.output
    check(result, tmp_path / "e", stuck)
    job.assert_clean()


def test_under_torchrun(job: Job, tmp_path: Path) -> None:
    result = job.run(
        [*FILETIMER_TORCHRUN, *one_host(4, 0)],
        worker("collective"),
        TEST_STUCK="3",
        FILETIMER_EVIDENCE=str(tmp_path / "e"),
    )
    check(result, tmp_path / "e", 3)
    job.assert_clean()
