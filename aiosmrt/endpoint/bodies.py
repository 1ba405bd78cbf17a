"""Work that must not block the event loop: large request bodies are made in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from aiosmrt.errors import AiosmrtError
from aiosmrt.serializers import OFF_LOOP_BYTES, Serializer, estimated_size

__all__ = ["in_thread", "name_call", "serialized"]

In = TypeVar("In")
R = TypeVar("R")


async def serialized(serializer: Serializer[In], data: In, operation: str, endpoint_name: str) -> bytes:
    """Return the request body for some data.

    Args:
        serializer: makes the body; in a thread if the data is large, or if it is the caller's own, which may take
            any time.
        data: what the serializer takes.
        operation: the operation that an error reports.
        endpoint_name: the endpoint that an error reports.

    Raises:
        SerializationError: the serializer cannot express the data.
    """
    try:
        if not _is_own(serializer) or estimated_size(data) > OFF_LOOP_BYTES:
            return await in_thread(serializer.serialize, data)
        return serializer.serialize(data)
    except AiosmrtError as error:
        error.note_call(operation, endpoint_name)
        raise


def name_call(error: BaseException, operation: str, endpoint_name: str) -> None:
    """Attach operation and endpoint to an error that does not have them yet."""
    if isinstance(error, AiosmrtError) and error.operation is None:
        error.note_call(operation, endpoint_name)


def _is_own(serializer: object) -> bool:
    return type(serializer).__module__.startswith("aiosmrt.serializers.")


async def in_thread(function: Callable[..., R], *arguments: object) -> R:
    """Call a function in a thread and return its result."""

    def run() -> R:
        try:
            return function(*arguments)
        except StopIteration as stop:
            # A future cannot carry it: on Python 3.11 its waiter would never wake up.
            raise RuntimeError(f"{function} raised StopIteration") from stop

    return await asyncio.to_thread(run)
