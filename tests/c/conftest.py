# SPDX-License-Identifier: BSD-3-Clause
"""The fixtures of native.py; it has another name so that the tests can import from it."""

from native import build, fifo

__all__ = ["build", "fifo"]
