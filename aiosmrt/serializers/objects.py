"""Questions that codecs ask about the objects to be sent: what they are, and what their items are."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from aiosmrt._extras import installed
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
        SerializationError: the object is not an ordered iterable, or is empty, or an array that NumPy does not read.
    """
    if not is_listable(data):
        raise SerializationError(f"{where} must be an ordered iterable of {what}; got a {type_name(data)}")
    items = _array_items(data) if is_array(data) else list(data)
    if items and hasattr(type(data), "__array__") and _is_array_of_others(items[0]):
        items = _array_items(_converted(data, where))
    if not items:
        raise SerializationError(f"{where} must have {what}; got an empty {type_name(data)}")
    return items


def _array_items(array: NDArray[Any]) -> list[Any]:
    """Return the items of an array as Python objects, where these have its values and its texts."""
    # As Python floats, short ones would have 17 digits, most of them noise. Times of nanoseconds would be integers.
    as_is = (array.dtype.kind == "f" and array.itemsize < 8) or array.dtype.kind in "mM"
    return list(array) if as_is and not hasattr(array, "mask") else array.tolist()


def _is_array_of_others(item: object) -> bool:
    """Return whether an item is an array of another library, which has no plain items, such as a tensor."""
    return hasattr(item, "__array__") and hasattr(item, "ndim") and not (is_array(item) or is_numpy_scalar(item))


def _converted(data: object, where: str) -> NDArray[Any]:
    """Return an array of another library as one of NumPy."""
    numpy = installed("numpy", "numpy")
    try:
        array: NDArray[Any] = numpy.asarray(data)
        return array
    except Exception:  # each library has its own, such as PyTorch's for a tensor that requires a gradient
        fault = f"{where} cannot be converted to an array of NumPy; got a {type_name(data)}"
    raise SerializationError(fault)


def is_listable(data: object) -> TypeGuard[Iterable[Any]]:
    """Return whether an object has ordered items, as rows, fields and lines are."""
    if isinstance(data, (list, tuple)):
        return True
    if getattr(data, "ndim", None) == 0:  # an array or a tensor without axes
        return False
    return isinstance(data, Iterable) and not (
        isinstance(data, (str, bytes, bytearray, memoryview, Mapping, set, frozenset)) or iterates_over_columns(data)
    )
