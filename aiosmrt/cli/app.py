"""The command group, and what a failure looks like from a shell: one line on standard error and an exit code.

The codes are those of the AWS CLI, version 2 ("Command line return codes" in its user guide):

====  =================================================================================================
0     done
130   interrupted (Ctrl-C)
252   the command was wrong: unknown or missing flags, values that break the service model's rules
253   the configuration was wrong or incomplete: no region, no credentials, an unknown profile
254   the service answered with an error
255   anything else: no connection, a timeout, a file that cannot be written
====  =================================================================================================

Version 1 of the AWS CLI has 2 and 255 where version 2 tells these apart. 141 is the shell's own code for a pipe whose
reader went away (``aiosmrt … - | head``), which ends a command quietly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from aiosmrt._wire.operations import OPERATIONS
from aiosmrt.cli.commands import operation_command
from aiosmrt.cli.demo import demo
from aiosmrt.cli.options import common_options, version_line
from aiosmrt.cli.parameters import ParameterError
from aiosmrt.cli.serve import serve
from aiosmrt.errors import AiosmrtError, ConfigurationError, ParamValidationError, ServiceError

__all__ = ["cli", "run"]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=common_options(),
    epilog="The flags above may also follow a command, as with the AWS CLI.",
)
@click.version_option(message=version_line())
def cli(**_: object) -> None:
    """Call Amazon SageMaker endpoints, and run a local SageMaker Runtime."""


for _operation in OPERATIONS:
    cli.add_command(operation_command(_operation))
cli.add_command(serve)
cli.add_command(demo)


def run(arguments: Sequence[str]) -> int:
    """Run one command; give its exit code."""
    try:
        # Not cli.main(), which has ideas of its own about interrupts and broken pipes.
        with cli.make_context("aiosmrt", list(arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # What is still buffered must not raise again when the interpreter flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx is not None else ""
        return _fail(252, f"{error.format_message()}{hint}")
    except (ParamValidationError, ParameterError) as error:
        return _fail(252, str(error))
    except ConfigurationError as error:
        return _fail(253, str(error))
    except ServiceError as error:
        return _fail(254, str(error))
    except (AiosmrtError, OSError) as error:
        return _fail(255, str(error) or type(error).__name__)
    return 0


def _fail(code: int, message: str) -> int:
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip())
    sys.stderr.write(f"aiosmrt: error: {line.replace(':; ', ': ')}\n")
    return code
