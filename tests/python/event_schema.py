"""The schema of events, for every test that sees some."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from filetimer.server.event_file import VERSION
from filetimer.server.events import Event

SCHEMA = Path(__file__).parents[2] / "protocol/events.schema.json"


@functools.cache
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SCHEMA.read_text()))


def check_events(events: Iterable[Event]) -> None:
    """Each event, as a line of an event file would say it."""
    for event in events:
        check_line({"v": VERSION, **event.to_dict()})


def check_line(line: dict[str, Any]) -> None:
    errors = [error.message for error in validator().iter_errors(line)]
    assert not errors, (line, errors)
