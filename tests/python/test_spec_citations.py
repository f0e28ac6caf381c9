"""SPEC.md and the code name the same requirements."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = (ROOT / "protocol/SPEC.md").read_text()
DEFINED = re.findall(r"^\*\*([A-Z]-\d+)\.\*\*", SPEC, re.MULTILINE)
CITATION = re.compile(r"\b(?:SPEC )((?:[A-Z]-\d+(?:, | and | to )?)+)")
SUFFIXES = {".py", ".h", ".hpp", ".c", ".cpp", ".cu", ".rs", ".sh", ".json", ".md"}
PLACES = ["python", "c", "protocol/vectors", "tests"]


def requirement_texts() -> dict[str, str]:
    pieces = re.split(r"^\*\*([A-Z]-\d+)\.\*\*", SPEC, flags=re.MULTILINE)[1:]
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def sources() -> list[Path]:
    return [
        path
        for place in PLACES
        for path in sorted((ROOT / place).rglob("*"))
        if path.suffix in SUFFIXES and "node_modules" not in path.parts
    ]


def citations() -> dict[str, set[str]]:
    """By file, the identifiers that are cited in it."""
    found: dict[str, set[str]] = {}
    for path in sources():
        text = path.read_text(errors="replace")
        cited = {i for match in CITATION.findall(text) for i in re.findall(r"[A-Z]-\d+", match)}
        if path.suffix == ".json":
            cited |= set(re.findall(r'"([A-Z]-\d+)"', text))
        if cited:
            found[str(path.relative_to(ROOT))] = cited
    return found


def test_identifiers_are_unique() -> None:
    assert sorted(DEFINED) == sorted(set(DEFINED))
    assert len(DEFINED) > 50


def test_every_citation_names_a_requirement() -> None:
    wrong = {file: sorted(ids - set(DEFINED)) for file, ids in citations().items()}
    assert {file: ids for file, ids in wrong.items() if ids} == {}


@pytest.mark.parametrize(
    "requirement", [i for i, text in requirement_texts().items() if "MUST" in text]
)
def test_every_must_is_cited_in_code_or_vectors(requirement: str) -> None:
    cited = {
        identifier
        for file, identifiers in citations().items()
        if file.startswith(("python/", "c/", "protocol/vectors/"))
        for identifier in identifiers
    }
    assert requirement in cited, f"no code and no vector cites SPEC {requirement}"


def test_references_inside_the_spec_exist() -> None:
    mentioned = set(re.findall(r"\b([FRVESCXT]-\d+)\b", SPEC))
    assert mentioned <= set(DEFINED)
