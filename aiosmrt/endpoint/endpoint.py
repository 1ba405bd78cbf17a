"""`Endpoint`: calls with Python objects in and out.

::

    data ── serializer ──► client._invoke ──────────────────────────► deserializer ──► value     predict, invoke
         ── serializer ──► client.make_request ──────────────────────► PredictionStream          stream
         ◄─ serializer, deserializer ──► bidirectional stream ────────► DuplexStream               duplex
         ── serializer ──► (S3, if it is large) ──► client.make_request ──► Job                   submit

`map` and `session` make several of the first kind. An endpoint keeps the members of its calls under AWS's names; the
client checks them. Serialization and deserialization move to a thread if `estimated_size` of the data, or the answer's
length, exceeds `OFF_LOOP_BYTES`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, Unpack, overload

from aiosmrt._aws.s3 import ObjectStore
from aiosmrt._core.body import DeferredBody
from aiosmrt._frames import clear_locals
from aiosmrt._wire.messages import MAX_PART_BYTES
from aiosmrt._wire.operations import (
    INVOKE_ENDPOINT,
    INVOKE_ENDPOINT_ASYNC,
    INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM,
    INVOKE_ENDPOINT_WITH_RESPONSE_STREAM,
)
from aiosmrt.config import UNSET, Unset, is_whole, shown
from aiosmrt.endpoint.bodies import in_thread, name_call, serialized
from aiosmrt.endpoint.duplex import DuplexStream, check_messages
from aiosmrt.endpoint.fanout import Answer, Results
from aiosmrt.endpoint.groups import GroupedResults, GroupScoring
from aiosmrt.endpoint.inference import Inference, inference_of
from aiosmrt.endpoint.jobs import Job, JobHandle, check_handle, check_upload_to, submit
from aiosmrt.endpoint.options import CallOptions, check_accepted, merged
from aiosmrt.endpoint.protocols import EndpointClient
from aiosmrt.endpoint.sessions import Session
from aiosmrt.endpoint.streaming import PredictionStream, TimeoutsCount
from aiosmrt.errors import AiosmrtError, ParamValidationError, Waited
from aiosmrt.serializers import OFF_LOOP_BYTES, Deserializer, Serializer, estimated_size
from aiosmrt.serializers.frames import batches

if TYPE_CHECKING:
    from aiosmrt._wire.params import Head
    from aiosmrt.types import DataType, InvokeEndpointOutput

__all__ = ["Endpoint"]

In = TypeVar("In")
Out = TypeVar("Out")
R = TypeVar("R")
T = TypeVar("T")

# An S3 URI to check the other parameters with, before there is an object.
_ANY_LOCATION = "s3://bucket/key"


class Endpoint(Generic[In, Out]):
    """An endpoint, Python objects in and out; made by `aiosmrt.Client.endpoint`, which documents the arguments.

    It uses the client's connections, costs nothing to make, and may be used by many tasks at the same time. Large data
    is serialized, and large answers are deserialized, in a thread; so is all data of a custom serializer in a stream,
    in `submit` and under a deadline. A custom serializer must allow that.
    """

    __slots__ = (
        "_client",
        "_deserializer",
        "_head",
        "_options",
        "_params",
        "_patient",
        "_serializer",
        "_upload_to",
        "name",
    )

    def __init__(
        self,
        client: EndpointClient,
        name: str,
        *,
        serializer: Serializer[In],
        deserializer: Deserializer[Out],
        upload_to: str | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        try:
            _check_parts(name, serializer, deserializer)
            if upload_to is not None:
                check_upload_to(upload_to)
            defaults = {"EndpointName": name, "ContentType": serializer.content_type, "Accept": deserializer.accept}
            self._params = merged(defaults, options)
        except BaseException as error:
            # Error trackers report locals, and an endpoint that is half made has no representation.
            del self, options
            clear_locals(error)
            raise
        self.name: str = name
        self._client = client
        self._serializer = serializer
        self._deserializer = deserializer
        self._upload_to = upload_to
        self._options = options
        # What all calls without options have in common, from the first of them on.
        self._head: Head | None = None
        # The client without its read timeout, for streams that have both time limits.
        self._patient: EndpointClient | None = None

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} {self._serializer!r} -> {self._deserializer!r}>"

    @property
    def client(self) -> EndpointClient:
        """The client, or view of one, that makes the calls."""
        return self._client

    @property
    def serializer(self) -> Serializer[In]:
        """What makes request bodies."""
        return self._serializer

    @property
    def deserializer(self) -> Deserializer[Out]:
        """What reads response bodies."""
        return self._deserializer

    @property
    def upload_to(self) -> str | None:
        """The S3 URI under which `submit` puts large bodies; None if it was not given."""
        return self._upload_to

    @property
    def options(self) -> CallOptions:
        """The members of all calls, as they were given; a copy."""
        return {**self._options}

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters that all calls have in common, under AWS's names."""
        return MappingProxyType(self._params)

    async def object_store(self) -> ObjectStore:
        """S3 with the client's credentials, for what belongs to the endpoint's calls: their input and output."""
        return await self._client._object_store()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an Endpoint cannot be pickled or copied: make a client in each process, and the endpoint from it"
        )

    def with_options(
        self,
        *,
        deadline: float | Unset | None = UNSET,
        patience: float | Unset | None = UNSET,
        wait_for_capacity: float | Unset | None = UNSET,
        upload_to: str | Unset | None = UNSET,
        **options: Unpack[CallOptions],
    ) -> Endpoint[In, Out]:
        """Return the same endpoint with other settings. Settings that are not given stay as they are; None drops one.

        Args:
            deadline: seconds for a whole call; see `aiosmrt.Client`.
            patience: seconds for which a call waits and is sent again after its first failure; see `aiosmrt.Client`.
            wait_for_capacity: seconds to wait while the endpoint scales out from zero; see `aiosmrt.Client`.
            upload_to: where `submit` puts large bodies, ``s3://bucket/prefix``.
            options: see `CallOptions`.
        """
        members: CallOptions = {**self._options, **options}
        try:
            return Endpoint(
                self._client.with_options(deadline=deadline, patience=patience, wait_for_capacity=wait_for_capacity),
                self.name,
                serializer=self._serializer,
                deserializer=self._deserializer,
                upload_to=self._upload_to if isinstance(upload_to, Unset) else upload_to,
                **members,
            )
        finally:
            del options, members

    def for_job(self, patience: float | Unset | None = UNSET) -> Endpoint[In, Out]:
        """Return the same endpoint, with the patience that the calls of a `map` have.

        Args:
            patience: as for `map`.
        """
        return Endpoint(
            self._client._for_job(patience),
            self.name,
            serializer=self._serializer,
            deserializer=self._deserializer,
            upload_to=self._upload_to,
            **self._options,
        )

    # One call

    async def predict(self, data: In, **options: Unpack[CallOptions]) -> Out:
        """Get the model's answer.

        Args:
            data: what the serializer takes.
            options: see `CallOptions`.

        Raises:
            SerializationError: the serializer cannot express the data; nothing was sent.
            DeserializationError: the deserializer cannot read the answer.
            AiosmrtError: as for `aiosmrt.Client.invoke_endpoint`.
        """
        exchanging = self._exchange(data, options, self._deserializer.deserialize)
        # Error trackers report locals, those of a task under way as well.
        del data, options
        try:
            return (await exchanging)[0]
        except BaseException as error:
            clear_locals(error)
            raise

    async def invoke(self, data: In, **options: Unpack[CallOptions]) -> Inference[Out]:
        """Get the model's answer with what the service reports about it; arguments and errors as for `predict`."""
        inferring = self.inference(data, options)
        del data, options
        try:
            return await inferring
        except BaseException as error:
            clear_locals(error)
            raise

    async def inference(
        self,
        data: In,
        options: CallOptions,
        on_response: Callable[[InvokeEndpointOutput], None] | None = None,
        began: float | None = None,
    ) -> Inference[Out]:
        """Do what `invoke` does; for `Session`, which must see a response even if its body cannot be read.

        Args:
            data: what the serializer takes.
            options: see `CallOptions`.
            on_response: called with the response before it is deserialized.
            began: when a call that has waited for its session began, by the client's clock. Defaults to now.
        """
        started = time.monotonic()
        value, response, _ = await self._exchange(data, options, self._deserializer.deserialize, on_response, began)
        return inference_of(value, response, time.monotonic() - started)

    async def turn_to_open(self, opening: asyncio.Lock) -> float:
        """Wait within the deadline until no other call opens the session; return when this call began.

        Args:
            opening: held while a call opens the session; held by this call afterwards.
        """
        began = self._client._now()
        await self._client._before_deadline(began, INVOKE_ENDPOINT.name, self.name, opening.acquire(), "session")
        return began

    async def acknowledgement(
        self, data: In, options: CallOptions, on_response: Callable[[InvokeEndpointOutput], None]
    ) -> Inference[Out | bytes]:
        """Do what `inference` does, for a request whose answer need not be model output.

        What opens or closes a session is in headers. Session handlers send along a sentence for people, a JSON
        document, a page or nothing, under any type: where the deserializer cannot read it, the value is the body.
        """

        def deserialize(body: bytes, content_type: str) -> Out | bytes:
            try:
                return self._deserializer.deserialize(body, content_type)
            except Exception:  # a custom deserializer's may be any
                return body

        started = time.monotonic()
        value, response, _ = await self._exchange(data, options, deserialize, on_response)
        return inference_of(value, response, time.monotonic() - started)

    async def _exchange(
        self,
        data: In,
        options: CallOptions,
        deserialize: Callable[[bytes, str], R],
        on_response: Callable[[InvokeEndpointOutput], None] | None = None,
        began: float | None = None,
    ) -> tuple[R, InvokeEndpointOutput, Waited]:
        """Call the model; return the answer's value, the response, and how long the call waited."""
        params, head = self._params, None
        if options:
            params = merged(params, options)
        elif (head := self._head) is None:
            self._head = head = self._client._head(params)
        # (De)serialization is written out: a coroutine for each would be a tenth of this method's cost.
        body: bytes | DeferredBody
        if estimated_size(data) <= OFF_LOOP_BYTES and not self._client._has_deadline:
            try:
                body = self._serializer.serialize(data)
            except AiosmrtError as error:
                error.note_call(INVOKE_ENDPOINT.name, self.name)
                raise
        else:
            # Made within the call's deadline, in a thread if it is large.
            body = DeferredBody(partial(serialized, self._serializer, data, INVOKE_ENDPOINT.name, self.name))
        if type(body) is not bytes:
            head = None
        invoking = self._client._invoke(params, body, head, began, "session")
        # Nothing of the request is needed any more.
        del data, options, params, body, head
        response, waited = await invoking
        if on_response is not None:
            on_response(response)
        answer = await response["Body"].read()
        content_type = response.get("ContentType", "")
        try:
            if len(answer) <= OFF_LOOP_BYTES:
                return deserialize(answer, content_type), response, waited
            return await in_thread(deserialize, answer, content_type), response, waited
        except AiosmrtError as error:
            metadata = response["ResponseMetadata"]
            error.note_call(INVOKE_ENDPOINT.name, self.name)
            error.request_id = metadata.get("RequestId")
            error.attempts = metadata["RetryAttempts"] + 1
            raise

    async def deserialized(self, body: bytes, content_type: str) -> Out:
        """Return the object that a response body stands for, read in a thread if the body is large.

        Args:
            body: the body.
            content_type: the body's media type; empty if unknown.

        Raises:
            DeserializationError: the deserializer cannot read the body.
        """
        if len(body) > OFF_LOOP_BYTES:
            return await in_thread(self._deserializer.deserialize, body, content_type)
        return self._deserializer.deserialize(body, content_type)

    # Streams and many calls

    def stream(
        self,
        data: In,
        *,
        first_part_timeout: float | None = None,
        part_timeout: float | None = None,
        timeouts_count: TimeoutsCount = "parts",
        **options: Unpack[CallOptions],
    ) -> PredictionStream:
        """Get the answer part by part::

            async with endpoint.stream(data) as stream:
                async for text in stream.text():
                    ...

        Args:
            data: what the serializer takes.
            first_part_timeout: seconds from entering the block, waiting for a slot included, to the first part.
                Defaults to the client's ``read_timeout``.
            part_timeout: seconds between two parts. Defaults to the client's ``read_timeout``. If both limits are
                given, the ``read_timeout`` does not apply; if one is, it still does.
            timeouts_count: ``"values"`` has both limits count what a view gives, such as events or lines, in place of
                parts: comments that keep a connection alive then do not count.
            options: see `CallOptions`; ``accept`` defaults to the deserializer's.

        Raises:
            ParamValidationError: a time limit is not a positive number of seconds, or the operation does not accept an
                option.

            Entering the block raises as `predict` does.
        """
        operation = INVOKE_ENDPOINT_WITH_RESPONSE_STREAM
        params: dict[str, Any] = {}
        try:
            params = merged(self._params, options)
            check_accepted(operation, params)
            client = self._client
            if first_part_timeout is not None and part_timeout is not None:
                if self._patient is None:
                    self._patient = client.with_options(read_timeout=None)
                client = self._patient
            return PredictionStream(
                client,
                partial(serialized, self._serializer, data, operation.name, self.name),
                params,
                first_part_timeout,
                part_timeout,
                timeouts_count,
            )
        except BaseException as error:
            del data, options, params
            name_call(error, operation.name, self.name)
            clear_locals(error)
            raise

    def duplex(
        self,
        *,
        model_invocation_path: str | None = None,
        model_query_string: str | None = None,
        data_type: DataType | None = None,
        max_message_bytes: int = MAX_PART_BYTES,
        max_resend_bytes: int = 2**20,
        pin_credentials: bool = True,
        **options: Unpack[CallOptions],
    ) -> DuplexStream[In, Out]:
        """Talk with the model: objects go in both directions at once, over HTTP/2::

            async with endpoint.duplex() as stream, asyncio.TaskGroup() as tasks:
                tasks.create_task(stream.send_all(microphone()))
                async for value in stream:
                    ...

        Needs the extra ``http2``. An object is one message, text or binary by the serializer's content type, which is
        not sent otherwise.

        Args:
            model_invocation_path: the path at the container, without a leading slash, up to 100 characters. If None,
                ``invocations-bidirectional-stream``.
            model_query_string: the query at the container, without ``?``, up to 2,048 characters.
            data_type: ``"UTF8"`` makes all messages text, ``"BINARY"`` makes them binary. If None, messages are text if
                the content type of their serializer is text in UTF-8.
            max_message_bytes: the largest message that is read, bytes. Defaults to 16 MiB.
            max_resend_bytes: how much of what was sent is kept for another attempt, bytes; see
                `aiosmrt.Client.invoke_endpoint_with_bidirectional_stream`. Defaults to 1 MiB.
            pin_credentials: whether all messages are signed with the credentials of the request; see there. Defaults to
                True.
            options: see `CallOptions`; ``target_variant``, and ``content_type``, which decides between text and binary.

        Raises:
            ParamValidationError: before anything is sent: an argument is wrong, or the operation does not accept an
                option.

            Entering the block raises as for `aiosmrt.BidirectionalStream`.
        """
        operation = INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM
        params: dict[str, Any] = {}
        try:
            check_messages(data_type, max_message_bytes)
            params = merged(self._params, options)
            content_type = params.pop("ContentType", "")
            params.pop("Accept", None)
            check_accepted(operation, params)
            stream = self._client.invoke_endpoint_with_bidirectional_stream(
                **params,
                ModelInvocationPath=model_invocation_path,
                ModelQueryString=model_query_string,
                max_resend_bytes=max_resend_bytes,
                pin_credentials=pin_credentials,
            )
            return DuplexStream(
                stream,
                self.name,
                self._serializer,
                self._deserializer,
                content_type=content_type,
                data_type=data_type,
                max_message_bytes=max_message_bytes,
            )
        except BaseException as error:
            del options, params, model_query_string
            name_call(error, operation.name, self.name)
            clear_locals(error)
            raise

    @overload
    def map(
        self,
        items: Iterable[In] | AsyncIterable[In],
        *,
        batch_size: None = None,
        concurrency: int | None = None,
        ordered: bool = True,
        patience: float | Unset | None = UNSET,
        max_failures: int | float | str | None = None,
        options_for: Callable[[In], CallOptions] | None = None,
        **options: Unpack[CallOptions],
    ) -> Results[In, Out]: ...

    @overload
    def map(
        self,
        items: Iterable[T] | AsyncIterable[T],
        *,
        batch_size: int,
        combine: Callable[[list[T]], In] | None = None,
        split: Callable[[Out, int], Sequence[Any]] | None = None,
        concurrency: int | None = None,
        ordered: bool = True,
        patience: float | Unset | None = UNSET,
        max_failures: int | float | str | None = None,
        **options: Unpack[CallOptions],
    ) -> Results[T, Any]: ...

    def map(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        batch_size: int | None = None,
        combine: Callable[[list[Any]], In] | None = None,
        split: Callable[[Out, int], Sequence[Any]] | None = None,
        concurrency: int | None = None,
        ordered: bool = True,
        patience: float | Unset | None = UNSET,
        max_failures: int | float | str | None = None,
        options_for: Callable[[Any], CallOptions] | None = None,
        **options: Unpack[CallOptions],
    ) -> Results[Any, Any]:
        """Call the endpoint for each of many items::

            async with endpoint.map(rows) as results:
                async for result in results:
                    print(result.item, result.value if result.error is None else result.error)

        Items are taken as calls can be made, so there may be more than fit into memory: at most twice ``concurrency``
        are held, each until its result is taken. So a slow reader slows the calls down. A failed call ends the map only
        if all calls would fail like it: refused credentials, an unknown endpoint, a service that was never reached.
        Leaving the block, in whatever way, cancels the calls in flight; `Results.stop` and `Results.drain` end a map
        and finish them.

        With ``batch_size``, a call is made for several items, and its answer is split into their values. If the model
        refuses the call, the answer has a wrong number of values, or the body is too large, both halves of the items
        are called, and so on: the others get their values, and the bad ones their errors. For k bad items among n,
        that takes at most 1 + 2 k log2 n calls. After throttling or an outage the call is sent again as it was.

        Args:
            items: an iterable or an asynchronous iterable, iterated on the event loop. An asynchronous one is iterated
                in a separate task, so that a time limit or a task group around its ``yield`` never cancels a call; a
                generator that is not read to its end is the caller's to close. Tables, mappings, text and bytes are
                refused: their iteration gives columns, keys, characters and numbers; `map_rows` takes tables.
            batch_size: items in a call; the last one may have fewer. If None, an item is the data of a call.
            combine: makes the data of a call of a list of items, such as ``lambda items: {"instances": items}``; with
                ``batch_size`` only. Defaults to the list itself.
            split: returns a sequence of values, one for each item, given the answer and the number of items; with
                ``batch_size`` only. Defaults to `aiosmrt.endpoint.split_answer`.
            concurrency: most calls in flight. Defaults to the client's ``max_concurrency``.
            ordered: whether results come in the order of the items, or as they arrive.
            patience: seconds after its first failure for which a call waits and is sent again; see `aiosmrt.Client`.
                Defaults to the client's if the client was given one, otherwise to 600. At most 20 until the service has
                been reached once.
            max_failures: how many items (an integer), or which share of those called for (a float, or text such as
                ``"5%"``), may fail; one more ends the map. A share counts from the 20th item and at the end. If None,
                no limit.
            options_for: returns the options of one item's call, such as ``{"inference_id": item["id"]}``, besides those
                of all; without ``batch_size`` only.
            options: see `CallOptions`; the same for all items.

        Raises:
            ParamValidationError: ``batch_size``, ``concurrency``, ``max_failures`` or an option is out of range, or
                ``items`` cannot be iterated.

            Iterating raises what iterating over ``items`` raises, an error that concerns all calls, and
            `TooManyFailuresError`; earlier results come first. Cancelling a call's task from outside raises
            `ClientStateError`.
        """
        try:
            _check_grouping(
                batch_size,
                needs_one=not (combine is None and split is None),
                excludes_one=options_for is not None,
            )
            return self._mapped(
                items,
                options_for=options_for,
                group=None if batch_size is None else (batch_size, combine, split),
                concurrency=concurrency,
                ordered=ordered,
                patience=patience,
                max_failures=max_failures,
                options=options,
            )
        except BaseException as error:
            del items, options
            name_call(error, INVOKE_ENDPOINT.name, self.name)
            clear_locals(error)
            raise

    def map_groups(
        self,
        groups: Iterable[list[T]] | AsyncIterable[list[T]],
        *,
        combine: Callable[[list[T]], In] | None = None,
        split: Callable[[Out, int], Sequence[Any]] | None = None,
        concurrency: int | None = None,
        ordered: bool = True,
        patience: float | Unset | None = UNSET,
        max_failures: int | float | str | None = None,
        **options: Unpack[CallOptions],
    ) -> Results[T, Any]:
        """Call the endpoint for groups of items that the caller has made, by length for example; a result is an item's.

        Args:
            groups: lists of items, none of them empty; each is a call, as `map` makes it with ``batch_size``.
            combine, split, concurrency, ordered, patience, max_failures, options: as for `map`. At most twice
                ``concurrency`` groups are held.

        Raises:
            ParamValidationError: as for `map`.
        """
        try:
            return self._mapped(
                groups,
                group=(None, combine, split),
                concurrency=concurrency,
                ordered=ordered,
                patience=patience,
                max_failures=max_failures,
                options=options,
            )
        except BaseException as error:
            del groups, options
            name_call(error, INVOKE_ENDPOINT.name, self.name)
            clear_locals(error)
            raise

    def _mapped(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        group: tuple[int | None, Callable[[list[Any]], In] | None, Callable[[Out, int], Sequence[Any]] | None] | None,
        concurrency: int | None,
        ordered: bool,
        patience: float | Unset | None,
        max_failures: int | float | str | None,
        options: CallOptions,
        options_for: Callable[[Any], CallOptions] | None = None,
    ) -> Results[Any, Any]:
        try:
            # An invalid option would fail every call.
            self._client._check(INVOKE_ENDPOINT.name, {**merged(self._params, options), "Body": b""})
            job = self.for_job(patience)
            limit = self._client.max_concurrency if concurrency is None else concurrency
            if group is None:
                call = _Scoring(job, options, options_for)
                return Results(call, items, concurrency=limit, ordered=ordered, max_failures=max_failures)
            size, combine, split = group
            return GroupedResults(
                GroupScoring(job, options, combine, split),
                items,
                size=size,
                concurrency=limit,
                ordered=ordered,
                max_failures=max_failures,
            )
        except BaseException as error:
            del items, options
            clear_locals(error)
            raise

    def map_rows(
        self,
        frame: In,
        *,
        rows: int = 1,
        concurrency: int | None = None,
        ordered: bool = True,
        patience: float | Unset | None = UNSET,
        max_failures: int | float | str | None = None,
        **options: Unpack[CallOptions],
    ) -> Results[In, Out]:
        """Call the endpoint for the rows of a table; the items of the results are slices of it::

            async with endpoint.map_rows(frame, rows=100) as results:
                async for result in results:
                    print(result.item, result.unwrap())

        Args:
            frame: a DataFrame of pandas or polars, or a table or record batch of pyarrow. The codecs `CSV`, `JSON`,
                `JSON_LINES`, `ARROW` and `PARQUET` take its slices.
            rows: rows in each call; the last call may have fewer. Defaults to 1.
            concurrency, ordered, patience, max_failures, options: as for `map`.

        Raises:
            ParamValidationError: ``frame`` is not such a table, ``rows`` is not an integer >= 1, or as for `map`.
        """
        try:
            return self.map(
                batches(frame, rows),
                concurrency=concurrency,
                ordered=ordered,
                patience=patience,
                max_failures=max_failures,
                **options,
            )
        except BaseException as error:
            del frame, options
            name_call(error, INVOKE_ENDPOINT.name, self.name)
            clear_locals(error)
            raise

    def session(self, *, open_with: In | Unset = UNSET, close_with: In | Unset = UNSET) -> Session[In, Out]:
        """Make calls that the service routes to one instance of a stateful model::

            async with endpoint.session() as session:
                answer = await session.predict(data)

        The first call opens the session (``NEW_SESSION``), the others carry its id. The model decides when a session
        ends: at its expiry, with an answer that closes it, or on request, such as ``{"requestType": "CLOSE"}``.

        Args:
            open_with: data to open the session with on entering the block. By default, the first call opens it.
            close_with: data to send on leaving the block while the session is open. By default, nothing is sent and the
                session ends at its expiry. The answers to both need not be model output; AWS's session handlers send
                plain text.
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

        Up to 128,000 bytes travel with the request. A larger body is uploaded to S3 first, with the client's
        credentials, and deleted if this call fails or is cancelled, which may take 5 s more. A ``deadline`` covers
        serializing and uploading. A connection that breaks may leave two jobs behind,
        because the request is sent again.

        Args:
            data: what the serializer takes.
            input_location: the S3 URI of an existing request body, in place of ``data``.
            upload_to: where to upload a large body, ``s3://bucket/prefix``. Defaults to the endpoint's ``upload_to``.
            filename: the name of the output object, up to 32 characters. Defaults to the inference id.
            output_extension: appended to the output object's path. Defaults to nothing.
            request_ttl: seconds that the request may wait in the queue, 60 to 21,600. Defaults to 21,600.
            invocation_timeout: seconds that the model may take, 1 to 3,600. Defaults to 900.
            options: see `CallOptions`; those that ``InvokeEndpointAsync`` accepts.

        Returns:
            The job, to wait for here or, by its ``handle``, in another process.

        Raises:
            ParamValidationError: both or neither of ``data`` and ``input_location`` are given, a large body lacks an
                ``upload_to``, or a parameter is out of range or not accepted by the operation.
            ObjectStoreError: the body could not be uploaded to S3.
            AiosmrtError: as for `aiosmrt.Client.invoke_endpoint_async`.
        """
        began = self._client._now()
        operation = INVOKE_ENDPOINT_ASYNC
        body = None
        params: dict[str, Any] = {}
        try:
            _check_one_is_given(not isinstance(data, Unset), input_location is not None)
            if upload_to is None:
                upload_to = self._upload_to
            else:
                check_upload_to(upload_to)
            own = {
                "Filename": filename,
                "S3OutputPathExtension": output_extension,
                "RequestTTLSeconds": request_ttl,
                "InvocationTimeoutSeconds": invocation_timeout,
            }
            params = merged({**self._params, **own}, options)
            check_accepted(operation, params)
            # Checked before anything is serialized or uploaded.
            self._client._check(operation.name, {**params, "InputLocation": input_location or _ANY_LOCATION})
            if not isinstance(data, Unset):
                making = serialized(self._serializer, data, operation.name, self.name)
                data, options = UNSET, {}
                body = await self._client._before_deadline(began, operation.name, self.name, making)
            submitting = submit(self._client, params, body, input_location, upload_to, began)
            # Error trackers report locals, those of a task under way as well.
            params, body = {}, None
            # The handle is not checked as in `job`: the request is queued, whatever locations the service named.
            return self._job(await submitting)
        except BaseException as error:
            del data, options, params, body
            name_call(error, operation.name, self.name)
            clear_locals(error)
            raise

    def job(self, handle: JobHandle) -> Job[Out]:
        """Return a job that was submitted before, here or in another process.

        Args:
            handle: the job's handle.

        Raises:
            ParamValidationError: ``handle`` is not a `JobHandle`, or belongs to another endpoint.
        """
        try:
            check_handle(handle, self.name)
        except ParamValidationError as error:
            name_call(error, INVOKE_ENDPOINT_ASYNC.name, self.name)
            raise
        return self._job(handle)

    def _job(self, handle: JobHandle) -> Job[Out]:
        return Job(self._client, handle, self.deserialized)


def _check_parts(name: object, serializer: object, deserializer: object) -> None:
    faults = [
        f"{what} must have {method}(); got {type(codec)}"
        for what, method, codec in (
            ("serializer", "serialize", serializer),
            ("deserializer", "deserialize", deserializer),
        )
        if isinstance(codec, type) or not callable(getattr(codec, method, None))
    ]
    if not isinstance(name, str) or not name:
        faults.append(f"name must be a non-empty str; got {shown(name)}")
    if faults:
        raise ParamValidationError(faults)


def _check_grouping(batch_size: object, *, needs_one: bool, excludes_one: bool) -> None:
    if batch_size is None:
        if needs_one:
            raise ParamValidationError(["combine and split need a batch_size"])
        return
    if not is_whole(batch_size, 1):
        raise ParamValidationError([f"batch_size must be an integer >= 1 or None; got {shown(batch_size)}"])
    if excludes_one:
        raise ParamValidationError(["options_for is for calls with one item; leave batch_size out"])


def _check_one_is_given(has_data: bool, has_location: bool) -> None:
    if has_data == has_location:
        raise ParamValidationError(["exactly one of data and input_location must be given"])


class _Scoring(Generic[In, Out]):
    """One call of a map; an object, because the variables of a closure are locals of its frame.

    Args:
        endpoint: makes the call.
        options: the map's.
        options_for: returns those of a single item. If None, all items share the map's.
    """

    __slots__ = ("_endpoint", "_options", "_options_for")

    def __init__(
        self, endpoint: Endpoint[In, Out], options: CallOptions, options_for: Callable[[In], CallOptions] | None
    ) -> None:
        self._endpoint = endpoint
        self._options = options
        self._options_for = options_for

    async def __call__(self, item: In) -> Answer[Out]:
        endpoint = self._endpoint
        options: CallOptions = self._options
        try:
            if self._options_for is not None:
                options = {**options, **self._options_for(item)}
            value, response, waited = await endpoint._exchange(item, options, endpoint._deserializer.deserialize)
        except BaseException as error:
            del item, options
            clear_locals(error)
            raise
        facts = response["ResponseMetadata"]
        return Answer(value, facts["RetryAttempts"] + 1, waited.total_waiting, facts.get("RequestId"))
