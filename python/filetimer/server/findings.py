"""``Findings``: what the evidence about a hung worker comes to, for its kill's event."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["NO_FINDINGS", "Findings"]


class Findings(NamedTuple):
    """The path of the report, the innermost frames of the hang, and why there is no report.

    None: not known.
    """

    report: str | None = None
    where: str | None = None
    problem: str | None = None


NO_FINDINGS = Findings()
