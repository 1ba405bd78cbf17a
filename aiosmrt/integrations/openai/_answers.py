"""An `openai.AsyncOpenAI` that reads answers quickly.

The SDK makes the objects of an answer field by field in Python, which is most of what it does for a streamed token.
Pydantic's validator makes the same objects in a twentieth of the time, from data that have the declared members and
types. Events that are one line of data each, which most model servers write, need no parser of lines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import openai
from pydantic import ValidationError

from aiosmrt.integrations.openai._json import loads

__all__ = ["QuickAsyncOpenAI", "QuickEvents"]


# The arguments that the SDK gives with an answer.
_KNOWN: Final = {"data", "cast_to", "response"}


class QuickAsyncOpenAI(openai.AsyncOpenAI):
    """OpenAI's client; an answer that is not as declared, as with some containers, it reads in its own lenient way."""

    # Hooks of the SDK's own. If their arguments change, what they get goes on unchanged.

    def _process_response_data(self, *positional: Any, **named: Any) -> Any:
        kind, data = named.get("cast_to"), named.get("data")
        # classes with `build` make their objects themselves
        if (
            not positional
            and named.keys() == _KNOWN
            and isinstance(kind, type)
            and issubclass(kind, openai.BaseModel)
            and not hasattr(kind, "build")
        ):
            try:
                return kind.model_validate(data, strict=True)
            except ValidationError:
                pass
        try:
            return super()._process_response_data(*positional, **named)
        finally:
            # error trackers report locals
            del data, positional
            named.clear()

    def _make_sse_decoder(self, *positional: Any, **named: Any) -> Any:
        return QuickEvents(super()._make_sse_decoder(*positional, **named))


class QuickEvent:
    """An event of one line of data, with what the SDK asks of one."""

    __slots__ = ("data",)

    event = id = retry = None

    def __init__(self, data: str) -> None:
        self.data = data

    def json(self) -> Any:
        """The value in the data."""
        return loads(self.data)


class QuickEvents:
    """Makes events of bytes: itself as long as each piece is whole events of one line, then by the SDK's decoder.

    Whatever else the decoder has, this has.

    Args:
        decoder: the SDK's.
    """

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_decoder"), name)

    def aiter_bytes(self, *positional: Any, **named: Any) -> Any:
        """The events in some pieces: an iterator of them, the one argument."""
        if len(positional) == 1 and not named:
            return self._read(positional[0])
        return self._decoder.aiter_bytes(*positional, **named)

    async def _read(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for piece in pieces:
            texts = piece[6:-2].split(b"\n\ndata: ")
            if not (
                piece.startswith(b"data: ")
                and piece.endswith(b"\n\n")
                and piece.count(b"\n") == 2 * len(texts)
                and b"\r" not in piece
            ):
                async for event in self._decoder.aiter_bytes(_with(piece, pieces)):
                    yield event
                return
            for text in texts:
                yield QuickEvent(text.decode())


async def _with(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in others:
        yield piece
