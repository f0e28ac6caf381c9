"""The table of faults would say so, if anything were lost or anybody were hit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults import table
from faults.fault import Fault, Result, Scale
from faults.private import REFUSAL, may_unshare

ROOT = Path(__file__).parents[2]


def run_faults(directory: Path, module: str, only: str, mutant: str) -> tuple[int, Result]:
    """The exit status, and the one result, of a short run under a server of this kind."""
    paths = [str(ROOT / "tests"), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "faults", module, "--quick"),
            *("--only", only, "--output", str(directory)),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "FAULTS_MUTANT": mutant,
            "FAULTS_PATIENCE": "8",
        },
        capture_output=True,
        text=True,
    )
    (row,) = json.loads((directory / "faults.json").read_text())["faults"]
    del row["name"]
    return ended.returncode, Result.from_dict(row)


@pytest.mark.slow
@pytest.mark.skipif(not may_unshare(), reason=REFUSAL)
class TestWrongServers:
    """Servers that are wrong on purpose (``seams/sitecustomize.py``)."""

    def test_one_that_is_right(self, tmp_path: Path) -> None:
        status, result = run_faults(tmp_path, "paths", "forked child", "none")
        assert (status, result.lost, result.wrong, result.broken) == (0, 0, 0, 0)

    def test_a_successor_that_knows_nothing(self, tmp_path: Path) -> None:
        status, result = run_faults(tmp_path, "crash", "while timers are out", "forgets")
        assert status == 1
        assert result.lost > 0

    def test_one_that_hears_no_release(self, tmp_path: Path) -> None:
        status, result = run_faults(tmp_path, "starved", "releases meanwhile", "deaf")
        assert status == 1
        assert result.wrong > 0

    def test_one_that_is_early(self, tmp_path: Path) -> None:
        status, result = run_faults(tmp_path, "paths", "forked child", "early")
        assert status == 1
        assert result.wrong > 0


def test_where_no_namespace_can_be_made_it_refuses() -> None:
    """In one sentence; here for want of unshare(1)."""
    ended = subprocess.run(
        [sys.executable, "-m", "faults"],
        env={
            "PATH": "",
            "PYTHONPATH": os.pathsep.join(map(str, [ROOT / "tests", ROOT / "python"])),
        },
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr.strip()) == (2, REFUSAL)


def nothing(scale: Scale) -> Result:
    return Result()


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Result(injected=1), True),
        (Result(), False),  # a fault that was never injected proves nothing
        (Result(injected=1, lost=1), False),
        (Result(injected=1, wrong=1), False),
        (Result(injected=1, broken=1), False),
    ],
)
def test_what_holds(result: Result, expected: bool) -> None:
    assert table.holds(result) is expected


def test_what_cannot_be_injected_is_said_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Result(skipped="needs a second user")
    assert "not injected: needs a second user" in table.to_markdown(
        [(Fault("x", nothing), result)], True
    )
    monkeypatch.delenv("CI", raising=False)
    assert table.holds(result)
    monkeypatch.setenv("CI", "true")
    assert not table.holds(result)


def test_the_table_is_put_between_the_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.replace(readme, "new\n")
    assert readme.read_text() == f"before\n{table.BEGIN}\nnew\n\n{table.END}\nafter\n"
    readme.write_text("no markers\n")
    with pytest.raises(ValueError, match="once"):
        table.replace(readme, "new\n")
