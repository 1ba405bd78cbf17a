"""Questions that codecs ask about the objects to be sent: what they are, and what their items are."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from aiosmrt.errors import SerializationError
from aiosmrt.serializers.frames import iterates_over_columns

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

__all__ = [
    "SupportsRead",
    "as_items",
    "is_array",
    "is_file",
    "is_listable",
    "is_numpy_scalar",
    "type_name",
]


class SupportsRead(Protocol):
    """An open file, or an object that can be read like one."""

    def read(self) -> str | bytes:
        """Return everything that is left."""
        ...


def is_file(data: object) -> TypeGuard[SupportsRead]:
    """Return whether an object can be read like a file."""
    return callable(getattr(data, "read", None))


def type_name(value: object) -> str:
    """Return the name of an object's type, for messages."""
    return type(value).__qualname__


def is_array(value: object) -> TypeGuard[NDArray[Any]]:
    """Return whether an object is a NumPy array, without importing NumPy."""
    # Arrays exist only after NumPy is imported.
    if sys.modules.get("numpy") is None:
        return False
    import numpy

    return isinstance(value, numpy.ndarray)


def is_numpy_scalar(value: object) -> TypeGuard[numpy.generic[Any]]:
    """Return whether an object is a NumPy number, text or time, without importing NumPy."""
    if sys.modules.get("numpy") is None:
        return False
    import numpy

    return isinstance(value, numpy.generic)


def as_items(data: object, where: str, what: str) -> list[Any]:
    """Return the items of an ordered iterable as a list, those of an array along its first axis.

    Raises:
        SerializationError: the object is not an ordered iterable, or is empty.
    """
    if not is_listable(data):
        raise SerializationError(f"{where} must be an ordered iterable of {what}; got a {type_name(data)}")
    if not is_array(data):
        items = list(data)
    elif data.dtype.kind == "f" and data.itemsize < 8 and not hasattr(data, "mask"):
        # As Python floats, these would have 17 digits, most of them noise.
        items = list(data)
    else:
        items = data.tolist()
    if not items:
        raise SerializationError(f"{where} must have {what}; got an empty {type_name(data)}")
    return items


def is_listable(data: object) -> TypeGuard[Iterable[Any]]:
    """Return whether an object has ordered items, as rows, fields and lines are."""
    if isinstance(data, (list, tuple)):
        return True
    if is_array(data):
        return data.ndim > 0
    return isinstance(data, Iterable) and not (
        isinstance(data, (str, bytes, bytearray, memoryview, Mapping, set, frozenset)) or iterates_over_columns(data)
    )
