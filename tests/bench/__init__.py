"""The benchmark suite: ``make bench``, ``make bench-quick``, ``make bench-smoke``.

Each module that is named in :data:`bench.suite.MEASURES` measures one thing and yields rows of the
table.  Whatever is compared runs in one run, in alternation, so that what disturbs one side soon
disturbs the other; a row tells the ratio and its quartiles.  No time ever fails a test: only the
instruction counts of the C client do (:mod:`bench.instructions`).
"""
