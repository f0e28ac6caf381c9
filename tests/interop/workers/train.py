"""A data-parallel training loop with a checkpoint.  usage: train.py DIRECTORY STEPS

Once in the job, the rank whose LOCAL_RANK is $TEST_HANG gets stuck in step 3, in native code that
holds the interpreter's lock: no Python code of that process will ever run again.  $TEST_CLIENT
says whose client guards it: "filetimer" or "torch".
"""

import ctypes
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.elastic.timer as torch_timer

import filetimer

CLIENT = os.environ.get("TEST_CLIENT", "filetimer")
timer = torch_timer if CLIENT == "torch" else filetimer


def load(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {"step": 0, "total": 0.0}


def save(path: Path, state: dict) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(state))
    temporary.rename(path)


def maybe_hang(directory: Path, step: int) -> None:
    if step == 3 and os.environ.get("TEST_HANG") == os.environ["LOCAL_RANK"]:
        flag = directory / "hung"
        if not flag.exists():
            flag.touch()
            with timer.expires(0.5, scope="stuck native call"):
                ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)


def main() -> None:
    directory, steps = Path(sys.argv[1]), int(sys.argv[2])
    if CLIENT == "torch":
        timer.configure(timer.FileTimerClient(os.environ["TORCHELASTIC_TIMER_FILE"]))
    else:
        filetimer.configure_from_env()
    dist.init_process_group("gloo")
    state = load(directory / "checkpoint.json")
    first = state["step"]
    dist.barrier()  # nobody saves before all have loaded
    for step in range(first, steps):
        maybe_hang(directory, step)
        with timer.expires(120, scope="all_reduce"):
            value = torch.tensor([step + 1.0])
            dist.all_reduce(value)
        state = {"step": step + 1, "total": state["total"] + value.item()}
        if dist.get_rank() == 0:
            save(directory / "checkpoint.json", state)
    if dist.get_rank() == 0:
        print(f"finished: total {state['total']:.0f}, resumed from step {first}")
    dist.destroy_process_group()


main()
