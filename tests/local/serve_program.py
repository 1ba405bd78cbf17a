"""Runs ``serve`` as a program: the arguments are NAME=TARGET pairs, where the TARGETs ``echo`` and ``held`` are the
callables below; ``--config FILE`` is a TOML file."""

import asyncio
import sys

from aiosmrt.local import Invocation, serve
from aiosmrt.local.routing import EndpointSource


async def echo(invocation: Invocation) -> bytes:
    return invocation.body


async def held(invocation: Invocation) -> bytes:
    await asyncio.Event().wait()
    return b""


def main() -> None:
    arguments = sys.argv[1:]
    config = None
    if arguments[:1] == ["--config"]:
        config, arguments = arguments[1], arguments[2:]
    known: dict[str, EndpointSource] = {"echo": echo, "held": held}
    pairs = [argument.split("=", 1) for argument in arguments]
    asyncio.run(serve({name: known.get(target, target) for name, target in pairs}, config=config))
    print("ended in order", file=sys.stderr)


main()
