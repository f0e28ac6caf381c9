"""``python -m faults``: injects every fault, and says in a table what came of it.

Exit status 0 when no timer was lost, nobody was signalled wrongly and no promise was broken; else
1; 2 when faults cannot be injected here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults import table
from faults.fault import Fault, Result
from faults.private import REFUSAL, command, may_unshare

MODULES = [
    "crash",
    "starved",
    "clocks",
    "identity",
    "pipe",
    "resources",
    "paths",
    "escalation",
    "crowds",
]
JOBS, QUICK_JOBS = 2, 3  # most faults wait for most of their time
ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run what the arguments ask for; the exit status."""
    options = _parse()
    if not may_unshare():
        print(REFUSAL, file=sys.stderr)
        return 2
    began = time.monotonic()
    chosen = sorted(_choose(options), key=lambda choice: choice[2].alone)
    beside = [choice for choice in chosen if not choice[2].alone]
    with ThreadPoolExecutor(options.jobs or (QUICK_JOBS if options.quick else JOBS)) as pool:
        results = list(pool.map(lambda choice: _run(*choice, options), beside))
    results += [_run(*choice, options) for choice in chosen[len(beside) :]]
    rows = [(fault, result) for (_, _, fault), result in zip(chosen, results, strict=True)]
    return _finish(rows, options, time.monotonic() - began)


def _choose(options: argparse.Namespace) -> Iterator[tuple[str, int, Fault]]:
    for module in options.modules or MODULES:
        for number, fault in enumerate(importlib.import_module(f"faults.{module}").FAULTS):
            if options.only is None or options.only in fault.name:
                yield module, number, fault


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--quick", action="store_true", help="fewer injections: for CI")
    parser.add_argument("--only", metavar="TEXT", help="only faults whose name has this in it")
    parser.add_argument("--readme", action="store_true", help="replace the table in README.md")
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help=f"at once (default: {JOBS}; {QUICK_JOBS} with --quick)",
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build", metavar="DIR", help="(default: build)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the working directories")
    options = parser.parse_args()
    if options.readme and (options.quick or options.modules or options.only):
        parser.error("--readme takes the table of a full run only")
    return options


def _run(module: str, number: int, fault: Fault, options: argparse.Namespace) -> Result:
    """One fault, in a namespace and a directory of its own."""
    began = time.monotonic()
    directory = tempfile.mkdtemp(prefix="faults-")
    try:
        result = _inject(module, number, fault, options, directory)
    finally:
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)
    verdict = "ok" if result.passed else f"skipped: {result.skipped}" * bool(result.skipped)
    lines = [f"{fault.name}: {verdict or 'FAILED'}, {time.monotonic() - began:.1f} s"]
    lines += [f"    {problem}" for problem in result.problems]
    if options.keep:
        lines.append(f"    kept: {directory}")
    print("\n".join(lines), flush=True)
    return result


def _inject(
    module: str, number: int, fault: Fault, options: argparse.Namespace, directory: str
) -> Result:
    target = os.path.join(directory, "result.json")
    size = "quick" if options.quick else "full"
    process = subprocess.Popen(
        command([sys.executable, "-m", "faults.inside", module, str(number), size, target]),
        cwd=directory,
        env=_environment(directory),
        stdin=subprocess.DEVNULL,
    )
    result = Result()
    try:
        process.wait(fault.limit)
        result = Result.from_dict(json.loads(Path(target).read_text()))
    except subprocess.TimeoutExpired:
        result.breach(f"not over after {fault.limit:g} s")
    except (OSError, ValueError) as error:
        result.breach(f"no result, status {process.returncode}: {error}")
    finally:
        process.kill()  # and with it whatever is in its namespace
        process.wait()
    return result


def _environment(directory: str) -> dict[str, str]:
    paths = [str(ROOT / "tests"), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    names = ("FILETIMER_PATH", "TORCHELASTIC_TIMER_FILE")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "FILETIMER_RUNTIME_DIR": os.path.join(directory, "runtime"),
    }


def _finish(rows: list[tuple[Fault, Result]], options: argparse.Namespace, lasted: float) -> int:
    """Write the table; the exit status."""
    failed = [fault.name for fault, result in rows if not table.holds(result)]
    markdown = table.to_markdown(rows, options.quick)
    options.output.mkdir(exist_ok=True)
    (options.output / "faults.md").write_text(markdown)
    (options.output / "faults.json").write_text(table.to_json(rows, options.quick, lasted))
    print(f"\n{markdown}\n{len(rows)} faults in {lasted:.0f} s; {len(failed)} failed")
    if options.readme and not failed:
        table.replace(ROOT / "README.md", markdown)
        print("the README has it")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
