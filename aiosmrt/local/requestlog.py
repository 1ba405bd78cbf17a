"""The requests to a local runtime and its responses, recorded for assertions.

A record is filled in during its exchange and added to the log at the end, whatever the outcome: records in the log do
not change. Waiting is by predicate: code that changes the state calls ``changed``, which wakes the waiters whose
predicate has become true.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Progress", "RequestLog", "RequestRecord"]

Outcome = Literal["answered", "cut", "disconnected"]


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One HTTP request to the local runtime; payloads are recorded only with ``record_bodies``.

    Args:
        request_id: the response's ``x-amzn-RequestId``.
        method: the HTTP method.
        path: the path as sent, without the query.
        operation: AWS's operation name. None if the path matches no operation.
        endpoint: the endpoint's name from the path. None if the path matches no operation.
        variant: the production variant that was invoked. None if none was.
        inference_component: the requested inference component.
        target_model: the requested model of a multi-model endpoint.
        session_id: the requested session (``NEW_SESSION`` included).
        inference_id: the caller's inference id.
        status: the HTTP status of the response. None if no response was started.
        error_code: the error's code, also of an error inside a stream. None if it succeeded.
        fault: the names of the scripted faults that were applied.
        outcome: ``answered`` in full, ``cut`` by a scripted fault, or the client ``disconnected`` first.
        request_bytes: the size of the request's body.
        response_bytes: how many bytes of the response's body were written to the connection.
        parts: how many PayloadPart messages were sent.
        access_key_id: the access key of the verified signature. None if none was verified.
        presigned: whether the signature was in the query.
        attempt: the number in ``amz-sdk-request: attempt=N``. None if absent.
        max_attempts: the number in ``max=N`` of the same header. None if absent.
        invocation_id: ``amz-sdk-invocation-id``, the same for all attempts of a call.
        user_agent: the client's ``User-Agent``.
        connection: a number that identifies the connection, from 1.
        started_at: when the request's head had arrived, in epoch seconds of the runtime's clock.
        seconds: the duration of the exchange.
        headers: the request's headers without Authorization, with names in lower case; only with ``record_bodies``.
        request_body: only with ``record_bodies``.
        response_body: only with ``record_bodies``; of a response stream at most ``max_response_bytes``.
    """

    request_id: str
    method: str
    path: str
    operation: str | None = None
    endpoint: str | None = None
    variant: str | None = None
    inference_component: str | None = None
    target_model: str | None = None
    session_id: str | None = None
    inference_id: str | None = None
    status: int | None = None
    error_code: str | None = None
    fault: tuple[str, ...] = ()
    outcome: Outcome = "answered"
    request_bytes: int = 0
    response_bytes: int = 0
    parts: int = 0
    access_key_id: str | None = None
    presigned: bool = False
    attempt: int | None = None
    max_attempts: int | None = None
    invocation_id: str | None = None
    user_agent: str | None = None
    connection: int = 0
    started_at: float = 0.0
    seconds: float = 0.0
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    request_body: bytes | None = field(default=None, repr=False)
    response_body: bytes | None = field(default=None, repr=False)


class Progress:
    """Wakes tasks that wait for a predicate on the runtime's state."""

    def __init__(self) -> None:
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def changed(self) -> None:
        """Wake every waiter whose predicate is true after a change of state."""
        for predicate, future in self._waiters:
            if not future.done() and predicate():
                future.set_result(None)

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Return as soon as the predicate is true."""
        if predicate():
            return
        waiter = predicate, asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter[1]
        finally:
            self._waiters.remove(waiter)


class RequestLog:
    """The finished requests of a runtime, oldest first, with counters over all of them.

    Args:
        progress: notified of every new record.
        max_records: how many records to keep; the oldest are removed first. The counters keep counting. Defaults to
            100,000.
    """

    def __init__(self, progress: Progress, *, max_records: int = 100_000) -> None:
        self._progress = progress
        self._records: list[RequestRecord] = []
        self._max_records = max_records
        self.total: int = 0
        self.by_status: Counter[int] = Counter()
        self.by_error: Counter[str] = Counter()
        self.by_endpoint: Counter[str] = Counter()
        self.request_bytes: int = 0
        self.response_bytes: int = 0

    @property
    def records(self) -> Sequence[RequestRecord]:
        """The records kept, oldest first."""
        return tuple(self._records)

    def add(self, record: RequestRecord) -> None:
        """Add a record and count it."""
        self._records.append(record)
        if len(self._records) > self._max_records:
            del self._records[: max(1, self._max_records // 10)]
        self.total += 1
        self.request_bytes += record.request_bytes
        self.response_bytes += record.response_bytes
        if record.status is not None:
            self.by_status[record.status] += 1
        if record.error_code is not None:
            self.by_error[record.error_code] += 1
        if record.endpoint is not None:
            self.by_endpoint[record.endpoint] += 1
        self._progress.changed()

    def clear(self) -> None:
        """Remove the records; the counters keep counting."""
        self._records.clear()
