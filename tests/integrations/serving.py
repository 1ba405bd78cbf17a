"""An application behind uvicorn on loopback, in the event loop of the test, and its callers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from aiosmrt.local.response_body import cut_connection
from tests.support.runtime import RawConnection


class _Server(uvicorn.Server):
    """A server that signals its startup, stops on request, and installs no signal handlers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.over = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.over.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Served:
    """A served application.

    Args:
        server: its server.
        port: where it listens, on 127.0.0.1.
    """

    def __init__(self, server: _Server, port: int) -> None:
        self._server = server
        self.url = f"http://127.0.0.1:{port}"

    @property
    def requests_in_progress(self) -> int:
        return len(self._server.server_state.tasks)

    @property
    def held_back(self) -> bool:
        """Whether a response waits for its reader."""
        return any(connection.flow.write_paused for connection in self._server.server_state.connections)

    @asynccontextmanager
    async def asked(self, path: str, body: bytes = b"") -> AsyncIterator[RawConnection]:
        """Open a connection and send a POST request."""
        async with RawConnection.to(self.url) as connection:
            await connection.write(request(path, body))
            yield connection


@asynccontextmanager
async def served(app: ASGIApp, **config: Any) -> AsyncIterator[Served]:
    """Serve an application; requests still in progress at the end are cancelled.

    Args:
        app: the application.
        config: more settings of uvicorn.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    arguments: dict[str, Any] = {"log_config": None, "lifespan": "on", "timeout_graceful_shutdown": 1} | config
    server = _Server(uvicorn.Config(app, **arguments))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    up = asyncio.create_task(server.up.wait())
    try:
        await asyncio.wait((serving, up), return_when=asyncio.FIRST_COMPLETED)
        if not server.started:
            raise RuntimeError("the application did not start")
        yield Served(server, listening.getsockname()[1])
    finally:
        up.cancel()
        server.over.set()
        await serving
        listening.close()


def request(path: str, body: bytes = b"") -> bytes:
    """Make a POST request with a JSON body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def leave(connection: RawConnection, *, reset: bool) -> None:
    """Close a connection from the caller's side, with FIN or with RST."""
    cut_connection(connection.writer.transport, reset=reset)  # type: ignore[arg-type]
