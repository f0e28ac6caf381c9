"""The conformance kit: any language can prove that it speaks the protocol.

    filetimer conformance -- ./driver

`protocol/driver.md` describes the driver, `protocol/vectors/` holds the cases. The kit judges by
SPEC.md alone and imports nothing else of filetimer: the package is one of its subjects.
"""

from .cli import main
from .runner import run

__all__ = ["main", "run"]
