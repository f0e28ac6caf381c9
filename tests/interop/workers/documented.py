"""The usage example of torch's documentation, with our classes.  usage: documented.py DIRECTORY"""

import multiprocessing as mp
import os
import sys
import time

from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

import filetimer as timer


def trainer(message_queue) -> str:
    timer.configure(timer.LocalTimerClient(message_queue))
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    stuck = attempt == "0" and os.environ["RANK"] == "1"
    with timer.expires(after=0.5 if stuck else 60):
        time.sleep(60 if attempt == "0" else 0)
    return f"trained in attempt {attempt}"


def main() -> None:
    start_method = "spawn"
    message_queue = mp.get_context(start_method).Queue()
    server = timer.LocalTimerServer(message_queue, max_interval=0.01)
    server.start()
    rendezvous = RendezvousParameters(
        backend="c10d",
        endpoint="localhost:0",
        run_id="documented",
        min_nodes=1,
        max_nodes=1,
        local_addr="localhost",
    )
    spec = WorkerSpec(
        role="trainer",
        local_world_size=2,
        entrypoint=trainer,
        args=(message_queue,),
        rdzv_handler=get_rendezvous_handler(rendezvous),
        max_restarts=3,
        monitor_interval=0.05,
    )
    agent = LocalElasticAgent(spec, DefaultLogsSpecs(), start_method)
    result = agent.run()
    server.stop()
    print("results", dict(sorted(result.return_values.items())), file=sys.stderr)


if __name__ == "__main__":
    main()
