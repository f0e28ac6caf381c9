"""The rows of the result, as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["BEGIN", "END", "Row", "Target", "as_json", "as_markdown", "put_into"]

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


@dataclass(frozen=True)
class Target:
    """A bound on one number: ``value`` shall be ``at_most`` or ``at_least`` so much of ``unit``."""

    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    digits: int = 2

    @property
    def met(self) -> bool:
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    def __str__(self) -> str:
        bound = f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"
        return f"{self.value:.{self.digits}f} ({bound}{self.unit})"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ``result`` and ``compared`` are texts with units and spread; ``note`` says what a reader must
    know to judge them; ``targets`` is empty where nothing was promised, or could be measured.
    """

    measure: str
    result: str
    compared: str = ""
    targets: tuple[Target, ...] = ()
    note: str = ""

    @property
    def verdict(self) -> str:
        if not self.targets:
            return ""
        return "met" if all(target.met for target in self.targets) else "**missed**"


def as_markdown(rows: Iterable[Row], machine: Mapping[str, Any]) -> str:
    """The machine in one sentence, the table, and the notes below it."""
    rows = list(rows)
    lines = [
        "Measured on {date}: {cores} cores, Linux {kernel}, Python {python}, {torch}.".format(
            **machine
        ),
        "Medians (lower to upper quartile) of what ran in turn in one run of `make bench`.",
        "",
        "| measure | filetimer | compared with | ratio or value (target) | |",
        "|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for row in rows:
        mark = ""
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            mark = f" [{notes.index(row.note) + 1}]"
        targets = "; ".join(map(str, row.targets))
        cells = (row.measure + mark, row.result, row.compared, targets, row.verdict)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    lines += [""] + [f"[{i}] {note}\n" for i, note in enumerate(notes, 1)]
    return "\n".join(lines).rstrip() + "\n"


def as_json(rows: Iterable[Row], machine: Mapping[str, Any]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "machine": dict(machine),
        "rows": [asdict(row) | {"verdict": row.verdict} for row in rows],
    }


def put_into(document: Path, text: str) -> None:
    """Replace what is between the marks.  Raises ValueError where they are not there once."""
    before, begin, rest = (whole := document.read_text(encoding="utf-8")).partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or whole.count(BEGIN) != 1 or whole.count(END) != 1:
        raise ValueError(f"{document} needs one line {BEGIN} and, after it, one line {END}")
    document.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")
