"""Starts workers, relays their output, and stops all that they started.

``children`` makes the system calls, ``relay`` moves the output, ``group`` is one attempt of all
workers, ``job`` restarts groups under one timer server.
"""
