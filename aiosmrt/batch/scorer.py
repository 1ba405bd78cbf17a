"""`Scorer`: record batches in, record batches out, in whichever process of whichever engine.

::

    batch ─► bodies ─► Endpoint.map on the process's service ─► answers ─► batch with columns added
    (caller's thread)   (a client, on an event loop in a thread)          (caller's thread)

A scorer is plain settings, so it can be pickled. Its client is made where it is called: scorers of one process with the
same settings share a service, and with it its connections and its limit. A service ends when its scorers have been gone
for a while, or with the process; nobody has to close it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import copy
import json
import os
import pickle
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast, get_args

from aiosmrt._core.outcome import concerns_every_call
from aiosmrt._frames import clear_locals
from aiosmrt._policy.adaptive import AdaptiveLimit
from aiosmrt.batch.answers import ANY_ANSWER, codec_for
from aiosmrt.batch.requests import (
    GROUP_BYTES,
    BadRowError,
    Groups,
    Prepared,
    RequestMaker,
    Row,
    template_columns,
)
from aiosmrt.client import Client
from aiosmrt.config import UNSET, Unset, is_whole, shown
from aiosmrt.endpoint import CallOptions, Endpoint, Results
from aiosmrt.errors import (
    AiosmrtError,
    ClientStateError,
    DeserializationError,
    ParamValidationError,
    SerializationError,
    ServiceError,
)
from aiosmrt.serializers import BytesCodec, Serializer, TextCodec
from aiosmrt.serializers.frames import frame_records, is_frame, is_pandas_frame
from aiosmrt.serializers.objects import type_name

__all__ = ["OnError", "OutputType", "Scorer", "arrow_type"]

T = TypeVar("T")
Batch = TypeVar("Batch")

OutputType: TypeAlias = Literal["string", "binary", "bool", "int64", "float64", "list<float64>"]
OnError: TypeAlias = Literal["raise", "columns"]

# Its type name in pandas; float64 has NaN for a missing value.
_PANDAS_TYPES: Final[dict[OutputType, str]] = {
    "string": "string",
    "binary": "object",
    "bool": "boolean",
    "int64": "Int64",
    "float64": "float64",
    "list<float64>": "object",
}

# What a failed row has in place of an answer.
_ERROR_COLUMNS: Final = ("error", "error_code", "error_message")

# The client's arguments that a worker can be sent. Secrets stay where they are, and objects belong to one process.
_PLAIN_OPTIONS: Final = frozenset(
    {
        "region_name",
        "endpoint_url",
        "profile_name",
        "verify",
        "connect_timeout",
        "read_timeout",
        "deadline",
        "wait_for_capacity",
        "max_response_bytes",
        "retry",
        "sign",
        "user_agent_extra",
        "use_fips_endpoint",
        "use_dualstack_endpoint",
        "transport",
    }
)
_SECRET_OPTIONS: Final = frozenset({"aws_access_key_id", "aws_secret_access_key", "aws_session_token", "credentials"})

# An engine drops its scorer between two tasks, and the next task's should find the connections again.
_LINGER_SECONDS: Final = 30.0

# How long a process waits for its services when it ends.
_EXIT_SECONDS: Final = 2.0


class Scorer:
    """Scores batches of records with an endpoint, a call for each record or for several::

        scorer = Scorer("churn", template=["{age}", "{calls}"], content_type="text/csv", output_type="float64")
        scored = scorer({"age": [41, 28], "calls": [3, 1]})

    Calling it blocks until the batch is scored. It may be called from any thread, pickled, and dropped without closing
    it: the client is made at the first call in a process and shared by that process's scorers with the same settings.
    Each process finds its own credentials, as `aiosmrt.Client` does. Calls wait out throttling and outages as in
    `aiosmrt.Endpoint.map`.

    Args:
        endpoint_name: the endpoint.
        column: the column whose value is the body. If None, the template or all columns.
        template: a JSON value whose texts name columns, such as ``{"inputs": "{question}"}``; braces that are written
            twice stand for themselves. If None, the column or all columns.
        content_type: the bodies' content type, by which they are made; without a column or a template, JSON is an
            object of all columns and CSV their values. Defaults to ``"application/json"``.
        accept: the answers' content type, if the endpoint has a choice. Answers are read by the type they have.
        rows_per_request: the most rows of a call, all of one batch, and up to 6 MiB. If None, as many as these are.
            By default, the row is the body, and the answer is its value; otherwise the answer must have a value for
            each row, see `aiosmrt.endpoint.split_answer`, and what fails by a row's fault is halved until the bad row
            is known, as in `aiosmrt.Endpoint.map` with ``batch_size``.
        output_column: the name of the added column. Defaults to ``"prediction"``.
        output_type: the type of the added column: ``"string"`` (text as it is, anything else as JSON), ``"binary"``
            (bytes and text), ``"bool"``, ``"int64"``, ``"float64"`` or ``"list<float64>"``. A list of one item stands
            for its item where one value is expected. An answer that does not fit fails its row.
        on_error: ``"raise"`` raises the first failure of a batch. ``"columns"`` leaves the answer of a failed row
            empty, and adds the columns ``error`` (the class), ``error_code`` (the service's) and ``error_message``,
            empty for the other rows; they never have the payload, unless the model's own message quotes it. What every
            row would meet, such as an unknown endpoint, is raised in any case.
        max_concurrency: most calls in flight in each process; ``"adaptive"`` or an `aiosmrt.AdaptiveLimit` finds the
            number. Defaults to 100.
        patience: seconds after its first failure for which a call is tried again. Defaults to 600; see
            `aiosmrt.Endpoint.map`.
        client_options: further arguments of `aiosmrt.Client` in the workers, such as ``region_name`` or
            ``read_timeout``; plain values, which are pickled. Secrets are refused.
        inference_component, target_variant, target_model, target_container_hostname, custom_attributes: members of all
            calls; they are pickled too. See `aiosmrt.endpoint.CallOptions`.

    Raises:
        ParamValidationError: an argument is out of range, cannot be sent to a worker, or two exclude each other.

    >>> Scorer("churn", column="text", content_type="text/plain", output_type="float64")
    <Scorer churn text/plain -> prediction: float64>
    """

    def __init__(
        self,
        endpoint_name: str,
        *,
        column: str | None = None,
        template: Any = None,
        content_type: str = "application/json",
        accept: str | None = None,
        rows_per_request: int | None = 1,
        output_column: str = "prediction",
        output_type: OutputType = "string",
        on_error: OnError = "raise",
        max_concurrency: int | Literal["adaptive"] | AdaptiveLimit = 100,
        patience: float | Unset | None = UNSET,
        client_options: Mapping[str, Any] | None = None,
        inference_component: str | None = None,
        target_variant: str | None = None,
        target_model: str | None = None,
        target_container_hostname: str | None = None,
        custom_attributes: str | None = None,
    ) -> None:
        given = {} if client_options is None else client_options
        faults = _option_faults(given)
        if column is not None and template is not None:
            faults.append("column and template exclude each other")
        faults += [
            f"{name} must be a non-empty str{' or None' if optional else ''}; got {shown(value)}"
            for name, value, optional in (
                ("column", column, True),
                ("output_column", output_column, False),
                ("content_type", content_type, False),
            )
            if not (isinstance(value, str) and value) and not (optional and value is None)
        ]
        faults += [
            f"{name} must be one of {', '.join(map(repr, allowed))}; got {shown(value)}"
            for name, value, allowed in (
                ("output_type", output_type, get_args(OutputType)),
                ("on_error", on_error, get_args(OnError)),
            )
            if value not in allowed
        ]
        if not (rows_per_request is None or is_whole(rows_per_request, 1)):
            faults.append(f"rows_per_request must be an integer >= 1 or None; got {shown(rows_per_request)}")
        if on_error == "columns" and output_column in _ERROR_COLUMNS:
            faults.append(f"output_column {output_column!r} is the name of an error's column")
        if faults:
            # Error trackers report locals, and a scorer that is half made has no representation.
            del self, given, client_options, template, custom_attributes
            raise ParamValidationError(faults)
        self._settings: dict[str, Any] = {
            "endpoint_name": endpoint_name,
            "column": column,
            "template": copy.deepcopy(template),
            "content_type": content_type,
            "rows_per_request": rows_per_request,
            "output_column": output_column,
            "output_type": output_type,
            "on_error": on_error,
            "max_concurrency": max_concurrency,
            "patience": patience,
            "client_options": dict(given),
            "members": {
                "accept": accept,
                "inference_component": inference_component,
                "target_variant": target_variant,
                "target_model": target_model,
                "target_container_hostname": target_container_hostname,
                "custom_attributes": custom_attributes,
            },
        }
        try:
            self._prepare()
            # Checks the arguments that are the client's and the endpoint's; sends nothing, and needs no closing.
            self._endpoint(Client(max_concurrency=max_concurrency, **given)).map((), patience=patience)
        except BaseException as error:
            del self, given, client_options, template, custom_attributes
            clear_locals(error)
            raise

    def _prepare(self) -> None:
        """Make what is not pickled."""
        settings = self._settings
        # Stands for this object with the service.
        self._token = object()
        self._serializer = codec_for(settings["content_type"])
        self._maker = _BodyMaker(
            self._serializer, settings["column"], settings["template"], several=settings["rows_per_request"] != 1
        )
        self._service_key = pickle.dumps((sorted(settings["client_options"].items()), settings["max_concurrency"]))

    def __getstate__(self) -> dict[str, Any]:
        return self._settings

    def __setstate__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._prepare()

    def __repr__(self) -> str:
        facts = self._settings
        return (
            f"<Scorer {facts['endpoint_name']} {facts['content_type']} -> "
            f"{facts['output_column']}: {facts['output_type']}>"
        )

    @property
    def endpoint_name(self) -> str:
        """The endpoint."""
        return cast("str", self._settings["endpoint_name"])

    @property
    def columns(self) -> list[str] | None:
        """The columns that it reads; None for all."""
        if self._settings["column"] is not None:
            return [self._settings["column"]]
        return sorted(template_columns(self._settings["template"])) or None

    @property
    def output_fields(self) -> dict[str, OutputType]:
        """The columns that it adds, with their types."""
        fields: dict[str, OutputType] = {self._settings["output_column"]: self._settings["output_type"]}
        if self._settings["on_error"] == "columns":
            fields |= dict.fromkeys(_ERROR_COLUMNS, "string")
        return fields

    @property
    def max_concurrency(self) -> int:
        """Most calls in flight in each process; an adaptive limit's maximum."""
        limit = self._settings["max_concurrency"]
        if limit == "adaptive":
            limit = AdaptiveLimit()
        return cast("int", limit.maximum if isinstance(limit, AdaptiveLimit) else limit)

    def limited(self, max_concurrency: int) -> Scorer:
        """The same scorer with at most this many calls in flight in each process.

        Args:
            max_concurrency: the limit; one that is lower already, or adaptive, stays so.

        Raises:
            ParamValidationError: it is not an integer >= 1.

        >>> Scorer("churn").limited(8).max_concurrency
        8
        """
        if not is_whole(max_concurrency, 1):
            raise ParamValidationError([f"max_concurrency must be an integer >= 1; got {shown(max_concurrency)}"])
        limit = self._settings["max_concurrency"]
        if limit == "adaptive":
            limit = AdaptiveLimit()
        if isinstance(limit, AdaptiveLimit):
            most = min(limit.maximum, max_concurrency)
            initial = None if limit.initial is None else min(limit.initial, most)
            lower: int | AdaptiveLimit = replace(limit, maximum=most, minimum=min(limit.minimum, most), initial=initial)
        else:
            lower = min(limit, max_concurrency)
        scorer = object.__new__(Scorer)
        scorer.__setstate__({**self._settings, "max_concurrency": lower})
        return scorer

    def __call__(self, batch: Batch) -> Batch:
        """Score a batch; see `score`."""
        try:
            return self.score(batch)
        except BaseException:
            # error trackers report locals
            del batch
            raise

    def score(self, batch: Batch, *, concurrency: int | None = None) -> Batch:
        """Score the records of a batch, and wait for it.

        Args:
            batch: a ``pyarrow.RecordBatch`` or ``pyarrow.Table``, a pandas ``DataFrame``, or a dictionary of lists or
                NumPy arrays.
            concurrency: most calls in flight for this batch. Defaults to ``max_concurrency``.

        Returns:
            The same kind of batch, with the columns of `output_fields` added. The given one stays as it is.

        Raises:
            ParamValidationError: it is no such batch, lacks a column that is read, or has one that is added.
            AiosmrtError: the error of the first row that failed (with ``on_error="raise"``), or one that every row
                would meet. Its notes name the row.
        """
        try:
            return cast("Batch", self._scored(batch, concurrency))
        except BaseException as error:
            del batch
            clear_locals(error)
            raise

    def close(self) -> None:
        """Close this process's client now, unless another scorer uses it. The next call makes one again."""
        with _lock:
            service = _services.get(self._service_key)
            if service is None:
                return
            service.tokens.discard(self._token)
            if service.tokens:
                return
            del _services[self._service_key]
        service.stop(None)

    def _endpoint(self, client: Client) -> Endpoint[Row, Any]:
        settings = self._settings
        members = {name: value for name, value in settings["members"].items() if value is not None}
        return client.endpoint(
            settings["endpoint_name"],
            serializer=Prepared(self._serializer.content_type, self._maker.body_of),
            deserializer=ANY_ANSWER,
            **cast("CallOptions", members),
        )

    def _scored(self, batch: Any, concurrency: int | None) -> Any:
        limit = self.max_concurrency
        if concurrency is not None:
            if not is_whole(concurrency, 1):
                raise ParamValidationError([f"concurrency must be an integer >= 1; got {shown(concurrency)}"])
            limit = min(concurrency, limit)
        table = _Table.of(batch)
        table.check(self.columns, list(self.output_fields))
        return table.with_columns(self._added(table, limit), self.output_fields)

    def _added(self, table: _Table, concurrency: int) -> dict[str, list[Any]]:
        """The values of the added columns."""
        rows = [self._maker.row_of(number, record) for number, record in enumerate(table.records(self.columns))]
        outcomes = self._service().run(lambda client: self._score_rows(client, rows, concurrency)) if rows else []
        values = [None if isinstance(outcome, _Failure) else outcome for outcome in outcomes]
        added = {cast("str", self._settings["output_column"]): values}
        if self._settings["on_error"] == "columns":
            failures = [outcome if isinstance(outcome, _Failure) else _NO_FAILURE for outcome in outcomes]
            added["error"] = [failure.kind for failure in failures]
            added["error_code"] = [failure.code for failure in failures]
            added["error_message"] = [failure.message for failure in failures]
        return added

    async def _score_rows(self, client: Client, rows: list[Row], concurrency: int) -> list[Any]:
        """Score rows on the service's loop; the outcome of each is its value or a `_Failure`."""
        convert = _CONVERTERS[self._settings["output_type"]]
        raises = self._settings["on_error"] == "raise"
        outcomes: list[Any] = [None] * len(rows)

        def fail(number: int, error: Exception) -> None:
            if raises or concerns_every_call(error):
                error.add_note(f"row {number} of the batch")
                raise error
            outcomes[number] = _Failure(error)

        for row in rows:
            # A request that a row cannot be part of is not sent.
            if row.error is not None:
                fail(row.number, row.error)
        async with self._results(client, [row for row in rows if row.error is None], concurrency) as results:
            async for result in results:
                number, error = result.item.number, result.error
                if error is None:
                    try:
                        outcomes[number] = convert(result.value)
                        continue
                    except DeserializationError as misfit:
                        misfit.note_call("InvokeEndpoint", self.endpoint_name)
                        error = misfit
                fail(number, error)
        return outcomes

    def _results(self, client: Client, rows: list[Row], concurrency: int) -> Results[Row, Any]:
        """The calls for rows, or for groups of them."""
        endpoint, patience = self._endpoint(client), self._settings["patience"]
        most_rows = self._settings["rows_per_request"]
        if most_rows == 1:
            return endpoint.map(rows, concurrency=concurrency, ordered=False, patience=patience)
        groups = Groups(self._maker, most_rows, GROUP_BYTES)
        full = [group for row in rows for group in groups.add(row)]
        return endpoint.map_groups([*full, *groups.rest()], concurrency=concurrency, ordered=False, patience=patience)

    def _service(self) -> _Service:
        """This process's service for these settings, made if there is none."""
        with _lock:
            service = _services.get(self._service_key)
            if service is None:
                settings = self._settings
                client = Client(max_concurrency=settings["max_concurrency"], **settings["client_options"])
                service = _services[self._service_key] = _Service(client, self._service_key)
            if self._token not in service.tokens:
                service.tokens.add(self._token)
                # At exit, all services end together.
                weakref.finalize(self, service.let_go, self._token).atexit = False
        return service


class _Failure:
    """What the columns of a failed row say, which is not the payload.

    Args:
        error: why it failed; None makes one that stands for a scored row.
    """

    __slots__ = ("code", "kind", "message")

    def __init__(self, error: Exception | None) -> None:
        self.kind = None if error is None else type(error).__name__
        self.code = error.code if isinstance(error, ServiceError) else None
        # What others raise may quote what it was raised for.
        self.message = str(error) if isinstance(error, AiosmrtError) else None


_NO_FAILURE: Final = _Failure(None)


class _BodyMaker(RequestMaker):
    """Makes rows of records in place of lines.

    Args:
        serializer: makes bodies of values.
        column: the column that is the body, if one is.
        template: JSON that is the body, if it is.
        several: whether rows share bodies.
    """

    def __init__(self, serializer: Serializer[Any], column: str | None, template: Any, *, several: bool) -> None:
        # A record is like a row of CSV: columns with an order, none of them the body as it stands.
        super().__init__(
            "csv",
            serializer,
            columns=lambda: None,
            column=column,
            template=template,
            id_field=None,
            join=False,
            several=several,
        )
        self._takes_bytes = isinstance(serializer, (TextCodec, BytesCodec))

    def row_of(self, number: int, record: dict[str, Any]) -> Row:
        """Make a row, with an error in place of a body where that fails."""
        body, value = b"", None
        error: Exception | None = None
        try:
            body, value = self._part(record)
        except BadRowError as bad:
            error = SerializationError(f"the record {bad}")
        except AiosmrtError as failure:
            error = failure
        except Exception as failure:
            # Of `json`, for values that it does not have; its message may quote them.
            error = SerializationError(f"the record cannot be expressed ({type(failure).__name__})")
        return Row(number, None, None, body, error, value)

    def _fit(self, value: Any) -> Any:
        if self._takes_bytes and isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        return super()._fit(value)


def _option_faults(options: object) -> list[str]:
    """What is wrong with arguments for the workers' clients."""
    if not isinstance(options, Mapping):
        return [f"client_options must be a mapping or None; got {type(options)}"]
    faults = [
        f"client_options must not have {name}: a scorer is pickled and sent to workers, and each finds its own "
        "credentials, such as by profile_name or its role"
        for name in sorted(_SECRET_OPTIONS.intersection(options))
    ]
    if "max_concurrency" in options or "patience" in options:
        faults.append("client_options must not have max_concurrency or patience, which are the scorer's own arguments")
    known = _PLAIN_OPTIONS | _SECRET_OPTIONS | {"max_concurrency", "patience"}
    faults += [
        f"client_options has {shown(name)}; accepted are {', '.join(sorted(_PLAIN_OPTIONS))}"
        for name in options
        if name not in known
    ]
    if not isinstance(options.get("verify", True), (bool, str)):
        faults.append("client_options: verify must be True, False or a path, which can be sent to workers")
    return faults


# Answers


def _unwrapped(value: Any) -> Any:
    """A value out of lists of one item."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _misfit(value: Any, wanted: str) -> DeserializationError:
    return DeserializationError(f"the answer is of type {type_name(value)}, not {wanted}")


def _string(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
        raise _misfit(value, "text in UTF-8")
    return json.dumps(value, ensure_ascii=False)


def _binary(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise _misfit(value, "bytes or text")


def _bool(value: Any) -> bool:
    value = _unwrapped(value)
    if isinstance(value, bool):
        return value
    raise _misfit(value, "true or false")


def _int64(value: Any) -> int:
    value = _unwrapped(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    raise _misfit(value, "an integer of 64 bits")


def _float64(value: Any) -> float:
    value = _unwrapped(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    raise _misfit(value, "a number")


def _floats(value: Any) -> list[float]:
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if not isinstance(value, list):
        value = [value]
    return [_float64(item) if not isinstance(item, list) else _not_flat(item) for item in value]


def _not_flat(value: Any) -> float:
    raise _misfit([value], "a list of numbers")


_CONVERTERS: Final[dict[OutputType, Callable[[Any], Any]]] = {
    "string": _string,
    "binary": _binary,
    "bool": _bool,
    "int64": _int64,
    "float64": _float64,
    "list<float64>": _floats,
}


# Batches


class _Table(ABC):
    """A batch of one kind; the base has what all kinds share.

    Args:
        batch: the batch.
        names: its columns.
    """

    def __init__(self, batch: Any, names: Sequence[str]) -> None:
        self._batch = batch
        self._names = list(names)

    @staticmethod
    def of(batch: Any) -> _Table:
        """Recognize a batch.

        Raises:
            ParamValidationError: it is of another type.
        """
        if is_pandas_frame(batch):
            return _PandasTable(batch, batch.columns)
        if is_frame(batch) and hasattr(batch, "schema") and hasattr(batch, "append_column"):
            return _ArrowTable(batch, batch.schema.names)
        if isinstance(batch, dict):
            return _Columns(batch, list(batch))
        raise ParamValidationError(
            [f"batch must be a RecordBatch or Table of pyarrow, a pandas DataFrame or a dict; got {type(batch)}"]
        )

    def check(self, read: Sequence[str] | None, added: Sequence[str]) -> None:
        """Refuse a batch that lacks a column, or has one that is to be added.

        Raises:
            ParamValidationError: a column is missing, or taken.
        """
        faults = []
        if missing := sorted(set(read or ()).difference(self._names)):
            faults.append(
                f"the batch has no column {', '.join(map(repr, missing)):.80}; it has "
                f"{', '.join(map(str, self._names)):.200}"
            )
        if present := sorted(set(added).intersection(self._names)):
            advice = "choose another output_column" if added[0] in present else "rename it, or let failures raise"
            faults.append(f"the batch has a column {', '.join(map(repr, present)):.80}; {advice}")
        if len(set(self._names)) < len(self._names):
            faults.append("the batch has two columns of the same name")
        if faults:
            raise ParamValidationError(faults)

    @abstractmethod
    def records(self, columns: Sequence[str] | None) -> list[dict[str, Any]]:
        """The rows with these columns, or all; a missing value is None."""

    @abstractmethod
    def with_columns(self, columns: Mapping[str, list[Any]], types: Mapping[str, OutputType]) -> Any:
        """The batch with columns added."""


class _ArrowTable(_Table):
    def records(self, columns: Sequence[str] | None) -> list[dict[str, Any]]:
        batch = self._batch if columns is None else self._batch.select(columns)
        return frame_records(batch)

    def with_columns(self, columns: Mapping[str, list[Any]], types: Mapping[str, OutputType]) -> Any:
        import pyarrow  # type: ignore[import-untyped, unused-ignore]

        batch = self._batch
        for name, values in columns.items():
            batch = batch.append_column(name, pyarrow.array(values, arrow_type(types[name])))
        return batch


class _PandasTable(_Table):
    def records(self, columns: Sequence[str] | None) -> list[dict[str, Any]]:
        return frame_records(self._batch if columns is None else self._batch[list(columns)])

    def with_columns(self, columns: Mapping[str, list[Any]], types: Mapping[str, OutputType]) -> Any:
        import pandas  # type: ignore[import-untyped, unused-ignore]

        series = {
            name: pandas.Series(values, index=self._batch.index, dtype=_PANDAS_TYPES[types[name]])
            for name, values in columns.items()
        }
        return self._batch.assign(**series)


class _Columns(_Table):
    def records(self, columns: Sequence[str] | None) -> list[dict[str, Any]]:
        faults = [
            f"column {shown(name)} must be a list or an array; got {type(values)}"
            for name, values in self._batch.items()
            if not isinstance(values, (list, tuple)) and getattr(values, "ndim", 0) < 1
        ]
        if not faults and len({len(values) for values in self._batch.values()}) > 1:
            faults.append("the columns of the batch have different lengths")
        if faults:
            raise ParamValidationError(faults)
        names = list(self._batch) if columns is None else list(columns)
        lists = [self._batch[name] for name in names]
        lists = [values if isinstance(values, (list, tuple)) else values.tolist() for values in lists]
        return [dict(zip(names, values, strict=True)) for values in zip(*lists, strict=True)]

    def with_columns(self, columns: Mapping[str, list[Any]], types: Mapping[str, OutputType]) -> Any:
        return {**self._batch, **columns}


def arrow_type(name: OutputType) -> Any:
    """The type of pyarrow that an output type stands for."""
    import pyarrow

    if name == "list<float64>":
        return pyarrow.list_(pyarrow.float64())
    return getattr(pyarrow, "bool_" if name == "bool" else name)()


# Services


_CLOSED: Final = "the scorer was closed while it was scoring a batch"


class _Service:
    """A client on an event loop in its own thread.

    Args:
        client: the client, which has not been used.
        key: its key among the services.
    """

    def __init__(self, client: Client, key: bytes) -> None:
        self._client = client
        self._key = key
        self._pid = os.getpid()
        # The scorers that may call; guarded by `_lock`.
        self.tokens: set[object] = set()
        # Guards `_closed`: nothing is put on a loop that is ending.
        self._state = threading.Lock()
        self._closed = False
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._end: asyncio.Event
        self._linger: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._run, name="aiosmrt-scorer", daemon=True)
        self._thread.start()
        self._ready.wait()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._ready.set()
        async with self._client:
            await self._end.wait()
            with self._state:
                self._closed = True
            # What was put on the loop before becomes a task, which is cancelled with the loop.
            await asyncio.sleep(0)

    def run(self, work: Callable[[Client], Any]) -> Any:
        """Run a coroutine on the loop, and wait for it.

        Args:
            work: makes it for the client.

        Raises:
            ClientStateError: the service is closed before the work is done.
        """
        with self._state:
            if self._closed:
                raise ClientStateError(_CLOSED)
            future = asyncio.run_coroutine_threadsafe(work(self._client), self._loop)
        try:
            return future.result()
        except CancelledError:
            raise ClientStateError(_CLOSED) from None
        except BaseException:
            future.cancel()
            raise

    def let_go(self, token: object) -> None:
        """A scorer is gone; called from a finalizer, so that no lock may be taken here."""
        # In a forked child, the loop is the parent's.
        if self._pid == os.getpid():
            with contextlib.suppress(RuntimeError):  # closed before
                self._loop.call_soon_threadsafe(self._discard, token)

    def _discard(self, token: object) -> None:
        with _lock:
            self.tokens.discard(token)
            if self.tokens:
                return
        if self._linger is not None:
            self._linger.cancel()
        self._linger = self._loop.call_later(_LINGER_SECONDS, self._expire)

    def _expire(self) -> None:
        with _lock:
            if self.tokens or _services.get(self._key) is not self:
                return
            del _services[self._key]
        self._end.set()

    def stop(self, seconds: float | None) -> None:
        """Close the client and end the thread.

        Args:
            seconds: how long to wait for it. If None, until it has ended.
        """
        with contextlib.suppress(RuntimeError):  # closed before
            self._loop.call_soon_threadsafe(self._end.set)
        if self._thread is not threading.current_thread():
            self._thread.join(seconds)


_lock = threading.Lock()
_services: dict[bytes, _Service] = {}


def _after_fork() -> None:
    """Forget the parent's services, whose threads do not run here."""
    global _lock  # another thread of the parent may have held it
    _lock = threading.Lock()
    _services.clear()


def _stop_all() -> None:
    with _lock:
        services = list(_services.values())
        _services.clear()
    for service in services:
        service.stop(_EXIT_SECONDS)


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
