"""``aiosmrt serve``: a local SageMaker Runtime from a shell."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from aiosmrt.cli.options import GlobalOptions
from aiosmrt.errors import ConfigurationError

__all__ = ["serve"]


def _endpoints(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    endpoints: dict[str, str] = {}
    for value in values:
        name, equals, url = value.partition("=")
        if not (name and equals and url):
            raise click.BadParameter(f"must be NAME=URL; got {value!r}", context, parameter)
        if name in endpoints:
            raise click.BadParameter(f"endpoint {name!r} is given twice", context, parameter)
        endpoints[name] = url
    return endpoints


def _handlers(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    handlers: dict[str, str] = {}
    for value in values:
        name, equals, handler = value.rpartition("=")
        if not equals:
            name = handler.rpartition(":")[2].rpartition(".")[2].replace("_", "-")
        if not name:
            raise click.BadParameter(
                f"must be MODULE:FUNCTION or NAME=MODULE:FUNCTION; got {value!r}", context, parameter
            )
        if name in handlers:
            raise click.BadParameter(f"endpoint {name!r} is given twice", context, parameter)
        handlers[name] = handler
    return handlers


@click.command(short_help="Run a local SageMaker Runtime until Ctrl-C or SIGTERM.")
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="NAME=URL",
    callback=_endpoints,
    help="Endpoint, and the URL of its model container. May be repeated.",
)
@click.option(
    "--handler",
    "handlers",
    multiple=True,
    metavar="[NAME=]MODULE:FUNCTION",
    callback=_handlers,
    help="Python function that serves an endpoint, which is named after it by default: predict_price serves "
    "predict-price. Modules are looked for in the current folder too. May be repeated.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="TCP port on 127.0.0.1; 0 for any free one.  [default: 0]",
)
@click.option(
    "--http2-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="TCP port on 127.0.0.1 for bidirectional streams; 0 for any free one. Its URL is printed on a second line. "
    "Needs the extra http2.  [default: none]",
)
@click.option("--region", metavar="NAME", help="AWS region of the runtime.")
@click.option(
    "--verify-signatures/--no-verify-signatures", default=None, help="Whether to check signatures.  [default: yes]"
)
def serve(
    config: str | None,
    endpoints: dict[str, str],
    handlers: dict[str, str],
    port: int | None,
    http2_port: int | None,
    region: str | None,
    verify_signatures: bool | None,
) -> None:
    """Run a local SageMaker Runtime until Ctrl-C or SIGTERM.

    CONFIG is a TOML file with more settings than the options: variants and weights, containers to start, faults.

    Prints the URL of the runtime when it is ready. Accepts signatures made with the AWS credentials in its environment
    (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; made-up values are fine).
    """
    from aiosmrt.local import serve as serve_runtime
    from aiosmrt.local.configuration import import_handler

    context = click.get_current_context()
    options = GlobalOptions.of(context)
    sources: dict[str, Any] = dict(endpoints)
    if handlers:
        sys.path.insert(0, str(Path.cwd()))
    for name, handler in handlers.items():
        if name in sources:
            raise click.BadParameter(f"endpoint {name!r} is given twice", context, param_hint="--handler")
        try:
            sources[name] = import_handler(handler)
        except ConfigurationError as error:
            raise click.BadParameter(str(error), context, param_hint="--handler") from error
    try:
        asyncio.run(
            serve_runtime(
                sources,
                config=config,
                port=port,
                http2_port=http2_port,
                region=region or options.region,
                verify_signatures=verify_signatures,
            )
        )
    except asyncio.CancelledError:  # A second Ctrl-C ends it without the grace period.
        raise click.Abort from None
