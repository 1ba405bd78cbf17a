"""The model container that `probe_bidirectional.py` talks with: it repeats what it hears, and obeys a few commands.

    pip install 'websockets>=14'
    python bidirectional_container.py [PORT]

It listens on port 8080, as SageMaker asks for. Its image needs the label
``com.amazonaws.sagemaker.capabilities.bidirectional-streaming=true``. A text message that begins with ``probe:`` is a
command:

    probe:where             say the path and the query of this WebSocket
    probe:wait SECONDS      say "late" after so long
    probe:fragments WORD…   say the words in one message, a fragment each
    probe:close CODE TEXT   close the WebSocket

The path ``/probe/refuse`` is refused with 404. How each WebSocket ends is printed, for the endpoint's log.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

HOST = "0.0.0.0"  # noqa: S104 (a container is reached from outside)


async def answer(socket: ServerConnection) -> None:
    """Hold one conversation."""
    try:
        async for message in socket:
            if not isinstance(message, str) or not message.startswith("probe:"):
                await socket.send(message)
                continue
            command, _, rest = message.removeprefix("probe:").partition(" ")
            if command == "where":
                await socket.send("" if socket.request is None else socket.request.path)
            elif command == "wait":
                with suppress(TimeoutError):  # at the end of the WebSocket, there is nothing to wait for
                    await asyncio.wait_for(socket.wait_closed(), float(rest))
                await socket.send("late")
            elif command == "fragments":
                await socket.send(rest.split())
            elif command == "close":
                code, _, reason = rest.partition(" ")
                await socket.close(int(code), reason)
            else:
                await socket.send(f"unknown command {command!r}")
    except ConnectionClosed:
        pass  # said below
    print(f"the WebSocket was closed with {socket.close_code} {socket.close_reason!r}", flush=True)


def route(socket: ServerConnection, request: Request) -> Response | None:
    """Answer pings, and refuse what must be refused."""
    if request.path == "/ping":
        return socket.respond(200, "")
    return socket.respond(404, "refused") if request.path.startswith("/probe/refuse") else None


async def main(port: int) -> None:
    """Serve until the process is ended."""
    async with serve(answer, HOST, port, process_request=route, max_size=None) as server:
        print(f"listening on port {port}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8080))
