"""What people read: scopes, seconds and ends in words."""

from __future__ import annotations

__all__ = ["HOW", "printable", "seconds", "shortened"]

HOW = {
    "released": "released in time",
    "renewed": "acquired anew before it was released",
    "killed": "ran out: its worker was reaped",
    "expired": "ran out: reported only",
    "exited": "its worker exited",
    "lost": "its end is not known",
    "open": "still set",
}


def printable(text: str) -> str:
    """Whatever a client wrote, a terminal shows text and nothing else happens."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, width: int) -> str:
    """At most ``width`` characters; the end of a scope says more than its beginning."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def seconds(value: float) -> str:
    """A duration in the unit that fits, with three digits or so."""
    size = abs(value) * 1.0005  # what rounds up to the next unit belongs to it
    if size >= 7200:
        return f"{value / 3600:.1f} h"
    if size >= 120:
        return f"{value / 60:.1f} min"
    if size >= 10:
        return f"{value:.1f} s"
    if size >= 1:
        return f"{value:.2f} s"
    return f"{value * 1000:.1f} ms" if size < 0.1 else f"{value * 1000:.0f} ms"
