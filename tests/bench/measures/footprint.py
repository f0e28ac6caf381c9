"""What the package weighs: memory of a timer, time of an import, size of a wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from bench.bed import (
    PYTHON_ENVIRONMENT,
    ROOT,
    folder,
    has_torch,
    holders,
    resident,
    server,
)
from bench.samples import Effort, alternate, spread, time_of
from bench.table import Row, Target

FEW, MANY = 10_000, 110_000
IMPORTS = {
    "bare": "pass",
    "ours": "import filetimer; filetimer.configure_from_env()",
    "torch": "import torch.distributed.elastic.timer",
}


def rows(effort: Effort) -> Iterator[Row]:
    yield _memory()
    yield _imports(effort)
    yield _wheel()


def _memory() -> Row:
    ours = _memory_of_timer("ours")
    torchs = f"torch: {_memory_of_timer('torch'):.0f} bytes" if has_torch() else ""
    target = Target(ours, " bytes", at_most=600, digits=0)
    return Row("server's memory for a live timer", f"{ours:.0f} bytes", torchs, (target,))


def _memory_of_timer(kind: str) -> float:
    with (
        folder() as where,
        server(kind, where) as it,
        holders(where, it, kind, FEW),
    ):
        it.wait_for_timers(FEW)
        before = resident(it.pid)
        with holders(where, it, kind, MANY - FEW):
            it.wait_for_timers(MANY)
            return (resident(it.pid) - before) / (MANY - FEW)


def _imports(effort: Effort) -> Row:
    names = [name for name in IMPORTS if name != "torch" or has_torch()]
    environment = {**os.environ, **PYTHON_ENVIRONMENT}

    def start(code: str) -> float:
        command = [sys.executable, "-c", code]
        return time_of(lambda: subprocess.run(command, check=True, env=environment))

    sides = {name: (lambda code=IMPORTS[name]: start(code)) for name in names}
    took = alternate(sides, effort(15, 3))  # type: ignore[arg-type]
    more = spread([a - b for a, b in zip(took["ours"], took["bare"], strict=True)])
    torchs = ""
    if has_torch():
        other = spread([a - b for a, b in zip(took["torch"], took["bare"], strict=True)])
        torchs = f"torch: {other.text('ms')}"
    return Row(
        "`import filetimer` and `configure_from_env`, over a bare interpreter",
        more.text("ms"),
        torchs,
        (Target(more.median * 1e3, " ms", at_most=60, digits=0),),
    )


def _wheel() -> Row:
    with folder() as where:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        subprocess.run([*command, "--wheel-dir", str(where), str(ROOT)], check=True)
        (wheel,) = where.glob("*.whl")
        size = wheel.stat().st_size / 1000
    return Row("wheel", f"{size:.0f} kB", "", (Target(size, " kB", at_most=500, digits=0),))
