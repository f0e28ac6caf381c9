"""Workers that are functions, for the agent to start by this method.  usage: functions.py METHOD"""

import ctypes
import os
import sys
import time

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import filetimer
from filetimer import torchelastic


def train() -> str:
    rank, attempt = int(os.environ["RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
    filetimer.configure_from_env()
    if attempt == "0":
        with filetimer.expires(0.3 if rank == 1 else 60, scope="in a function"):
            ctypes.PyDLL(None).pause() if rank == 1 else time.sleep(60)
    return f"rank {rank} of attempt {attempt}"


if __name__ == "__main__":
    assert torchelastic.enable()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="functions",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=2,
        monitor_interval=0.05,
        start_method=sys.argv[1],
    )
    print("results", dict(sorted(elastic_launch(config, train)().items())), file=sys.stderr)
