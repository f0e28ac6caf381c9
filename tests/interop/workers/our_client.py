"""Our client without torch.  usage: our_client.py PATH VERSION

Twenty blocks end in time, five of them nested; the last one does not.
"""

import ctypes
import sys
import time

import filetimer

path, version = sys.argv[1], int(sys.argv[2])
filetimer.configure(filetimer.FileTimerClient(path, timeout=20, version=version))
for turn in range(20):
    with filetimer.expires(0.6, scope=f"in time {turn}"):
        if turn < 5:
            with filetimer.expires(0.6, scope="inner"):
                pass
time.sleep(1.0)  # past all those deadlines
print("alive", flush=True)
with filetimer.expires(0.5, scope="stuck"):
    ctypes.PyDLL(None).pause()
