"""The cases, read from `protocol/vectors/`, and the requirements of SPEC.md that they prove."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

ROLES = ("codec", "timeline", "client", "server")
_ROLE_OF_FOLDER = {"records": "codec", "framing": "codec", "timelines": "timeline"}

Bytes = str | list[dict[str, Any]]  # text, or pieces: {"text" or "hex": ..., "times": n}


@dataclass(frozen=True)
class Case:
    name: str
    role: str
    spec: tuple[str, ...]
    versions: tuple[int, ...]
    needs: tuple[str, ...]  # the ops without which the case cannot be tried
    body: dict[str, Any]
    file: str


@dataclass(frozen=True)
class Requirement:
    id: str
    section: str
    text: str

    @property
    def must(self) -> bool:
        return "MUST" in self.text


def protocol_directory() -> Path:
    """Where the contract is: in the wheel beside this package, in a checkout at the top."""
    here = Path(__file__).resolve()
    for candidate in (here.parent / "protocol", here.parents[3] / "protocol"):
        if (candidate / "SPEC.md").is_file():
            return candidate
    raise FileNotFoundError("the protocol directory (SPEC.md, vectors) is not installed")


def octets(data: Bytes) -> bytes:
    """The bytes that a vector means."""
    if isinstance(data, str):
        return data.encode("utf-8")
    return b"".join(
        (piece["text"].encode("utf-8") if "text" in piece else bytes.fromhex(piece["hex"]))
        * piece.get("times", 1)
        for piece in data
    )


def vector_files(protocol: Path | None = None) -> Iterator[Path]:
    vectors = (protocol or protocol_directory()) / "vectors"
    yield from sorted(vectors.glob("*/*.json"))


def load(protocol: Path | None = None) -> list[Case]:
    """Every case, in the order of the roles, files and entries."""
    cases = [
        _case(entry, path)
        for path in vector_files(protocol)
        for entry in json.loads(path.read_text("utf-8"))
    ]
    return sorted(cases, key=lambda case: ROLES.index(case.role))


def _case(entry: dict[str, Any], path: Path) -> Case:
    role = _ROLE_OF_FOLDER.get(path.parent.name, path.stem)  # live/client.json, live/server.json
    return Case(
        name=entry["name"],
        role=role,
        spec=tuple(entry["spec"]),
        versions=tuple(entry["versions"]),
        needs=(*_first_op(entry, role), *entry.get("needs", ())),
        body=entry,
        file=f"{path.parent.name}/{path.name}",
    )


def _first_op(entry: dict[str, Any], role: str) -> tuple[str, ...]:
    if role == "codec":
        return ("encode",) if "encode" in entry else ("decode",)
    return {"timeline": ("timeline",), "client": ("open",), "server": ("start",)}[role]


@lru_cache
def requirements(protocol: Path | None = None) -> dict[str, Requirement]:
    """The numbered requirements, by id. A paragraph that opens with `**F-7.**` is one."""
    text = ((protocol or protocol_directory()) / "SPEC.md").read_text("utf-8")
    found: dict[str, Requirement] = {}
    section = ""
    for block in re.split(r"\n\s*\n", text):
        if heading := re.match(r"## (.+)", block):
            section = heading[1]
        elif opening := re.match(r"\*\*([A-Z]-\d+)\.\*\* (.+)", block, re.DOTALL):
            sentence = " ".join(opening[2].split())
            found[opening[1]] = Requirement(opening[1], section, sentence)
    return found
