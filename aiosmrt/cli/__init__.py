"""The ``aiosmrt`` command: the client and the local runtime from a shell.

Theory of operation. Commands are made from the operation table (`commands`), so a member that the service gains is a
flag here as soon as the table has it. Values are read as the AWS CLI reads them (`parameters`), bodies go where the
AWS CLI puts them (`outfile`), and what is left of a response is printed as it prints it (`output`). `app` puts the
commands together and turns every failure into one line and an exit code.

This module imports nothing of the extra ``[cli]``, so that it can say that the extra is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``aiosmrt`` command.

    Args:
        arguments: what follows the program's name; None for ``sys.argv``'s.

    Returns:
        The exit code: the AWS CLI's, version 2 (see `aiosmrt.cli.app`).
    """
    try:
        from aiosmrt.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.stderr.write(f"aiosmrt: the command line needs {error.name}: pip install 'aiosmrt[cli]'\n")
        return 253
    except KeyboardInterrupt:
        return 130
    return run(sys.argv[1:] if arguments is None else arguments)
