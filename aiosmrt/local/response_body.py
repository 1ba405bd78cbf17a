"""Putting an answer on the wire, whole or as a scripted fault wants it.

An answer's body is a series of pieces: one for a plain body, one per message of a response stream. Effects on the body
are written as transformations of that series, so that a cut inside a frame, a pause or a reset happens at an exact
byte. To end a connection is an exception (``Cut``) that leaves the series; whoever delivers then closes or resets.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from aiosmrt.local.faults import Corrupt, Drip, ResetAfterHeaders, StallInBody, StreamFailure, Truncate
from aiosmrt.local.faultscript import Effect
from aiosmrt.local.invocation import model_stream_error
from aiosmrt.local.requestlog import RequestRecord

__all__ = ["Cut", "cut_connection", "shaped"]

Stall = Callable[[float | None], Awaitable[None]]


class Cut(Exception):
    """The connection ends here.

    Args:
        reset: with a TCP reset; in order otherwise.
    """

    def __init__(self, *, reset: bool) -> None:
        super().__init__("reset" if reset else "closed")
        self.reset = reset


def cut_connection(transport: asyncio.Transport, *, reset: bool) -> None:
    """End a connection at once.

    Args:
        transport: the connection.
        reset: send RST and drop what is not sent yet; otherwise FIN after it.
    """
    if reset:
        connection = transport.get_extra_info("socket")
        # closing a socket that lingers for zero seconds resets its connection
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
    """The bytes of a body as an effect wants them.

    Args:
        pieces: the body.
        effect: what happens to it; None for nothing.
        stall: waits for so many seconds, or until released for None.
        record: told of an error inside the stream.
        ends: takes the offset at which each part of a response stream ends; None for a body that is none.

    Raises:
        Cut: the connection is to end here.
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


async def single(body: bytes) -> AsyncGenerator[bytes, None]:
    """A plain body as a series of one piece."""
    yield body


async def _measured(
    pieces: AsyncIterator[bytes], record: RequestRecord, ends: deque[int]
) -> AsyncGenerator[bytes, None]:
    offset = 0
    async for piece in pieces:
        offset += len(piece)
        if record.error_code is None:  # an exception message is no part
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
    """The pieces, and None at the mark: after so many whole ones and so many bytes, or at the end if that is nearer."""
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
