"""The roles without a real clock or process: codec and timeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from . import oracle
from .cases import Case, octets
from .link import Message
from .verdicts import Failure, expect

Ask = Callable[[Message], Message]

_EVENTS = {"rejected", "refused", "expired", "signal"}
_DEATHS = {"dead", "unkillable"}  # SPEC S-14 asks them of a server that escalates only
_BYTEWISE_LIMIT = 10_000  # a case of more bytes is not also fed byte by byte


def run_codec(case: Case, ask: Ask, version: int) -> None:
    if "encode" in case.body:
        _encode(case.body, ask)
    elif "line" in case.body:
        _line(case.body, ask, version)
    else:
        _framing(case.body, ask, version)


# ---------------------------------------------------------------------------------------- codec


def _line(body: dict[str, Any], ask: Ask, version: int) -> None:
    line = octets(body["line"]) + b"\n"
    verdict = {"error": body["error"]} if "error" in body else {"record": body["record"]}
    accepted = [[verdict]]
    if "may_reject" in body:  # SPEC R-6: nested deeper than a receiver must follow
        accepted.append([{"error": body["may_reject"]}])
    got = _decode([line], ask)
    if not any(_same(got, want, version) for want in accepted):
        raise Failure(accepted[0], got, line)


def _framing(body: dict[str, Any], ask: Ask, version: int) -> None:
    """SPEC F-5: the same bytes give the same verdicts, however the reads cut them."""
    reads = [octets(read) for read in body["reads"]]
    whole = b"".join(reads)
    ways = {"as given": reads, "in one read": [whole]}
    if len(whole) <= _BYTEWISE_LIMIT:
        ways["byte by byte"] = [whole[i : i + 1] for i in range(len(whole))]
    for way, pieces in ways.items():
        got = _decode(pieces, ask)
        if not _same(got, body["expect"], version):
            raise Failure(body["expect"], {"fed": way, "results": got}, whole)


def _decode(reads: list[bytes], ask: Ask) -> Any:
    reply = ask({"op": "decode", "reads": [read.hex() for read in reads]})
    return reply.get("results", reply)


def _same(got: Any, want: list[dict[str, Any]], version: int) -> bool:
    return (
        isinstance(got, list)
        and len(got) == len(want)
        and all(_same_verdict(g, w, version) for g, w in zip(got, want, strict=True))
    )


def _same_verdict(got: Any, want: dict[str, Any], version: int) -> bool:
    if not isinstance(got, dict) or "record" not in want:
        return bool(got == want)
    record = got.get("record")
    return isinstance(record, dict) and same_record(record, want["record"], version)


def same_record(got: dict[str, Any], want: dict[str, Any], version: int) -> bool:
    """Numbers are compared as binary64, where the specification says number, else exactly."""
    fields = oracle.REQUIRED.keys() | (oracle.OPTIONAL.keys() if version >= 2 else set())
    got = {field: value for field, value in got.items() if field in fields}
    want = {field: value for field, value in want.items() if field in fields}
    return got.keys() == want.keys() and all(_same_value(got[f], want[f], f) for f in want)


def _same_value(got: Any, want: Any, field: str) -> bool:
    if isinstance(got, bool) or isinstance(got, str) != isinstance(want, str):
        return False
    if field in ("expiration_time", "deadline"):
        return isinstance(got, (int, float)) and float(got) == float(want)
    return bool(got == want)


def _encode(body: dict[str, Any], ask: Ask) -> None:
    record = body["encode"]
    reply = ask({"op": "encode", "record": record})
    if body.get("refuse"):
        expect("error" in reply, "an error: a sender must not write this record", reply, record)
        return
    try:
        line = bytes.fromhex(reply["hex"])
    except (KeyError, TypeError, ValueError):
        raise Failure(record, reply, record) from None
    faults = [f"SPEC {spec}: {fault}" for spec, fault in oracle.sender_faults(line)]
    expect(not faults, "a line that a sender may write", {"faults": faults, "line": line}, record)
    got = oracle.parse(line)
    for field, seconds in oracle.tolerances(record).items():
        if field in got and field in record and abs(got[field] - record[field]) < seconds:
            got[field] = record[field]
    expect(same_record(got, record, 2), record, {"record": got, "line": line}, record)


# -------------------------------------------------------------------------------------- timeline


def run_timeline(case: Case, ask: Ask) -> None:
    body = case.body
    steps = body["steps"]
    request = {
        "op": "timeline",
        "server": body["server"],
        "processes": body["processes"],
        "steps": [_step(step) for step in steps],
    }
    reply = ask(request)
    events = reply.get("events")
    if not isinstance(events, list) or len(events) != len(steps):
        raise Failure(f"a list of events for each of {len(steps)} steps", reply, request)
    known = _EVENTS | (_DEATHS if "kill_after" in body["server"] else set())
    for number, (step, got) in enumerate(zip(steps, events, strict=True), 1):
        if _bag(got, known) != _bag(step["expect"], known):
            told = [_without_expectation(step) for step in steps[:number]]
            raise Failure(
                {"step": number, "events": step["expect"]}, {"step": number, "events": got}, told
            )


def _without_expectation(step: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in step.items() if key != "expect"}


def _step(step: dict[str, Any]) -> dict[str, Any]:
    sent = _without_expectation(step)
    if "receive" in sent:
        sent["receive"] = octets(sent["receive"]).hex()
    return sent


def _bag(events: Any, known: set[str]) -> list[str]:
    """The events without their order (driver.md: it is not compared within a step)."""
    if not isinstance(events, list):
        return [repr(events)]
    compared = [e for e in events if not isinstance(e, dict) or e.get("event") in known]
    return sorted(json.dumps(event, sort_keys=True) for event in compared)
