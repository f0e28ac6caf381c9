"""The vectors themselves: their form, their names, and that they cover the specification."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
from kit import PROTOCOL

from filetimer.conformance import live_client, live_server, oracle
from filetimer.conformance.cases import Case, load, octets, protocol_directory, requirements
from filetimer.conformance.pure import same_record

CASES = load(PROTOCOL)
REQUIREMENTS = requirements(PROTOCOL)
FILES = sorted((PROTOCOL / "vectors").glob("*/*.json"))
SCHEMAS = sorted(PROTOCOL.rglob("*.schema.json"))


def identify(path: Path) -> str:
    return str(path.relative_to(PROTOCOL))


def read(path: Path) -> object:
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("path", SCHEMAS, ids=identify)
def test_schema_is_a_schema(path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(read(path))


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_file_matches_its_schema(path: Path) -> None:
    schema = read(PROTOCOL / "vectors" / f"{path.parent.name}.schema.json")
    jsonschema.Draft202012Validator(schema).validate(read(path))


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_file_is_ascii_and_has_no_number_beyond_binary64(path: Path) -> None:
    """Any JSON parser can read it: escapes instead of encodings, no integer above 2^53."""
    text = path.read_bytes().decode("ascii")

    def check(digits: str) -> int:
        assert abs(int(digits)) <= 2**53, digits
        return int(digits)

    json.loads(text, parse_int=check)


def test_the_lookup_finds_the_checkout() -> None:
    assert protocol_directory() == PROTOCOL


def test_names_are_unique() -> None:
    repeated = [name for name, times in Counter(case.name for case in CASES).items() if times > 1]
    assert not repeated


def test_every_requirement_cited_exists() -> None:
    unknown = {i for case in CASES for i in case.spec} - REQUIREMENTS.keys()
    assert not unknown


def test_every_requirement_is_found_in_the_text() -> None:
    """So that a paragraph that the reader of SPEC.md mistakes does not go unproved."""
    marks = (PROTOCOL / "SPEC.md").read_text("utf-8").count("\n**")
    assert len(REQUIREMENTS) == marks


@pytest.mark.parametrize("requirement", [r.id for r in REQUIREMENTS.values() if r.must])
def test_every_must_has_a_case(requirement: str) -> None:
    proving = [case.name for case in CASES if requirement in case.spec]
    assert proving, f"no case proves SPEC {requirement}: {REQUIREMENTS[requirement].text}"


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_have_cases_in_every_role(version: int) -> None:
    roles = {case.role for case in CASES if version in case.versions}
    assert roles == {"codec", "timeline", "client", "server"}


@pytest.mark.parametrize("code", [*oracle.REQUIRED, *oracle.OPTIONAL])
def test_every_field_has_a_rejected_line(code: str) -> None:
    assert any(case.body.get("error") == f"bad_{code}" for case in CASES)


def test_live_cases_and_their_code_are_the_same_set() -> None:
    declared = {case.name for case in CASES if case.role in ("client", "server")}
    assert declared == live_client.CHECKS.keys() | live_server.CHECKS.keys()


@pytest.mark.parametrize(
    "case", [c for c in CASES if "line" in c.body or "reads" in c.body], ids=lambda case: case.name
)
def test_vector_agrees_with_the_oracle(case: Case) -> None:
    """The runner's own decoder judges live clients: it must itself be right."""
    body = case.body
    if "line" in body:
        data = octets(body["line"]) + b"\n"
        want = [{"error": body["error"]} if "error" in body else {"record": body["record"]}]
    else:
        data, want = b"".join(map(octets, body["reads"])), body["expect"]
    got = oracle.judge_stream(data)
    if got == [{"error": body.get("may_reject")}]:
        return
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        if "record" in other:
            assert same_record(one["record"], other["record"], max(case.versions))
        else:
            assert one == other


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.role == "timeline"], ids=lambda case: case.name
)
def test_timeline_runs_forward(case: Case) -> None:
    """The monotonic clock never goes back, and only what the table knows may exit."""
    times = [step["at"]["monotonic"] for step in case.body["steps"]]
    assert times == sorted(times)
    table = {process["pid"] for process in case.body["processes"]}
    for step in case.body["steps"]:
        if "spawn" in step:
            table.add(step["spawn"]["pid"])
        assert {step.get("exit", step.get("zombie"))} <= table | {None}
        table.discard(step.get("exit"))
