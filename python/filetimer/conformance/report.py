"""What a person reads at the end, and what a program reads from `--json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .cases import Case, Requirement

_SHOWN = 1200  # characters of a value in a failure


@dataclass(frozen=True)
class Result:
    case: Case
    status: str  # "passed", "failed" or "skipped"
    seconds: float = 0.0
    reason: str = ""  # of a skip, or of a failure without expectation
    sent: Any = None
    expected: Any = None
    got: Any = None


@dataclass(frozen=True)
class Report:
    subject: dict[str, Any]
    version: int
    results: Sequence[Result]
    requirements: dict[str, Requirement]

    def count(self, status: str) -> int:
        return sum(result.status == status for result in self.results)

    @property
    def passed(self) -> bool:
        return self.count("failed") == 0 and self.count("passed") > 0


def table(report: Report) -> str:
    """One row for each requirement: the worst outcome of its cases first."""
    rows: list[tuple[str, ...]] = [("", "requirement", "passed", "failed", "skipped", "section")]
    for requirement in _natural(_cited(report.results)):
        results = [r for r in report.results if requirement in r.case.spec]
        counts = {
            status: sum(r.status == status for r in results)
            for status in ("passed", "failed", "skipped")
        }
        mark = "FAIL" if counts["failed"] else "ok" if counts["passed"] else "skip"
        known = report.requirements.get(requirement)
        numbers = [str(count) if count else "." for count in counts.values()]
        rows.append((mark, requirement, *numbers, known.section if known else "?"))
    return _columns(rows)


def skips(report: Report) -> str:
    """The reasons, each with the cases that it took."""
    reasons: dict[str, list[str]] = {}
    for result in report.results:
        if result.status == "skipped":
            reasons.setdefault(result.reason, []).append(result.case.name)
    return "\n".join(
        f"skipped {len(names)}: {reason}\n    {', '.join(names)}"
        for reason, names in reasons.items()
    )


def failure(result: Result, requirements: dict[str, Requirement]) -> str:
    """Everything that is needed to mend the fault without reading the kit."""
    lines = [f"FAILED {result.case.name}  ({result.case.file})"]
    for requirement in result.case.spec:
        if known := requirements.get(requirement):
            lines.append(f"  SPEC {requirement}, section {known.section}: {known.text}")
    if about := result.case.body.get("about"):
        lines.append(f"  tried     {about}")
    if result.reason:
        lines.append(f"  happened  {result.reason}")
    if result.sent is not None:
        lines.append(f"  sent      {_show(result.sent)}")
    if result.expected is not None:
        lines.append(f"  expected  {_show(result.expected)}")
        lines.append(f"  got       {_show(result.got)}")
    return "\n".join(lines)


def summary(report: Report) -> str:
    subject = f"{report.subject.get('name', '?')} ({report.subject.get('language', '?')})"
    counts = ", ".join(f"{report.count(s)} {s}" for s in ("passed", "failed", "skipped"))
    return f"{subject}, version {report.version}: {counts}"


def as_json(report: Report) -> str:
    return json.dumps(
        {
            "subject": report.subject,
            "version": report.version,
            **{status: report.count(status) for status in ("passed", "failed", "skipped")},
            "results": [_entry(result, report.requirements) for result in report.results],
        },
        indent=1,
        default=_plain,
    )


# ----------------------------------------------------------------------------------------------


def _entry(result: Result, requirements: dict[str, Requirement]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": result.case.name,
        "role": result.case.role,
        "file": result.case.file,
        "spec": [
            {"id": i, "section": requirements[i].section if i in requirements else "?"}
            for i in result.case.spec
        ],
        "status": result.status,
        "seconds": round(result.seconds, 3),
    }
    told = {"reason": result.reason or None, "sent": result.sent, "expected": result.expected}
    entry |= {key: value for key, value in told.items() if value is not None}
    if result.expected is not None:
        entry["got"] = result.got
    return entry


def _plain(value: object) -> object:
    if isinstance(value, (bytes, bytearray)):
        return {"hex": value.hex()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return repr(value)


def _show(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        text = f"{_cut(repr(bytes(value)))}\n            hex {_cut(value.hex())}"
    else:
        text = _cut(json.dumps(value, default=lambda v: repr(v)))
    return text


def _cut(text: str) -> str:
    if len(text) <= _SHOWN:
        return text
    return f"{text[: _SHOWN // 2]} ...{len(text) - _SHOWN} characters... {text[-_SHOWN // 2 :]}"


def _cited(results: Iterable[Result]) -> set[str]:
    return {requirement for result in results for requirement in result.case.spec}


def _natural(ids: Iterable[str]) -> list[str]:
    """T, F, R, V, E, S, C, X: the order of the specification; 2 before 10."""
    return sorted(ids, key=lambda i: ("TFRVESCX".find(i[0]), int(re.sub(r"\D", "", i) or 0)))


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
