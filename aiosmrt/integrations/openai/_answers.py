"""An `openai.AsyncOpenAI` that reads answers quickly.

The SDK makes the objects of an answer field by field in Python, which is most of what it does for a streamed token.
Pydantic's validator makes the same objects in a twentieth of the time, from data that have the declared members and
types. Events that are one line of data each, which most model servers write, need no parser of lines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cache
from typing import Annotated, Any, Final, get_args, get_origin

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
                made = kind.model_validate(data, strict=True)
                _forget_undeclared(made)
                return made
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


def _forget_undeclared(value: Any) -> None:
    """Take undeclared members out of a model's `model_fields_set`, where the SDK does not name them."""
    if isinstance(value, openai.BaseModel):
        if value.model_extra:
            value.model_fields_set.difference_update(value.model_extra)
        for name in _constructed(type(value)):
            _forget_undeclared(getattr(value, name))
    elif isinstance(value, list):
        for one in value:
            _forget_undeclared(one)
    elif isinstance(value, dict):
        for one in value.values():
            _forget_undeclared(one)


@cache
def _constructed(kind: type[openai.BaseModel]) -> tuple[str, ...]:
    """The members whose objects the SDK makes itself; it has the validator make those of optional and other unions."""
    return tuple(name for name, field in kind.model_fields.items() if _is_constructed(field.annotation))


def _is_constructed(annotation: Any) -> bool:
    annotation = getattr(annotation, "__value__", annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _is_constructed(get_args(annotation)[0])
    if origin in (list, dict):
        return _is_constructed(get_args(annotation)[-1])
    return isinstance(annotation, type) and issubclass(annotation, openai.BaseModel)


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
