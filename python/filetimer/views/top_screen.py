"""Draws a frame of ``filetimer top`` as lines of text.  Needs ``rich`` (``filetimer[top]``).

Colours repeat what length and words say, for who does not see them or has none.
"""

from __future__ import annotations

from typing import NamedTuple

from rich.text import Text

from filetimer.server.events import describe_attributes
from filetimer.views.top import Frame, Note, Past, Row
from filetimer.views.words import printable, seconds, shortened

__all__ = ["render"]

MIN_WIDTH = 60
PIECES = " ▏▎▍▌▋▊▉█"  # eighths of a character
URGENT, NEAR = 0.1, 0.25  # shares of the time allowed
RECENT, NOTES = 6, 5  # rows, at most
MIN_ATTRIBUTES = 6  # characters of them that say something

Line = Text


def render(frame: Frame, width: int, height: int) -> Text:
    """The frame in at most ``height`` lines of at most ``width`` characters."""
    width = max(width, MIN_WIDTH)
    top = _head(frame, width)
    notes = [_note(note) for note in frame.notes[:NOTES]]
    layout = _layout(frame, width)
    recent = [_past(past, layout) for past in frame.recent[:RECENT]]
    # Half of the screen for what has been, but never the room for a title, a row and the rest.
    room = min(height // 2, height - len(top) - 1 - 3)
    while (recent or notes) and _size(recent) + _size(notes) > room:
        (recent if len(recent) >= len(notes) else notes).pop()
    space = height - len(top) - 1 - _size(recent) - _size(notes)
    lines = [*top, Text(), *_rows(frame, layout, max(3, space))]
    lines += _section("RECENT", recent) + _section("NOTED BY THE SERVER", notes)
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Text("\n").join(lines)


def _head(frame: Frame, width: int) -> list[Line]:
    state, style = {
        "running": (f"running, pid {frame.pid}", "bold green"),
        "died": (
            f"DIED (was pid {frame.pid}), last heard of {_ago(frame.silent)}: "
            "nobody watches these timers",
            "bold red",
        ),
        "stopped": ("stopped; waiting for its successor", "bold yellow"),
        "kept": (f"ended; this is how it was (server pid {frame.pid})", "bold"),
    }[frame.state]
    refused = sum(frame.rejected.values())
    counts = [
        _count(frame.workers, "worker"),
        _count(frame.timers, "timer") + " set",
        f"{frame.rate:.1f} records/s",
        _count(frame.records, "record"),
    ]
    line = Text("  ".join(counts))
    line.append(f"  {_count(frame.kills, 'kill')}", "bold red" if frame.kills else "")
    line.append(f"  {refused} refused", "bold yellow" if refused else "")
    if refused:
        line.append(" (" + ", ".join(f"{n} {code}" for code, n in frame.rejected.items()) + ")")
    run = f"  run {printable(frame.run_id)}"
    path = shortened(printable(frame.path), max(20, width - len(run)))
    return [Text(path, "bold").append(run, "dim"), Text(state, style), line]


class _Layout(NamedTuple):
    """Whether there is a column of ranks, and the widths of scope and bar."""

    ranked: bool
    scope: int
    bar: int

    def who(self, pid: int | str, rank: int | str | None) -> str:
        """The columns that say which worker it is."""
        rank = f"{'' if rank is None else rank:>4}  " if self.ranked else ""
        return f"{rank}{pid:>8}  "


def _layout(frame: Frame, width: int) -> _Layout:
    """What the other columns leave is for scope and bar; attributes need more of it."""
    shown: list[Row | Past] = [*frame.rows, *frame.recent]
    ranked = any(row.rank is not None for row in shown)
    rest = width - 8 - 2 - 2 - 12 - 12 - 6 * ranked
    attributed = any(_attributes(row) for row in shown)
    scope = min(60, rest * 2 // 3) if attributed else min(40, rest // 2)
    return _Layout(ranked, scope, min(40, rest - scope))


def _rows(frame: Frame, layout: _Layout, space: int) -> list[Line]:
    if not frame.rows:
        return [Text("no timers are set", "dim")]
    title = f"{layout.who('PID', 'RANK')}{'SCOPE':<{layout.scope}}  {'TIME LEFT':<{layout.bar}}"
    shown = frame.rows if len(frame.rows) <= space - 1 else frame.rows[: max(1, space - 2)]
    lines = [Text(title, "dim"), *(_row(row, layout) for row in shown)]
    hidden = frame.rows[len(shown) :]
    if hidden:
        timers = sum(row.scope_id is not None for row in hidden)
        idle = len(hidden) - timers
        more = f"{timers} more timers with more time left" if timers else ""
        more += f"{', ' if timers and idle else ''}{_count(idle, 'worker')} without" * bool(idle)
        lines.append(Text(f"{layout.who('', None)}... not shown: {more}", "dim"))
    return lines


def _row(row: Row, layout: _Layout) -> Line:
    line = Text(layout.who(row.pid, row.rank))
    if row.scope_id is None:
        return line.append("no timer set", "dim")
    style = _style(row)
    line.append(_scope(row, row.scope_id, layout.scope)).append("  ")
    line.append(_bar(row.share, layout.bar), style)
    mark = "!" if row.share < URGENT else " "
    line.append(f" {mark}{_left(row):>10}", style)
    line.append(f" of {_clock(row.allowed)}")
    return line.append(" (report)" if row.reports_only else "", "dim")


def _scope(row: Row | Past, scope_id: str, width: int) -> Text:
    """The scope, and as much of its attributes as there is room for."""
    scope = shortened(printable(scope_id), width)
    room = width - len(scope) - 2
    attributes = shortened(_attributes(row), room) if room >= MIN_ATTRIBUTES else ""
    text = Text(scope).append(f"  {attributes}" if attributes else "", "dim")
    return text.append(" " * (width - len(text)))


def _attributes(row: Row | Past) -> str:
    """Those that have no column of their own."""
    given = row.attributes or {}
    own = {name: value for name, value in given.items() if name != "rank" or value != row.rank}
    return describe_attributes(own)


def _left(row: Row) -> str:
    return f"{_clock(-row.left)} over" if row.left < 0 else _clock(row.left)


def _clock(value: float) -> str:
    """A countdown keeps its unit, so that the eye can follow it."""
    return f"{value:.1f} s" if value < 600 else seconds(value)


def _ago(value: float) -> str:
    return "now" if value < 0.05 else f"{seconds(value)} ago"


def _style(row: Row) -> str:
    if row.share < URGENT:
        return "bold red"
    return "yellow" if row.share < NEAR else "cyan"


def _bar(share: float, width: int) -> str:
    eighths = round(share * width * 8)
    text = "█" * (eighths // 8) + (PIECES[eighths % 8] if eighths % 8 else "")
    return f"{text:<{width}}"


def _past(past: Past, layout: _Layout) -> Line:
    bad = past.how in ("killed", "expired")
    took = f"{seconds(past.took)} of {seconds(past.allowed)}"
    line = Text(layout.who(past.pid, past.rank))
    line.append(_scope(past, past.scope_id, layout.scope)).append(f"  {took:<20} ")
    line.append(past.how, "bold red" if bad else "")
    return line.append(f", {_ago(past.ago)}", "dim")


def _note(note: Note) -> Line:
    line = Text().append(f"{_ago(note.ago):>12}  ", "dim")
    return line.append(printable(note.text), "bold red" if note.grave else "yellow")


def _size(lines: list[Line]) -> int:
    return len(_section("", lines))


def _section(title: str, lines: list[Line]) -> list[Line]:
    return [Text(), Text(title, "dim"), *lines] if lines else []


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
