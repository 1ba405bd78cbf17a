"""The record of what a local runtime was asked and how it answered, made for assertions.

A record is filled in while its exchange goes on and is put into the log when that has ended, however it ended: what is
in the log does not change any more.
Waiting is by predicate: whoever changes the state calls ``changed``, which wakes those whose predicate has come true.
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
    """One HTTP request as the local runtime saw it; payloads are kept only if asked for.

    Args:
        request_id: the answer's ``x-amzn-RequestId``.
        method: the HTTP method.
        path: the path as it came, without the query.
        operation: AWS's operation name; None for a path that belongs to none.
        endpoint: the endpoint's name from the path; None likewise.
        variant: the production variant that was invoked; None when none was.
        inference_component: the inference component asked for.
        target_model: the model of a multi-model endpoint asked for.
        session_id: the session asked for (``NEW_SESSION`` included).
        inference_id: the caller's inference id.
        status: the HTTP status of the answer; None when no answer was begun.
        error_code: the error's code, for an error inside a stream too; None for success.
        fault: the names of the scripted faults that were applied.
        outcome: ``answered`` in full, ``cut`` by a scripted fault, or the client ``disconnected`` first.
        request_bytes: the size of the request's body.
        response_bytes: how much of the response's body was handed to the connection.
        parts: how many PayloadPart messages were sent.
        access_key_id: whose signature was verified; None for none.
        presigned: whether the signature was in the query.
        attempt: the number in ``amz-sdk-request: attempt=N``; None without it.
        max_attempts: the number in ``max=N`` of the same header; None without it.
        invocation_id: ``amz-sdk-invocation-id``, the same for all attempts of a call.
        user_agent: the client's ``User-Agent``.
        connection: a number that tells connections apart, from 1.
        started_at: when the request's head had arrived, in epoch seconds of the runtime's clock.
        seconds: how long the exchange took.
        headers: the request's headers without Authorization, names in lower case; only with ``record_bodies``.
        request_body: only with ``record_bodies``.
        response_body: only with ``record_bodies``.
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
    """Wakes tasks that wait for something about the runtime to come true."""

    def __init__(self) -> None:
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def changed(self) -> None:
        """Say that the state has changed: wake every waiter whose predicate holds now."""
        for predicate, future in self._waiters:
            if not future.done() and predicate():
                future.set_result(None)

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Return as soon as the predicate holds, at once if it does already."""
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
        progress: told of every new record.
        max_records: how many records to keep; the oldest go first. The counters keep counting.
    """

    def __init__(self, progress: Progress, *, max_records: int = 100_000) -> None:
        self._progress = progress
        self._records: list[RequestRecord] = []
        self._max_records = max_records
        self.total = 0
        self.by_status: Counter[int] = Counter()
        self.by_error: Counter[str] = Counter()
        self.by_endpoint: Counter[str] = Counter()
        self.request_bytes = 0
        self.response_bytes = 0

    @property
    def records(self) -> Sequence[RequestRecord]:
        """The records kept, oldest first."""
        return tuple(self._records)

    def add(self, record: RequestRecord) -> None:
        """Keep a record and count it."""
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
        """Forget the records; the counters go on."""
        self._records.clear()
