"""From an answer to a record of the output."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

from aiosmrt.batch.answers import JSONText
from aiosmrt.batch.filters import Selection
from aiosmrt.batch.requests import Row, csv_line
from aiosmrt.batch.tables import plain_object
from aiosmrt.errors import AiosmrtError, SerializationError, ServiceError

__all__ = ["OutputFormat", "Sink", "failure_record", "openai_failure"]

OutputFormat: TypeAlias = Literal["jsonl", "csv", "text", "parquet", "openai-batch"]

# How JSON Lines and CSV have a value that is not a number in JSON.
_NOT_FINITE: Final = {math.inf: "Infinity", -math.inf: "-Infinity"}

# A line of text is one answer.
_ESCAPED: Final = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})


_STRICT: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=plain_object)
_WITH_NAN: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=plain_object)
_LENIENT: Final = json.JSONEncoder(separators=(",", ":"), default=plain_object)


def _encoded(value: Any) -> bytes:
    """A value as a line of JSON.

    Raises:
        SerializationError: JSON does not have it.
    """
    try:
        return _STRICT.encode(value).encode()
    except UnicodeEncodeError:  # lone surrogates, which JSON can escape
        return _LENIENT.encode(value).encode()
    except ValueError:
        # NaN and the infinities, which are not JSON
        return _LENIENT.encode(_finite(json.loads(_LENIENT.encode(value)))).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return _NOT_FINITE.get(value, "NaN")
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return value


class Sink:
    """Makes records.

    Args:
        output_format: what they are.
        columns: the columns of the input, which CSV repeats with ``join``.
        has_ids: whether rows have ids.
        join: whether records repeat their rows.
        keep: selects what is written of the value, or of the row with its prediction. If None, all of it.
    """

    def __init__(
        self,
        output_format: OutputFormat,
        *,
        columns: Sequence[str] | None,
        has_ids: bool,
        join: bool,
        keep: Selection | None = None,
    ) -> None:
        self._format = output_format
        self._has_ids = has_ids
        self._join = join
        self._keep = keep
        names: list[str] = []
        if output_format == "csv":
            names = (
                list(dict.fromkeys([*(columns or ()), "prediction"]))
                if join
                else ["index", *(["id"] if has_ids else []), "value"]
            )
            if join and keep is not None:
                names = _fields(keep.of_fields({name: name for name in names}))
        self.preamble: bytes = f"{csv_line(names)}\n".encode() if names else b""

    @property
    def repeats_json(self) -> bool:
        """Whether a record has the answer as it is, which may be a `JSONText` then."""
        return self._format == "jsonl" and not self._join and self._keep is None

    def columns(self, names: Sequence[str]) -> list[str]:
        """What the columns of Parquet begin with.

        Args:
            names: the columns of the input, where they are known.
        """
        if self._join:
            return [*names, "prediction"] if names and self._keep is None else []
        return ["index", *(["id"] if self._has_ids else []), "value"]

    def record(self, row: Row, value: Any, request_id: str | None = None) -> bytes:
        """The record of a scored row, with its line end.

        Args:
            row: the row.
            value: the answer.
            request_id: the service's id of the call, which openai-batch has.

        Raises:
            SerializationError: the format does not have such a value.
        """
        keep = self._keep
        try:
            if keep is not None and not self._join:
                value = keep(value)
            if self._format == "jsonl":
                if self._join:
                    joined = {**row.record, "prediction": value}
                    return _encoded(joined if keep is None else keep(joined)) + b"\n"
                data = value.data if type(value) is JSONText else _encoded(value)
                if self._has_ids:
                    return b'{"index":%d,"id":%b,"value":%b}\n' % (row.number, _encoded(row.id), data)
                return b'{"index":%d,"value":%b}\n' % (row.number, data)
            if self._format == "parquet":
                # Lines that become columns in the end, NaN among their numbers.
                if self._join:
                    joined = {**row.record, "prediction": value}
                    kept = joined if keep is None else keep(joined)
                    return _with_nan(kept if isinstance(kept, dict) else {"value": kept})
                head = {"index": row.number, "id": row.id} if self._has_ids else {"index": row.number}
                return _with_nan({**head, "value": value})
            if self._format == "openai-batch":
                return _encoded(openai_line(row, value, request_id)) + b"\n"
            if self._format == "csv":
                text = _cell(value)
                if self._join:
                    joined = {**row.record, "prediction": text}
                    fields = _fields(joined if keep is None else keep.of_fields(joined))
                else:
                    fields = [row.number, *([_cell(row.id)] if self._has_ids else []), text]
                return f"{csv_line(fields)}\n".encode(errors="backslashreplace")
            return f"{_cell(value).translate(_ESCAPED)}\n".encode(errors="backslashreplace")
        except SerializationError:
            raise
        except Exception:
            # Objects that are not ours, and the JSON of them, raise what they like; it may quote the answer.
            kind = type(value).__qualname__
        raise SerializationError(f"the answer, of type {kind}, cannot be written as {self._format}")


def _with_nan(value: Any) -> bytes:
    return _WITH_NAN.encode(value).encode(errors="backslashreplace") + b"\n"


def openai_line(row: Row, body: Any, request_id: str | None) -> dict[str, Any]:
    """The line of a scored row, as in the output of OpenAI's Batch API
    (https://platform.openai.com/docs/api-reference/batch/request-output).
    """
    response = {"status_code": 200, "request_id": request_id or "", "body": body}
    return {"id": _line_id(row), "custom_id": row.id, "response": response, "error": None}


def _line_id(row: Row) -> str:
    return f"batch_req_{row.number}"


def openai_failure(row: Row, error: Exception) -> bytes:
    """The line of a failed row, as in the error file of OpenAI's Batch API; it holds no payload."""
    response = None
    if isinstance(error, ServiceError) and (status := getattr(error, "status", None)) is not None:
        response = {"status_code": status, "request_id": error.request_id or "", "body": None}
    code = error.code if isinstance(error, ServiceError) else type(error).__name__
    message = str(error) if isinstance(error, AiosmrtError) else ""
    facts = {"id": _line_id(row), "custom_id": row.id, "response": response}
    return _failure({**facts, "error": {"code": code, "message": message}}, "custom_id")


def _failure(facts: dict[str, Any], id_member: str) -> bytes:
    """The line of a failure: one whose id cannot be written has none, for a row must be able to fail."""
    try:
        return _encoded(facts) + b"\n"
    except (TypeError, ValueError, RecursionError):
        return _encoded({**facts, id_member: None}) + b"\n"


def _fields(selected: Any) -> list[Any]:
    """What was selected of a row, as fields."""
    if isinstance(selected, dict):
        return list(selected.values())
    return selected if isinstance(selected, list) else [selected]


def failure_record(row: Row, error: Exception, attempts: int, waited: float) -> bytes:
    """The line of a failed row in the errors file, which holds no payload.

    Args:
        row: the row.
        error: why it failed.
        attempts: how many requests were sent.
        waited: seconds for which the call waited.
    """
    # What others raise may quote what it was raised for.
    message = str(error) if isinstance(error, AiosmrtError) else ""
    facts: dict[str, Any] = {"index": row.number}
    if row.id is not None:
        facts["id"] = row.id
    facts |= {
        "error": type(error).__name__,
        "code": error.code if isinstance(error, ServiceError) else None,
        "message": message,
        "attempts": attempts,
        "request_id": error.request_id if isinstance(error, AiosmrtError) else None,
        "waited": round(waited, 3),
    }
    return _failure(facts, "id")


def _cell(value: Any) -> str:
    """A value as text: itself, or its JSON; what is not a number as programs that read CSV know it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return _NOT_FINITE.get(value, "NaN")
    if value is None:
        return ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = plain_object(value)
        return value if isinstance(value, str) else _encoded(value).decode()
    return _encoded(value).decode()
