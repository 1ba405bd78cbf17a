"""The AWS CLI's output format ``table``."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["format_table"]

# Two spaces on each side of a cell.
_PADDING = 4


def format_table(title: str, data: Any) -> str:
    """Format JSON-like data as a table, as the AWS CLI does on a narrow terminal: a single record is vertical.

    Args:
        title: the title of the table.
        data: the data. Nested data gets its own section, with its key as the title.

    >>> print(format_table("InvokeEndpoint", {"ContentType": "text/csv", "TargetVariant": "AllTraffic"}), end="")
    ---------------------------------
    |        InvokeEndpoint         |
    +----------------+--------------+
    |  ContentType   |  text/csv    |
    |  TargetVariant |  AllTraffic  |
    +----------------+--------------+
    """
    builder = _Builder()
    builder.add(title, data, 0)
    if not builder.sections:
        return ""
    for section in builder.sections:
        section.make_vertical()
    total = max(section.width() for section in builder.sections)
    lines = ["-" * total]
    for section in builder.sections:
        border = "|" * section.indent
        lines += (f"{border}{line}{border}" for line in section.lines(total - 2 * section.indent))
    return "".join(f"{line}\n" for line in lines)


@dataclass(slots=True)
class _Section:
    """A part of a table with its own columns.

    Args:
        title: the title.
        indent: how deeply its data is nested.
        header: the titles of the columns.
        rows: the cells.
    """

    title: str
    indent: int
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        self.rows.append([str(cell) for cell in cells])

    def make_vertical(self) -> None:
        if self.header and len(self.rows) == 1:
            self.rows = [list(cells) for cells in zip(self.header, self.rows[0], strict=False)]
            self.header = []

    def _column_widths(self) -> list[int]:
        widths: list[int] = []
        for row in (self.header, *self.rows):
            widths += [0] * (len(row) - len(widths))
            for column, cell in enumerate(row):
                widths[column] = max(widths[column], _text_width(cell))
        return [width + _PADDING for width in widths]

    def width(self) -> int:
        return 2 + 2 * self.indent + max(_text_width(self.title), sum(self._column_widths()))

    def _scaled_widths(self, total: int) -> list[int]:
        """Widen the columns in proportion to fill the table, and settle the rest from rounding column by column."""
        widths = self._column_widths()
        scale = total / (sum(widths) or 1)
        scaled = [round(scale * width) for width in widths]
        excess = sum(scaled) - total
        while scaled and excess:
            step = 1 if excess > 0 else -1
            for column in range(len(scaled))[::step][: abs(excess)]:
                scaled[column] -= step
                excess -= step
        return scaled

    def lines(self, total: int) -> Iterator[str]:
        widths = self._scaled_widths(total)
        rule = "+" + "".join("-" * (width - 1 - (column == 0)) + "+" for column, width in enumerate(widths))
        if self.title:
            yield _centered(self.title, total, "|")
            if not self.header and not self.rows:
                yield f"+{'-' * (total - 2)}+"
        if self.header:
            yield rule
            yield "".join(
                _centered(cell, width, "" if column else "|")
                for column, (cell, width) in enumerate(zip(_padded(self.header, widths), widths, strict=True))
            )
        if self.rows and widths:
            yield rule
            for row in self.rows:
                yield "".join(
                    _left_aligned(cell, width, "" if column else "|")
                    for column, (cell, width) in enumerate(zip(_padded(row, widths), widths, strict=True))
                )
            yield rule


def _padded(cells: list[str], widths: list[int]) -> list[str]:
    return cells + [""] * (len(widths) - len(cells))


def _text_width(text: str) -> int:
    """Count columns of a terminal; as in the AWS CLI, ambiguous characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WFA" else 1 for character in text)


def _centered(text: str, width: int, left: str) -> str:
    text_width = _text_width(text)
    before = max(width // 2 - text_width // 2 - 1, 0)
    after = width - 1 - len(left) - (width // 2 - text_width // 2 - 1) - text_width
    return f"{left}{' ' * before}{text}{' ' * after}|"


def _left_aligned(text: str, width: int, left: str) -> str:
    text_width = _text_width(text)
    padding = 2 if width >= text_width + 2 + len(left) + 1 else 0
    return f"{left}{' ' * padding}{text}{' ' * (width - len(left) - padding - text_width - 1)}|"


class _Builder:
    """Splits JSON-like data into sections, and omits empty data."""

    def __init__(self) -> None:
        self.sections: list[_Section] = []

    def add(self, title: str | None, data: Any, indent: int) -> None:
        """Add data.

        Args:
            title: the title of a new section. If None, the data is added to the last section.
            data: the data.
            indent: how deeply the data is nested.
        """
        if not data:
            return
        if title is not None:
            self.sections.append(_Section(title, indent))
        if isinstance(data, dict):
            keys = sorted(key for key in data if _is_scalar(data[key]))
            if len(keys) == 1:
                self.sections[-1].add(keys[0], data[keys[0]])
            elif keys:
                self.sections[-1].header = keys
                self.sections[-1].add(*(data[key] for key in keys))
            for key in sorted(data.keys() - set(keys)):
                self.add(key, data[key], indent + 1)
        elif isinstance(data, list) and all(isinstance(item, dict) for item in data):
            self._add_dictionaries(title, data, indent)
        elif isinstance(data, list):
            for item in data:
                if _is_scalar(item):
                    self.sections[-1].add(item)
                elif isinstance(item, list) and all(map(_is_scalar, item)):
                    self.sections[-1].add(*item)
                else:
                    self.add(None, item, 0)

    def _add_dictionaries(self, title: str | None, data: list[dict[str, Any]], indent: int) -> None:
        keys = sorted({key for item in data for key in item if _is_scalar(item[key])})
        nested = sorted({key for item in data for key in item if not _is_scalar(item[key])})
        for number, item in enumerate(data):
            if number and nested:
                self.sections.append(_Section(title or "", indent))
            self.sections[-1].header = keys
            self.sections[-1].add(*(item.get(key, "") for key in keys))
            for key in nested:
                if key in item:
                    self.add(key, item[key], indent + 1)


def _is_scalar(value: object) -> bool:
    return not isinstance(value, (dict, list))
