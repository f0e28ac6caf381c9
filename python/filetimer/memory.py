"""Memory that there may not be: asked for before it is needed.

Only a process with a limit (``ulimit -v``, as some batch systems set it) ever hears no; otherwise
the kernel promises more than there is.
"""

from __future__ import annotations

import mmap
import resource

__all__ = ["require", "reserve"]


def reserve(size: int) -> mmap.mmap:
    """So many bytes, which cost nothing until they are used.  Raises MemoryError."""
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
    except OSError:
        raise MemoryError(f"there are no {size} bytes of memory") from None


def require(size: int) -> None:
    """Raise MemoryError unless so many bytes could be had now."""
    if _is_limited(resource.RLIMIT_AS) or _is_limited(resource.RLIMIT_DATA):
        reserve(size).close()


def _is_limited(limit: int) -> bool:
    return resource.getrlimit(limit)[0] != resource.RLIM_INFINITY
