"""`python -m llava_cli`: the same as the console script `llava`."""

from __future__ import annotations

import sys

from llava_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
