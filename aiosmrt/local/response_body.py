"""Response bodies on the wire, whole or as a scripted fault shapes them.

A body is a sequence of pieces: one for a plain body, one per message of a response stream. Effects on the body are
transformations of that sequence, so that a cut inside a frame, a pause or a reset happens at an exact byte. An effect
ends the connection by raising ``Cut``; the code that sends the response then closes or resets it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from aiosmrt.local.fault_schedule import Effect
from aiosmrt.local.faults import Corrupt, Drip, ResetAfterHeaders, StallInBody, StreamFailure, Truncate
from aiosmrt.local.invocation import model_stream_error
from aiosmrt.local.requestlog import RequestRecord

__all__ = ["Cut", "cut_connection", "shaped"]

Stall = Callable[[float | None], Awaitable[None]]


class Cut(Exception):
    """Ends the connection.

    Args:
        reset: whether to send a TCP reset instead of an orderly close.
    """

    def __init__(self, *, reset: bool) -> None:
        super().__init__("reset" if reset else "closed")
        self.reset = reset


def cut_connection(transport: asyncio.Transport, *, reset: bool) -> None:
    """End a connection at once.

    Args:
        transport: the connection.
        reset: whether to send RST and drop unsent data; otherwise FIN follows the data.
    """
    if reset:
        connection = transport.get_extra_info("socket")
        # closing a socket with a linger time of zero resets its connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


async def shaped(
    pieces: AsyncIterator[bytes],
    effect: Effect | None,
    stall: Stall,
    record: RequestRecord,
    ends: deque[int] | None,
) -> AsyncGenerator[bytes, None]:
    """Apply an effect to a body.

    Args:
        pieces: the body.
        effect: the effect. If None, the body is unchanged.
        stall: waits for a number of seconds, or until released if that is None.
        record: updated with an error inside the stream.
        ends: receives the offset at which each part of a response stream ends. If None, the body is a plain one.

    Raises:
        Cut: the connection must end here.
    """
    source = pieces if ends is None else _measured(pieces, record, ends)
    match effect:
        case ResetAfterHeaders():
            async for chunk in _up_to(source, effect.after_parts, effect.after_bytes):
                yield chunk
            raise Cut(reset=True)
        case Truncate():
            async for chunk in _up_to(source, effect.after_parts, effect.after_bytes):
                yield chunk
            if not effect.clean_ending:
                raise Cut(reset=False)
        case Corrupt():
            damage = False
            async with aclosing(_marked(source, effect.after_parts, effect.after_bytes)) as marked:
                async for part in marked:
                    if part is None:
                        damage = True
                    elif damage and part:
                        damage = False
                        yield bytes([part[0] ^ 0xFF]) + part[1:]
                    else:
                        yield part
        case StallInBody():
            async with aclosing(_marked(source, effect.after_parts, effect.after_bytes)) as marked:
                async for part in marked:
                    if part is None:
                        await stall(effect.seconds)
                    else:
                        yield part
        case Drip():
            async for piece in source:
                for start in range(0, len(piece), effect.piece_bytes):
                    yield piece[start : start + effect.piece_bytes]
                    await asyncio.sleep(effect.seconds)
        case StreamFailure() if ends is not None:
            async for chunk in _up_to(source, effect.after_parts, 0):
                yield chunk
            record.error_code = effect.exception
            yield model_stream_error(effect.error_code, effect.message, effect.exception)
        case _:
            async for piece in source:
                yield piece


async def _measured(
    pieces: AsyncIterator[bytes], record: RequestRecord, ends: deque[int]
) -> AsyncGenerator[bytes, None]:
    offset = 0
    async for piece in pieces:
        offset += len(piece)
        if record.error_code is None:  # an exception message does not count as a part
            ends.append(offset)
        yield piece


async def _up_to(pieces: AsyncIterator[bytes], after_parts: int, after_bytes: int) -> AsyncGenerator[bytes, None]:
    marked = _marked(pieces, after_parts, after_bytes)
    async with aclosing(marked):
        async for part in marked:
            if part is None:
                return
            yield part


async def _marked(
    pieces: AsyncIterator[bytes], after_parts: int, after_bytes: int
) -> AsyncGenerator[bytes | None, None]:
    """Yield the pieces, and None after so many whole pieces and so many bytes, or at the end if it comes first."""
    parts, left, passed = after_parts, after_bytes, False
    if parts == left == 0:
        passed = True
        yield None
    async for piece in pieces:
        if passed:
            yield piece
        elif parts:
            parts -= 1
            yield piece
            if parts == left == 0:
                passed = True
                yield None
        elif left <= len(piece):
            passed = True
            yield piece[:left]
            yield None
            yield piece[left:]
        else:
            left -= len(piece)
            yield piece
    if not passed:
        yield None
