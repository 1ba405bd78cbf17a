"""Estimates of how large a serialized object would be."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import date, time, timedelta
from enum import Enum
from itertools import islice
from math import isqrt
from numbers import Number
from typing import Any, Final
from uuid import UUID

__all__ = ["OFF_LOOP_BYTES", "estimated_size"]

OFF_LOOP_BYTES: Final = 256 * 1024
"""Larger bodies, and objects with a larger `estimated_size`, are better handled outside the event loop."""

# Data of up to _MAX_OBJECTS objects is looked at in full, except for long lists, and for lists of many numbers.
_MAX_OBJECTS: Final = 2048
_MAX_LIST: Final = 512
_MAX_NUMBERS: Final = 64
# About how many objects are looked at in larger data and in longer lists.
_SHARE: Final = 512
# How many items of a list, and how many entries of a dictionary, stand for all.
_MAX_ITEMS: Final = 16
_MAX_ENTRIES: Final = 32

_SCALAR_BYTES: Final = 16  # a float in text
_ENTRY_BYTES: Final = 3  # the comma, and the quotes or brackets, that an object adds to text
_KEY_BYTES: Final = 10  # a key that is not looked at, or is not text

_LISTS: Final = (list, tuple, range)
_CONTAINERS: Final = (dict, *_LISTS)
_NUMBERS: Final = frozenset({int, float, bool})
# Small objects that json does not know. NumPy's scalars have a size.
_SCALARS: Final = (Number, date, time, timedelta, UUID, Enum)


def estimated_size(data: object) -> int:
    """Estimate the size of an object's serialized form, at a small cost that does not grow with the object.

    Text counts by its characters, arrays and tables by their memory, lists and dictionaries by their items.

    In data of up to 2,048 objects nothing large is missed. All objects are looked at, except in lists of more than 512
    items, and in lists of more than 64 whose first, middle and last are numbers. In such a list, and in every list of
    larger data, up to 16 items stand for all, the last one among them; in a dictionary, up to 32 entries. That gives
    the order of magnitude if items are alike. If sizes vary wildly, one large item among thousands may be missed.

    An unknown size counts as more than `OFF_LOOP_BYTES`. That applies to objects that would have to be consumed, such
    as generators and files, and to types that JSON lacks, such as dataclasses and sets, for which a ``default``
    function may return anything. The sizes of bytes, arrays, tables and other objects with ``nbytes`` are known, and
    so are those of numbers, dates, times, UUIDs and enumerations.

    Args:
        data: the object to be serialized, by any codec.

    Returns:
        The size in bytes, to compare with `OFF_LOOP_BYTES`.

    >>> estimated_size({"inputs": "hello"})
    20
    >>> estimated_size([[1.5] * 30] * 1000) > OFF_LOOP_BYTES
    True
    """
    size = _in_full(data)
    return _estimated(data, _SHARE) if size is None else size


def _in_full(data: object) -> int | None:
    """Return the size of an object with all its items, long lists apart; None if there are too many to look at.

    Most calls send a few objects of json's own types. Checking for those exact types takes a third of the time of
    `_estimated`.
    """
    total = 0
    left = _MAX_OBJECTS
    todo: list[Any] = [data]
    for item in todo:  # grows in the loop
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
    """Return how many objects to look at in a list that is not short; 0 means all."""
    if type(items[0]) in _NUMBERS and type(items[length // 2]) in _NUMBERS and type(items[-1]) in _NUMBERS:
        return _MAX_NUMBERS
    return _SHARE if length > _MAX_LIST else 0


def _estimated(data: Any, share: int) -> int:
    """Return the size of a dictionary or list, looking at about ``share`` objects."""
    length = len(data)
    items: Collection[object]
    if isinstance(data, dict):
        # Entries differ: one of them holds the payload.
        most = min(_MAX_ENTRIES, share)
        items = dict.values(data)
        if most < length:
            items = [*islice(items, most - 1), next(reversed(dict.values(data)))] if most else ()
        total = length * _KEY_BYTES
    else:
        # Items are usually alike, so it is better to look into a few than at many.
        most = min(_MAX_ITEMS, isqrt(share))
        items = data if length <= most else [data[(n + 1) * length // most - 1] for n in range(most)]
        total = 0
    if not items:
        return total + length * (_ENTRY_BYTES + _SCALAR_BYTES)
    looked_at = len(items) * _ENTRY_BYTES
    inner: list[object] = []
    for item in items:
        if type(item) is float:
            looked_at += _SCALAR_BYTES
        elif isinstance(item, _CONTAINERS):
            inner.append(item)
        else:
            looked_at += _other(item)
    each = share // (len(inner) + 1)  # at most half, so that the depth is bounded too
    looked_at += sum(_estimated(item, each) for item in inner)
    return total + looked_at * length // len(items)


def _other(data: object) -> int:
    """Return the size of an object without items to look at."""
    if isinstance(data, (str, bytes, bytearray)):
        return len(data)
    if data is None or isinstance(data, float):
        return _SCALAR_BYTES
    if isinstance(data, int):
        return data.bit_length() // 3
    # An array of Python objects knows only the size of its references.
    size = getattr(data, "nbytes", None)
    if isinstance(size, int) and not getattr(getattr(data, "dtype", None), "hasobject", False):
        # An array may become text.
        count = getattr(data, "size", 1)
        return max(size, count * _SCALAR_BYTES if isinstance(count, int) else _SCALAR_BYTES)
    return _SCALAR_BYTES if isinstance(data, _SCALARS) else OFF_LOOP_BYTES + 1
