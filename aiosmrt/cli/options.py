"""The global options of the AWS CLI, and a client configured by them."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import click

from aiosmrt._aws.shared_config import load_shared_config, selected_profile
from aiosmrt._version import __version__
from aiosmrt.cli.output import FORMATS
from aiosmrt.client import Client
from aiosmrt.errors import InvalidConfigError
from aiosmrt.events import Event

__all__ = [
    "GlobalOptions",
    "binary_format",
    "choice_option",
    "count_option",
    "global_options",
    "make_command",
    "max_concurrency_option",
    "number_option",
    "version_line",
]

# What text given for a blob is. Version 2 of the AWS CLI defaults to the first, version 1 to the second.
BINARY_FORMATS = ("base64", "raw-in-base64-out")

# Accepted for compatibility with the AWS CLI; they have no effect here.
_IGNORED = ("no-paginate", "no-cli-pager", "cli-auto-prompt", "no-cli-auto-prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalOptions:
    """The values of the global options; None and False mean that an option was not given.

    Args:
        region: AWS region.
        profile: profile of the AWS configuration files.
        endpoint_url: the service's URL.
        no_sign_request: whether requests are sent without a signature.
        no_verify_ssl: whether certificate verification is disabled.
        ca_bundle: file of certificate authorities.
        cli_read_timeout: seconds, 0 for no limit. Defaults to the client's.
        cli_connect_timeout: seconds, 0 for no limit. Defaults to the client's.
        cli_binary_format: ``"base64"`` if text given for a blob is base64, as in version 2 of the AWS CLI.
        output: the output format.
        query: a JMESPath expression.
        debug: whether the client's events are printed on standard error.
    """

    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    no_sign_request: bool = False
    no_verify_ssl: bool = False
    ca_bundle: str | None = None
    cli_read_timeout: float | None = None
    cli_connect_timeout: float | None = None
    cli_binary_format: str | None = None
    output: str | None = None
    query: str | None = None
    debug: bool = False

    @classmethod
    def of(cls, context: click.Context) -> GlobalOptions:
        """Return the options of a command; those after the command override those before it."""
        values: dict[str, Any] = {}
        current: click.Context | None = context
        while current is not None:
            for name in cls.__slots__:
                if current.params.get(name) not in (None, False):
                    values.setdefault(name, current.params[name])
            current = current.parent
        return cls(**values)

    def client(self, **settings: Any) -> Client:
        """Make a client with these settings.

        Args:
            settings: further arguments of `Client`.
        """
        timeouts: dict[str, Any] = {
            name: seconds or None
            for name, seconds in (
                ("read_timeout", self.cli_read_timeout),
                ("connect_timeout", self.cli_connect_timeout),
            )
            if seconds is not None
        }
        return Client(
            self.region,
            profile_name=self.profile,
            endpoint_url=self.endpoint_url,
            sign=not self.no_sign_request,
            verify=False if self.no_verify_ssl else self.ca_bundle or True,
            user_agent_extra="md/command#aiosmrt",
            observers=(_print_event,) if self.debug else (),
            **timeouts,
            **settings,
        )


def binary_format(options: GlobalOptions) -> str:
    """How text for a blob is read: by the option, else ``cli_binary_format`` of the profile, else as it is.

    Raises:
        InvalidConfigError: the profile has another value.
    """
    if options.cli_binary_format is not None:
        return options.cli_binary_format
    name = load_shared_config().profile(selected_profile(options.profile)).get("cli_binary_format") or BINARY_FORMATS[1]
    if name not in BINARY_FORMATS:
        raise InvalidConfigError(
            f"cli_binary_format in the profile must be one of {', '.join(BINARY_FORMATS)}; got {name!r:.80}"
        )
    return name


def number_option(
    flag: str, unit: str, text: str, *, least: float = 0, exclusive: bool = False, default: float | None = None
) -> click.Option:
    """Make an option that takes a number.

    Args:
        flag: its name.
        unit: what is counted, as its placeholder.
        text: its help.
        least: the least number.
        exclusive: whether it has to be larger.
        default: its value where it is not given.
    """
    kind = click.FloatRange(least, min_open=exclusive)
    return click.Option([flag], type=kind, metavar=unit, default=default, help=text)


def count_option(flag: str, text: str, *, default: int | None = None) -> click.Option:
    """Make an option that takes an integer >= 1; see `number_option`."""
    return click.Option([flag], type=click.IntRange(1), metavar="N", default=default, help=text)


def max_concurrency_option(text: str) -> click.Option:
    """Make the option ``--max-concurrency``, which takes an integer >= 1 or ``adaptive``."""
    return click.Option(["--max-concurrency"], metavar="N|adaptive", callback=_max_concurrency, help=text)


def _max_concurrency(context: click.Context, parameter: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "adaptive":
        return value
    if value.isascii() and value.isdigit() and len(value) < 10 and int(value):
        return int(value)
    raise click.BadParameter(f"must be an integer >= 1, or adaptive; got {value!r:.80}")


def choice_option(flag: str, choices: Sequence[str], text: str, *, default: str | None = None) -> click.Option:
    """Make an option that takes one of a few words; see `number_option`."""
    return click.Option([flag], type=click.Choice(choices), default=default, help=text)


def global_options() -> list[click.Parameter]:
    """Make the global options, named as in the AWS CLI."""
    return [
        click.Option(["--region"], metavar="NAME", help="AWS region."),
        click.Option(["--profile"], metavar="NAME", help="Profile of the AWS configuration files."),
        click.Option(["--endpoint-url"], metavar="URL", help="URL of the service, such as a local runtime."),
        click.Option(["--no-sign-request"], is_flag=True, help="Send requests without a signature."),
        click.Option(["--no-verify-ssl"], is_flag=True, help="Do not verify certificates."),
        click.Option(["--ca-bundle"], type=click.Path(), metavar="FILE", help="Certificate authorities to trust."),
        number_option("--cli-read-timeout", "SECONDS", "Time limit for each read; 0 for none.  [default: 70]"),
        number_option("--cli-connect-timeout", "SECONDS", "Time limit for connecting; 0 for none.  [default: 5]"),
        choice_option(
            "--cli-binary-format",
            BINARY_FORMATS,
            "Whether text given for a body is base64.  [default: raw-in-base64-out]",
        ),
        click.Option(["--output"], type=click.Choice(FORMATS), help="Output format.  [default: json]"),
        click.Option(["--query"], metavar="JMESPATH", help="Expression that selects what is printed."),
        click.Option(["--debug"], is_flag=True, help="Print attempts, retries and waits on standard error."),
        click.Option(["--color"], type=click.Choice(["on", "off", "auto"]), hidden=True, expose_value=False),
        *(click.Option([f"--{name}"], is_flag=True, hidden=True, expose_value=False) for name in _IGNORED),
    ]


def make_command(
    name: str, callback: Callable[..., None], own: Sequence[click.Parameter], without: Container[str], text: str
) -> click.Command:
    """Make a command with global options.

    Args:
        name: its name.
        callback: runs it.
        own: its own options and arguments.
        without: the global options that it does not have, by the names of their parameters.
        text: its help, whose first line is its summary.
    """
    shared = [option for option in global_options() if option.name not in without]
    summary = text.partition("\n")[0]
    return click.Command(name, params=[*own, *shared], callback=callback, short_help=summary, help=text)


def version_line() -> str:
    """Return the output of ``--version``, in the format of the AWS CLI."""
    return (
        f"aiosmrt/{__version__} Python/{platform.python_version()} "
        f"{platform.system()}/{platform.release()} aiohttp/{version('aiohttp')}"
    )


def _print_event(event: Event) -> None:
    sys.stderr.write(f"{event}\n")
