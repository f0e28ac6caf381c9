"""The page of ``filetimer report``: one file, without scripts and without anything to load."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable

from filetimer.views.report import Report
from filetimer.views.report_charts import COLOURS, durations_svg, timeline_svg
from filetimer.views.suggest import Advice
from filetimer.views.words import printable, seconds

__all__ = ["page"]

MAX_NOTES = 200
NONE = "\N{EN DASH}"

_VARIABLES = [
    "; ".join(f"--{name}: {colours[theme]}" for name, colours in COLOURS.items())
    for theme in (0, 1)
]
_STYLE = f"""
:root {{ color-scheme: light dark; {_VARIABLES[0]} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_VARIABLES[1]} }} }}
body {{ background: var(--bg); color: var(--fg); margin: 0 auto; padding: 1.5rem; max-width: 76rem;
  font: 15px/1.5 system-ui, sans-serif }}
h1 {{ font-size: 1.5rem; margin: 0 }}
h2 {{ font-size: 1.15rem; margin: 2rem 0 .3rem }}
p {{ margin: .3rem 0; max-width: 60rem }}
.muted {{ color: var(--muted) }}
.alarm {{ color: var(--alarm); font-weight: 600 }}
code {{ overflow-wrap: anywhere }}
svg {{ width: 100%; height: auto; display: block; margin-top: .6rem }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }}
th, td {{ padding: .25rem .7rem; border-bottom: 1px solid var(--grid); text-align: right;
  vertical-align: top; white-space: nowrap }}
th {{ color: var(--muted); font-weight: 600 }}
.text {{ text-align: left }}
td.text {{ white-space: normal; overflow-wrap: anywhere }}
td.text:first-child {{ min-width: 7rem }}
dl {{ display: flex; flex-wrap: wrap; gap: .3rem 2rem; margin: 1rem 0 }}
dt {{ color: var(--muted); font-size: .85rem }}
dd {{ margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums }}
"""


def page(report: Report) -> str:
    """The report as an HTML document."""
    body = [_head(report), _timeline(report), _durations(report), _advice(report), _notes(report)]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>filetimer: run {_text(report.run_id)}</title>\n<style>{_STYLE}</style>\n"
        "</head>\n<body>\n" + "\n".join(filter(None, body)) + "\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(report.began))
    cut = "" if report.complete else ", the last of a longer job (see <code>--journal-size</code>)"
    refused = sum(report.rejected.values())
    numbers = [
        ("covered", seconds(report.covered)),
        *([("ranks", f"{report.ranks:,}")] if report.ranks else []),
        ("processes", f"{report.workers:,}"),
        ("guarded blocks", f"{report.blocks:,}"),
        ("records", f"{report.records:,}"),
        ("kills", _alarm(report.kills)),
        ("refused", _alarm(refused)),
    ]
    reasons = ", ".join(f"{count} {_text(code)}" for code, count in report.rejected.items())
    return (
        f"<h1>filetimer: run {_text(report.run_id)}</h1>\n"
        f'<p class="muted">Began {began}{cut}; timers at <code>{_text(report.path)}</code></p>\n'
        + "<dl>"
        + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers)
        + "</dl>"
        + (f"\n<p>Refused: {reasons}.</p>" if reasons else "")
    )


def _timeline(report: Report) -> str:
    if not report.timeline.rows:
        return "<p>No block was guarded.</p>"
    hidden = report.timeline.hidden
    more = f" {hidden} more rows are not shown." if hidden else ""
    return (
        "<h2>Timeline of the workers</h2>\n"
        '<p class="muted">A row for each worker; one that was started after another had ended '
        "(a restart) stands in its row. Blocks within blocks, and of threads, are side by side. "
        "Dotted lines: kills. The names of rows, and the marks, say more under the pointer."
        f"{more}</p>\n" + timeline_svg(report.timeline)
    )


def _durations(report: Report) -> str:
    if not report.durations:
        return ""
    hidden = report.hidden_scopes
    more = f" {hidden} more scopes, with less time in them, are not shown." if hidden else ""
    return (
        "<h2>How long blocks took, and their deadlines</h2>\n"
        '<p class="muted">Blocks that came to their end, by scope, on a logarithmic axis. '
        f"What is between the bars and the dashed line is headroom.{more}</p>\n"
        + durations_svg(report.durations)
    )


def _advice(report: Report) -> str:
    if not report.advice:
        return ""
    titles = ("median", "p99", "longest", "allowed", "headroom", "suggested")
    return (
        "<h2>Deadlines from these data</h2>\n"
        '<p class="muted">As <code>filetimer suggest</code> says it: few samples ask for a larger '
        "factor above the longest. Censored are those that did not come to their end.</p>\n"
        '<div class="wide"><table>\n<tr><th class="text">scope</th><th class="text">calls</th>'
        "<th>ended</th><th>censored</th>"
        + "".join(f"<th>{title}</th>" for title in titles)
        + '<th class="text">verdict</th></tr>\n'
        + "\n".join(map(_advice_row, report.advice))
        + "\n</table></div>"
    )


def _advice_row(row: Advice) -> str:
    times = [row.median, row.p99, row.longest, row.allowed]
    cells = [NONE if value is None else seconds(value) for value in times]
    cells.append(NONE if row.headroom is None else f"{row.headroom:.0%}")
    cells.append(NONE if row.suggested is None else seconds(row.suggested))
    numbers = [f"{row.count:,}", f"{sum(row.censored.values()):,}", *cells]
    verdict = f'<b class="alarm">{row.verdict}</b>' if row.verdict == "raise" else row.verdict
    return (
        f'<tr><td class="text">{_text(row.scope_id)}</td>'
        f'<td class="text">{"first" if row.first_call else "later"}</td>'
        + "".join(f"<td>{cell}</td>" for cell in numbers)
        + f'<td class="text">{verdict}: {_text(row.why)}</td></tr>'
    )


def _notes(report: Report) -> str:
    if not report.notes:
        return ""
    shown = report.notes[-MAX_NOTES:]
    earlier = len(report.notes) - len(shown)
    return (
        "<h2>What the server noted</h2>\n"
        + (f'<p class="muted">{earlier} earlier notes are not shown.</p>\n' if earlier else "")
        + '<div class="wide"><table>\n<tr><th>after</th><th class="text">event</th>'
        '<th class="text">details</th></tr>\n' + "\n".join(_note_rows(shown)) + "\n</table></div>"
    )


def _note_rows(notes: Iterable[tuple[float, str, str]]) -> Iterable[str]:
    for after, name, details in notes:
        yield (
            f'<tr><td>{after:.3f} s</td><td class="text">{_text(name)}</td>'
            f'<td class="text">{_text(details)}</td></tr>'
        )


def _alarm(number: int) -> str:
    return f'<span class="alarm">{number:,}</span>' if number else "0"


def _text(text: str) -> str:
    return html.escape(printable(text))
