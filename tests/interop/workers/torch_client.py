"""torch's own client.  usage: torch_client.py PATH"""

import ctypes
import sys
import time

from torch.distributed.elastic import timer

timer.configure(timer.FileTimerClient(sys.argv[1]))
for turn in range(20):
    with timer.expires(0.6, scope=f"in time {turn}"):
        pass
time.sleep(1.0)
print("alive", flush=True)
with timer.expires(0.5, scope="stuck"):
    ctypes.PyDLL(None).pause()
