"""Every implementation that is at hand, tried on every case of its roles and versions.

A subject is tried once, in the background, when the first of its cases is asked for; each case is
then a test of its own, so that `--junitxml` and `-k` see them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from kit import PROTOCOL, SUBJECTS, Missing, Subject, known_failures

from filetimer.conformance import run
from filetimer.conformance.cases import load, requirements
from filetimer.conformance.report import Result, failure

Trials = dict[tuple[str, int], Future[dict[str, Result]]]

BY_NAME = {subject.name: subject for subject in SUBJECTS}
TRIALS = [(subject.name, version) for subject in SUBJECTS for version in subject.versions]
CASES = [
    pytest.param(name, version, case.name, id=f"{name}-v{version}-{case.name}")
    for name, version in TRIALS
    for case in load(PROTOCOL)
    if case.role in BY_NAME[name].roles and version in case.versions
]


@pytest.fixture(scope="module")
def trials(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trials]:
    """The runs that some selected test asks for, two at a time: they mostly wait."""
    selected = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    chosen = {(p["name"], p["version"]) for p in selected if p.keys() >= {"name", "version"}}
    folder = tmp_path_factory.mktemp("subjects")
    with ThreadPoolExecutor(2) as pool:
        yield {
            trial: pool.submit(_try, BY_NAME[trial[0]], trial[1], folder)
            for trial in sorted(chosen, key=lambda trial: trial[0] != "torch")  # the longest first
        }


def _try(subject: Subject, version: int, folder: Path) -> dict[str, Result]:
    report = run(subject.command(folder), version=version, roles=subject.roles)
    return {result.case.name: result for result in report.results}


def results(trials: Trials, name: str, version: int) -> dict[str, Result]:
    try:
        return trials[name, version].result()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(f"{missing} is missing, and CI must try every subject")
        pytest.skip(f"{missing} is missing")


@pytest.mark.parametrize(("name", "version", "case"), CASES)
def test_case(trials: Trials, name: str, version: int, case: str) -> None:
    """It passes, or is declined with a reason, or fails as the committed table says."""
    result = results(trials, name, version)[case]
    table = BY_NAME[name].failures
    if table and case in known_failures(table):
        assert result.status == "failed", f"{case} passes: take it out of {table}"
        return
    assert result.status != "failed", failure(result, requirements(PROTOCOL))
    assert result.status == "passed" or result.reason


@pytest.mark.parametrize(("name", "version"), TRIALS)
def test_subject_is_not_declining_everything(trials: Trials, name: str, version: int) -> None:
    """Of each role, at least a tenth is passed: an encoder without a decoder is about that."""
    tried = results(trials, name, version).values()
    for role in BY_NAME[name].roles:
        statuses = [result.status for result in tried if result.case.role == role]
        assert statuses.count("passed") >= len(statuses) / 11


@pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.failures], ids=lambda s: s.name)
def test_table_of_failures_is_complete(subject: Subject) -> None:
    """Each row names a case and gives a reason; and the requirements beside it are the case's."""
    cases = {case.name: case for case in load(PROTOCOL)}
    reasons = known_failures(subject.failures)
    assert reasons.keys() <= cases.keys()
    assert all(reasons.values())
    text = (PROTOCOL / subject.failures).read_text("utf-8")
    for name in reasons:
        assert f"| `{name}` | {' '.join(cases[name].spec)} |" in text
