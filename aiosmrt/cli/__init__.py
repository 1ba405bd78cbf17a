"""The ``aiosmrt`` command: the client and the local runtime from a shell.

Theory of operation. The commands are generated from the operation table (`commands`), so a new member of the service is
an option here as soon as the table has it. Option values are parsed as in the AWS CLI (`parameters`), response bodies
are written as in the AWS CLI (`outfile`), and the rest of a response is printed in its formats (`output`). `app`
assembles the commands, and turns every failure into one line and an exit code.

This module imports nothing from the extra ``cli``, so that it can report that the extra is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``aiosmrt`` command.

    Args:
        arguments: the arguments after the program's name. Defaults to those in ``sys.argv``.

    Returns:
        The exit code, as in version 2 of the AWS CLI (see `aiosmrt.cli.app`).
    """
    try:
        from aiosmrt.cli.app import run
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.stderr.write("aiosmrt: error: click is not installed; run: pip install 'aiosmrt[cli]'\n")
        return 253
    except KeyboardInterrupt:
        return 130
    return run(sys.argv[1:] if arguments is None else arguments)
