"""Four ranks; one never comes to the all_reduce for which the others wait.

Its timer is long, as that of a data loader may be; the others expire first.
"""

import os
import threading

import torch
import torch.distributed as dist

import filetimer


def load_batch() -> torch.Tensor:
    threading.Event().wait()  # for a file server that does not answer
    return torch.ones(1)


def train_step(batch: torch.Tensor) -> None:
    with filetimer.expires(3, scope="step"):
        dist.all_reduce(batch)


filetimer.configure_from_env()
dist.init_process_group("gloo")
train_step(torch.ones(1))
if dist.get_rank() == int(os.environ["TEST_STUCK"]):
    with filetimer.expires(600, scope="load"):
        batch = load_batch()
train_step(torch.ones(1))
