"""The server: decides who is stuck, and reaps it.  Nothing here is imported in workers.

From the inside out: ``timers`` holds the rules and reads no clock; ``process``, ``fifo`` and
``journal`` make the system calls; ``reaper`` signals and confirms; ``watchdog`` is the loop over
them; ``file_server`` and ``local_server`` are what users start.
"""
