"""Response streams without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import NoReturn

from aiosmrt._core.outcome import stream_error
from aiosmrt._core.response_bodies import EventStream
from aiosmrt._transport.base import OnData
from aiosmrt._wire.eventheaders import EventHeaders
from aiosmrt._wire.eventstream import encode_payload_part
from aiosmrt._wire.operations import EVENT_STREAM
from aiosmrt.errors import AiosmrtError

__all__ = ["PartsReply", "make_event_stream"]


class PartsReply:
    """A reply whose body is an event stream.

    Args:
        parts: the payloads of its parts.
        error: what is raised after them. If None, the stream ends.
        headers: the response headers, names in lower case. Defaults to a content type alone.
    """

    def __init__(
        self,
        parts: Iterable[bytes] | AsyncIterable[bytes],
        error: BaseException | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status = 200
        self.headers = {"content-type": EVENT_STREAM} if headers is None else headers
        self._parts = _each(parts)
        self._error = error

    async def receive(self, on_data: OnData) -> bool:
        """Pass the next part on."""
        part = await anext(self._parts, None)
        if part is not None:
            on_data(encode_payload_part(part))
            return True
        if self._error is not None:
            raise self._error
        return False

    async def read(self) -> bytes:
        """The bytes of the next part; empty at the end."""
        taken: list[bytes] = []
        await self.receive(lambda data: taken.append(bytes(data)))
        return b"".join(taken)

    def close(self) -> None:
        """Do nothing, because nothing is connected."""


async def _each(parts: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(parts, AsyncIterable):
        async for part in parts:
            yield part
        return
    for part in parts:
        # Each part arrives on its own.
        await asyncio.sleep(0)
        yield part


class _Owner:
    """Stands in for the call of a stream."""

    sent = 1

    def __init__(self) -> None:
        self._began = asyncio.get_running_loop().time()

    def stream_error(self, headers: EventHeaders, payload: bytes) -> AiosmrtError:
        return stream_error(headers, payload, "InvokeEndpointWithResponseStream")

    async def retry_stream(self, error: AiosmrtError, *, stream_started: bool) -> NoReturn:
        raise error

    def place(self, error: AiosmrtError) -> AiosmrtError:
        error.note_call("InvokeEndpointWithResponseStream", None)
        return error

    def elapsed(self) -> float:
        return asyncio.get_running_loop().time() - self._began

    def first_part(self, seconds: float) -> None:
        """Tell no one."""

    def finish_stream(self, parts: int, payload_bytes: int, *, complete: bool) -> None:
        """Hold nothing."""


def make_event_stream(
    parts: Iterable[bytes] | AsyncIterable[bytes], *, error: BaseException | None = None
) -> EventStream:
    """A response stream as ``invoke_endpoint_with_response_stream`` returns it under ``"Body"``.

    Args:
        parts: the payloads of its parts; an asynchronous iterable decides when each arrives.
        error: what is raised after them, such as ``make_error(ModelStreamError)``. If None, the stream ends.

    Raises:
        RuntimeError: no event loop is running.
    """
    return EventStream(_Owner(), PartsReply(parts, error))
