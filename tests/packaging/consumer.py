"""What the packaging tests share: tools, and compiling a program that includes the header."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def skip_or_fail(text: str) -> None:
    """Where CI is set everything must be there."""
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)


def need(tool: str, package: str | None = None) -> str:
    found = shutil.which(tool)
    if found is None:
        skip_or_fail(f"{tool} is not installed (Debian package {package or tool})")
    return str(found)


def need_module(name: str, version: str = "") -> None:
    if importlib.util.find_spec(name) is None:
        skip_or_fail(f"the Python package {name}{version} is not installed: pip install '.[test]'")


def run(*command: object, **options: object) -> str:
    """Run to the end; show all output where it fails."""
    words = [str(word) for word in command]
    result = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout}{result.stderr}"
    return result.stdout
