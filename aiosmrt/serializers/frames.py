"""Tables of rows and columns: DataFrames of pandas and polars, and tables and record batches of pyarrow.

These libraries are not imported to recognize an object: frames exist only after their library is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final, TypeVar

from aiosmrt.config import is_whole, shown
from aiosmrt.errors import ParamValidationError, SerializationError

__all__ = [
    "batches",
    "frame_columns",
    "frame_records",
    "is_frame",
    "is_pandas_frame",
    "iterates_over_columns",
]

Frame = TypeVar("Frame")

# The types by their modules.
_FRAMES: Final = {"pandas": ("DataFrame",), "polars": ("DataFrame",), "pyarrow": ("Table", "RecordBatch")}


def is_frame(value: object) -> bool:
    """Return whether an object is a DataFrame of pandas or polars, or a table or record batch of pyarrow."""
    return _library(value) is not None


def is_pandas_frame(value: object) -> bool:
    """Return whether an object is a DataFrame of pandas."""
    return _library(value) == "pandas"


def _library(value: object) -> str | None:
    for library, names in _FRAMES.items():
        module = sys.modules.get(library)
        if module is not None and any(isinstance(value, getattr(module, name, ())) for name in names):
            return library
    return None


def iterates_over_columns(value: object) -> bool:
    """Return whether an object is a table whose iteration gives columns, or their names, in place of rows."""
    columns = getattr(type(value), "columns", None)
    # A method of that name, as SQLAlchemy's results have, is not a table's list of columns.
    return (
        is_frame(value)
        or (columns is not None and not callable(columns))
        or "columns" in getattr(value, "__dict__", {})
    )


def frame_columns(frame: Any) -> list[list[Any]]:
    """Return the columns of a frame of polars or pyarrow as lists of Python objects.

    Floats of 32 and 16 bits become text: as Python floats they would have 17 digits, most of them noise.

    Raises:
        SerializationError: Python cannot express a value, such as a date after the year 9999.
    """
    if _library(frame) == "polars":
        import polars  # type: ignore[import-not-found, unused-ignore]

        columns = [
            column.cast(polars.String) if column.dtype == polars.Float32 else column for column in frame.get_columns()
        ]
    else:
        import pyarrow  # type: ignore[import-untyped, unused-ignore]

        short = (pyarrow.float32(), pyarrow.float16())
        columns = [
            column.cast(pyarrow.float32()).cast(pyarrow.string()) if column.type in short else column
            for column in frame.columns
        ]
    return _lists(columns)


def _lists(columns: list[Any]) -> list[list[Any]]:
    """Return columns of polars or pyarrow as lists of Python objects."""
    lists = []
    for number, column in enumerate(columns):
        try:
            lists.append(column.to_list() if hasattr(column, "to_list") else column.to_pylist())
        except BaseException as error:
            # Dates out of Python's range, text that is not UTF-8, unknown time zones. A panic of polars, such as for a
            # time out of range, is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            fault = f"column {number} of data has a value that Python cannot express"
        else:
            continue
        # Without the error as its context, which quotes values.
        raise SerializationError(fault)
    return lists


def frame_records(frame: Any) -> list[dict[Any, Any]]:
    """Return the rows of a frame as dictionaries; a missing value is None.

    Raises:
        SerializationError: two columns have the same name, even if only as text, or Python cannot express a value.
    """
    library = _library(frame)
    names = list(frame.schema.names if library == "pyarrow" else frame.columns)
    if len(set(map(str, names))) < len(names):
        raise SerializationError("data has two columns of the same name")
    if library == "pandas":
        return _pandas_records(frame)
    columns = _lists(list(frame.columns) if library == "pyarrow" else frame.get_columns())
    if not columns:
        return [{} for _ in range(len(frame))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _pandas_records(frame: Any) -> list[dict[Any, Any]]:
    try:
        # NaN stands for a missing value there.
        records: list[dict[Any, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
        return records
    except Exception:  # of pyarrow, whose types a column may have
        fault = "data has a value that Python cannot express"
    raise SerializationError(fault)


def batches(frame: Frame, rows: int) -> Iterator[Frame]:
    """Iterate over a table in slices of rows, without copying it; for `Endpoint.map`.

    Args:
        frame: a DataFrame of pandas or polars, or a table or record batch of pyarrow.
        rows: rows in each slice; the last one may have fewer.

    Raises:
        ParamValidationError: ``frame`` is not one of these, or ``rows`` is not an integer >= 1.

    >>> import pyarrow
    >>> [part.to_pydict() for part in batches(pyarrow.table({"age": [29, 31, 37]}), 2)]
    [{'age': [29, 31]}, {'age': [37]}]
    """
    faults = []
    if not is_frame(frame):
        faults.append(
            f"frame must be a DataFrame of pandas or polars, or a Table or RecordBatch of pyarrow; got {type(frame)}"
        )
    if not is_whole(rows, 1):
        faults.append(f"rows must be an integer >= 1; got {shown(rows)}")
    if faults:
        raise ParamValidationError(faults)
    return _slices(frame, rows)


def _slices(frame: Any, rows: int) -> Iterator[Any]:
    is_pandas = is_pandas_frame(frame)
    for start in range(0, len(frame), rows):
        yield frame.iloc[start : start + rows] if is_pandas else frame.slice(start, rows)
