"""Request bodies: from what a caller gives to bytes that do not change any more, and their hash."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from aiosmrt.errors import ParamValidationError

if TYPE_CHECKING:
    from aiosmrt.types import Body

__all__ = ["HASH_INLINE_BYTES", "DeferredBody", "OffLoop", "body_bytes", "body_digest"]

T = TypeVar("T")

_ASYNCHRONOUS: Final = "Body: the file is asynchronous; read it and pass its bytes"

HASH_INLINE_BYTES: Final = 256 * 1024
"""Above this size, moving to a thread costs less than stalling the loop.

See docs/design/decisions/2026-11-21-work-off-the-loop.md.
"""


class OffLoop(Protocol):
    """Runs a blocking function in a thread and waits for it."""

    def __call__(self, function: Callable[..., T], *arguments: Any) -> Awaitable[T]: ...


class DeferredBody:
    """A body that is made after the call has begun, so that its deadline covers the making.

    Args:
        make: makes the body; called once.
    """

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Awaitable[bytes]]) -> None:
        self._make: Callable[[], Awaitable[bytes]] | None = make

    async def read(self) -> bytes:
        """Make the body."""
        make, self._make = self._make, None
        if make is None:
            raise RuntimeError("a deferred body is read once")
        making = make()
        del make
        return await making


async def body_bytes(body: Body | DeferredBody | None, in_reader: OffLoop) -> bytes | memoryview:
    """A request body as bytes that do not change any more.

    Args:
        body: as the caller gave it. If None, it is empty.
        in_reader: runs what reads files.

    Raises:
        ParamValidationError: text that cannot be encoded, or a file that is not binary or not seekable.
    """
    if isinstance(body, bytes):
        return body
    if body is None:
        return b""
    if isinstance(body, DeferredBody):
        return await body.read()
    if isinstance(body, str):
        try:
            return body.encode()
        except UnicodeEncodeError:
            # without the error as its cause, which holds the body
            fault = "Body: the text contains lone surrogates and cannot be encoded as UTF-8"
        # error trackers report locals
        del body
        raise ParamValidationError([fault])
    if isinstance(body, memoryview):
        # read-only memory over bytes is as good as bytes; anything else may change under the signature
        if body.readonly and body.c_contiguous and isinstance(body.obj, bytes):
            return body.cast("B")
        return bytes(body)
    if isinstance(body, bytearray):
        return bytes(body)
    return await in_reader(_read_file, body)


def body_digest(body: bytes | memoryview) -> str:
    """The body's SHA-256 in hexadecimal; above `HASH_INLINE_BYTES` this belongs off the loop."""
    return hashlib.sha256(body).hexdigest()


def _read_file(file: Any) -> bytes:
    if inspect.iscoroutinefunction(file.read):
        raise ParamValidationError([_ASYNCHRONOUS])
    # Objects that have seek() and not seekable() can seek, as boto3 takes it.
    seekable = getattr(file, "seekable", True)
    if not hasattr(file, "seek") or not (seekable() if callable(seekable) else seekable):
        raise ParamValidationError(["Body: the file is not seekable; read it and pass its bytes"])
    # nothing is read yet: the type shows whether it is a text file
    nothing = file.read(0)
    if inspect.isawaitable(nothing):
        if inspect.iscoroutine(nothing):
            nothing.close()
        raise ParamValidationError([_ASYNCHRONOUS])
    if isinstance(nothing, str):
        raise ParamValidationError(['Body: the file is open in text mode; open it with "rb"'])
    parts: list[bytes] = []
    try:
        # Some files return less than everything at once; only nothing is their end.
        while not parts or parts[-1]:
            parts.append(_next_bytes(file))
    except BaseException:
        # error trackers report locals
        parts.clear()
        raise
    return parts[0] if len(parts) <= 2 else b"".join(parts)


def _next_bytes(file: Any) -> bytes:
    data = file.read()
    if not isinstance(data, (bytes, bytearray, memoryview)):
        fault = f"Body: the file's read() returned {type(data)} in place of bytes"
        del data
        raise ParamValidationError([fault])
    return bytes(data)
