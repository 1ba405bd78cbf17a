"""``aiosmrt serve``: the local SageMaker Runtime from a shell."""

from __future__ import annotations

import asyncio

import click

from aiosmrt.cli.options import CommonOptions

__all__ = ["serve"]


def _endpoints(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    endpoints: dict[str, str] = {}
    for value in values:
        name, equals, url = value.partition("=")
        if not (name and equals and url):
            raise click.BadParameter(f"{value!r} does not read NAME=URL", context, parameter)
        if name in endpoints:
            raise click.BadParameter(f"{name!r} is given twice", context, parameter)
        endpoints[name] = url
    return endpoints


@click.command
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="NAME=URL",
    callback=_endpoints,
    help="Endpoint, and the URL of the model container that serves it. May be repeated.",
)
@click.option("--port", type=click.IntRange(0, 65535), help="TCP port on 127.0.0.1; 0 for a free one.  [default: 0]")
@click.option("--region", metavar="NAME", help="AWS region to play.")
@click.option(
    "--verify-signatures/--no-verify-signatures", default=None, help="Whether signatures are checked.  [default: yes]"
)
def serve(
    config: str | None,
    endpoints: dict[str, str],
    port: int | None,
    region: str | None,
    verify_signatures: bool | None,
) -> None:
    """Run a local SageMaker Runtime, until Ctrl-C or SIGTERM.

    CONFIG is a TOML file for what flags cannot say: variants and weights, containers to start, faults.

    It prints its URL when it is ready, and accepts signatures made with the AWS credentials of its own environment
    (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; made-up values do).
    """
    from aiosmrt.local import serve as serve_runtime

    common = CommonOptions.of(click.get_current_context())
    try:
        asyncio.run(
            serve_runtime(
                endpoints,
                config=config,
                port=port,
                region=region or common.region,
                verify_signatures=verify_signatures,
            )
        )
    except asyncio.CancelledError:  # a second Ctrl-C: it has ended, without grace
        raise click.Abort from None
