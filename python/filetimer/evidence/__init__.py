"""The evidence about a hung worker: a process of its own that looks at the whole group.

``stacks`` gets Python and native stacks, ``proc`` reads /proc, ``verdict`` says who waits and who
is elsewhere, ``text`` writes it for people, and ``__main__`` is the collector that the server
starts (``server.evidence``).  Nothing here signals a worker, save to ask for its Python stacks.
"""
