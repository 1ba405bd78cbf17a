"""The flags that every command of the AWS CLI has, and the client that they ask for."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import click

from aiosmrt._version import __version__
from aiosmrt.client import Client
from aiosmrt.events import Event

__all__ = ["CommonOptions", "common_options", "version_line"]

# Flags of the AWS CLI that change nothing here; they are taken so that a command line can be moved as it is.
_WITHOUT_EFFECT = ("no-paginate", "no-cli-pager", "cli-auto-prompt", "no-cli-auto-prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonOptions:
    """The common flags' values; None and False stand for flags that were not given.

    Args:
        region: AWS region.
        profile: profile of the AWS configuration files.
        endpoint_url: the service's URL.
        no_sign_request: whether requests go without a signature.
        no_verify_ssl: whether certificates are not checked.
        ca_bundle: file of certificate authorities.
        cli_read_timeout: seconds; 0 for no limit, None for the client's default.
        cli_connect_timeout: likewise.
        cli_binary_format: ``"base64"`` where text given for a blob is base64, as the AWS CLI 2 has it.
        output: ``"json"`` or ``"text"``.
        query: a JMESPath expression.
        debug: whether the client's events go to standard error.
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
    def of(cls, context: click.Context) -> CommonOptions:
        """The flags given after the command, then those before it."""
        values: dict[str, Any] = {}
        current: click.Context | None = context
        while current is not None:
            for name in cls.__slots__:
                if current.params.get(name) not in (None, False):
                    values.setdefault(name, current.params[name])
            current = current.parent
        return cls(**values)

    def client(self) -> Client:
        """A client with these settings."""
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
        )


def common_options() -> list[click.Parameter]:
    """The common flags, as the AWS CLI names them."""
    return [
        click.Option(["--region"], metavar="NAME", help="AWS region."),
        click.Option(["--profile"], metavar="NAME", help="Profile of the AWS configuration files."),
        click.Option(["--endpoint-url"], metavar="URL", help="The service's URL, such as a local runtime's."),
        click.Option(["--no-sign-request"], is_flag=True, help="Send requests without a signature."),
        click.Option(["--no-verify-ssl"], is_flag=True, help="Do not check certificates."),
        click.Option(["--ca-bundle"], metavar="FILE", help="Certificate authorities to trust."),
        click.Option(
            ["--cli-read-timeout"],
            type=click.FloatRange(0),
            metavar="SECONDS",
            help="How long the service may be silent; 0 for no limit.  [default: 70]",
        ),
        click.Option(
            ["--cli-connect-timeout"],
            type=click.FloatRange(0),
            metavar="SECONDS",
            help="How long connecting may take; 0 for no limit.  [default: 5]",
        ),
        click.Option(
            ["--cli-binary-format"],
            type=click.Choice(["base64", "raw-in-base64-out"]),
            help="Whether text given for a body is base64.  [default: raw-in-base64-out]",
        ),
        click.Option(["--output"], type=click.Choice(["json", "text"]), help="How results are printed."),
        click.Option(["--query"], metavar="JMESPATH", help="Which part of a result is printed."),
        click.Option(["--debug"], is_flag=True, help="Show attempts, retries and waits on standard error."),
        click.Option(["--color"], type=click.Choice(["on", "off", "auto"]), hidden=True, expose_value=False),
        *(click.Option([f"--{name}"], is_flag=True, hidden=True, expose_value=False) for name in _WITHOUT_EFFECT),
    ]


def version_line() -> str:
    """What ``--version`` prints, in the AWS CLI's form."""
    return (
        f"aiosmrt/{__version__} Python/{platform.python_version()} "
        f"{platform.system()}/{platform.release()} aiohttp/{version('aiohttp')}"
    )


def _print_event(event: Event) -> None:
    sys.stderr.write(f"{event}\n")
