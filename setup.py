"""What pyproject.toml cannot say: the optional extension, and package data from other folders.

The header and what finds it lie in ``c/``, the contract in ``protocol/``: neither belongs to
Python.  A wheel carries them inside the package, in the places of :data:`CARRIED`.  An editable
install copies nothing: ``filetimer.native_files`` and ``filetimer.conformance.cases`` look into
the checkout.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CARRIED = {  # folder and pattern here: folder in the wheel
    ("c/include", "*.h*"): "filetimer/include",
    ("c/cmake", "*.cmake"): "filetimer/cmake",
    ("c/pkgconfig", "*.pc"): "filetimer/pkgconfig",
    ("protocol", "**/*"): "filetimer/conformance/protocol",
}

NO_NATIVE_CLIENT = """
    filetimer is installed without its native client: compiling it failed ({reason}).
    Everything but filetimer.NativeTimerClient works.  To have that as well, install a C compiler
    (Debian: gcc libc6-dev; Fedora: gcc glibc-devel; Alpine: gcc musl-dev) and install again.
"""


class BuildPy(build_py):
    """Also copies what is carried."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._carried().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target, preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self._carried().values()]

    def get_output_mapping(self) -> dict[str, str]:
        return {**super().get_output_mapping(), **{t: s for s, t in self._carried().items()}}

    def _carried(self) -> dict[str, str]:
        """Each file here, and its place in the build."""
        if self.editable_mode:
            return {}
        return {
            str(path): str(Path(self.build_lib, target, path.relative_to(folder)))
            for (folder, pattern), target in CARRIED.items()
            for path in sorted(Path(folder).glob(pattern))
            if path.is_file()
        }


class BuildExt(build_ext):
    """Says what it means when the extension cannot be compiled."""

    def build_extension(self, ext: object) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            print(NO_NATIVE_CLIENT.format(reason=reason), file=sys.stderr)
            raise  # the extension is optional: setuptools goes on


class BdistWheel(bdist_wheel):
    """One wheel for all CPythons with a GIL."""

    def finalize_options(self) -> None:
        if sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED"):
            self.py_limited_api = "cp310"
        super().finalize_options()


setup(
    cffi_modules=["c/cffi/build_native.py:ffi"],
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt, "bdist_wheel": BdistWheel},
)
