"""A pair in C beside two write(2), and what it costs where nothing is configured."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

from bench.bed import compiled, folder
from bench.samples import Effort
from bench.table import Row, Target


def rows(effort: Effort) -> Iterator[Row]:
    with folder() as where:
        pair = compiled("pair.c", where)
        command = [str(pair), str(effort(16001, 4001))]
        result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    writes = f"two `write(2)` of the same bytes: {result['two_writes_ns']:.0f} ns"
    if result["nosignal"]:
        yield Row(
            "pair in C, no risk of SIGPIPE",
            f"{result['pair_ns']:.0f} ns "
            f"({result['pair_p10_ns']:.0f} to {result['pair_p90_ns']:.0f}, p10 to p90)",
            writes,
            (Target(result["ratio"], "x", at_most=1.6),),
        )
    yield Row(
        "pair in C where the kernel has no RWF_NOSIGNAL (before Linux 6.18)",
        f"{result['masked_pair_ns']:.0f} ns",
        f"{writes}; ratio {result['masked_ratio']:.2f}",
        () if result["nosignal"] else (Target(result["masked_ratio"], "x", at_most=1.6),),
        "There SIGPIPE is blocked and restored around each write: two more system calls.",
    )
    yield Row(
        "pair in C, not configured",
        f"{result['unconfigured_pair_ns']:.1f} ns",
        "an empty loop",
        (Target(result["unconfigured_pair_ns"], " ns", at_most=5.0, digits=1),),
    )
