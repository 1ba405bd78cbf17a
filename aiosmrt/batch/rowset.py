"""A set of row numbers, one bit each."""

from __future__ import annotations

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
        byte = row >> 3
        if byte >= len(self._bits):
            # By an eighth more than needed, as lists grow.
            self._bits.extend(bytes(byte + 1 + (byte >> 3) - len(self._bits)))
        bit = 1 << (row & 7)
        if self._bits[byte] & bit:
            return False
        self._bits[byte] |= bit
        self._count += 1
        return True

    def discard(self, row: int) -> None:
        """Remove a row if it is there."""
        if row in self:
            self._bits[row >> 3] &= ~(1 << (row & 7))
            self._count -= 1
