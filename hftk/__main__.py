"""``python -m hftk`` is the same as ``hftk``."""

from __future__ import annotations

import sys

from hftk.cli import main

if __name__ == "__main__":
    sys.exit(main())
