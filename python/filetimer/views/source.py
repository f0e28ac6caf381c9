"""Which server a view is about: the one at a path, the only one there is, or a kept journal."""

from __future__ import annotations

import os
import stat
from typing import Any

from filetimer import replay
from filetimer.replay import History, find_journals, is_alive
from filetimer.runtime import runtime_directory
from filetimer.server.journal import JournalError, read_journal
from filetimer.server.loop import read_clocks

__all__ = ["NoServer", "choose_journal", "load"]

LISTED = 8  # servers in a sentence


class NoServer(Exception):
    """There is none to look at, or more than one; the sentence says what to do."""


def choose_journal(path: str | None = None, journal: str | None = None) -> str:
    """The journal to look at.  Raises NoServer.

    ``journal``: a file that was kept.  ``path``: the FIFO of a server.  With neither, the server
    that runs; when none does, the one that died and left its journal.
    """
    if journal is not None:
        return journal
    if path is not None:
        return _journal_of(path)
    servers = _servers()
    running = [server for server in servers if server[2]]
    candidates = running or servers
    if len(candidates) == 1:
        return candidates[0][0]
    if not candidates:
        raise NoServer(
            "no timer server is running: start one (`filetimer run`, `filetimer serve`), or name "
            "what a job has kept with `--journal FILE` (`filetimer run --keep-journal FILE`)"
        )
    state = "are running" if running else "have died"
    raise NoServer(f"{len(candidates)} timer servers {state}, name one: {_listed(candidates)}")


def load(journal: str) -> tuple[dict[str, Any], History]:
    """The header and the history of a journal, now.  Raises NoServer when it cannot be read."""
    try:
        return replay.load_history(journal, read_clocks())
    except FileNotFoundError:
        raise NoServer(
            f"there is no {journal}, or no more: a server that stops removes it"
        ) from None
    except (JournalError, OSError) as error:
        raise NoServer(f"cannot read the journal: {error}") from None


def _journal_of(path: str) -> str:
    found = find_journals(path)
    if found:
        return found[0]
    if _is_file(path):
        raise NoServer(f"{path} is a file, not a server's FIFO: name a kept journal by `--journal`")
    raise NoServer(
        f"no timer server that can be looked at serves {path}: torch's own cannot, and one of "
        f"ours keeps its journal in {runtime_directory()}"
    )


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _servers() -> list[tuple[str, str, bool]]:
    """Of each of this user's servers: its journal, its path, whether it lives."""
    found = []
    for journal in find_journals():
        try:
            header, _ = read_journal(journal, read_clocks())
        except (JournalError, OSError):  # it stopped just now, or is of another version
            continue
        found.append((journal, header["path"], is_alive(header)))
    return found


def _listed(servers: list[tuple[str, str, bool]]) -> str:
    paths = [path for _, path, _ in servers[:LISTED]]
    more = len(servers) - len(paths)
    return ", ".join(paths) + (f" and {more} more" if more > 0 else "")
