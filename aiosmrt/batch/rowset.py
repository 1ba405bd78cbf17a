"""A set of row numbers, one bit each."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256

__all__ = ["RowSet"]


class RowSet:
    """A set of row numbers that takes 125 KB per million rows.

    >>> rows = RowSet()
    >>> rows.add(9), rows.add(9), 9 in rows, 8 in rows, len(rows)
    (True, False, True, False, 1)
    """

    __slots__ = ("_bits", "_count")

    def __init__(self) -> None:
        self._bits = bytearray()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, row: int) -> bool:
        byte = row >> 3
        return byte < len(self._bits) and bool(self._bits[byte] >> (row & 7) & 1)

    def add(self, row: int) -> bool:
        """Add a row; returns whether it is new."""
        return self.update((row,)) == 1

    def update(self, rows: Collection[int]) -> int:
        """Add rows; returns how many of them are new.

        >>> rows = RowSet()
        >>> rows.update([9, 3, 20]), rows.update([3, 4]), len(rows)
        (3, 1, 4)
        """
        bits, new = self._bits, 0
        if (byte := max(rows, default=-1) >> 3) >= len(bits):
            # By an eighth more than needed, as lists grow.
            bits.extend(bytes(byte + 1 + (byte >> 3) - len(bits)))
        for row in rows:
            byte, bit = row >> 3, 1 << (row & 7)
            if not bits[byte] & bit:
                bits[byte] |= bit
                new += 1
        self._count += new
        return new

    def add_run(self, first: int, count: int) -> None:
        """Add consecutive rows, all of them behind those that are there.

        >>> rows = RowSet()
        >>> rows.add_run(3, 20), len(rows), 2 in rows, 3 in rows, 22 in rows, 23 in rows
        (None, 20, False, True, True, False)
        """
        end = first + count
        while first < end and first & 7:
            self.add(first)
            first += 1
        whole = (end - first) >> 3
        if whole > 0:
            byte = first >> 3
            self._bits.extend(bytes(max(byte + whole - len(self._bits), 0)))
            self._bits[byte : byte + whole] = b"\xff" * whole
            self._count += whole << 3
            first += whole << 3
        for row in range(first, end):
            self.add(row)

    def copy(self, before: int | None = None) -> RowSet:
        """Another set of the same rows.

        Args:
            before: the first row that is left out. If None, all are there.

        >>> rows = RowSet()
        >>> rows.add_run(3, 20)
        >>> some = rows.copy(before=12)
        >>> rows.discard(11), len(rows), len(some), 11 in some, 12 in some
        (None, 19, 9, True, False)
        """
        copied = RowSet()
        copied._bits, copied._count = self._bits.copy(), self._count
        if before is not None and before < len(copied._bits) << 3:
            del copied._bits[(before + 7) >> 3 :]
            if before & 7:
                copied._bits[-1] &= (1 << (before & 7)) - 1
            copied._count = int.from_bytes(copied._bits, "little").bit_count()
        return copied

    def digest(self) -> bytes:
        """A hash of what is in the set."""
        return sha256(self._bits.rstrip(b"\0")).digest()

    def discard(self, row: int) -> None:
        """Remove a row if it is there."""
        if row in self:
            self._bits[row >> 3] &= ~(1 << (row & 7))
            self._count -= 1
