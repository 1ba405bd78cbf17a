"""An `openai.AsyncOpenAI` that reads answers quickly.

The SDK makes the objects of an answer field by field in Python, which is most of what it does for a streamed token.
Pydantic's validator makes the same objects in a twentieth of the time, from data that have the declared members and
types. Events that are one line of data each, which most model servers write, need no parser of lines. The URLs of
requests, which SDK and HTTP client each parse, are the same few.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Annotated, Any, Final, get_args, get_origin

import httpx2
import openai
from pydantic import ValidationError

from aiosmrt._one_process import OneProcess
from aiosmrt.integrations.openai._json import loads
from aiosmrt.integrations.openai._streams import PlainEvents

__all__ = ["QuickAsyncClient", "QuickAsyncOpenAI", "QuickEvents"]


# More paths than the SDK has.
_MAX_URLS: Final = 256

# The arguments that the SDK gives with an answer.
_KNOWN: Final = {"data", "cast_to", "response"}


class MergedURLs(dict[str, httpx2.URL]):
    """URLs merged with a base, by what they were merged from: making one takes as long as sending a request.

    Args:
        base: the base URL.
        merge: makes one.
    """

    def __init__(self, base: httpx2.URL, merge: Callable[[str], httpx2.URL]) -> None:
        super().__init__()
        self.base = base
        self._merge = merge

    def __missing__(self, url: str) -> httpx2.URL:
        found = self._merge(url)
        if len(self) >= _MAX_URLS:
            self.clear()
        self[url] = found
        return found


class QuickAsyncClient(OneProcess, httpx2.AsyncClient):
    """An HTTP client that parses a URL once."""

    _urls: MergedURLs | None = None

    # A hook of httpx2's own, as above.
    def _merge_url(self, *positional: Any, **named: Any) -> Any:
        if len(positional) == 1 and not named and isinstance(url := positional[0], str):
            urls = self._urls
            if urls is None or urls.base is not self.base_url:
                urls = self._urls = MergedURLs(self.base_url, super()._merge_url)
            return urls[url]
        return super()._merge_url(*positional, **named)


class QuickAsyncOpenAI(OneProcess, openai.AsyncOpenAI):
    """OpenAI's client; an answer that is not as declared, as with some containers, it reads in its own lenient way."""

    _urls: MergedURLs | None = None

    # Hooks of the SDK's own. If their arguments change, what they get goes on unchanged.

    def _prepare_url(self, *positional: Any, **named: Any) -> Any:
        if len(positional) == 1 and not named and isinstance(url := positional[0], str):
            urls = self._urls
            if urls is None or urls.base is not self.base_url:
                urls = self._urls = MergedURLs(self.base_url, super()._prepare_url)
            return urls[url]
        return super()._prepare_url(*positional, **named)

    def _process_response_data(self, *positional: Any, **named: Any) -> Any:
        kind, data = named.get("cast_to"), named.get("data")
        if not positional and named.keys() == _KNOWN and isinstance(kind, type) and _is_declared(kind):
            try:
                made = kind.model_validate(data, strict=True)  # type: ignore[attr-defined]
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


@cache
def _is_declared(kind: type) -> bool:
    """Whether the objects of a class are made of its declared members; classes with `build` make them themselves."""
    return issubclass(kind, openai.BaseModel) and not hasattr(kind, "build")


def _forget_undeclared(value: Any) -> None:
    """Take undeclared members out of a model's `model_fields_set`, where the SDK does not name them."""
    kind: Any = type(value)
    if kind is list:
        for one in value:
            _forget_undeclared(one)
    elif kind is dict:
        for one in value.values():
            _forget_undeclared(one)
    elif (names := _constructed(kind)) is not None:
        if value.__pydantic_extra__:
            value.model_fields_set.difference_update(value.__pydantic_extra__)
        for name in names:
            _forget_undeclared(getattr(value, name))


@cache
def _constructed(kind: type) -> tuple[str, ...] | None:
    """The members whose objects the SDK makes itself; it has the validator make those of optional and other unions.

    None if the class is not a model.
    """
    if not issubclass(kind, openai.BaseModel):
        return None
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
    """An event of one line of data, with what the SDK asks of one.

    Args:
        data: its data.
        document: the object in them, if that is known.
    """

    __slots__ = ("_document", "data")

    event = id = retry = None

    def __init__(self, data: str, document: dict[str, Any] | None = None) -> None:
        self.data = data
        self._document = document

    def json(self) -> Any:
        """The value in the data, a new one each time."""
        document, self._document = self._document, None
        return loads(self.data) if document is None else document


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
            if type(piece) is PlainEvents:
                for text, document in zip(piece.texts, piece.documents, strict=True):
                    yield QuickEvent(text.decode(), document)
                continue
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
