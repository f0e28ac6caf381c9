"""Injects one fault: ``python -m faults.inside MODULE NUMBER full|quick RESULT``.

This is pid 1 of a namespace of its own.  It does what an init does, while a child of it injects.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from faults.fault import Result, Scale


def main() -> int:
    """Run the fault in a child; the exit status."""
    if os.getpid() != 1:
        sys.exit("faults.inside is started by `python -m faults`, in a pid namespace of its own")
    child = os.fork()
    if child == 0:
        _inject(*sys.argv[1:])
        os._exit(0)
    while True:
        pid, status = os.wait()  # orphans, too
        if pid == child:
            return 0 if status == 0 else 1


def _inject(module: str, number: str, size: str, target: str) -> None:
    fault = importlib.import_module(f"faults.{module}").FAULTS[int(number)]
    try:
        result = fault.run(Scale(quick=size == "quick"))
    except BaseException:
        result = Result()
        result.breach(traceback.format_exc())
    Path(target).write_text(json.dumps(result.to_dict()))


if __name__ == "__main__":
    sys.exit(main())
