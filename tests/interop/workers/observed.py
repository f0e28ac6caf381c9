"""An agent that is watched: its health check and its event log.  usage: observed.py DIRECTORY"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

from torch.distributed.elastic.agent.server import local_elastic_agent
from torch.distributed.elastic.agent.server.health_check_server import HealthCheckServer
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from filetimer import torchelastic

PLAIN = str(Path(__file__).with_name("plain.py"))


class Probe(HealthCheckServer):
    """Asks for the progress time again and again, as a health check would."""

    beats: ClassVar[set] = set()

    def start(self) -> None:
        self.running = True
        threading.Thread(target=self.ask, daemon=True).start()

    def stop(self) -> None:
        self.running = False

    def ask(self) -> None:
        while self.running:
            self.beats.add(self._alive_callback())
            time.sleep(0.1)


def main() -> None:
    local_elastic_agent.create_healthcheck_server = lambda **options: Probe(**options)
    os.environ["TORCHELASTIC_HEALTH_CHECK_PORT"] = "1"
    assert torchelastic.enable()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="observed",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=1,
        monitor_interval=0.05,
        event_log_handler="console",
    )
    started = time.time()
    elastic_launch(config, sys.executable)(PLAIN, "once_after_a_while", sys.argv[1])
    beats = sorted(Probe.beats)
    report = {
        "types": sorted({type(beat).__name__ for beat in beats}),
        "beats": len(beats),
        "first": beats[0] - started,
        "last": beats[-1] - time.time(),
    }
    Path(sys.argv[1], "health.json").write_text(json.dumps(report))


main()
