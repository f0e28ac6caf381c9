"""``python -m bench``: run the suite, print the table, and keep it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench import instructions
from bench.bed import ROOT, Missing
from bench.samples import Effort
from bench.suite import MEASURES, machine, run
from bench.table import as_json, as_markdown, put_into


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under two minutes")
    parser.add_argument("--output", type=Path, default=ROOT / "build", help="a directory")
    parser.add_argument(
        "--readme", action="store_true", help="only put the kept table into README.md"
    )
    parser.add_argument(
        "--instructions",
        choices=("check", "record"),
        help="only count instructions of the C client, and compare them with the recorded ones",
    )
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=", ".join(MEASURES))
    options = parser.parse_args()
    if unknown := set(options.measures) - set(MEASURES):
        parser.error(f"there is no measure {', '.join(sorted(unknown))}")
    try:
        if options.instructions:
            return instructions.main(options.instructions)
        if options.readme:
            put_into(ROOT / "README.md", (options.output / "bench.md").read_text(encoding="utf-8"))
            return 0
        _measure(Effort(options.quick), options.measures or MEASURES, options.output)
    except (Missing, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


def _measure(effort: Effort, measures: list[str], output: Path) -> None:
    rows = list(run(effort, measures))
    output.mkdir(parents=True, exist_ok=True)
    table = as_markdown(rows, machine())
    (output / "bench.md").write_text(table, encoding="utf-8")
    (output / "bench.json").write_text(json.dumps(as_json(rows, machine()), indent=2) + "\n")
    print(table)


if __name__ == "__main__":
    sys.exit(main())
