"""The command group, its exit codes, and its error messages: one line on standard error.

The exit codes are those of the AWS CLI, version 2 ("Command line return codes" in its user guide):

====  =================================================================================================
0     success
130   interrupted (Ctrl-C)
252   invalid command: unknown or missing options, values that violate the service model
253   invalid or incomplete configuration: no region, no credentials, an unknown profile, a missing extra
254   the service returned an error
255   any other failure: no connection, a timeout, a file that cannot be written
====  =================================================================================================

`score` and `bench` have their own statuses: see `aiosmrt.cli.score` and `aiosmrt.cli.bench`.

Version 1 of the AWS CLI uses only 2 and 255 where version 2 has these. 141 is the shell's code for a broken pipe
(``aiosmrt … - | head``), which ends a command without a message.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from aiosmrt._wire.operations import OPERATIONS
from aiosmrt.cli.bench import bench
from aiosmrt.cli.commands import operation_command
from aiosmrt.cli.converse import converse
from aiosmrt.cli.demo import demo
from aiosmrt.cli.options import global_options, version_line
from aiosmrt.cli.parameters import ParameterError
from aiosmrt.cli.score import score
from aiosmrt.cli.serve import serve
from aiosmrt.errors import AiosmrtError, ConfigurationError, ParamValidationError, ServiceError

__all__ = ["cli", "run"]

_PROGRAM = "aiosmrt"
_COMPLETION_VARIABLE = "_AIOSMRT_COMPLETE"

_EPILOG = """The options above are also accepted after a command, as in the AWS CLI.

\b
Completion, for bash in ~/.bashrc, for zsh in ~/.zshrc:
  eval "$(_AIOSMRT_COMPLETE=bash_source aiosmrt)"
  eval "$(_AIOSMRT_COMPLETE=zsh_source aiosmrt)"
for fish in ~/.config/fish/completions/aiosmrt.fish:
  _AIOSMRT_COMPLETE=fish_source aiosmrt | source
"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=global_options(),
    epilog=_EPILOG,
    no_args_is_help=False,
)
@click.version_option(message=version_line())
def cli(**_: object) -> None:
    """Call Amazon SageMaker endpoints, and run a local SageMaker Runtime."""


@cli.group("sagemaker-runtime", params=global_options(), hidden=True, no_args_is_help=False)
def _sagemaker_runtime(**_: object) -> None:
    """The operations, where the AWS CLI has them."""


for _operation in OPERATIONS:
    _command = operation_command(_operation)
    cli.add_command(_command)
    _sagemaker_runtime.add_command(_command)
cli.add_command(converse)
cli.add_command(score)
cli.add_command(bench)
cli.add_command(serve)
cli.add_command(demo)


def run(arguments: Sequence[str]) -> int:
    """Run one command, or print the completion that a shell asks for, and return the exit code."""
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        # Reported by now, if it is what the command ended with.
        _drop_output()
        return code or _fail(255, str(error))
    return code


def _drop_output() -> None:
    """Let what is left in the buffer of standard output go nowhere: the interpreter flushes it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: Sequence[str]) -> int:
    if instruction := os.environ.get(_COMPLETION_VARIABLE):
        return shell_complete(cli, {}, _PROGRAM, _COMPLETION_VARIABLE, instruction)
    if (group := _group_alone(arguments)) is not None:
        sys.stderr.write(f"{group.get_help()}\n")
        return 252
    try:
        # Unlike cli.main(), this leaves interrupts and broken pipes to the handlers below.
        with cli.make_context(_PROGRAM, _help_as_option(arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        _drop_output()
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


def _group_alone(arguments: Sequence[str]) -> click.Context | None:
    """Return the context of a group of commands if the arguments name it and nothing else."""
    context = cli.make_context(_PROGRAM, [], resilient_parsing=True)
    for name in arguments:
        command = context.command.commands.get(name) if isinstance(context.command, click.Group) else None
        if not isinstance(command, click.Group):
            return None
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
    return context


def _help_as_option(arguments: Sequence[str]) -> list[str]:
    """Return the arguments, with ``--help`` for the AWS CLI's ``help`` behind nothing but names of commands."""
    command: click.Command | None = cli
    for name in arguments[:-1]:
        command = command.commands.get(name) if isinstance(command, click.Group) else None
    if arguments[-1] == "help" and command is not None:
        return [*arguments[:-1], "--help"]
    return list(arguments)


def _fail(code: int, message: str) -> int:
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip())
    sys.stderr.write(f"{_PROGRAM}: error: {line.replace(':; ', ': ')}\n")
    return code
