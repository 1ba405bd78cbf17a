"""An HTTP/2 server whose every frame is up to the test."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded
from h2.settings import SettingCodes, Settings

__all__ = ["Http2Server", "Peer", "http2_server"]

E = TypeVar("E", bound=Event)


class Peer(asyncio.Protocol):
    """The server's end of one connection; tests change `h2` and then `flush`."""

    def __init__(self, server: Http2Server) -> None:
        self._server = server
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.local_settings = Settings(client=False, initial_values=server.settings)
        self.transport: asyncio.Transport | None = None
        self.seen: list[Event] = []
        self._changed = asyncio.Event()
        self.lost = asyncio.Event()
        self.is_silent = server.withholds_settings

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.h2.initiate_connection()
        self._server.peers.append(self)
        self._server.accepted.set()
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self.is_silent:
            return
        self.seen += self.h2.receive_data(data)
        self._changed.set()
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()

    def eof_received(self) -> None:
        self.lost.set()

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and self.transport is not None and not self.is_silent:
            self.transport.write(data)

    async def event(self, kind: type[E], **facts: Any) -> E:
        """Wait for an event, and take it out."""
        while True:
            for event in self.seen:
                if isinstance(event, kind) and all(getattr(event, name) == value for name, value in facts.items()):
                    self.seen.remove(event)
                    return event
            self._changed.clear()
            await self._changed.wait()

    async def request(self) -> int:
        """Wait for a request, and return its stream's number."""
        return (await self.request_fields())[0]

    async def request_fields(self) -> tuple[int, dict[str, str]]:
        """Wait for a request, and return its stream's number and its header fields."""
        event = await self.event(RequestReceived)
        return int(event.stream_id or 0), {str(name): str(value) for name, value in event.headers or ()}

    async def data(self, stream_id: int, size: int) -> bytes:
        """Wait for this many bytes of a request, and open the windows again."""
        found = b""
        while len(found) < size:
            event = await self.event(DataReceived, stream_id=stream_id)
            found += event.data or b""
            self.h2.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
            self.flush()
        return found

    async def end(self, stream_id: int) -> None:
        await self.event(StreamEnded, stream_id=stream_id)

    def answer(self, stream_id: int, status: int = 200, *, end: bool = False, **headers: str) -> None:
        fields = [(":status", str(status)), *((name.replace("_", "-"), value) for name, value in headers.items())]
        self.h2.send_headers(stream_id, fields, end_stream=end)
        self.flush()

    def send(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(stream_id, data, end_stream=end)
        self.flush()

    def write_raw(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def abort(self) -> None:
        assert self.transport is not None
        self.transport.abort()


class Http2Server:
    """A listener, and the connections that it has accepted."""

    def __init__(self, settings: dict[SettingCodes, int], withholds_settings: bool) -> None:
        self.settings: Any = settings
        self.withholds_settings = withholds_settings
        self.peers: list[Peer] = []
        self.accepted = asyncio.Event()
        self.origin = ""

    async def peer(self, number: int = 0) -> Peer:
        """Wait for a connection."""
        while len(self.peers) <= number:
            self.accepted.clear()
            await self.accepted.wait()
        return self.peers[number]


@asynccontextmanager
async def http2_server(
    *,
    max_streams: int | None = None,
    window: int | None = None,
    withholds_settings: bool = False,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[Http2Server]:
    """A server on loopback.

    Args:
        max_streams: its MAX_CONCURRENT_STREAMS.
        window: its INITIAL_WINDOW_SIZE, bytes.
        withholds_settings: whether it accepts connections and sends nothing.
        context: its TLS.
    """
    settings = {}
    if max_streams is not None:
        settings[SettingCodes.MAX_CONCURRENT_STREAMS] = max_streams
    if window is not None:
        settings[SettingCodes.INITIAL_WINDOW_SIZE] = window
    server = Http2Server(settings, withholds_settings)
    listener = await asyncio.get_running_loop().create_server(lambda: Peer(server), "127.0.0.1", 0, ssl=context)
    scheme = "http" if context is None else "https"
    server.origin = f"{scheme}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        for peer in server.peers:
            if peer.transport is not None:
                peer.transport.abort()
        await asyncio.sleep(0)
        await listener.wait_closed()
