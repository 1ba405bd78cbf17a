"""The base of all codecs: the two protocols, the two headers, the check of a response's type, and the charsets."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, ClassVar, Final, Protocol, TypeVar

from aiosmrt._frames import clear_locals
from aiosmrt.errors import (
    AiosmrtError,
    DeserializationError,
    ParamValidationError,
    SerializationError,
)
from aiosmrt.serializers.objects import SupportsRead, is_file, type_name

__all__ = [
    "BYTE_ORDER_MARK",
    "TEXT_TYPES",
    "Codec",
    "Deserializer",
    "Serializer",
    "check_type",
    "encoding_of",
    "encoding_of_response",
    "is_text",
    "parsed",
]

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class Serializer(Protocol[In_contra]):
    """Makes request bodies from Python objects."""

    @property
    def content_type(self) -> str:
        """The request's ``Content-Type``."""
        ...

    def serialize(self, data: In_contra, /) -> bytes:
        """Return the body for an object.

        Raises:
            SerializationError: the object cannot be expressed.
        """
        ...


class Deserializer(Protocol[Out_co]):
    """Makes Python objects from response bodies."""

    @property
    def accept(self) -> str:
        """The request's ``Accept``."""
        ...

    def deserialize(self, body: bytes, content_type: str, /) -> Out_co:
        """Return the object for a body.

        Args:
            body: the whole body.
            content_type: the response's ``Content-Type``; empty if missing.

        Raises:
            DeserializationError: the body has another type, or is malformed.
        """
        ...


# Types that stand for any content; the last one is S3's, where results of asynchronous inference come from.
_UNTYPED: Final = frozenset({"", "application/octet-stream", "binary/octet-stream"})

_CHARSET: Final = re.compile(r""";\s*charset\s*=\s*["']?([^"';,\s]+)""", re.IGNORECASE)

# Python encodings that are not HTTP charsets: one is quadratic, two warn about their input.
_NO_CHARSETS: Final = frozenset({"idna", "punycode", "raw-unicode-escape", "unicode-escape"})

# How many parsed headers are kept: an endpoint's responses have one or two.
_MAX_HEADERS: Final = 256

# Some programs begin UTF-8 with it, as a signature; neither JSON nor a first field would.
BYTE_ORDER_MARK: Final = "\ufeff"


@lru_cache(_MAX_HEADERS)
def _media_type(header: str) -> str:
    """Return the type in a header, or in an item of one, without parameters and in lower case."""
    return header.partition(";")[0].partition(",")[0].strip().lower()


@lru_cache(_MAX_HEADERS)
def encoding_of(header: str) -> str | None:
    """Return Python's name for a header's charset: UTF-8 if it names none, None if the charset is unknown."""
    named = _CHARSET.search(header)
    if named is None:
        return "utf-8"
    try:
        encoding = codecs.lookup(named[1]).name
        " ".encode(encoding)
    except (LookupError, ValueError):  # unknown, or not an encoding of text
        return None
    return None if encoding in _NO_CHARSETS else encoding


@lru_cache(_MAX_HEADERS)
def encoding_of_response(content_type: str, accept: str) -> str:
    """Return Python's name for the charset of a response: that of its type, or else of the request's ``Accept``.

    Raises:
        DeserializationError: the charset is unknown.
    """
    encoding = encoding_of(content_type if _CHARSET.search(content_type) else accept)
    if encoding is None:
        raise DeserializationError("the response is in an unknown charset")
    return encoding


TEXT_TYPES: Final = r"text/.+|[^/]+/(.+\+)?(json|xml|yaml)|application/(x-)?(jsonlines|json-lines|jsonl|ndjson|csv)"
"""A pattern of the media types whose content is text."""


def is_text(content_type: str) -> bool:
    """Return whether content of a type is text in UTF-8.

    >>> is_text("application/json"), is_text("text/csv; charset=latin-1"), is_text("audio/l16")
    (True, False, False)
    """
    return re.fullmatch(TEXT_TYPES, _media_type(content_type)) is not None and encoding_of(content_type) in (
        "utf-8",
        "ascii",
    )


def check_type(content_type: str, accept: str, kin: str) -> None:
    """Refuse a response of another type; one without a type, or with a general one, may be anything.

    Args:
        content_type: the response's ``Content-Type``; empty if missing.
        accept: the expected type; a list and wildcards are allowed.
        kin: a pattern of further types that are read.

    Raises:
        DeserializationError: the response has another type.
    """
    found = _media_type(content_type)
    if content_type == accept or found in _UNTYPED or re.fullmatch(kin, found):
        return
    for accepted in map(_media_type, accept.split(",")):
        if accepted in (found, "*/*") or (accepted.endswith("/*") and found.startswith(accepted[:-1])):
            return
    raise DeserializationError(f"the response is {found!r:.80}, not {accept!r:.80}")


@dataclass(frozen=True, kw_only=True)
class Codec:
    """The two headers, the check of a response's type, and ready-made bodies."""

    content_type: str
    accept: str

    # A pattern of the response types that are read besides general ones and those of `accept`.
    _kin: ClassVar[str]

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        for name in ("serialize", "deserialize"):
            if name in cls.__dict__ and not hasattr(cls.__dict__[name], "__wrapped__"):
                setattr(cls, name, _with_cleared_locals(cls.__dict__[name]))

    def __post_init__(self) -> None:
        if faults := [*self._header_faults(), *self._option_faults()]:
            raise ParamValidationError([f"{type(self).__name__}.{fault}" for fault in faults])

    def _header_faults(self) -> Iterator[str]:
        for name in ("content_type", "accept"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value and value.isascii() and value.isprintable()):
                yield f"{name} must be a header value in printable ASCII; got {value!r:.80}"
            elif encoding_of(value) is None:
                yield f"{name} names a charset that Python does not know: {value!r:.80}"

    def _option_faults(self) -> Iterable[str]:
        return ()

    def _expect(self, content_type: str) -> None:
        check_type(content_type, self.accept, self._kin)

    def _decode(self, body: bytes, content_type: str) -> str:
        encoding = encoding_of_response(content_type, self.accept)
        try:
            return body.decode(encoding)
        except UnicodeDecodeError as error:
            position = error.start
        raise DeserializationError(f"the response of {len(body)} bytes is not {encoding} at byte {position}")

    def _encode(self, text: str) -> bytes:
        encoding = encoding_of(self.content_type) or "utf-8"
        try:
            return text.encode(encoding)
        except UnicodeEncodeError as error:
            position = error.start
        raise SerializationError(f"character {position} of {len(text)} cannot be expressed in {encoding}")

    def _ready_made(self, data: object) -> bytes | None:
        """Return a body that is in the format already: text, bytes, or a file of either; otherwise None."""
        if is_file(data):
            return self._contents(data)
        if isinstance(data, str):
            return self._encode(data)
        return bytes(data) if isinstance(data, (bytes, bytearray, memoryview)) else None

    def _contents(self, file: SupportsRead) -> bytes:
        fault = None
        try:
            contents: object = file.read()
        except UnicodeDecodeError as error:  # it holds what was read
            fault = f"is not in its encoding around byte {error.start}"
        else:
            if not is_file(contents) and (body := self._ready_made(contents)) is not None:
                return body
            fault = f"must contain text or bytes; its read() returned a {type_name(contents)}"
        raise SerializationError(f"the file {fault}")


def _with_cleared_locals(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose errors hold no local variables of it: error trackers report them, and they are the payload."""

    @wraps(method)
    def call(codec: Codec, data: Any, *content_type: str) -> Any:
        try:
            return method(codec, data, *content_type)
        except BaseException as error:
            del data
            clear_locals(error)
            raise

    return call


_Parsed = TypeVar("_Parsed")


def parsed(parse: Callable[[], _Parsed], what: str) -> _Parsed:
    """Return what another library reads from a response.

    Args:
        parse: reads it. Malformed input raises any of a dozen exceptions, whose messages quote names and values.
        what: the expected format.

    Raises:
        DeserializationError: the library cannot read the response.
    """
    try:
        return parse()
    except AiosmrtError:
        raise
    except MemoryError:  # usually a corrupt length
        fault = "claims a size that exceeds the available memory"
    except Exception:
        fault = f"is not {what}"
    raise DeserializationError(f"the response {fault}")
