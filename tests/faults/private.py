"""A pid namespace of its own for every fault: no pid in it names a process outside.

When its first process ends, the kernel ends all others in it: nothing is left behind, and nothing
has to be looked for.
"""

from __future__ import annotations

import os
import subprocess

__all__ = ["REFUSAL", "command", "may_unshare"]

REFUSAL = (
    "make faults injects faults only in a private pid namespace, and making one is not permitted "
    "here: run it as root, or allow unprivileged user namespaces"
)


def command(arguments: list[str]) -> list[str]:
    """``arguments`` as the first process of a new pid namespace that ends with its parent."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    return [*unshare, *arguments]


def may_unshare() -> bool:
    """Whether such a namespace can be made here."""
    try:
        return subprocess.run(command(["true"]), capture_output=True).returncode == 0
    except OSError:
        return False
