"""What codecs ask about the objects that are to be sent: what they are, what is in them, how big they are."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from math import isqrt
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeGuard

from aiosmrt.errors import SerializationError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

__all__ = [
    "OFF_LOOP_BYTES",
    "SupportsRead",
    "is_array",
    "is_file",
    "is_listable",
    "is_numpy_scalar",
    "kind_of",
    "listed",
    "weight",
]

OFF_LOOP_BYTES: Final = 256 * 1024
"""A body of more bytes is better read, and an object of more `weight` better serialized, outside of the event loop."""

# Objects that `weight` looks at, at most.
_MAX_LOOKED_AT: Final = 256
_MAX_SMALL: Final = 32
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
    weighed = _small(data)
    return _weight(data, _MAX_LOOKED_AT) if weighed is None else weighed


def _small(data: object) -> int | None:
    """The weight of what json is mostly used for, all of it looked at; None where that is more than a few objects.

    It is what most calls send, and takes a quarter of the time of `_weight` (benchmarks/endpoint.py).
    """
    total = 0
    left = _MAX_SMALL
    todo = [data]
    for item in todo:  # which grows on the way
        kind = type(item)
        if kind is float or item is None:
            total += _SCALAR_BYTES + 1
        elif kind is str:
            total += len(item) + 3  # type: ignore[arg-type]
        elif kind is dict or kind is list:
            length = len(item)  # type: ignore[arg-type]
            left -= length
            if left < 0:
                return None
            if kind is dict:
                total += 3 + _KEY_BYTES * length
                todo += item.values()  # type: ignore[attr-defined]
            else:
                total += 3
                todo += item  # type: ignore[arg-type]
        elif kind is int or kind is bool:
            total += item.bit_length() * 3 // 10 + 2  # type: ignore[attr-defined]
        else:
            return None
    return total - 1


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
        length, most = len(data), isqrt(share)
        if length <= most:
            return _sampled(length, data, length, share)
        return _sampled(length, [data[i * length // most] for i in range(most)], most, share)
    if isinstance(data, dict):
        # Entries are not: one of them holds the payload.
        length = len(data)
        values = data.values()
        return length * _KEY_BYTES + (
            _sampled(length, values, length, share)
            if length <= share
            else _sampled(length, islice(values, share), share, share)
        )
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
    total = 0
    for item in items:
        # what most data ends in, without a call
        total += 1 + (_SCALAR_BYTES if type(item) is float else _weight(item, each))
    return 2 + length * total // looked_at


class SupportsRead(Protocol):
    """An open file, or what can be read like one."""

    def read(self) -> str | bytes:
        """Everything that is left."""
        ...


def is_file(data: object) -> TypeGuard[SupportsRead]:
    """Whether an object can be read like a file."""
    return callable(getattr(data, "read", None))


def kind_of(value: object) -> str:
    """What an object is, for messages."""
    return type(value).__qualname__


def is_array(value: object) -> TypeGuard[NDArray[Any]]:
    """Whether an object is an array of NumPy's, which is not imported to find out."""
    # No object is an array before somebody has imported NumPy.
    if sys.modules.get("numpy") is None:
        return False
    import numpy

    return isinstance(value, numpy.ndarray)


def is_numpy_scalar(value: object) -> TypeGuard[numpy.generic[Any]]:
    """Whether an object is a number, text or a time of NumPy's, which is not imported to find out."""
    if sys.modules.get("numpy") is None:
        return False
    import numpy

    return isinstance(value, numpy.generic)


def listed(data: object, where: str, what: str) -> list[Any]:
    """The items of a sequence or another iterable in order, an array's along its first axis; not empty."""
    if not is_listable(data):
        raise SerializationError(f"{where} is a {kind_of(data)}, not an iterable of {what}")
    if not is_array(data):
        items = list(data)
    elif data.dtype.kind == "f" and data.itemsize < 8 and not hasattr(data, "mask"):
        # As Python's floats, these would have 17 digits, most of them noise.
        items = list(data)
    else:
        items = data.tolist()
    if not items:
        raise SerializationError(f"{where} has no {what}")
    return items


def is_listable(data: object) -> TypeGuard[Iterable[Any]]:
    """Whether an object has items in an order, as rows, fields and lines have one."""
    if is_array(data):
        return data.ndim > 0
    # Tables (pandas, polars, pyarrow) iterate over their columns or the names of these.
    return isinstance(data, Iterable) and not (
        isinstance(data, (str, bytes, bytearray, memoryview, Mapping, set, frozenset)) or hasattr(data, "columns")
    )
