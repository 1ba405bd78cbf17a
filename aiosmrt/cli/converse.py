"""``aiosmrt converse``: standard input to a model, and the model to standard output, both at once.

Reading and writing block, and a terminal or a pipe may block without end, so both are done in daemon threads: the loop
goes on answering the service, Ctrl-C ends the command at once, and so does a service that ends the stream while
standard input is open.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from aiosmrt._daemon import run_in_daemon_thread
from aiosmrt._wire.messages import DATA_TYPES, MAX_PART_BYTES
from aiosmrt._wire.operations import INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM as OPERATION
from aiosmrt.cli.cutters import AsItComes, Cutter, Frames, Lines, UnreadableInputError
from aiosmrt.cli.options import GlobalOptions, choice_option, make_command
from aiosmrt.cli.output import OutputFormat
from aiosmrt.cli.parameters import HELP, option_name
from aiosmrt.errors import AiosmrtError, ParamValidationError
from aiosmrt.types import DataType

if TYPE_CHECKING:
    from aiosmrt._core.duplex import BidirectionalStream

__all__ = ["converse"]

_READ_BYTES: Final = 2**16
# What the kernel takes whole of a pipe that is writable; no such promise on Windows.
_SURE_BYTES: Final = getattr(select, "PIPE_BUF", 0)

# A body is not given as text here, and read timeouts do not apply.
_NOT_HERE: Final = frozenset({"cli_binary_format", "cli_read_timeout"})

_MEMBERS: Final = tuple(member.name for member in OPERATION.members if member.location != "payload")

_OWN_OPTIONS: list[click.Parameter] = [
    *(click.Option([option_name(name), name], metavar="VALUE", help=HELP[name]) for name in _MEMBERS),
    click.Option(
        ["--http2-endpoint-url"], metavar="URL", help="URL of the service's HTTP/2 endpoint, such as a local runtime's."
    ),
    click.Option(
        ["--lines"],
        is_flag=True,
        help="Send each line as a message, and print each message with a line feed after it, as it is: one that "
        "contains line feeds takes several lines.",
    ),
    click.Option(
        ["--message-bytes"],
        type=click.IntRange(1, MAX_PART_BYTES),
        metavar="N",
        help="Send binary messages of N bytes, such as frames of audio.  [default: what arrives, up to 64 KiB]",
    ),
    choice_option(
        "--data-type",
        DATA_TYPES,
        "Whether messages are text in UTF-8, or binary.  [default: UTF8 with --lines, otherwise BINARY]",
    ),
]


def _run(**_: object) -> None:
    context = click.get_current_context()
    options = GlobalOptions.of(context)
    given = context.params
    # Everything that can be wrong with the command is checked before the call.
    output = OutputFormat.of(options.output, options.query, profile=options.profile)
    if given["EndpointName"] is None:
        raise click.UsageError("the following arguments are required: --endpoint-name", context)
    lines, size = given["lines"], given["message_bytes"]
    data_type: DataType = given["data_type"] or ("UTF8" if lines else "BINARY")
    cutter: Cutter
    if size is not None:
        if lines or data_type == "UTF8":
            raise click.UsageError("--message-bytes makes binary messages: leave out --lines and --data-type", context)
        cutter = Frames(size)
    else:
        cutter = (Lines if lines else AsItComes)(is_text=data_type == "UTF8")
    members = {name: given[name] for name in _MEMBERS if given[name] is not None}
    response = asyncio.run(_converse(options, given["http2_endpoint_url"], members, cutter, lines=lines))
    output.write(response, sys.stderr, title=OPERATION.name)


async def _converse(
    options: GlobalOptions, url: str | None, members: Mapping[str, Any], cutter: Cutter, *, lines: bool
) -> dict[str, Any]:
    """Have the conversation, and return the facts of its response."""
    async with (
        options.client(http2_endpoint_url=url) as client,
        client.invoke_endpoint_with_bidirectional_stream(**members) as stream,
    ):
        sending = asyncio.create_task(_send(stream, cutter))
        receiving = asyncio.create_task(_receive(stream, lines=lines))
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and (failure := sending.exception()) is not None and not _is_of_stream(failure):
                raise failure
            # Whether the stream has failed or has just ended, receiving says.
            await receiving
            response = await stream.response()
        finally:
            sending.cancel()
            receiving.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
    return {name: value for name, value in response.items() if name != "ResponseMetadata"}


def _is_of_stream(failure: BaseException) -> bool:
    """Whether sending failed because the stream has failed or ended."""
    return isinstance(failure, AiosmrtError) and not isinstance(failure, (UnreadableInputError, ParamValidationError))


async def _send(stream: BidirectionalStream, cutter: Cutter) -> None:
    read = partial(os.read, sys.stdin.fileno(), _READ_BYTES)
    while True:
        try:
            data = await run_in_daemon_thread(read, "aiosmrt-input")
        except OSError as error:
            raise UnreadableInputError(f"standard input cannot be read: {error.strerror}") from error
        for message in cutter.feed(data) if data else cutter.finish():
            await stream.send(message, DataType="UTF8" if isinstance(message, str) else "BINARY")
        if not data:
            await stream.end_input()
            return


async def _receive(stream: BidirectionalStream, *, lines: bool) -> None:
    sys.stdout.flush()
    if not lines:
        async for event in stream:
            await _write(event["PayloadPart"]["Bytes"])
        return
    while (message := await stream.next_message(MAX_PART_BYTES)) is not None:
        await _write(message.data + b"\n")


async def _write(data: bytes) -> None:
    if not data:
        return  # nothing to ask `select` about, which takes sockets alone on Windows
    descriptor = sys.stdout.fileno()
    if len(data) <= _SURE_BYTES and select.select([], [descriptor], [], 0)[1]:
        _write_all(descriptor, data)
    else:
        await run_in_daemon_thread(partial(_write_all, descriptor, data), "aiosmrt-output")


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


converse: click.Command = make_command(
    "converse",
    _run,
    _OWN_OPTIONS,
    _NOT_HERE,
    """Talk with a model: standard input to it, and its answers to standard output, at the same time.

    Bytes are sent as they are read, and printed as they arrive. With --lines, each line is a message, and each message
    that arrives is printed with a line feed after it. At the end of standard input, the input is ended; the command
    ends when the model has ended, too. The rest of the response is then printed on standard error.

    Needs the extra http2.""",
)
