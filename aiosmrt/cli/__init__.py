"""The ``aiosmrt`` command: the client and the local runtime from a shell.

Theory of operation. The commands are generated from the operation table (`commands`), so a new member of the service is
an option here as soon as the table has it. Option values are parsed as in the AWS CLI (`parameters`), response bodies
are written as in the AWS CLI (`outfile`), and the rest of a response is printed in its formats (`output`). `app`
assembles the commands, and turns every failure into one line and an exit code.

This module imports nothing from the extra ``cli``, so that it can report that the extra is missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``aiosmrt`` command.

    Args:
        arguments: the arguments after the program's name. Defaults to those in ``sys.argv``.

    Returns:
        The exit code, as in version 2 of the AWS CLI (see `aiosmrt.cli.app`).
    """
    _occupy_closed_streams()
    try:
        from aiosmrt.cli.app import run
    except (ImportError, AttributeError) as error:
        from aiosmrt._extras import unusable

        message = unusable(error, "cli")
        if message is None:
            raise
        sys.stderr.write(f"aiosmrt: error: {message}\n")
        return 253
    except KeyboardInterrupt:
        return 130
    return run(sys.argv[1:] if arguments is None else arguments)


def _occupy_closed_streams() -> None:
    """Open what the caller closed of standard input, output and error (``2>&-``), for which Python has None.

    A file of the command would get the number otherwise, and messages with it. Input and output are opened the wrong
    way round, so that a command which reads or writes them fails; what cannot be told on standard error is dropped.
    """
    for number, (name, mode) in enumerate((("stdin", os.O_WRONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY))):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            descriptor = os.open(os.devnull, mode)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
        with suppress(OSError):
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115 (for good)
