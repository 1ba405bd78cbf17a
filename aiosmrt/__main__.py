"""``python -m aiosmrt``: the ``aiosmrt`` command where its script is not on PATH."""

import sys

from _aiosmrt_command import main

if __name__ == "__main__":
    sys.exit(main())
