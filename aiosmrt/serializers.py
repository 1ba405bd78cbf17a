"""Request bodies from Python objects, and Python objects from response bodies.

A `Serializer` gives bytes and the content type that says what they are; a `Deserializer` reads bytes and has the
``Accept`` header that asks for them.  A *codec* is both.  The ready ones are `JSON`, `JSON_LINES`, `CSV`, `TEXT`,
`BYTES`, `NPY`, `NPZ`, `ARROW` and `PARQUET`; their classes take options.  Codecs are values: frozen, equal when their
options are, pickled by them, and without state, so that one serves any number of calls and threads.

Content types and what each codec takes follow the serializers of the SageMaker Python SDK
(https://github.com/aws/sagemaker-python-sdk, ``base_serializers.py`` and ``base_deserializers.py`` of its version 2),
which containers know.  Where the SDK guesses, or sends what cannot be meant, a codec refuses:

- NaN and the infinities are not JSON; they are sent only when asked for.  They are read, as Python's json does: a NaN
  in an answer is what the model said.
- What has no text of its own (a container in a field, bytes, a table that iterates over its columns) is not put into
  CSV, and neither JSON Lines nor CSV is made of nothing.
- Pickles are neither written nor read, so there are no arrays of Python objects.
- A response of another type, say a proxy's text/html for JSON, is an error, and not a parser's puzzle.  As containers
  are careless about the header, a response without a type or with a general one (application/octet-stream, and
  text/plain for text formats) is read, and so is every type that ``accept`` names or covers: a container that calls
  its JSON text/html is read with ``JSONCodec(accept="application/json, text/html")``.

Text is in the charset of the header's ``charset`` parameter, in UTF-8 without one.  Faults are told by place and never
by content: ``data[0][3]`` counts from 0, and the entries of a dictionary are counted like items.  The parsers' own
errors, which quote what they choke on, end here.

NumPy and pyarrow come with the extras ``numpy`` and ``arrow`` and are imported when their codecs are first used.

The module is long because its codecs are small: one beside the other, they show what they share.
"""

from __future__ import annotations

import codecs
import importlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from math import isqrt
from typing import IO, TYPE_CHECKING, Any, ClassVar, Final, Literal, Protocol, TypeAlias, TypeGuard, TypeVar

from aiosmrt.errors import (
    AiosmrtError,
    ConfigurationError,
    DeserializationError,
    ParamValidationError,
    SerializationError,
)

if TYPE_CHECKING:
    import numpy
    import pyarrow  # type: ignore[import-untyped, unused-ignore]
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ARROW",
    "BYTES",
    "CSV",
    "JSON",
    "JSON_LINES",
    "NPY",
    "NPZ",
    "OFF_LOOP_BYTES",
    "PARQUET",
    "TEXT",
    "ArrowCodec",
    "BytesCodec",
    "CSVCodec",
    "Deserializer",
    "JSONCodec",
    "JSONLinesCodec",
    "NPYCodec",
    "NPZCodec",
    "ParquetCodec",
    "Serializer",
    "SupportsArrowArray",
    "SupportsArrowStream",
    "SupportsRead",
    "TextCodec",
    "weight",
]

OFF_LOOP_BYTES: Final = 256 * 1024
"""A body of more bytes is better read, and an object of more `weight` better serialized, outside of the event loop."""

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


class SupportsRead(Protocol):
    """An open file, or what can be read like one."""

    def read(self) -> str | bytes:
        """Everything that is left."""
        ...


BytesLike: TypeAlias = bytes | bytearray | memoryview

# --- how big ----------------------------------------------------------------------------------------------------------

# Objects that `weight` looks at, at most.
_MAX_LOOKED_AT: Final = 256
_SCALAR_BYTES: Final = 18  # a float in text
_KEY_BYTES: Final = 10  # a key in text, with quotes and colon


def weight(data: object) -> int:
    """Estimate how many bytes serializing an object would give, at a small cost that does not grow with the object.

    Text counts by its characters, arrays and tables by their memory, containers by their length and a sample of their
    items.  It is right about the order of magnitude where the items of a list are alike.  What cannot be known without
    consuming it, such as a generator or a file, counts as more than `OFF_LOOP_BYTES`.

    Args:
        data: what is to be serialized, by whichever codec.

    Returns:
        bytes, to be compared with `OFF_LOOP_BYTES`.

    >>> weight({"inputs": "hello"})
    20
    >>> weight([[1.5] * 30] * 1000) > OFF_LOOP_BYTES
    True
    """
    return _weight(data, _MAX_LOOKED_AT)


def _weight(data: object, share: int) -> int:
    """The weight of an object, of whose parts about ``share`` are looked at."""
    if isinstance(data, (str, bytes, bytearray)):
        return len(data) + 2
    if isinstance(data, int):
        return data.bit_length() * 3 // 10 + 1
    if data is None or isinstance(data, float):
        return _SCALAR_BYTES
    if isinstance(data, (list, tuple, range)):
        # Items are alike as a rule, so it is better to look into a few than at many.
        looked_at = min(len(data), isqrt(share))
        return _sampled(len(data), (data[i * len(data) // looked_at] for i in range(looked_at)), looked_at, share)
    if isinstance(data, dict):
        # Entries are not: one of them holds the payload.
        looked_at = min(len(data), share)
        return len(data) * _KEY_BYTES + _sampled(len(data), islice(data.values(), looked_at), looked_at, share)
    if isinstance(data, (set, frozenset)):
        looked_at = min(len(data), isqrt(share))
        return _sampled(len(data), islice(data, looked_at), looked_at, share)
    if isinstance(size := getattr(data, "nbytes", None), int):
        return size
    if any(hasattr(data, name) for name in ("__iter__", "__len__", "read")):
        return OFF_LOOP_BYTES + 1
    return _SCALAR_BYTES


def _sampled(length: int, items: Iterable[object], looked_at: int, share: int) -> int:
    if not looked_at:
        return 2 + length * _SCALAR_BYTES
    each = share // (looked_at + 1)  # at most half of it, so that the depth is bounded too
    return 2 + length * sum(_weight(item, each) + 1 for item in items) // looked_at


# --- what every codec has ---------------------------------------------------------------------------------------------

# Content types that say nothing; the second is S3's, where results of asynchronous inference come from.
_UNTYPED: Final = frozenset({"", "application/octet-stream", "binary/octet-stream"})

_CHARSET: Final = re.compile(r""";\s*charset\s*=\s*["']?([^"';,\s]+)""", re.IGNORECASE)

# Encodings of Python's that are no charset of HTTP: one is quadratic, two warn about what they read.
_NO_CHARSETS: Final = frozenset({"idna", "punycode", "raw-unicode-escape", "unicode-escape"})

# Some programs begin UTF-8 with it, as a signature; neither JSON nor a first field begins with it otherwise.
_BYTE_ORDER_MARK: Final = "\ufeff"


def _media_type(header: str) -> str:
    """The type in a header, or in an item of one, without parameters and in lower case."""
    return header.partition(";")[0].partition(",")[0].strip().lower()


def _encoding(header: str) -> str | None:
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


def _is_file(data: object) -> TypeGuard[SupportsRead]:
    return callable(getattr(data, "read", None))


def _kind(value: object) -> str:
    """What an object is, for messages."""
    return type(value).__qualname__


def _installed(module: str, extra: str) -> Any:
    """Import what an extra installs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"{module} cannot be imported; \"pip install 'aiosmrt[{extra}]'\" installs it"
        ) from error


def _is_array(value: object) -> TypeGuard[NDArray[Any]]:
    # No object is an array before somebody has imported NumPy.
    if sys.modules.get("numpy") is None:
        return False
    import numpy

    return isinstance(value, numpy.ndarray)


def _is_numpy_scalar(value: object) -> TypeGuard[numpy.generic[Any]]:
    if sys.modules.get("numpy") is None:
        return False
    import numpy

    return isinstance(value, numpy.generic)


@dataclass(frozen=True, kw_only=True)
class _Codec:
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
            elif _encoding(value) is None:
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
        encoding = _encoding(content_type if _CHARSET.search(content_type) else self.accept)
        if encoding is None:
            raise DeserializationError("the response is in a charset that Python does not know")
        try:
            return body.decode(encoding)
        except UnicodeDecodeError as error:
            position = error.start
        raise DeserializationError(f"the response of {len(body)} bytes is not {encoding} at byte {position}")

    def _encode(self, text: str) -> bytes:
        encoding = _encoding(self.content_type) or "utf-8"
        try:
            return text.encode(encoding)
        except UnicodeEncodeError as error:
            position = error.start
        raise SerializationError(f"character {position} of {len(text)} cannot be expressed in {encoding}")

    def _ready_made(self, data: object) -> bytes | None:
        """A body that is in the format already: text, bytes, or a file of either; None for anything else."""
        if _is_file(data):
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
            if not _is_file(contents) and (body := self._ready_made(contents)) is not None:
                return body
            fault = f"gave a {_kind(contents)}, which is neither text nor bytes"
        raise SerializationError(f"the file {fault}")


# --- text -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TextCodec(_Codec):
    """Text as it is.

    Serializes ``str``.  Deserializes to ``str`` what is text by its type, JSON and XML included.

    Args:
        content_type: the request's type; a ``charset`` parameter decides how text is encoded, UTF-8 without one.
        accept: what the response shall be; a ``charset`` parameter is for responses that name none themselves.

    Raises:
        ParamValidationError: a header cannot be one, or names a charset that Python does not know.

    >>> TEXT.serialize("naïve")
    b'na\\xc3\\xafve'
    >>> TEXT.deserialize(b"na\\xefve", "text/plain; charset=ISO-8859-1")
    'naïve'
    >>> TextCodec(accept="application/json").deserialize(b'{"score": 0.5}', "application/json")
    '{"score": 0.5}'
    """

    content_type: str = "text/plain"
    accept: str = "text/plain"

    _kin = r"text/.+|[^/]+/(.+\+)?(json|xml|yaml)|application/(x-)?(jsonlines|json-lines|jsonl|ndjson|csv)"

    def serialize(self, data: str, /) -> bytes:
        """Encode text.

        Raises:
            SerializationError: it is no ``str``, or the charset lacks one of its characters.
        """
        if not isinstance(data, str):
            raise SerializationError(f"data is a {_kind(data)}, not text")
        return self._encode(data)

    def deserialize(self, body: bytes, content_type: str, /) -> str:
        """Decode text.

        Raises:
            DeserializationError: the response is no text by its type, or not in its charset.
        """
        self._expect(content_type)
        return self._decode(body, content_type)


@dataclass(frozen=True, kw_only=True)
class BytesCodec(_Codec):
    """Bytes as they are: the body is made elsewhere.

    Serializes ``bytes``, ``bytearray`` and ``memoryview``.  Deserializes every response to ``bytes``.

    Args:
        content_type: the request's type, such as ``"application/x-image"``.
        accept: what the response shall be; any other is given as well.

    Raises:
        ParamValidationError: a header cannot be one.

    >>> BytesCodec(content_type="application/x-image").serialize(memoryview(b"GIF89a"))
    b'GIF89a'
    """

    content_type: str = "application/octet-stream"
    accept: str = "*/*"

    def serialize(self, data: BytesLike, /) -> bytes:
        """Give the bytes.

        Raises:
            SerializationError: there are none; text is for `TEXT`.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise SerializationError(f"data is a {_kind(data)}, not bytes")
        return bytes(data)

    def deserialize(self, body: bytes, content_type: str, /) -> bytes:
        """Give the body."""
        return body


# --- JSON -------------------------------------------------------------------------------------------------------------

# The white space of JSON (RFC 8259, section 2), which is less than that of Python.
_BLANKS: Final = " \t\r\n"

# Levels of containers that are searched for what is at fault.
_MAX_SEARCHED: Final = 100


@dataclass(frozen=True, kw_only=True)
class _JSONBased(_Codec):
    default: Callable[[Any], object] | None = field(default=None, repr=False)
    allow_nan: bool = False

    def _option_faults(self) -> Iterable[str]:
        if self.default is not None and not callable(self.default):
            yield f"default must be a function or None; got a {_kind(self.default)}"
        if not isinstance(self.allow_nan, bool):
            yield f"allow_nan must be True or False; got a {_kind(self.allow_nan)}"

    def _replace(self, value: Any) -> object:
        """What is sent instead of an object that json does not know."""
        if _is_array(value) or _is_numpy_scalar(value):
            plain: object = value.tolist()
            if type(plain) is not type(value):  # as it is for a longdouble, which no Python type can hold
                return plain
        if self.default is None:
            raise TypeError
        return self.default(value)

    def _dumps(self, value: object) -> str:
        return json.dumps(
            value, ensure_ascii=False, allow_nan=self.allow_nan, separators=(",", ":"), default=self._replace
        )

    def _lines(self, values: Iterable[object]) -> bytes | None:
        """Each value on a line of its own; None when one of them cannot be expressed."""
        try:
            return "\n".join(map(self._dumps, values)).encode(_encoding(self.content_type) or "utf-8")
        except MemoryError:
            raise
        except Exception:
            # json's own errors, those of its encoders and whatever `default` raises; all of them may quote data, so
            # what is at fault is looked for instead.
            return None

    def _fault(self, data: object) -> str:
        """What is wrong, and where, with data that cannot be expressed."""
        where = "data"
        for _ in range(_MAX_SEARCHED):
            items = _items(data)
            if self._lines([items]) is not None:
                return f"{where} {self._reason(data)}"
            start, end = 0, len(items)
            while end - start > 1:
                middle = (start + end) // 2
                if self._lines(items[start:middle]) is None:
                    end = middle
                else:
                    start = middle
            where += f"[{start}]"
            data = items[start]
        return f"data contains itself, or is at fault more than {_MAX_SEARCHED} levels down"

    def _reason(self, data: object) -> str:
        """What is wrong with an object whose items are in order."""
        plain = data.tolist() if _is_numpy_scalar(data) else data
        if isinstance(plain, float):
            return "is NaN or infinite, which JSON does not have; allow_nan=True sends it all the same"
        if isinstance(plain, int):
            return "is an integer of more digits than Python writes"
        if isinstance(plain, str):
            return f"has a character that cannot be expressed in {_encoding(self.content_type)}"
        if isinstance(data, dict):
            for number, key in enumerate(data):
                if self._lines([{key: None}]) is None:
                    return f"has a key that cannot be one in JSON: number {number}, a {_kind(key)}"
        if self.default is None:
            return f"is a {_kind(data)}, which JSON does not have"
        return f"is a {_kind(data)}, for which default gives nothing that JSON has"

    def _loads(self, text: str, line: int | None = None) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            fault = f"is not JSON at line {line or error.lineno}, column {error.colno}"
        except RecursionError:
            fault = "is nested too deeply"
        except ValueError:
            fault = "has an integer of more digits than Python reads"
        raise DeserializationError(f"the response {fault}")


def _items(data: object) -> list[object]:
    """The parts of what json takes for a container, and of an array; none for all else."""
    if isinstance(data, dict):
        return list(data.values())
    if _is_array(data):
        data = data.tolist()
    return list(data) if isinstance(data, (list, tuple)) else []


@dataclass(frozen=True, kw_only=True)
class JSONCodec(_JSONBased):
    """JSON, the compact form of it, not escaped beyond need.

    Serializes what `json` does (dictionaries, lists, tuples, text, numbers, True, False, None), NumPy's arrays as lists
    and its scalars as numbers or text, and open files of JSON, which are sent as they are.  Deserializes to what `json`
    gives.

    Args:
        content_type: the request's type.
        accept: what the response shall be. JSON by another name (``+json``) is read as well.
        default: called for an object that neither `json` nor NumPy knows; gives one to send instead. It may be called
            again for the same object to find out what is at fault. Its errors become a `SerializationError` that does
            not quote them.
        allow_nan: whether NaN and the infinities may be sent, as ``NaN``, ``Infinity`` and ``-Infinity``, which are not
            JSON (RFC 8259, section 6), but which Python's json reads. In a response they are always read.

    Raises:
        ParamValidationError: a header cannot be one, or an option is of the wrong type.

    >>> JSON.serialize({"instances": [[1.5, 2], ["é", None]]}).decode()
    '{"instances":[[1.5,2],["é",null]]}'
    >>> JSON.serialize({"instances": [[1.5, float("nan")]]})
    Traceback (most recent call last):
        ...
    aiosmrt.errors.SerializationError: data[0][0][1] is NaN or infinite, which JSON does not have; ...
    >>> JSONCodec(default=str).serialize(1j)
    b'"1j"'
    >>> JSON.deserialize(b"<h1>Bad Gateway</h1>", "text/html")
    Traceback (most recent call last):
        ...
    aiosmrt.errors.DeserializationError: the response is 'text/html', not 'application/json'
    """

    content_type: str = "application/json"
    accept: str = "application/json"

    _kin = r"text/plain|(application|text)/(x-)?json|[^/]+/.+\+json"

    def serialize(self, data: Any, /) -> bytes:
        """Write JSON.

        Raises:
            SerializationError: something in the object is not JSON.
        """
        if _is_file(data):
            return self._contents(data)
        body = self._lines([data])
        if body is None:
            raise SerializationError(self._fault(data))
        return body

    def deserialize(self, body: bytes, content_type: str, /) -> Any:
        """Read JSON.

        Raises:
            DeserializationError: the response is of another type, empty, or malformed.
        """
        self._expect(content_type)
        text = self._decode(body, content_type).removeprefix(_BYTE_ORDER_MARK)
        if not text:
            raise DeserializationError("the response is empty, and no JSON")
        return self._loads(text)


@dataclass(frozen=True, kw_only=True)
class JSONLinesCodec(_JSONBased):
    """JSON Lines (https://jsonlines.org): a JSON value on every line.

    Serializes an iterable of what `JSONCodec` serializes, NumPy arrays by their first axis; text, bytes and open files
    are sent as they are.  Dictionaries and sets are refused: neither is a sequence of values.  Between values is LF,
    and after the last is none.  Deserializes to a list; blank lines are skipped.

    Args:
        content_type: the request's type.
        accept: what the response shall be; JSON Lines by another name is read as well.
        default: as for `JSONCodec`.
        allow_nan: as for `JSONCodec`.

    Raises:
        ParamValidationError: a header cannot be one, or an option is of the wrong type.

    >>> JSON_LINES.serialize({"text": word} for word in ("a", "b"))
    b'{"text":"a"}\\n{"text":"b"}'
    >>> JSON_LINES.deserialize(b'{"score": 0.5}\\n{"score": 0.25}\\n', "application/jsonlines")
    [{'score': 0.5}, {'score': 0.25}]
    """

    content_type: str = "application/jsonlines"
    accept: str = "application/jsonlines"

    _kin = r"text/plain|(application|text)/(x-)?(jsonlines|json-lines|jsonl|ndjson)"

    def serialize(self, data: Iterable[Any] | SupportsRead, /) -> bytes:
        """Write a line for each value.

        Raises:
            SerializationError: something in a value is not JSON, or there are no values.
        """
        if (body := self._ready_made(data)) is not None:
            return body
        values = _listed(data, "data", "values")
        body = self._lines(values)
        if body is None:
            raise SerializationError(self._fault(values))
        return body

    def deserialize(self, body: bytes, content_type: str, /) -> list[Any]:
        """Read a value from each line.

        Raises:
            DeserializationError: the response is of another type, or a line is not JSON.
        """
        self._expect(content_type)
        lines = self._decode(body, content_type).removeprefix(_BYTE_ORDER_MARK).split("\n")
        return [self._loads(line, number) for number, line in enumerate(lines, 1) if line.strip(_BLANKS)]


def _listed(data: object, where: str, what: str) -> list[Any]:
    """The items of a sequence or another iterable in order, an array's along its first axis; not empty."""
    if not _is_listable(data):
        raise SerializationError(f"{where} is a {_kind(data)}, not an iterable of {what}")
    if not _is_array(data):
        items = list(data)
    elif data.dtype.kind == "f" and data.itemsize < 8 and not hasattr(data, "mask"):
        # As Python's floats, these would have 17 digits, most of them noise.
        items = list(data)
    else:
        items = data.tolist()
    if not items:
        raise SerializationError(f"{where} has no {what}")
    return items


def _is_listable(data: object) -> TypeGuard[Iterable[Any]]:
    if _is_array(data):
        return data.ndim > 0
    # Tables (pandas, polars, pyarrow) iterate over their columns or the names of these.
    return isinstance(data, Iterable) and not (
        isinstance(data, (str, bytes, bytearray, memoryview, Mapping, set, frozenset)) or hasattr(data, "columns")
    )


# --- CSV --------------------------------------------------------------------------------------------------------------

_PLAIN: Final = frozenset({bool, float, int, str, type(None)})


class _Rows(list[str]):
    """What csv writes its rows into: one call for each, with the line's end."""

    def write(self, row: str) -> None:
        self.append(row.removesuffix("\r\n"))


@dataclass(frozen=True, kw_only=True)
class CSVCodec(_Codec):
    r"""Comma-separated values (RFC 4180), without a header line.

    Serializes an iterable of rows or a single row, a row being an iterable of fields; NumPy arrays of one or two
    dimensions; and text, bytes and open files, which are sent as they are.  If the first item is a row, they all are:
    ``["a", "b"]`` is a row of two fields.  A field is what ``str`` makes of an object, and empty for None; NaN is
    ``nan``.  Dictionaries and sets are refused, because they have no order of fields, and so are DataFrames, which
    iterate over the names of their columns: send their ``to_csv(header=False, index=False)``.  Between rows is LF, and
    after the last is none.

    Deserializes to a list of rows, each a list of ``str``; blank lines are skipped.  A field may be as long as
    ``csv.field_size_limit()`` allows.

    Args:
        delimiter: what separates fields, a single character.
        content_type: the request's type, such as ``"text/csv; label_size=0"``.
        accept: what the response shall be; CSV by another name is read as well.

    Raises:
        ParamValidationError: a header cannot be one, or the delimiter is not a character that could be one.

    >>> CSV.serialize([[1.5, "a"], [2, "b, c"]])
    b'1.5,a\n2,"b, c"'
    >>> CSV.serialize([1.5, 2, None])
    b'1.5,2,'
    >>> CSV.deserialize(b"0.25,yes\r\n0.5,no\r\n", "text/csv; charset=utf-8")
    [['0.25', 'yes'], ['0.5', 'no']]
    >>> CSV.serialize([[1.5, 2], [b"3", 4]])
    Traceback (most recent call last):
        ...
    aiosmrt.errors.SerializationError: data[1][0] is a bytes, which is not text for a field
    """

    delimiter: str = ","
    content_type: str = "text/csv"
    accept: str = "text/csv"

    _kin = "text/plain|(application|text)/(x-)?(csv|comma-separated-values)"

    def _option_faults(self) -> Iterable[str]:
        if not isinstance(self.delimiter, str) or len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            yield f"delimiter must be one character, and neither a quote nor a line's end; got {self.delimiter!r:.80}"

    def serialize(self, data: Iterable[object] | SupportsRead, /) -> bytes:
        """Write rows.

        Raises:
            SerializationError: something is neither a row nor a field, or there are no rows or fields.
        """
        if (body := self._ready_made(data)) is not None:
            return body
        import csv

        items = _listed(data, "data", "fields or rows")
        if _is_listable(items[0]):
            rows = [_listed(item, f"data[{number}]", "fields") for number, item in enumerate(items)]
            places = [f"data[{number}]" for number in range(len(rows))]
        else:
            rows, places = [items], ["data"]
        for row, where in zip(rows, places, strict=True):
            _check_fields(row, where)
        written = _Rows()
        # With this end of a line, csv quotes fields with either of its characters.
        writer = csv.writer(written, delimiter=self.delimiter, lineterminator="\r\n")
        try:
            writer.writerows(rows)
        except ValueError:
            fault = f"{places[len(written)]} has an integer of more digits than Python writes"
        else:
            return self._encode("\n".join(written))
        raise SerializationError(fault)

    def deserialize(self, body: bytes, content_type: str, /) -> list[list[str]]:
        """Read rows.

        Raises:
            DeserializationError: the response is of another type, or malformed.
        """
        self._expect(content_type)
        import csv

        text = self._decode(body, content_type).removeprefix(_BYTE_ORDER_MARK)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, strict=True)
        try:
            return [row for row in reader if row]
        except csv.Error:
            line = reader.line_num
        raise DeserializationError(
            f"the response is not CSV at line {line}, or has a field of more than {csv.field_size_limit()} characters"
        )


def _check_fields(row: list[object], where: str) -> None:
    """Refuse a row with an object in it whose ``str`` is not what anybody means to send."""
    for kind in set(map(type, row)) - _PLAIN:
        if issubclass(kind, str):
            continue
        if (
            issubclass(kind, (bytes, bytearray, memoryview))
            or hasattr(kind, "__iter__")
            or (kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__)
        ):
            number = next(number for number, value in enumerate(row) if type(value) is kind)
            raise SerializationError(f"{where}[{number}] is a {kind.__qualname__}, which is not text for a field")


# --- NumPy ------------------------------------------------------------------------------------------------------------

_Parsed = TypeVar("_Parsed")


def _parsed(parse: Callable[[], _Parsed], what: str) -> _Parsed:
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


@dataclass(frozen=True, kw_only=True)
class _NumPyBased(_Codec):
    dtype: str | None = None

    def _option_faults(self) -> Iterable[str]:
        if self.dtype is not None and not isinstance(self.dtype, str):
            yield f"dtype must be a name, such as 'float32', or None; got a {_kind(self.dtype)}"

    def _write(self, stream: IO[bytes], data: object, where: str) -> None:
        """Write an array in the NPY format."""
        array = self._array(data, where)
        if array.dtype.hasobject:
            raise SerializationError(f"{where} makes an array of Python objects, which would have to be pickled")
        _installed("numpy.lib.format", "numpy").write_array(stream, array, allow_pickle=False)

    def _array(self, data: object, where: str) -> NDArray[Any]:
        numpy = _installed("numpy", "numpy")
        if isinstance(data, (str, bytes, bytearray)):
            raise SerializationError(f"{where} is a {_kind(data)}, not an array")
        if "numpy.ma" in sys.modules and isinstance(data, numpy.ma.MaskedArray):
            raise SerializationError(f"{where} is a masked array, whose mask NPY cannot express")
        try:
            array: NDArray[Any] = numpy.asarray(data, self.dtype)
            return array
        except (TypeError, ValueError, OverflowError):
            fault = f"is a {_kind(data)} that makes no array" + (f" of {self.dtype}" if self.dtype is not None else "")
        raise SerializationError(f"{where} {fault}")


def _read_array(stream: IO[bytes]) -> NDArray[Any]:
    """Read an array in the NPY format, and nothing behind it; NumPy's and zipfile's own errors are not caught."""
    array: NDArray[Any] = _installed("numpy.lib.format", "numpy").read_array(stream, allow_pickle=False)
    if stream.read(1):  # at its end, a member of an archive checks its CRC
        raise ValueError
    return array


@dataclass(frozen=True, kw_only=True)
class NPYCodec(_NumPyBased):
    """A NumPy array in the NPY format.

    Serializes arrays, what ``numpy.asarray`` makes arrays of (nested lists of numbers, for one), and open NPY files,
    which are sent as they are.  Arrays of Python objects are refused, as NPY would pickle them, and masked arrays, as
    it would forget the mask.  Deserializes to an array.  Needs the extra ``numpy``.

    Args:
        dtype: the name of the type that arrays are sent in, such as ``"float32"``; None for the one that they have.
        content_type: the request's type.
        accept: what the response shall be.

    Raises:
        ParamValidationError: a header cannot be one, or an option is of the wrong type.

    >>> body = NPYCodec(dtype="float32").serialize([[1, 2], [3, 4]])
    >>> NPY.deserialize(body, "application/x-npy")
    array([[1., 2.],
           [3., 4.]], dtype=float32)
    """

    content_type: str = "application/x-npy"
    accept: str = "application/x-npy"

    _kin = "application/(x-)?npy"

    def serialize(self, data: ArrayLike | SupportsRead, /) -> bytes:
        """Write an array.

        Raises:
            SerializationError: there is no array to be made of the object, or only one of Python objects.
            ConfigurationError: NumPy is not installed.
        """
        if _is_file(data):
            return self._contents(data)
        body = io.BytesIO()
        self._write(body, data, "data")
        return body.getvalue()

    def deserialize(self, body: bytes, content_type: str, /) -> NDArray[Any]:
        """Read an array.

        Raises:
            DeserializationError: the response is of another type, malformed, or has an array of Python objects.
            ConfigurationError: NumPy is not installed.
        """
        self._expect(content_type)
        return _parsed(lambda: _read_array(io.BytesIO(body)), "an array in the NPY format without Python objects")


@dataclass(frozen=True, kw_only=True)
class NPZCodec(_NumPyBased):
    """NumPy arrays with names, in the NPZ format: a zip archive of NPY files.

    Serializes a mapping from names to what `NPYCodec` serializes, files apart; equal arrays give equal bodies.
    Deserializes to a dictionary of arrays.  Needs the extra ``numpy``.

    Args:
        dtype: as for `NPYCodec`.
        compress: whether the arrays are compressed, with Deflate.
        content_type: the request's type.
        accept: what the response shall be.

    Raises:
        ParamValidationError: a header cannot be one, or an option is of the wrong type.

    >>> NPZ.deserialize(NPZ.serialize({"x": [1, 2], "y": [[0.5]]}), "application/x-npz")
    {'x': array([1, 2]), 'y': array([[0.5]])}
    """

    compress: bool = False
    content_type: str = "application/x-npz"
    accept: str = "application/x-npz"

    _kin = "application/((x-)?npz|zip)"

    def _option_faults(self) -> Iterable[str]:
        yield from _NumPyBased._option_faults(self)
        if not isinstance(self.compress, bool):
            yield f"compress must be True or False; got a {_kind(self.compress)}"

    def serialize(self, data: Mapping[str, ArrayLike], /) -> bytes:
        """Write arrays.

        Raises:
            SerializationError: the object is no mapping, a name is no text that could name a file, or there is no array
                to be made of a value, or only one of Python objects.
            ConfigurationError: NumPy is not installed.
        """
        import zipfile

        if not isinstance(data, Mapping):
            raise SerializationError(f"data is a {_kind(data)}, not a mapping from names to arrays")
        body = io.BytesIO()
        with zipfile.ZipFile(body, "w") as archive:
            for number, (name, array) in enumerate(data.items()):
                if not isinstance(name, str) or re.search("[\0\ud800-\udfff]", name):
                    raise SerializationError(f"the name of data[{number}] cannot be a file's")
                member = zipfile.ZipInfo(f"{name}.npy")  # of 1980, so that the clock is not in the body
                member.compress_type = zipfile.ZIP_DEFLATED if self.compress else zipfile.ZIP_STORED
                with archive.open(member, "w") as stream:
                    self._write(stream, array, f"data[{number}]")
        return body.getvalue()

    def deserialize(self, body: bytes, content_type: str, /) -> dict[str, NDArray[Any]]:
        """Read arrays.

        Raises:
            DeserializationError: the response is of another type, malformed, or has an array of Python objects.
            ConfigurationError: NumPy is not installed.
        """
        self._expect(content_type)
        return _parsed(lambda: self._read(body), "an archive in the NPZ format")

    def _read(self, body: bytes) -> dict[str, NDArray[Any]]:
        import zipfile

        arrays = {}
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            for number, member in enumerate(archive.infolist()):
                with archive.open(member) as stream:
                    arrays[member.filename.removesuffix(".npy")] = _parsed(
                        partial(_read_array, stream),
                        f"an archive in the NPZ format: its file {number} is no array, or one of Python objects",
                    )
        return arrays


# --- Arrow ------------------------------------------------------------------------------------------------------------


class SupportsArrowStream(Protocol):
    """What has the Arrow PyCapsule interface for streams: tables of pyarrow, pandas, polars and others."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """An ``ArrowArrayStream`` in a capsule."""
        ...


class SupportsArrowArray(Protocol):
    """What has the Arrow PyCapsule interface for arrays: pyarrow's record batches, for one."""

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        """An ``ArrowSchema`` and an ``ArrowArray`` in capsules."""
        ...


ArrowTable: TypeAlias = SupportsArrowStream | SupportsArrowArray | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _ArrowBased(_Codec):
    compression: str | None = None

    _compressions: ClassVar[tuple[str | None, ...]]

    def _option_faults(self) -> Iterable[str]:
        if self.compression not in self._compressions:
            allowed = ", ".join(map(repr, self._compressions))
            yield f"compression must be one of {allowed}; got {self.compression!r:.80}"

    def _written(self, data: ArrowTable, write: Callable[[pyarrow.Table, Any], object]) -> bytes:
        """Have a table written into a sink of pyarrow's."""
        table = _table(data)
        pa = _installed("pyarrow", "arrow")
        sink = pa.BufferOutputStream()
        try:
            write(table, sink)
            body: bytes = sink.getvalue().to_pybytes()
            return body
        except _arrow_faults():
            fault = "data has a column of a type that the format does not have"
        raise SerializationError(fault)


def _arrow_faults() -> tuple[type[Exception], ...]:
    """What pyarrow raises; the messages quote names and values."""
    return (_installed("pyarrow", "arrow").ArrowException, OSError, OverflowError, TypeError, ValueError)


def _table(data: ArrowTable) -> pyarrow.Table:
    pa = _installed("pyarrow", "arrow")
    if isinstance(data, pa.Table):
        return data
    if not any((isinstance(data, Mapping), hasattr(data, "__arrow_c_stream__"), hasattr(data, "__arrow_c_array__"))):
        raise SerializationError(f"data is a {_kind(data)}, not a table")
    fault = "data gives no table"
    try:
        if not isinstance(data, Mapping):
            return pa.table(data)
        columns = {}
        for number, (name, values) in enumerate(data.items()):
            fault = (
                f"data[{number}] makes no column: its name is not text, or its values are not of one type of Arrow's"
            )
            columns[name] = pa.table({name: values}).column(0)
        fault = "data has columns of different lengths"
        return pa.table(columns)
    except _arrow_faults():
        pass  # with `fault` as it is
    raise SerializationError(fault)


@dataclass(frozen=True, kw_only=True)
class ArrowCodec(_ArrowBased):
    """A table as an Arrow IPC stream (https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format).

    Serializes a ``pyarrow.Table``, a ``RecordBatch``, a ``RecordBatchReader``, the DataFrames that have the Arrow
    PyCapsule interface (pandas from 2.2, polars from 1.3), and a mapping from names to columns.  Deserializes to a
    ``pyarrow.Table``, which is validated, as what is read from a table that was not may lie outside of its memory.
    Needs the extra ``arrow``.

    Args:
        compression: how columns are compressed; None for not at all.
        content_type: the request's type, the registered one as it stands.
        accept: what the response shall be.

    Raises:
        ParamValidationError: a header cannot be one, or there is no such compression.

    >>> table = ARROW.deserialize(ARROW.serialize({"age": [29, 31]}), "application/vnd.apache.arrow.stream")
    >>> table.to_pydict()
    {'age': [29, 31]}
    """

    compression: Literal["lz4", "zstd"] | None = None
    content_type: str = "application/vnd.apache.arrow.stream"
    accept: str = "application/vnd.apache.arrow.stream"

    _kin = r"application/(x-apache-|vnd\.apache\.)arrow(\.stream|-stream)?"
    _compressions = (None, "lz4", "zstd")

    def serialize(self, data: ArrowTable, /) -> bytes:
        """Write a table.

        Raises:
            SerializationError: there is no table to be made of the object.
            ConfigurationError: pyarrow is not installed.
        """
        return self._written(data, self._write_stream)

    def _write_stream(self, table: pyarrow.Table, sink: Any) -> None:
        ipc = _installed("pyarrow.ipc", "arrow")
        with ipc.new_stream(sink, table.schema, options=ipc.IpcWriteOptions(compression=self.compression)) as writer:
            writer.write_table(table)

    def deserialize(self, body: bytes, content_type: str, /) -> pyarrow.Table:
        """Read a table.

        Raises:
            DeserializationError: the response is of another type, or malformed.
            ConfigurationError: pyarrow is not installed.
        """
        self._expect(content_type)
        return _parsed(lambda: self._read(body), "an Arrow IPC stream")

    def _read(self, body: bytes) -> pyarrow.Table:
        with _installed("pyarrow.ipc", "arrow").open_stream(body) as reader:
            table = reader.read_all()
        table.validate(full=True)
        return table


@dataclass(frozen=True, kw_only=True)
class ParquetCodec(_ArrowBased):
    """A table as a Parquet file.

    Serializes what `ArrowCodec` does.  Deserializes to a ``pyarrow.Table``, validated; types that Parquet does not have
    come back as the nearest one that it has.  Needs the extra ``arrow``.

    Args:
        compression: how columns are compressed; None for not at all.
        content_type: the request's type; SageMaker's own, not the registered ``application/vnd.apache.parquet``.
        accept: what the response shall be; the registered type is read as well.

    Raises:
        ParamValidationError: a header cannot be one, or there is no such compression.

    >>> PARQUET.deserialize(PARQUET.serialize({"age": [29, 31]}), "application/x-parquet").to_pydict()
    {'age': [29, 31]}
    """

    compression: Literal["snappy", "gzip", "brotli", "lz4", "zstd"] | None = "snappy"
    content_type: str = "application/x-parquet"
    accept: str = "application/x-parquet"

    _kin = r"application/(x-|vnd\.apache\.)?parquet"
    _compressions = (None, "snappy", "gzip", "brotli", "lz4", "zstd")

    def serialize(self, data: ArrowTable, /) -> bytes:
        """Write a table.

        Raises:
            SerializationError: there is no table to be made of the object, or Parquet cannot express it.
            ConfigurationError: pyarrow is not installed.
        """
        return self._written(data, self._write_file)

    def _write_file(self, table: pyarrow.Table, sink: Any) -> None:
        _installed("pyarrow.parquet", "arrow").write_table(table, sink, compression=self.compression or "none")

    def deserialize(self, body: bytes, content_type: str, /) -> pyarrow.Table:
        """Read a table.

        Raises:
            DeserializationError: the response is of another type, or malformed.
            ConfigurationError: pyarrow is not installed.
        """
        self._expect(content_type)
        return _parsed(lambda: self._read(body), "a Parquet file")

    def _read(self, body: bytes) -> pyarrow.Table:
        pa = _installed("pyarrow", "arrow")
        with _installed("pyarrow.parquet", "arrow").ParquetFile(pa.BufferReader(body)) as file:
            table = file.read()
        table.validate(full=True)
        return table


JSON: Final = JSONCodec()
"""`JSONCodec` with its defaults."""

JSON_LINES: Final = JSONLinesCodec()
"""`JSONLinesCodec` with its defaults."""

CSV: Final = CSVCodec()
"""`CSVCodec` with its defaults."""

TEXT: Final = TextCodec()
"""`TextCodec` with its defaults."""

BYTES: Final = BytesCodec()
"""`BytesCodec` with its defaults."""

NPY: Final = NPYCodec()
"""`NPYCodec` with its defaults."""

NPZ: Final = NPZCodec()
"""`NPZCodec` with its defaults."""

ARROW: Final = ArrowCodec()
"""`ArrowCodec` with its defaults."""

PARQUET: Final = ParquetCodec()
"""`ParquetCodec` with its defaults."""
