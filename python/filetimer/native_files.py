"""Where the C side of this installation is: header, CMake package, pkg-config file.

In a wheel the three folders lie in this package; in a checkout, and so in an editable install, in
``c/``.  Their places relative to one another are the same in both.
"""

from __future__ import annotations

import os
import shlex

__all__ = ["cflags", "get_cmake_dir", "get_include", "get_pkgconfig_dir", "includes"]


def get_include() -> str:
    """The folder of ``filetimer.h`` and ``filetimer.hpp``, for a C or C++ compiler's ``-I``."""
    return _folder("include")


def get_cmake_dir() -> str:
    """The folder for CMake's ``filetimer_DIR``, where ``find_package(filetimer)`` looks."""
    return _folder("cmake")


def get_pkgconfig_dir() -> str:
    """The folder of ``filetimer.pc``, for ``PKG_CONFIG_PATH``."""
    return _folder("pkgconfig")


def includes() -> str:
    """The option that every compiler understands, nvcc included, quoted for a shell."""
    return shlex.quote(f"-I{get_include()}")


def cflags() -> str:
    """What ``pkg-config --cflags --libs filetimer`` gives, quoted for a shell."""
    return f"{includes()} -pthread"


def _folder(name: str) -> str:
    package = os.path.dirname(os.path.abspath(__file__))
    checkout = os.path.join(os.path.dirname(os.path.dirname(package)), "c")
    for place in (package, checkout):
        folder = os.path.join(place, name)
        if os.path.isdir(folder):
            return folder
    raise FileNotFoundError(f"this installation of filetimer has no folder {name!r}: reinstall it")
