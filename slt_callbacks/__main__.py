"""`python -m slt_callbacks`."""

import sys

from slt_callbacks.replay.command import main

if __name__ == "__main__":
    sys.exit(main())
