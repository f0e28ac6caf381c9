"""What ``filetimer top``, ``metrics``, ``suggest``, ``report`` and ``trace`` show.

Each is a thin reader over :mod:`filetimer.replay`, in a process of its own.  ``source`` finds the
journal, ``words`` has what people read.  A view is a model, which needs nothing but the standard
library, and, where it is drawn, a module beside it that draws it with a library of an extra.
"""
