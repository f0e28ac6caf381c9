"""torch's own server, in a process of its own: it ends itself after a kill.  usage: PATH"""

import sys
import time

from torch.distributed.elastic.timer import FileTimerServer

server = FileTimerServer(sys.argv[1], "peers", max_interval=0.1)
server.start()
print("ready", flush=True)
time.sleep(60)
