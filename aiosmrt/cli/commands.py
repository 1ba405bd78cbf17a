"""A command for each operation: its members as options, its response body in a file, the rest printed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

import click

from aiosmrt._wire.operations import Operation
from aiosmrt.cli.options import GlobalOptions, binary_format, global_options
from aiosmrt.cli.outfile import STANDARD_OUTPUT, Outfile
from aiosmrt.cli.output import OutputFormat
from aiosmrt.cli.parameters import HELP, option_name, request_parameters, skeleton

__all__ = ["operation_command"]

_SUMMARIES = {
    "InvokeEndpoint": "Get an inference; its body goes to OUTFILE.",
    "InvokeEndpointAsync": "Queue an inference; its result goes to S3.",
    "InvokeEndpointWithResponseStream": "Get an inference as a stream; its parts go to OUTFILE as they arrive.",
}
# What `--generate-cli-skeleton` prints, as an output format.
_SKELETONS = {"input": "json", "yaml-input": "yaml"}
_OUTFILE_HELP = (
    "OUTFILE is the file for the response body, or - for standard output; "
    "the rest of the response is then printed on standard error."
)


def operation_command(operation: Operation) -> click.Command:
    """Make the command for an operation, named as in the AWS CLI."""
    has_body = any(result.location == "payload" for result in operation.results)

    def invoke(outfile: str | None = None, **_: object) -> None:
        context = click.get_current_context()
        options = GlobalOptions.of(context)
        if (wanted := context.params["generate_cli_skeleton"]) is not None:
            OutputFormat(_SKELETONS[wanted]).write(skeleton(operation), sys.stdout, title=operation.name)
            return
        # Everything that can be wrong with the command is checked before the call.
        output = OutputFormat.of(options.output, options.query, profile=options.profile)
        given = {m.name: context.params[m.name] for m in operation.members if context.params[m.name] is not None}
        parameters = request_parameters(
            operation,
            given,
            input_json=context.params["cli_input_json"],
            input_yaml=context.params["cli_input_yaml"],
            text_is_base64=binary_format(options) == "base64",
        )
        missing = [option_name(m.name) for m in operation.members if m.required and parameters.get(m.name) is None]
        if has_body and outfile is None:
            missing.append("outfile")
        if missing:
            raise click.UsageError(f"the following arguments are required: {', '.join(missing)}", context)
        response = asyncio.run(_call(operation, parameters, options, outfile))
        output.write(response, sys.stderr if outfile == STANDARD_OUTPUT else sys.stdout, title=operation.name)

    parameters: list[click.Parameter] = [
        click.Option([option_name(member.name), member.name], metavar="VALUE", help=HELP[member.name])
        for member in operation.members
    ]
    parameters.append(click.Option(["--cli-input-json"], metavar="JSON", help="Members as one JSON object."))
    parameters.append(click.Option(["--cli-input-yaml"], metavar="YAML", help="The same in YAML."))
    parameters.append(
        click.Option(
            ["--generate-cli-skeleton"],
            is_flag=False,
            flag_value="input",
            type=click.Choice(list(_SKELETONS)),
            help="Print an object to fill in, as JSON or as YAML, without calling the service.",
        )
    )
    if has_body:
        # The type is for completion in shells: nothing is checked here.
        parameters.append(click.Argument(["outfile"], required=False, type=click.Path(allow_dash=True)))
    summary = _SUMMARIES[operation.name]
    return click.Command(
        operation.method.replace("_", "-"),
        params=[*parameters, *global_options()],
        callback=invoke,
        help=f"{summary}\n\n{_OUTFILE_HELP}" if has_body else summary,
        short_help=summary,
    )


async def _call(
    operation: Operation, parameters: Mapping[str, Any], options: GlobalOptions, outfile: str | None
) -> dict[str, Any]:
    """Call the operation, write the response body, and return the rest of the response."""
    async with options.client() as client:
        if outfile is None:
            return _without_body(await client.make_request(operation.name, parameters))
        with Outfile(outfile, atomic=not operation.streams) as file:
            response: Any = await client.make_request(operation.name, parameters)
            if operation.streams:
                file.start()
                async with response["Body"] as stream:
                    async for event in stream:
                        file.write(event["PayloadPart"]["Bytes"])
            else:
                file.write(await response["Body"].read())
            return _without_body(response)


def _without_body(response: Any) -> dict[str, Any]:
    return {name: value for name, value in response.items() if name not in ("Body", "ResponseMetadata")}
