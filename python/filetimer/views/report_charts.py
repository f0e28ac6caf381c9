"""The charts of ``filetimer report``, as SVG.  Needs ``matplotlib`` (``filetimer[report]``).

SVG, because a page of it needs no script and no network, prints, and follows the reader's light or
dark theme: matplotlib draws with stand-ins for colours, which become CSS variables.  Colours are
those of Okabe and Ito and of Paul Tol, which colour-blind people tell apart; what matters most also
has a shape of its own.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from filetimer.replay import Span
from filetimer.views.report import CLOSE, Durations, Timeline, bars
from filetimer.views.words import printable, shortened

__all__ = ["COLOURS", "durations_svg", "timeline_svg"]

COLOURS = {  # name: light, dark
    "fg": ("#1a1a1a", "#e8e8e8"),
    "muted": ("#5c5c5c", "#a8a8a8"),
    "grid": ("#dedede", "#3a3a3a"),
    "bg": ("#ffffff", "#161618"),
    "alarm": ("#c2410c", "#ff8a4c"),
    "other": ("#9a9a9a", "#7c7c7c"),
    "s0": ("#0072b2", "#4ea8de"),
    "s1": ("#e69f00", "#f0b429"),
    "s2": ("#009e73", "#2fc39b"),
    "s3": ("#cc79a7", "#e39ac4"),
    "s4": ("#56b4e9", "#a5dcff"),
    "s5": ("#332288", "#9a8cff"),
    "s6": ("#999933", "#c9c95b"),
}
_STAND_INS = {name: f"#0f1e{i:02x}" for i, name in enumerate(COLOURS)}
FONT = "system-ui, 'DejaVu Sans', sans-serif"
WIDTH = 12.0  # inches; the page scales it
POINT = 1 / 72  # inches
LEGEND_COLUMNS = 5
MAX_KILL_LINES = MAX_RESTART_LINES = 50
_RESTART: Any = {"color": _STAND_INS["fg"], "linewidth": 1.1, "linestyle": (0, (4, 2))}

_STYLE: Any = {  # its keys are a type of matplotlib's newest versions only
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": _STAND_INS["muted"],
    "axes.labelcolor": _STAND_INS["fg"],
    "axes.titlecolor": _STAND_INS["fg"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": _STAND_INS["grid"],
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.labelcolor": _STAND_INS["fg"],
    "text.color": _STAND_INS["fg"],
    "xtick.color": _STAND_INS["muted"],
    "xtick.labelcolor": _STAND_INS["fg"],
    "ytick.color": _STAND_INS["muted"],
    "ytick.labelcolor": _STAND_INS["fg"],
}


def timeline_svg(timeline: Timeline) -> str:
    """One row for each worker: its blocks by scope, deadlines that passed, kills, restarts."""
    rows = len(timeline.rows)
    row_height = 44 if rows <= 4 else 28 if rows <= 16 else 15  # in points
    header, labels = _labels(timeline)
    unit, name = _time_unit(timeline.end - timeline.begin)
    marks = _marks(timeline, unit, min(10.0, 0.62 * row_height))
    with matplotlib.rc_context(_STYLE):
        handles = [*_scope_handles(timeline), *(mark.handle() for mark in marks)]
        if timeline.restarts:
            handles.append(Line2D([], [], label="restart of the group", **_RESTART))
        below, above = 38, 10 + 15 * math.ceil(len(handles) / LEGEND_COLUMNS)
        height = (below + rows * row_height + above) * POINT
        figure = Figure(figsize=(WIDTH, height))
        left = (0.5 + 0.07 * max(len(header), *map(len, labels))) / WIDTH
        bottom, top = below * POINT / height, 1 - above * POINT / height
        axes = figure.add_axes((left, bottom, 0.985 - left, top - bottom))
        _draw_bars(axes, timeline, unit)
        for when in timeline.kills[:MAX_KILL_LINES]:
            at = (when - timeline.begin) / unit
            axes.axvline(at, color=_STAND_INS["alarm"], linewidth=0.8, linestyle=":", zorder=0.9)
        for when in timeline.restarts[:MAX_RESTART_LINES]:
            at = (when - timeline.begin) / unit
            axes.axvline(at, **_RESTART, zorder=0.95)
        for mark in marks:
            xs, ys, _ = zip(*mark.points, strict=True)
            axes.plot(xs, ys, zorder=3, gid=mark.gid, **mark.style)
        axes.set_ylim(rows - 0.5, -0.5)
        span = max((timeline.end - timeline.begin) / unit, 1e-6)
        axes.set_xlim(-0.004 * span, 1.012 * span)
        axes.set_yticks(range(rows), labels, fontsize=8.5 if rows <= 16 else 7.5)
        for i, text in enumerate(axes.get_yticklabels()):
            text.set_gid(f"row-{i}")
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"time since the beginning ({name})")
        title: dict[str, Any] = {"ha": "right", "va": "bottom", "transform": axes.transAxes}
        axes.text(-0.008, 1.0, header, fontsize=9.5, **title)
        axes.legend(
            handles=_row_major(handles, LEGEND_COLUMNS),
            loc="lower left",
            bbox_to_anchor=(-0.005, 1.0),
            ncols=LEGEND_COLUMNS,
            fontsize=8.5,
            handlelength=1.4,
            columnspacing=1.4,
        )
        svg = _to_svg(figure, "timeline", "Timeline of the workers and their guarded blocks")
    for i, row in enumerate(timeline.rows):
        svg = _with_titles(svg, f"row-{i}", [row.title])
    for mark in marks:
        svg = _with_titles(svg, mark.gid, [title for _, _, title in mark.points], "use")
    return svg


def durations_svg(found: Sequence[Durations]) -> str:
    """For each scope a histogram of durations, with its deadline and the one suggested."""
    columns = min(3, max(1, len(found)))
    rows = math.ceil(len(found) / columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 2.55 * rows + 0.45), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, durations in zip(axes, found, strict=False):
            _draw_histogram(panel, durations)
        for panel in axes[len(found) :]:
            panel.set_visible(False)
        figure.legend(
            handles=_histogram_handles(found), loc="outside upper left", ncols=5, fontsize=8.5
        )
        return _to_svg(figure, "durations", "Histograms of durations, by scope")


def _draw_bars(axes: Axes, timeline: Timeline, unit: float) -> None:
    """One path for each scope: thousands of blocks stay a small file."""
    colour_of = _scope_colours(timeline)
    vertices: dict[str | None, list[tuple[float, float]]] = {}
    for bar in bars(timeline):
        lanes = len(timeline.rows[bar.row].lanes)
        step = 0.78 / lanes
        y0 = bar.row - 0.39 + step * bar.lane + 0.04 * step
        y1 = y0 + 0.92 * step
        x0, x1 = ((x - timeline.begin) / unit for x in (bar.begin, bar.end))
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
        vertices.setdefault(bar.scope_id, []).extend(corners)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    for scope, corners in vertices.items():
        path = Path(corners, codes * (len(corners) // 5))
        patch = PathPatch(path, facecolor=colour_of[scope], edgecolor="none")
        axes.add_patch(patch)


def _labels(timeline: Timeline) -> tuple[str, list[str]]:
    """What stands above the names of the rows, and these."""
    ranked = any(row.rank is not None for row in timeline.rows)
    labels = [
        f"pid {row.label}" if ranked and row.rank is None else row.label for row in timeline.rows
    ]
    return "worker" if ranked else "worker (pid)", [shortened(label, 27) for label in labels]


_Point = tuple[float, int, str]  # time, row, what a pointer over it is told


class _Mark(NamedTuple):
    """A kind of marks: where they are, and how they look."""

    label: str
    points: list[_Point]
    style: dict[str, Any]

    @property
    def gid(self) -> str:
        """What finds them in the SVG."""
        return "mark-" + re.sub(r"\W+", "-", self.label)

    def handle(self) -> Line2D:
        """Its entry of the legend."""
        return Line2D([], [], label=self.label, **{**self.style, "markersize": 7})


def _marks(timeline: Timeline, unit: float, size: float) -> list[_Mark]:
    """Kills, deadlines, close calls, new processes: the kinds that there are."""

    def at(monotonic: float) -> float:
        return (monotonic - timeline.begin) / unit

    def point(when: float, i: int, span: Span) -> _Point:
        return at(when), i, timeline.rows[i].title_of(span)

    def ends(found: Sequence[tuple[int, Span]], *how: str) -> list[_Point]:
        return [point(span.end or 0.0, i, span) for i, span in found if span.how in how]

    # A deadline that is off the picture would only shrink what is in it.
    due = [
        (i, s)
        for i, s in [*timeline.ran_out, *timeline.still_open]
        if timeline.begin <= s.deadline < timeline.end
    ]
    starts = [
        (at(start), i, row.title) for i, row in enumerate(timeline.rows) for start in row.starts[1:]
    ]
    still = [point(timeline.end, i, span) for i, span in timeline.still_open]
    completed = ends(timeline.close, "released", "renewed")
    passed = [point(s.deadline, i, s) for i, s in due]
    kinds: list[tuple[str, list[_Point], str, float, str, str]] = [
        ("deadline that passed", passed, "|", 1.5, "fg", "fg"),
        ("new process", starts, ">", 0.75, "fg", "bg"),
        ("still set at the end", still, "o", 0.7, "bg", "fg"),
        (f"close call: under {CLOSE:.0%} left", completed, "^", 0.8, "fg", "bg"),
        ("ran out, reported", ends(timeline.ran_out, "expired"), "D", 0.75, "alarm", "bg"),
        ("ran out, worker killed", ends(timeline.ran_out, "killed"), "X", 1.15, "alarm", "bg"),
    ]
    return [
        _Mark(
            label,
            points,
            {
                "marker": marker,
                "markersize": scale * size,
                "markerfacecolor": _STAND_INS[face],
                "markeredgecolor": _STAND_INS[edge],
                "markeredgewidth": 2 if marker == "|" else 0.8,
                "linestyle": "none",
                "clip_on": False,
            },
        )
        for label, points, marker, scale, face, edge in kinds
        if points
    ]


def _draw_histogram(axes: Axes, found: Durations) -> None:
    everything = [max(d, 1e-6) for d in [*found.first, *found.later]]
    marks = [*found.allowed, *([found.suggested] if found.suggested else [])]
    title = shortened(printable(found.scope_id), 44)
    if found.ran_out:
        title += f"  ({found.ran_out} ran out)"
    axes.set_title(title)
    axes.set_xlabel("duration (seconds)")
    axes.set_ylabel("blocks")
    low = max(1e-4, min([*everything, *marks], default=0.1)) / 1.6
    high = max([*everything, *marks], default=1.0) * 1.6
    low = min(low, high / 12)  # a decade, at least: less has no round numbers in it
    count = 60
    edges = [low * (high / low) ** (i / count) for i in range(count + 1)]
    clipped = [[min(max(d, low), high) for d in part] for part in (found.later, found.first)]
    axes.hist(clipped, bins=edges, stacked=True, color=[_STAND_INS["s0"], _STAND_INS["s1"]])
    for allowed in found.allowed:
        axes.axvline(allowed, color=_STAND_INS["alarm"], linewidth=1.6, linestyle="--")
    if found.suggested:
        axes.axvline(found.suggested, color=_STAND_INS["fg"], linewidth=1.3, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    steps = (1.0,) if high > 200 * low else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(10, subs=steps, numticks=9))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    if not everything:
        axes.set_ylim(0, 1)
        axes.text(0.03, 0.9, "none came to its end", transform=axes.transAxes)


def _histogram_handles(found: Sequence[Durations]) -> list[Any]:
    handles: list[Any] = []
    if any(durations.later for durations in found):
        handles.append(Patch(facecolor=_STAND_INS["s0"], label="later calls"))
    if any(durations.first for durations in found):
        handles.append(Patch(facecolor=_STAND_INS["s1"], label="a worker's first call"))
    alarm, fg = _STAND_INS["alarm"], _STAND_INS["fg"]
    handles.append(Line2D([], [], color=alarm, linewidth=1.6, linestyle="--", label="deadline"))
    if any(durations.suggested for durations in found):
        line = Line2D([], [], color=fg, linewidth=1.3, linestyle=":", label="deadline suggested")
        handles.append(line)
    return handles


def _scope_colours(timeline: Timeline) -> dict[str | None, str]:
    colours: dict[str | None, str] = {None: _STAND_INS["other"]}
    for i, scope in enumerate(timeline.scopes):
        colours[scope] = _STAND_INS[f"s{i}"]
    return colours


def _scope_handles(timeline: Timeline) -> list[Patch]:
    colour_of = _scope_colours(timeline)
    handles = [
        Patch(facecolor=colour_of[scope], label=shortened(printable(scope), 24))
        for scope in timeline.scopes
    ]
    coloured = set(timeline.scopes)
    lanes = (lane for row in timeline.rows for lane in row.lanes)
    if any(span.scope_id not in coloured for lane in lanes for span in lane):
        handles.append(Patch(facecolor=colour_of[None], label="other scopes"))
    return handles


def _row_major(handles: list[Any], columns: int) -> list[Any]:
    """In the order in which a legend of that many columns has them row by row.

    It fills column by column, and the first columns have one more.
    """
    columns = min(columns, len(handles))
    return [handle for i in range(columns) for handle in handles[i::columns]]


def _time_unit(covered: float) -> tuple[float, str]:
    if covered >= 3 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if covered >= 600 else (1.0, "seconds")


def _to_svg(figure: Figure, salt: str, label: str) -> str:
    """The figure without a size of its own, in CSS variables."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that matplotlib's font lacks: the browser has them
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", rf"font: \1 {FONT}", svg)
    for name, stand_in in _STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _with_titles(svg: str, gid: str, titles: Sequence[str], element: str = "g") -> str:
    """Name the group of this id, or the elements of a kind in it, for the pointer.

    They are drawn in order; what is off the picture is not, and then nobody knows which is which.
    """
    begin = svg.index(f'<g id="{gid}">')
    end = svg.find('<g id="', begin + 1)
    texts = (f"<title>{html.escape(printable(title))}</title>" for title in titles)

    def named(found: re.Match[str]) -> str:
        text = next(texts, "")
        return f"<{element} {found[1]}>{text}" + (f"</{element}>" if found[2] else "")

    pattern = re.compile(rf"<{element} ([^>]*?)(/?)>")
    part, count = pattern.subn(named, svg[begin:end], count=len(titles))
    return svg[:begin] + part + svg[end:] if count == len(titles) else svg
