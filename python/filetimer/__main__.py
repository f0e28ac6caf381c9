"""``python -m filetimer``: the same as the command ``filetimer``."""

import sys

from filetimer.cli.main import main

sys.exit(main())
