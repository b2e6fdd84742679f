"""``python -m ruvector``, the same as the command ``ruvector``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
