"""A command for each operation of the table: its members as flags, its outcome in a file and as JSON."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

import click

from aiosmrt._wire.operations import Operation
from aiosmrt.cli.options import CommonOptions, common_options
from aiosmrt.cli.outfile import STANDARD_OUTPUT, Outfile
from aiosmrt.cli.output import formatted
from aiosmrt.cli.parameters import HELP, flag_name, request_parameters, skeleton

__all__ = ["operation_command"]

_SUMMARIES = {
    "InvokeEndpoint": "Get an inference; its body goes to OUTFILE.",
    "InvokeEndpointAsync": "Queue an inference; its result goes to S3.",
    "InvokeEndpointWithResponseStream": "Get an inference as a stream; its parts go to OUTFILE as they come.",
}
_OUTFILE_HELP = (
    "OUTFILE is the file for the response's body, or - for standard output; "
    "the rest of the response is then printed on standard error."
)


def operation_command(operation: Operation) -> click.Command:
    """The command for an operation, named as in the AWS CLI."""
    with_body = any(result.location == "payload" for result in operation.results)

    def invoke(outfile: str | None = None, **_: object) -> None:
        context = click.get_current_context()
        if context.params["generate_cli_skeleton"] is not None:
            sys.stdout.write(formatted(skeleton(operation), output=None, query=None))
            return
        common = CommonOptions.of(context)
        given = {m.name: context.params[m.name] for m in operation.members if context.params[m.name] is not None}
        parameters = request_parameters(
            operation,
            given,
            input_json=context.params["cli_input_json"],
            text_is_base64=common.cli_binary_format == "base64",
        )
        missing = [flag_name(m.name) for m in operation.members if m.required and parameters.get(m.name) is None]
        if with_body and outfile is None:
            missing.append("outfile")
        if missing:
            raise click.UsageError(f"the following arguments are required: {', '.join(missing)}", context)
        result = asyncio.run(_call(operation, parameters, common, outfile))
        stream = sys.stderr if outfile == STANDARD_OUTPUT else sys.stdout
        stream.write(formatted(result, output=common.output, query=common.query))

    parameters: list[click.Parameter] = [
        click.Option([flag_name(member.name), member.name], metavar="VALUE", help=HELP[member.name])
        for member in operation.members
    ]
    parameters.append(click.Option(["--cli-input-json"], metavar="JSON", help="Members as one JSON object."))
    parameters.append(
        click.Option(
            ["--generate-cli-skeleton"],
            is_flag=False,
            flag_value="input",
            type=click.Choice(["input"]),
            help="Print the JSON object to fill in, and do nothing else.",
        )
    )
    if with_body:
        parameters.append(click.Argument(["outfile"], required=False))
    summary = _SUMMARIES[operation.name]
    return click.Command(
        operation.method.replace("_", "-"),
        params=[*parameters, *common_options()],
        callback=invoke,
        help=f"{summary}\n\n{_OUTFILE_HELP}" if with_body else summary,
        short_help=summary,
    )


async def _call(
    operation: Operation, parameters: Mapping[str, Any], common: CommonOptions, outfile: str | None
) -> dict[str, Any]:
    """Make the call, write its body, and give what is left of the response."""
    async with common.client() as client:
        if outfile is None:
            result: Any = await client.make_request(operation.name, parameters)
            return _without(result)
        with Outfile(outfile, whole=not operation.streams) as file:
            result = await client.make_request(operation.name, parameters)
            if operation.streams:
                file.begin()
                async with result["Body"] as stream:
                    async for event in stream:
                        file.write(event["PayloadPart"]["Bytes"])
            else:
                file.write(await result["Body"].read())
            return _without(result)


def _without(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("Body", "ResponseMetadata")}
