"""Asynchronous inference: a queue for each endpoint, its workers, and the objects that they write to S3.

Theory of operation
-------------------
A request is validated, named and queued; its response, 202, contains the locations of the result and the failure. A
worker then dequeues the job, reads its input from S3 unless it came with the request, invokes the model and writes one
object, the result or the failure. A queue has as many workers as its endpoint's instances have slots. Workers start
with the first jobs and end when the queue is empty. The instance is chosen when a job is dequeued; the job then waits
for one of the instance's slots, so that no instance serves more calls at once than configured.

A job's age is measured by the runtime's clock when it is dequeued; its run time is limited in real time. Jobs that are
queued or running when the runtime ends are dropped: no object is written for them.

AWS does not fully document the names and the content of the objects. An object is named after the inference's id with
``.out``, or as the request asks; a failure's name has ``-error`` before its suffix. A failure is a text: for a model
that failed, the message of a ModelError.
"""

from __future__ import annotations

import asyncio
import json
import logging
import posixpath
import random
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

from aiosmrt._wire.operations import (
    INLINE_BYTES,
    INVOCATION_TIMEOUT_SECONDS,
    INVOKE_ENDPOINT_ASYNC,
    REQUEST_TTL_SECONDS,
)
from aiosmrt.errors import ConfigurationError
from aiosmrt.local.backends import Backend, ContainerFailure, ModelTimeoutError, model_limit
from aiosmrt.local.error_responses import (
    PRIMARY,
    CallContext,
    ErrorAnswer,
    ErrorReply,
    model_error,
    model_timed_out,
    synchronous_only,
    validation_error,
)
from aiosmrt.local.invocation import Invoker, Reply
from aiosmrt.local.objectstorage import MAX_OBJECT_BYTES, ObjectAccess, ObjectStorage, StorageError, locate_object
from aiosmrt.local.requestlog import Progress, RequestRecord
from aiosmrt.local.routing import AsyncInferenceConfig, Endpoint

__all__ = ["AsyncInference", "JobRecord"]

logger: logging.Logger = logging.getLogger(__name__)

NOT_READY_INTERVAL: Final = 0.25  # seconds between pings of a container that is not ready
MAX_RECORDS: Final = 100_000
EMPTY_JSON_BODY: Final = b"{}"  # AWS's JavaScript SDK 2 sends it beside an InputLocation; the service ignores it

JobOutcome = Literal["succeeded", "failed", "dropped"]


@dataclass(slots=True, kw_only=True)
class JobRecord:
    """One asynchronous inference that has ended.

    Args:
        inference_id: the caller's id, or a generated one.
        endpoint: the endpoint's name.
        variant: the production variant that was invoked. None if none was.
        output_location: the S3 URI for its result.
        failure_location: the S3 URI for its failure. None if the endpoint does not write failures.
        input_location: the location of its input. None if it came with the request.
        outcome: ``succeeded``, ``failed``, or ``dropped`` because the runtime ended.
        error_code: the reason of a failure: ``ModelError``, ``ModelInvocationTimeExceeded``, ``RequestExpired``,
            ``InputUnavailable``, ``OutputUnwritable``, ``InternalFailure``, or the code of the service's own error.
            None unless it failed.
        accepted_at: when it was queued, in epoch seconds of the runtime's clock.
        ended_at: when it ended, in epoch seconds of the runtime's clock.
        response_bytes: the size of its result in bytes.
    """

    inference_id: str
    endpoint: str
    output_location: str
    failure_location: str | None
    input_location: str | None
    accepted_at: float
    variant: str | None = None
    outcome: JobOutcome = "dropped"
    error_code: str | None = None
    ended_at: float = 0.0
    response_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Job:
    record: JobRecord
    parameters: Mapping[str, str]
    body: bytes | None
    context: CallContext
    ttl: int
    timeout: int


class _FailedJob(Exception):
    """Ends a job with a failure, whose message is written to the failure location."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code)
        self.code = code
        self.message = message


class AsyncInference:
    """The asynchronous inferences of a runtime's endpoints.

    Args:
        endpoints: by name.
        invoker: serves the calls.
        storage: holds input and results. Needed only if an endpoint is asynchronous.
        progress: notified of every change.
        clock: returns the time in epoch seconds.
        chance: the source of random numbers, for ids.

    Raises:
        ConfigurationError: an endpoint is asynchronous, but the storage is missing or excludes a bucket of its paths.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        *,
        invoker: Invoker,
        storage: ObjectStorage | None,
        progress: Progress,
        clock: Callable[[], float],
        chance: random.Random,
    ) -> None:
        self._invoker = invoker
        self._storage = storage
        self._progress = progress
        self._clock = clock
        self._chance = chance
        self._objects: ObjectAccess | None = None
        self._records: deque[JobRecord] = deque(maxlen=MAX_RECORDS)
        self._ended: Counter[str] = Counter()
        self._queues: dict[str, _Queue] = {}
        for name, endpoint in endpoints.items():
            if (config := endpoint.configuration.async_inference) is not None:
                self._check(name, config)
                self._queues[name] = _Queue(self, endpoint, config)

    def __repr__(self) -> str:
        return f"<AsyncInference endpoints={list(self._queues)} {self.statistics()}>"

    @property
    def needs_storage(self) -> bool:
        """Whether any endpoint is asynchronous."""
        return bool(self._queues)

    @property
    def records(self) -> Sequence[JobRecord]:
        """The jobs that have ended, oldest first."""
        return tuple(self._records)

    @property
    def running(self) -> int:
        """The number of jobs that workers have dequeued and not finished."""
        return sum(queue.running for queue in self._queues.values())

    def statistics(self) -> dict[str, int]:
        """Return how many jobs are queued and running, and how many have ended with each outcome."""
        queued = sum(len(queue.waiting) for queue in self._queues.values())
        ended = {outcome: self._ended[outcome] for outcome in ("succeeded", "failed", "dropped")}
        return {"queued": queued, "running": self.running, **ended}

    def clear(self) -> None:
        """Remove the records of ended jobs; the counters keep counting."""
        self._records.clear()

    def open(self, objects: ObjectAccess) -> None:
        """Start to accept jobs.

        Args:
            objects: access to the storage.
        """
        self._objects = objects

    async def close(self) -> None:
        """Drop every job; return when their tasks have ended."""
        await asyncio.gather(*(queue.close() for queue in self._queues.values()))
        self._objects = None

    def accept(self, parameters: Mapping[str, str], body: bytes, context: CallContext, record: RequestRecord) -> Reply:
        """Queue a request and return its response.

        Args:
            parameters: its validated members.
            body: its payload; empty for a payload in S3.
            context: the facts of the call.
            record: updated with the inference's id.

        Raises:
            ErrorReply: the request cannot be queued.
        """
        endpoint = self._invoker.endpoint(context)
        queue = self._queues.get(endpoint.name)
        if queue is None:
            raise ErrorReply(synchronous_only(context))
        input_location = parameters.get("InputLocation")
        self._check_input(input_location, body)
        inference_id = parameters.get("InferenceId") or str(uuid.UUID(int=self._chance.getrandbits(128), version=4))
        record.inference_id = inference_id
        output_location, failure_location = _locations(queue.config, parameters, inference_id)
        job = _Job(
            JobRecord(
                inference_id=inference_id,
                endpoint=endpoint.name,
                output_location=output_location,
                failure_location=failure_location,
                input_location=input_location,
                accepted_at=self._clock(),
            ),
            {**parameters, "InferenceId": inference_id},
            None if input_location is not None else body,
            context,
            int(parameters.get("RequestTTLSeconds", REQUEST_TTL_SECONDS)),
            int(parameters.get("InvocationTimeoutSeconds", INVOCATION_TIMEOUT_SECONDS)),
        )
        queue.add(job)
        values = {"OutputLocation": output_location, "FailureLocation": failure_location}
        headers = [
            (member.header, value)
            for member in INVOKE_ENDPOINT_ASYNC.results
            if member.header is not None and (value := values.get(member.name)) is not None
        ]
        return Reply(
            [("Content-Type", "application/json"), *headers], json.dumps({"InferenceId": inference_id}).encode()
        )

    async def serve(self, endpoint: Endpoint, job: _Job, slots: Mapping[Backend, asyncio.Semaphore]) -> None:
        """Run a job and write its result or its failure.

        Args:
            endpoint: the endpoint.
            job: the job.
            slots: the free slots of each instance.
        """
        record = job.record
        try:
            try:
                await self._produce(endpoint, job, slots)
                record.outcome = "succeeded"
            except _FailedJob as failure:
                record.outcome, record.error_code = "failed", failure.code
                await self._report(record, failure)
        except asyncio.CancelledError:
            record.outcome = "dropped"
            raise
        except Exception:
            # A bug in the runtime; the worker continues with the next job.
            record.outcome, record.error_code = "failed", "InternalFailure"
            logger.exception("An asynchronous inference of endpoint %s failed in the runtime", record.endpoint)
        finally:
            self.end(job)

    def end(self, job: _Job) -> None:
        """Record the end of a job."""
        job.record.ended_at = self._clock()
        self._records.append(job.record)
        self._ended[job.record.outcome] += 1
        self._progress.changed()

    def changed(self) -> None:
        """Notify waiters that a queue has changed."""
        self._progress.changed()

    async def _produce(self, endpoint: Endpoint, job: _Job, slots: Mapping[Backend, asyncio.Semaphore]) -> None:
        record = job.record
        if self._clock() - record.accepted_at > job.ttl:
            raise _FailedJob("RequestExpired", f"The request expired: it was queued for longer than {job.ttl} seconds.")
        try:
            headers, result = await self._invoke(endpoint, job, slots)
        except ErrorReply as error:
            raise _failed(error.answer) from None
        except ContainerFailure as failure:
            failed = failure.container or PRIMARY
            raise _failed(model_error(job.context, failure.status, failure.message, failed)) from None
        except ModelTimeoutError:
            message = model_error(job.context, 0, model_timed_out()).message or model_timed_out()
            raise _FailedJob("ModelInvocationTimeExceeded", message) from None
        try:
            await self._put(record.output_location, result, headers.get("content-type"))
        except StorageError as error:
            message = f"The result could not be written to {record.output_location}: {error.code}."
            raise _FailedJob("OutputUnwritable", message) from None
        record.response_bytes = len(result)

    async def _report(self, record: JobRecord, failure: _FailedJob) -> None:
        location = record.failure_location
        if location is None:
            return
        try:
            await self._put(location, failure.message.encode(), "text/plain; charset=utf-8")
        except StorageError as error:
            # The caller has its response already: the log is all that is left.
            logger.error(  # noqa: TRY400 - the code is all that may be logged
                "An asynchronous inference failed (%s), which could not be written to %s: %s",
                failure.code,
                location,
                error.code,
            )

    async def _invoke(
        self, endpoint: Endpoint, job: _Job, slots: Mapping[Backend, asyncio.Semaphore]
    ) -> tuple[Mapping[str, str], bytes]:
        route = self._invoker.route(endpoint, job.parameters, job.context)
        job.record.variant = route.variant
        async with slots[route.backend], model_limit(asyncio.get_running_loop().time() + job.timeout):
            body = job.body if job.body is not None else await self._read(job)
            while True:
                try:
                    return await self._invoker.whole_response(
                        INVOKE_ENDPOINT_ASYNC, job.parameters, body, route, job.context, max_bytes=MAX_OBJECT_BYTES
                    )
                except ErrorReply as error:
                    if error.answer.code != "ModelNotReadyException":
                        raise
                # the service holds jobs back until an instance is ready
                await asyncio.sleep(NOT_READY_INTERVAL)

    async def _read(self, job: _Job) -> bytes:
        location = job.record.input_location
        assert location is not None  # noqa: S101 - a job without one has a body
        assert self._objects is not None  # noqa: S101 - jobs run only while the storage is open
        try:
            return await self._objects.get(location)
        except StorageError as error:
            message = f"The input could not be read from {location}: {error.code}."
            raise _FailedJob("InputUnavailable", message) from None

    async def _put(self, location: str, body: bytes, content_type: str | None) -> None:
        assert self._objects is not None  # noqa: S101 - jobs run only while the storage is open
        await self._objects.put(location, body, content_type)

    def _check(self, name: str, config: AsyncInferenceConfig) -> None:
        if self._storage is None:
            raise ConfigurationError(f"endpoint {name} is asynchronous and needs an object_storage")
        for path in (config.s3_output_path, config.s3_failure_path):
            if path is not None and not self._allows(path):
                raise ConfigurationError(f"endpoint {name} writes to {path}, whose bucket is not one of the storage's")

    def _allows(self, uri: str, *, as_object: bool = False) -> bool:
        """Whether the storage may access this prefix, or this object, whose key must not be empty."""
        located = locate_object(uri)
        if located is None or self._storage is None or (as_object and not located[1]):
            return False
        return self._storage.allows(located[0])

    def _check_input(self, input_location: str | None, body: bytes) -> None:
        if input_location is not None and body == EMPTY_JSON_BODY:
            body = b""
        if (input_location is None) == (not body):
            given = "neither" if input_location is None else "both"
            raise ErrorReply(validation_error(f"Exactly one of Body and InputLocation is required; got {given}."))
        if len(body) > INLINE_BYTES:
            raise ErrorReply(
                validation_error(f"The inline payload of {len(body)} bytes exceeds the limit of {INLINE_BYTES}.")
            )
        if input_location is not None and not self._allows(input_location, as_object=True):
            raise ErrorReply(
                validation_error(
                    f"InputLocation {input_location} is not an object in a bucket of this runtime's object storage."
                )
            )


class _Queue:
    """The jobs of one endpoint, and the worker tasks that run them."""

    def __init__(self, jobs: AsyncInference, endpoint: Endpoint, config: AsyncInferenceConfig) -> None:
        self._jobs = jobs
        self._endpoint = endpoint
        self.config = config
        self._max_workers = endpoint.instances * config.max_concurrent_invocations_per_instance
        self.waiting: deque[_Job] = deque()
        self.running = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._slots = self._free_slots()

    def __repr__(self) -> str:
        return f"<_Queue {self._endpoint.name} waiting={len(self.waiting)} running={self.running}>"

    def _free_slots(self) -> defaultdict[Backend, asyncio.Semaphore]:
        return defaultdict(lambda: asyncio.Semaphore(self.config.max_concurrent_invocations_per_instance))

    def add(self, job: _Job) -> None:
        """Queue a job, and start a worker if there are fewer than slots."""
        self.waiting.append(job)
        if len(self._workers) < self._max_workers:
            worker = asyncio.create_task(self._work(), name=f"aiosmrt-local-{self._endpoint.name}")
            # An eager one may have come to its end in create_task().
            if not worker.done():
                self._workers.add(worker)
        self._jobs.changed()

    async def _work(self) -> None:
        try:
            while self.waiting:
                job = self.waiting.popleft()
                self.running += 1
                self._jobs.changed()
                try:
                    await self._jobs.serve(self._endpoint, job, self._slots)
                finally:
                    self.running -= 1
        finally:
            # Without an await since it saw the queue empty: `add` counts on every listed worker to take a job.
            self._workers.discard(asyncio.current_task())

    async def close(self) -> None:
        """Drop every job."""
        while self.waiting:
            self._jobs.end(self.waiting.popleft())
        workers = set(self._workers)
        for worker in workers:
            worker.cancel()
        if workers:
            await asyncio.wait(workers)
        self._workers.clear()  # one that is cancelled before it starts cannot remove itself
        self._slots = self._free_slots()


def _failed(answer: ErrorAnswer) -> _FailedJob:
    return _FailedJob(answer.code or str(answer.status), answer.message or "")


def _locations(
    config: AsyncInferenceConfig, parameters: Mapping[str, str], inference_id: str
) -> tuple[str, str | None]:
    """Return the locations of a request's result and failure.

    >>> _locations(AsyncInferenceConfig("s3://results/out/", "s3://results/failed"), {}, "row/1")
    ('s3://results/out/row%2F1.out', 's3://results/failed/row%2F1-error.out')
    >>> config = AsyncInferenceConfig("s3://results")
    >>> _locations(config, {"S3OutputPathExtension": "/2024/", "Filename": "rows.csv"}, "row/1")
    ('s3://results/2024/rows.csv', None)
    """
    # An id may contain any printable character, and two ids must not share a name.
    name = parameters.get("Filename") or f"{quote(inference_id, safe='')}.out"
    folders = [config.s3_output_path.rstrip("/"), parameters.get("S3OutputPathExtension", "").strip("/"), name]
    output = "/".join(part for part in folders if part)
    if config.s3_failure_path is None:
        return output, None
    stem, suffix = posixpath.splitext(name)
    return output, f"{config.s3_failure_path.rstrip('/')}/{stem}-error{suffix}"
