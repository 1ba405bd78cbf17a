"""``python -m aiosmrt.cli``: the same as ``python -m aiosmrt``."""

import sys

from _aiosmrt_command import main

if __name__ == "__main__":
    sys.exit(main())
