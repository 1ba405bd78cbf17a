"""`Endpoint`, and what all its kinds of calls share: members of the operation, bodies, errors.

::

    data ── serializer ──► Client.invoke_endpoint ──► deserializer ──► value          predict, invoke
         ── serializer ──► Client.make_request ─────► PredictionStream                stream
         ── serializer ──► (S3, when it is large) ──► Client.make_request ──► Job     submit

`map` and `session` make several of the first. An endpoint keeps the members of its calls under AWS's names, ready to be
handed on; checking them is the client's. Serializing and deserializing move to a thread where `serializers.weight` or
the answer's length says that it is worth it.

The module is long for its docstrings: its methods are what users of an endpoint read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, Unpack

from aiosmrt._core.body import DeferredBody
from aiosmrt._wire.operations import INVOKE_ENDPOINT_ASYNC, INVOKE_ENDPOINT_WITH_RESPONSE_STREAM, Operation
from aiosmrt.config import UNSET, Unset
from aiosmrt.endpoint.fanout import Answer, Results
from aiosmrt.endpoint.jobs import Job, JobHandle, check_handle, check_place, submit
from aiosmrt.endpoint.sessions import Session
from aiosmrt.endpoint.streaming import PredictionStream
from aiosmrt.errors import AiosmrtError, ParamValidationError, Waited
from aiosmrt.serializers import OFF_LOOP_BYTES, Deserializer, Serializer, weight

if TYPE_CHECKING:
    from aiosmrt.client import Client
    from aiosmrt.types import InvokeEndpointOutput

__all__ = ["CallOptions", "Endpoint", "Inference"]

In = TypeVar("In")
Out = TypeVar("Out")
R = TypeVar("R")

_OPERATION = "InvokeEndpoint"


class CallOptions(TypedDict, total=False):
    """What a call may say besides its data; the operation's members under names of ours.

    An `Endpoint` takes them as defaults, and each of its calls for itself. None leaves a member out.
    """

    content_type: str | None
    accept: str | None
    custom_attributes: str | None
    inference_id: str | None
    inference_component: str | None
    target_variant: str | None
    target_model: str | None
    target_container_hostname: str | None
    enable_explanations: str | None
    prefix_aware_id: str | None
    session_id: str | None


_MEMBERS = {
    "content_type": "ContentType",
    "accept": "Accept",
    "custom_attributes": "CustomAttributes",
    "inference_id": "InferenceId",
    "inference_component": "InferenceComponentName",
    "target_variant": "TargetVariant",
    "target_model": "TargetModel",
    "target_container_hostname": "TargetContainerHostname",
    "enable_explanations": "EnableExplanations",
    "prefix_aware_id": "PrefixAwareId",
    "session_id": "SessionId",
}


# Options by the members that an operation lacks.
_UNFIT = {
    operation.name: {
        member: name for name, member in _MEMBERS.items() if member not in {known.name for known in operation.members}
    }
    for operation in (INVOKE_ENDPOINT_ASYNC, INVOKE_ENDPOINT_WITH_RESPONSE_STREAM)
}


def _check_fit(operation: Operation, params: Mapping[str, Any]) -> None:
    """Refuse members that an operation lacks, by the names that the caller knows.

    Raises:
        ParamValidationError: there are such members.
    """
    faults = [
        f"{name} is no option here, as {operation.name} has no {member}; {name}=None leaves out the endpoint's"
        for member, name in _UNFIT[operation.name].items()
        if member in params
    ]
    if faults:
        raise ParamValidationError(faults)


def _merged(params: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters under AWS's names, the options among them, without those that are None."""
    unknown = [name for name in options if name not in _MEMBERS]
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}; there are {', '.join(_MEMBERS)}")
    merged = {**params, **{_MEMBERS[name]: value for name, value in options.items()}}
    return {name: value for name, value in merged.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference(Generic[Out]):
    """A model's answer and what the service said about it.

    Attributes:
        value: the deserialized answer.
        content_type: the answer's media type; None when the model named none.
        variant: the production variant that answered; None when the service did not say.
        custom_attributes: what the model put into CustomAttributes; None for nothing.
        new_session_id: ``id; Expires=…`` where the call opened a session; None otherwise.
        closed_session_id: the session that the model closed with this answer; None for none.
        request_id: the service's request id; None when it gave none.
        attempts: how many requests were sent.
        latency: seconds from the call to its value: limiter, attempts, back-off, serializing and deserializing.
    """

    value: Out = field(repr=False)
    content_type: str | None
    variant: str | None
    custom_attributes: str | None = field(repr=False)
    new_session_id: str | None
    closed_session_id: str | None
    request_id: str | None
    attempts: int
    latency: float


class Endpoint(Generic[In, Out]):
    """An endpoint, Python objects in and out; made by `aiosmrt.Client.endpoint`, which documents the arguments.

    It holds no connection of its own, costs nothing to make, and may be used by many tasks at the same time. Data that
    is large is serialized, and large answers are deserialized, in a thread; a serializer of your own has to stand that.
    """

    __slots__ = (
        "_client",
        "_deserializer",
        "_options",
        "_params",
        "_patient",
        "_serializer",
        "_upload_to",
        "name",
    )

    def __init__(
        self,
        client: Client,
        name: str,
        *,
        serializer: Serializer[In],
        deserializer: Deserializer[Out],
        upload_to: str | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        faults = [
            f"{what} must have {method}(); got {type(codec)}"
            for what, method, codec in (
                ("serializer", "serialize", serializer),
                ("deserializer", "deserialize", deserializer),
            )
            if isinstance(codec, type) or not callable(getattr(codec, method, None))
        ]
        if not isinstance(name, str) or not name:
            faults.append(f"an endpoint's name must be a str; got {name!r:.80}")
        if faults:
            raise ParamValidationError(faults)
        if upload_to is not None:
            check_place(upload_to)
        self.name: str = name
        self._client = client
        self._serializer = serializer
        self._deserializer = deserializer
        self._upload_to = upload_to
        self._options = options
        defaults = {"EndpointName": name, "ContentType": serializer.content_type, "Accept": deserializer.accept}
        self._params = _merged(defaults, options)
        # the client without its read timeout, for streams with limits of their own
        self._patient: Client | None = None

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} {self._serializer!r} -> {self._deserializer!r}>"

    def with_options(
        self,
        *,
        deadline: float | Unset | None = UNSET,
        patience: float | Unset | None = UNSET,
        wait_for_capacity: float | Unset | None = UNSET,
        upload_to: str | Unset | None = UNSET,
        **options: Unpack[CallOptions],
    ) -> Endpoint[In, Out]:
        """The same endpoint with other settings; what is not given stays as it is, and None takes it away.

        Args:
            deadline: seconds for a whole call; see `aiosmrt.Client`.
            patience: seconds for which a call waits and is sent again after its first failure; see `aiosmrt.Client`.
            wait_for_capacity: seconds to wait while the endpoint scales out from zero; see `aiosmrt.Client`.
            upload_to: where `submit` puts large bodies, ``s3://bucket/prefix``.
            options: see `CallOptions`.
        """
        members: CallOptions = {**self._options, **options}
        return Endpoint(
            self._client.with_options(deadline=deadline, patience=patience, wait_for_capacity=wait_for_capacity),
            self.name,
            serializer=self._serializer,
            deserializer=self._deserializer,
            upload_to=self._upload_to if isinstance(upload_to, Unset) else upload_to,
            **members,
        )

    # One call

    async def predict(self, data: In, **options: Unpack[CallOptions]) -> Out:
        """Get the model's answer.

        Args:
            data: what the serializer takes.
            options: see `CallOptions`.

        Raises:
            SerializationError: before anything is sent: the serializer cannot express the data.
            DeserializationError: the deserializer cannot read the answer.
            AiosmrtError: as `aiosmrt.Client.invoke_endpoint`.
        """
        return (await self._exchange(data, options))[0]

    async def invoke(self, data: In, **options: Unpack[CallOptions]) -> Inference[Out]:
        """Get the model's answer with what the service says about it; arguments and errors as `predict`."""
        return await self.inference(data, options)

    async def inference(
        self, data: In, options: CallOptions, on_response: Callable[[InvokeEndpointOutput], None] | None = None
    ) -> Inference[Out]:
        """The same for `Session`, which has to see a response even when its body cannot be read.

        Args:
            data: what the serializer takes.
            options: see `CallOptions`.
            on_response: is handed the response before the deserializer is asked; None for nobody.
        """
        started = time.monotonic()
        value, response, _ = await self._exchange(data, options, on_response)
        metadata = response["ResponseMetadata"]
        return Inference(
            value=value,
            content_type=response.get("ContentType"),
            variant=response.get("InvokedProductionVariant"),
            custom_attributes=response.get("CustomAttributes"),
            new_session_id=response.get("NewSessionId"),
            closed_session_id=response.get("ClosedSessionId"),
            request_id=metadata.get("RequestId"),
            attempts=metadata["RetryAttempts"] + 1,
            latency=time.monotonic() - started,
        )

    async def _exchange(
        self, data: In, options: CallOptions, on_response: Callable[[InvokeEndpointOutput], None] | None = None
    ) -> tuple[Out, InvokeEndpointOutput, Waited]:
        """The answer's value, the response, which ``on_response`` sees before it is read, and what was waited for."""
        params = _merged(self._params, options) if options else self._params
        # Written out here, because a coroutine for each of the two would be a tenth of what this method costs.
        deserialize = self._deserializer.deserialize
        body: bytes | DeferredBody
        if weight(data) <= OFF_LOOP_BYTES:
            try:
                body = self._serializer.serialize(data)
            except AiosmrtError as error:
                error.operation, error.endpoint_name = _OPERATION, self.name
                raise
        else:
            # made in a thread, within the call's deadline
            body = DeferredBody(partial(self.serialized, data))
        response, waited = await self._client._invoke(params, body)
        if on_response is not None:
            on_response(response)
        answer = await response["Body"].read()
        content_type = response.get("ContentType", "")
        try:
            if len(answer) <= OFF_LOOP_BYTES:
                return deserialize(answer, content_type), response, waited
            return await _in_thread(deserialize, answer, content_type), response, waited
        except AiosmrtError as error:
            metadata = response["ResponseMetadata"]
            error.operation, error.endpoint_name = _OPERATION, self.name
            error.request_id = metadata.get("RequestId")
            error.attempts = metadata["RetryAttempts"] + 1
            raise

    async def serialized(self, data: In) -> bytes:
        """The request body for some data, made in a thread where the data is large.

        Raises:
            SerializationError: the serializer cannot express the data.
        """
        try:
            if weight(data) > OFF_LOOP_BYTES:
                return await _in_thread(self._serializer.serialize, data)
            return self._serializer.serialize(data)
        except AiosmrtError as error:
            error.operation, error.endpoint_name = _OPERATION, self.name
            raise

    async def deserialized(self, body: bytes, content_type: str) -> Out:
        """What a response body means, found out in a thread where it is large.

        Args:
            body: the body.
            content_type: its media type; empty when unknown.

        Raises:
            DeserializationError: the deserializer cannot read it.
        """
        if len(body) > OFF_LOOP_BYTES:
            return await _in_thread(self._deserializer.deserialize, body, content_type)
        return self._deserializer.deserialize(body, content_type)

    # Many parts, many calls

    def stream(
        self,
        data: In,
        *,
        first_part_timeout: float | None = None,
        part_timeout: float | None = None,
        **options: Unpack[CallOptions],
    ) -> PredictionStream:
        """Get the answer part by part::

            async with endpoint.stream(data) as stream:
                async for text in stream.text():
                    ...

        Args:
            data: what the serializer takes.
            first_part_timeout: seconds from entering the block, the wait for a place included, to the first part; None
                leaves it to the client's ``read_timeout``.
            part_timeout: seconds between two parts; None leaves it to the client's ``read_timeout``. Where both are
                given they alone count; one alone is bounded by the ``read_timeout`` as well.
            options: see `CallOptions`; ``accept`` is what the deserializer wants unless it is given here.

        Raises:
            ParamValidationError: a time limit is no positive number of seconds, or an option is none of the operation.

            Entering the block raises as `predict` does.
        """
        params = _merged(self._params, options)
        _check_fit(INVOKE_ENDPOINT_WITH_RESPONSE_STREAM, params)
        return PredictionStream(
            self._without_read_timeout()
            if first_part_timeout is not None and part_timeout is not None
            else self._client,
            partial(self.serialized, data),
            params,
            first_part_timeout,
            part_timeout,
        )

    def _without_read_timeout(self) -> Client:
        if self._patient is None:
            self._patient = self._client.with_options(read_timeout=None)
        return self._patient

    def map(
        self,
        items: Iterable[In] | AsyncIterable[In],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        patience: float | Unset | None = UNSET,
        max_failures: int | float | None = None,
        **options: Unpack[CallOptions],
    ) -> Results[In, Out]:
        """Call the endpoint for each of many items::

            async with endpoint.map(rows) as results:
                async for result in results:
                    print(result.item, result.value if result.error is None else result.error)

        Items are taken as calls can be made, so there may be more of them than fit into memory: at most twice
        ``concurrency`` are held, from being taken to their result being taken. A slow reader so slows the calls down.
        A call that fails ends nothing but itself, unless all would fail like it: refused credentials, an endpoint that
        does not exist, a service that was never reached. Leaving the block, however that happens, ends the calls under
        way.

        Args:
            items: an iterable or an asynchronous one; it is iterated on the event loop. An asynchronous one has a task
                of its own there, so that a time limit or a task group around its ``yield`` never reaches a call; a
                generator that is not read to its end is yours to close.
            concurrency: calls under way at the same time. Defaults to the client's ``max_concurrency``.
            ordered: whether results come in the order of the items, or as they are there.
            patience: seconds after its first failure for which a call waits and is sent again; see `aiosmrt.Client`.
                Defaults to the client's where that was given one, and to 600 otherwise. While the service was never
                reached, 20 at most.
            max_failures: failed calls (an integer), or their share of the calls made (a float, from the 20th call on
                and in the end), that end the map when there are more. If None, no limit.
            options: see `CallOptions`; the same for all items.

        Raises:
            ParamValidationError: ``concurrency`` or ``max_failures`` is out of range, ``items`` cannot be iterated, or
                one of the options is out of range.

            Iterating raises what iterating over ``items`` raises, an error that concerns all calls, and
            `TooManyFailuresError`; results that were there before come first. Cancelling a call's task from outside
            raises `ClientStateError`.
        """

        # What is wrong with them is wrong with all calls.
        self._client._check("InvokeEndpoint", {**_merged(self._params, options), "Body": b""})

        job = Endpoint(
            self._client._for_job(patience),
            self.name,
            serializer=self._serializer,
            deserializer=self._deserializer,
            **self._options,
        )

        async def call(item: In) -> Answer[Out]:
            value, response, waited = await job._exchange(item, options)
            return Answer(value, response["ResponseMetadata"]["RetryAttempts"] + 1, waited.total_waiting)

        limit = self._client.max_concurrency if concurrency is None else concurrency
        return Results(call, items, concurrency=limit, ordered=ordered, max_failures=max_failures)

    def session(self, *, open_with: In | Unset = UNSET, close_with: In | Unset = UNSET) -> Session[In, Out]:
        """Calls that stick to one instance of a stateful model::

            async with endpoint.session() as session:
                answer = await session.predict(data)

        The first call opens the session (``NEW_SESSION``), the others carry its id. What ends a session is the model's
        business: time, an answer that closes it, or a request that asks for it, such as ``{"requestType": "CLOSE"}``.

        Args:
            open_with: data to open the session with when the block is entered; left out, the first call opens it.
            close_with: data to send when the block is left and the session is open; left out, nothing is sent, and the
                session ends by its time.
        """
        return Session(self, open_with=open_with, close_with=close_with)

    # Asynchronous inference

    async def submit(
        self,
        data: In | Unset = UNSET,
        *,
        input_location: str | None = None,
        upload_to: str | None = None,
        filename: str | None = None,
        output_extension: str | None = None,
        request_ttl: int | None = None,
        invocation_timeout: int | None = None,
        **options: Unpack[CallOptions],
    ) -> Job[Out]:
        """Queue a request at an asynchronous endpoint.

        Up to 128,000 bytes travel with the request. More is put into S3 first, with the client's credentials, and
        deleted again when this call fails or is cancelled, since nobody knows of the job then. A connection that breaks
        may leave two jobs behind, as the request is sent again.

        Args:
            data: what the serializer takes.
            input_location: the S3 URI of a request body that is there already, in place of ``data``.
            upload_to: where a large body goes, ``s3://bucket/prefix``; None for the endpoint's ``upload_to``.
            filename: the name of the output object, up to 32 characters; None for the inference id.
            output_extension: appended to the output object's path; None for nothing.
            request_ttl: seconds that the request may wait in the queue, 60 to 21,600; None for 21,600.
            invocation_timeout: seconds that the model may take, 1 to 3,600; None for 900.
            options: see `CallOptions`; those that ``InvokeEndpointAsync`` has.

        Returns:
            The job, to be waited for here or, by its ``handle``, in another process.

        Raises:
            ParamValidationError: both or neither of ``data`` and ``input_location``, a large body and nowhere to put
                it, or a member that is out of range or not the operation's.
            ObjectStoreError: the body could not be put into S3.
            AiosmrtError: as `aiosmrt.Client.invoke_endpoint_async`.
        """
        given = not isinstance(data, Unset)
        if given == (input_location is not None):
            raise ParamValidationError(["exactly one of data and input_location must be given"])
        place = self._upload_to if upload_to is None else upload_to
        if place is not None:
            check_place(place)
        own = {
            "Filename": filename,
            "S3OutputPathExtension": output_extension,
            "RequestTTLSeconds": request_ttl,
            "InvocationTimeoutSeconds": invocation_timeout,
        }
        params = _merged({**self._params, **own}, options)
        _check_fit(INVOKE_ENDPOINT_ASYNC, params)
        # Before serializing and uploading; any place of a body will do for being checked.
        somewhere = input_location or "s3://bucket/key"
        self._client._check("InvokeEndpointAsync", {**params, "InputLocation": somewhere})
        body = None if isinstance(data, Unset) else await self.serialized(data)
        # Not checked as `job` does: the request is queued, whatever the service said about places.
        return Job(self._client, await submit(self._client, params, body, input_location, place), self.deserialized)

    def job(self, handle: JobHandle) -> Job[Out]:
        """A job that was submitted before, here or in another process.

        Args:
            handle: its handle.

        Raises:
            ParamValidationError: it is none, or another endpoint's.
        """
        check_handle(handle, self.name)
        return Job(self._client, handle, self.deserialized)


async def _in_thread(function: Callable[..., R], *arguments: object) -> R:
    """What a function gives, called in a thread."""

    def run() -> R:
        try:
            return function(*arguments)
        except StopIteration as stop:
            # A future cannot carry it, and whoever waits for that would wait for ever on Python 3.11.
            raise RuntimeError(f"{function} raised StopIteration") from stop

    return await asyncio.to_thread(run)
