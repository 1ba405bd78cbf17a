"""``python -m aiosmrt.cli``, where the ``aiosmrt`` script is not on PATH."""

import sys

from aiosmrt.cli import main

sys.exit(main())
