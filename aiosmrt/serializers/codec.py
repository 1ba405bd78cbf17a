"""What every codec has: the two protocols, the two headers, the check of a response's type, and the charsets."""

from __future__ import annotations

import codecs
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Final, Protocol, TypeVar

from aiosmrt.errors import (
    AiosmrtError,
    ConfigurationError,
    DeserializationError,
    ParamValidationError,
    SerializationError,
)
from aiosmrt.serializers.objects import SupportsRead, is_file, kind_of

__all__ = [
    "BYTE_ORDER_MARK",
    "Codec",
    "Deserializer",
    "Serializer",
    "encoding_of",
    "installed",
    "parsed",
]

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class Serializer(Protocol[In_contra]):
    """Makes request bodies of Python objects."""

    @property
    def content_type(self) -> str:
        """The request's ``Content-Type``."""
        ...

    def serialize(self, data: In_contra, /) -> bytes:
        """Make a body of an object.

        Raises:
            SerializationError: the object cannot be expressed.
        """
        ...


class Deserializer(Protocol[Out_co]):
    """Makes Python objects of response bodies."""

    @property
    def accept(self) -> str:
        """The request's ``Accept``."""
        ...

    def deserialize(self, body: bytes, content_type: str, /) -> Out_co:
        """Make an object of a body.

        Args:
            body: the whole body.
            content_type: the response's ``Content-Type``; empty when it has none.

        Raises:
            DeserializationError: the body is of another type, or malformed.
        """
        ...


# Content types that say nothing; the second is S3's, where results of asynchronous inference come from.
_UNTYPED: Final = frozenset({"", "application/octet-stream", "binary/octet-stream"})

_CHARSET: Final = re.compile(r""";\s*charset\s*=\s*["']?([^"';,\s]+)""", re.IGNORECASE)

# Encodings of Python's that are no charset of HTTP: one is quadratic, two warn about what they read.
_NO_CHARSETS: Final = frozenset({"idna", "punycode", "raw-unicode-escape", "unicode-escape"})

# Headers whose meaning is remembered: an endpoint's responses have one or two.
_MAX_HEADERS: Final = 256

# Some programs begin UTF-8 with it, as a signature; neither JSON nor a first field begins with it otherwise.
BYTE_ORDER_MARK: Final = "\ufeff"


@lru_cache(_MAX_HEADERS)
def _media_type(header: str) -> str:
    """The type in a header, or in an item of one, without parameters and in lower case."""
    return header.partition(";")[0].partition(",")[0].strip().lower()


@lru_cache(_MAX_HEADERS)
def encoding_of(header: str) -> str | None:
    """Python's name for the charset that a header has; UTF-8 where it has none, None for an unknown one."""
    named = _CHARSET.search(header)
    if named is None:
        return "utf-8"
    try:
        encoding = codecs.lookup(named[1]).name
        " ".encode(encoding)
    except (LookupError, ValueError):  # there is none, or it is not one from text to bytes
        return None
    return None if encoding in _NO_CHARSETS else encoding


@dataclass(frozen=True, kw_only=True)
class Codec:
    """The two headers, and the check of a response's type."""

    content_type: str
    accept: str

    # The response types that are read beside the untyped ones and those of `accept`, as a pattern.
    _kin: ClassVar[str]

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
        """Refuse a response that is clearly something else."""
        found = _media_type(content_type)
        if content_type == self.accept or found in _UNTYPED or re.fullmatch(self._kin, found):
            return
        for accepted in map(_media_type, self.accept.split(",")):
            if accepted in (found, "*/*") or (accepted.endswith("/*") and found.startswith(accepted[:-1])):
                return
        raise DeserializationError(f"the response is {found!r:.80}, not {self.accept!r:.80}")

    def _decode(self, body: bytes, content_type: str) -> str:
        encoding = encoding_of(content_type if _CHARSET.search(content_type) else self.accept)
        if encoding is None:
            raise DeserializationError("the response is in a charset that Python does not know")
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
        """A body that is in the format already: text, bytes, or a file of either; None for anything else."""
        if is_file(data):
            return self._contents(data)
        if isinstance(data, str):
            return self._encode(data)
        return bytes(data) if isinstance(data, (bytes, bytearray, memoryview)) else None

    def _contents(self, file: SupportsRead) -> bytes:
        fault = None
        try:
            contents: object = file.read()
        except UnicodeDecodeError as error:  # which holds what was read
            fault = f"is not in its encoding around byte {error.start}"
        else:
            if not is_file(contents) and (body := self._ready_made(contents)) is not None:
                return body
            fault = f"gave a {kind_of(contents)}, which is neither text nor bytes"
        raise SerializationError(f"the file {fault}")


def installed(module: str, extra: str) -> Any:
    """Import what an extra installs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"{module} cannot be imported; \"pip install 'aiosmrt[{extra}]'\" installs it"
        ) from error


_Parsed = TypeVar("_Parsed")


def parsed(parse: Callable[[], _Parsed], what: str) -> _Parsed:
    """What another library reads from a response.

    Malformed input ends in any of a dozen of their exceptions, whose messages quote names and values.
    """
    try:
        return parse()
    except AiosmrtError:
        raise
    except MemoryError:  # as a rule a made-up length
        fault = "says that it needs more memory than there is"
    except Exception:
        fault = f"is not {what}"
    raise DeserializationError(f"the response {fault}")
