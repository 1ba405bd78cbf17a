"""What codecs ask about the objects that are to be sent: what they are, what is in them, how big they are."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, time, timedelta
from enum import Enum
from itertools import islice
from math import isqrt
from numbers import Number
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeGuard
from uuid import UUID

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

# Data of up to so many objects is looked at in full, save for longer lists than that, and for longer ones of numbers.
_MAX_OBJECTS: Final = 2048
_MAX_LIST: Final = 512
_MAX_NUMBERS: Final = 64
# How many objects are looked at, about, in other data and longer lists.
_SHARE: Final = 512
# How many items of a list, and entries of a dictionary, stand for all of them.
_MAX_ITEMS: Final = 16
_MAX_ENTRIES: Final = 32

_SCALAR_BYTES: Final = 16  # a float in text
_ENTRY_BYTES: Final = 3  # what text has for an object beside its characters: a comma, and quotes or brackets
_KEY_BYTES: Final = 10  # a key in text where keys are not looked at, or are not text

_LISTS: Final = (list, tuple, range)
_CONTAINERS: Final = (dict, *_LISTS)
_NUMBERS: Final = frozenset({int, float, bool})
# What is small although json does not know it. NumPy's scalars say their size.
_SCALARS: Final = (Number, date, time, timedelta, UUID, Enum)


def weight(data: object) -> int:
    """Estimate how many bytes serializing an object would give, at a small cost that does not grow with the object.

    Text counts by its characters, arrays and tables by their memory, lists and dictionaries by what is in them.

    Promised is that nothing large is missed in data of up to 2,048 objects.  All of them are looked at, except in lists
    of more than 512 items, and of more than 64 whose first, middle and last are numbers.  Of such a list, and of every
    list in data of more objects, up to 16 items stand for all, the last always among them; of a dictionary up to 32
    entries.  That gives the order of magnitude where items are alike.  Not promised is anything where their sizes vary
    wildly: one large item amid thousands of small ones may be missed.

    What cannot be known counts as more than `OFF_LOOP_BYTES`: what would have to be consumed, such as a generator or a
    file, and objects of types that JSON does not have, such as dataclasses and sets, which a ``default`` function may
    turn into anything.  Known are bytes, arrays, tables and what else says its size (``nbytes``), numbers, dates,
    times, UUIDs and enumerations.

    Args:
        data: what is to be serialized, by whichever codec.

    Returns:
        bytes, to be compared with `OFF_LOOP_BYTES`.

    >>> weight({"inputs": "hello"})
    20
    >>> weight([[1.5] * 30] * 1000) > OFF_LOOP_BYTES
    True
    """
    weighed = _in_full(data)
    return _estimated(data, _SHARE) if weighed is None else weighed


def _in_full(data: object) -> int | None:
    """The weight of an object with all that is in it, long lists apart; None where that is too much to look at.

    Most calls send a few objects of json's own types. Telling them by their exact types takes a third of the time of
    `_estimated`.
    """
    total = 0
    left = _MAX_OBJECTS
    todo: list[Any] = [data]
    for item in todo:  # which grows on the way
        kind = type(item)
        if kind is float or item is None:
            total += _SCALAR_BYTES
        elif kind is str:
            total += len(item)
        elif kind is int or kind is bool:
            total += item.bit_length() // 3
        elif kind is dict or (kind is not list and isinstance(item, dict)):
            length = len(item)
            if length + len(todo) > left:
                return None
            try:
                for key in item:
                    total += len(key)
            except TypeError:
                total += length * _KEY_BYTES
            total += length * _ENTRY_BYTES
            todo += item.values()
        elif kind is list or isinstance(item, _LISTS):
            length = len(item)
            if length > _MAX_NUMBERS and (share := _share(item, length)):
                left -= share
                total += _estimated(item, share)
            else:
                todo += item
            if len(todo) > left:
                return None
        else:
            total += _other(item)
    return total + len(todo) * _ENTRY_BYTES


def _share(items: Sequence[object], length: int) -> int:
    """How many objects to look at in a list that is not short; 0 for all."""
    if type(items[0]) in _NUMBERS and type(items[length // 2]) in _NUMBERS and type(items[-1]) in _NUMBERS:
        return _MAX_NUMBERS
    return _SHARE if length > _MAX_LIST else 0


def _estimated(data: Any, share: int) -> int:
    """The weight of a dictionary or list, in which about ``share`` objects are looked at."""
    length = len(data)
    items: Collection[object]
    if isinstance(data, dict):
        # Entries are not alike: one of them holds the payload.
        most = min(_MAX_ENTRIES, share)
        items = dict.values(data)
        if most < length:
            items = [*islice(items, most - 1), next(reversed(dict.values(data)))] if most else ()
        total = length * _KEY_BYTES
    else:
        # Items are, as a rule, so it is better to look into a few than at many.
        most = min(_MAX_ITEMS, isqrt(share))
        items = data if length <= most else [data[(n + 1) * length // most - 1] for n in range(most)]
        total = 0
    if not items:
        return total + length * (_ENTRY_BYTES + _SCALAR_BYTES)
    weighed = len(items) * _ENTRY_BYTES
    inner: list[object] = []
    for item in items:
        if type(item) is float:
            weighed += _SCALAR_BYTES
        elif isinstance(item, _CONTAINERS):
            inner.append(item)
        else:
            weighed += _other(item)
    each = share // (len(inner) + 1)  # at most half of it, so that the depth is bounded too
    weighed += sum(_estimated(item, each) for item in inner)
    return total + weighed * length // len(items)


def _other(data: object) -> int:
    """The weight of an object that has no items to be looked at."""
    if isinstance(data, (str, bytes, bytearray)):
        return len(data)
    if data is None or isinstance(data, float):
        return _SCALAR_BYTES
    if isinstance(data, int):
        return data.bit_length() // 3
    # An array of Python objects knows the size of its references only.
    size = getattr(data, "nbytes", None)
    if isinstance(size, int) and not getattr(getattr(data, "dtype", None), "hasobject", False):
        # An array may become text.
        count = getattr(data, "size", 1)
        return max(size, count * _SCALAR_BYTES if isinstance(count, int) else _SCALAR_BYTES)
    return _SCALAR_BYTES if isinstance(data, _SCALARS) else OFF_LOOP_BYTES + 1


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
