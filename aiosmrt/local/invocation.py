"""The way from a validated call to its reply: route, headers for the container, the container's response, the session.

The reply of a response stream is an iterator of encoded messages. A container that fails before its response head is a
ModelError with an HTTP error status; afterwards the status has been sent, and the stream ends with an exception message
instead.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from aiosmrt._wire.openai_route import CONTAINER_PATH
from aiosmrt._wire.operations import EVENT_STREAM, NEW_SESSION, Operation
from aiosmrt.local.backends import (
    ContainerFailure,
    ContainerReply,
    Invocation,
    ModelTimeoutError,
    Route,
    StreamMessage,
    model_limit,
    single,
    whole_body,
)
from aiosmrt.local.capacity import Workers
from aiosmrt.local.error_responses import (
    PRIMARY,
    CallContext,
    ErrorReply,
    asynchronous_only,
    endpoint_not_found,
    model_error,
    model_timed_out,
    target_model_required,
    target_model_unsupported,
    validation_error,
)
from aiosmrt.local.requestlog import RequestRecord
from aiosmrt.local.routing import Endpoint
from aiosmrt.local.sessions import CLOSED_SESSION_HEADER, announced_session

__all__ = ["MAX_RESPONSE_BYTES", "MODEL_TIMEOUT", "STREAM_TIMEOUT", "Invoker", "Reply"]

MODEL_TIMEOUT: Final = 60.0  # seconds that AWS documents for a real-time model to answer
STREAM_TIMEOUT: Final = 480.0  # seconds that AWS documents for a whole response stream
MAX_RESPONSE_BYTES: Final = 25 * 1024 * 1024  # AWS's documented limit for real-time endpoints
MAX_PART_BYTES: Final = 4 * 1024 * 1024  # far below the frame format's limit; larger chunks of a container are split


# Request members that are passed on to the container, with their headers there. The service's API for streams renames
# Accept; the container gets the plain header. DJL Serving and vLLM read the forwarded API's name.
_FORWARDED: Final = {
    "ContentType": "Content-Type",
    "Accept": "Accept",
    "CustomAttributes": "X-Amzn-SageMaker-Custom-Attributes",
    "TargetModel": "X-Amzn-SageMaker-Target-Model",
    "InferenceId": "X-Amzn-SageMaker-Inference-Id",
    "SessionId": "X-Amzn-SageMaker-Session-Id",
}
_FORWARDED_API: Final = "X-Amzn-SageMaker-Forwarded-Api"


@dataclass(frozen=True, slots=True)
class Reply:
    """A successful response.

    Args:
        headers: the headers of the response.
        body: the complete body, or the encoded messages of a response stream as they arrive.
    """

    headers: list[tuple[str, str]]
    body: bytes | AsyncIterator[bytes]


class Invoker:
    """Serves the calls of a runtime's endpoints.

    Args:
        endpoints: by name.
        chance: the source of random numbers for variants, instances and session ids.
        model_timeout: seconds that a model has to start its response, and outside of streams to complete it. Defaults
            to 60.
        stream_timeout: total seconds that a response stream may take. Defaults to 480.
        max_response_bytes: the largest response body of a container outside of streams. Defaults to 25 MiB.
        changed: called when the number of calls that wait for a worker has changed. Defaults to no effect.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        *,
        chance: random.Random,
        model_timeout: float = MODEL_TIMEOUT,
        stream_timeout: float = STREAM_TIMEOUT,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        self._endpoints = endpoints
        self._workers = {
            name: Workers(capacity, chance, changed=changed)
            for name, endpoint in endpoints.items()
            if (capacity := endpoint.configuration.capacity) is not None
        }
        self._chance = chance
        self._model_timeout = model_timeout
        self._stream_timeout = stream_timeout
        self._max_response_bytes = max_response_bytes

    @property
    def queued(self) -> int:
        """The number of calls that wait for a worker."""
        return sum(workers.queued for workers in self._workers.values())

    def endpoint(self, context: CallContext) -> Endpoint:
        """Return the endpoint that a call names.

        Raises:
            ErrorReply: the endpoint does not exist.
        """
        endpoint = self._endpoints.get(context.endpoint)
        if endpoint is None:
            raise ErrorReply(endpoint_not_found(context))
        return endpoint

    @asynccontextmanager
    async def invoke(
        self,
        operation: Operation,
        parameters: Mapping[str, str],
        body: bytes,
        context: CallContext,
        record: RequestRecord,
    ) -> AsyncIterator[Reply]:
        """Serve one call.

        Args:
            operation: the operation.
            parameters: its validated members.
            body: its payload.
            context: the facts of the call.
            record: updated with the variant and with an error inside the stream.

        Raises:
            ErrorReply: on entering: the call failed.
        """
        endpoint = self.endpoint(context)
        configuration = endpoint.configuration
        if configuration.async_inference is not None:
            raise ErrorReply(asynchronous_only(context, operation.name))
        if configuration.multi_model != ("TargetModel" in parameters):
            missing = configuration.multi_model
            raise ErrorReply(target_model_required(context) if missing else target_model_unsupported(context))
        route = self.route(endpoint, parameters, context)
        record.variant = route.variant
        invocation = self._invocation(operation, parameters, body, route, context)
        model_timeout = configuration.model_timeout or self._model_timeout
        now = asyncio.get_running_loop().time()
        stream_ends_at = now + max(self._stream_timeout, model_timeout)
        container = route.container or PRIMARY
        async with AsyncExitStack() as stack:
            payload = b""
            try:
                async with model_limit(now + model_timeout):
                    if (workers := self._workers.get(context.endpoint)) is not None:
                        await stack.enter_async_context(workers.serve())
                    reply = await stack.enter_async_context(route.backend.open(invocation))
                    if not operation.streams:
                        payload = await whole_body(reply.body, self._max_response_bytes, container)
            except ContainerFailure as failure:
                failed = failure.container or container
                raise ErrorReply(model_error(context, failure.status, failure.message, failed)) from failure
            except ModelTimeoutError as error:
                raise ErrorReply(model_error(context, 0, model_timed_out(container), container)) from error
            headers = self._reply_headers(operation, endpoint, invocation, route, reply, context)
            if operation.openai:
                content = [("Content-Type", reply.headers["content-type"])] if "content-type" in reply.headers else []
                if operation.streams:
                    yield Reply(
                        content, await stack.enter_async_context(aclosing(_arriving(reply.body, stream_ends_at)))
                    )
                else:
                    yield Reply(content, payload)
            elif operation.streams:
                messages = await stack.enter_async_context(
                    aclosing(_messages(reply.body, stream_ends_at, context, record, container))
                )
                yield Reply([("Content-Type", EVENT_STREAM), *headers], messages)
            else:
                yield Reply(headers, payload)

    @asynccontextmanager
    async def converse(
        self, parameters: Mapping[str, str], messages: AsyncIterator[StreamMessage], context: CallContext
    ) -> AsyncIterator[tuple[AsyncIterator[StreamMessage], str]]:
        """Have a model answer a bidirectional stream; yields its messages, and the variant's name.

        Args:
            parameters: the call's validated members.
            messages: the caller's.
            context: the facts of the call.

        Raises:
            ErrorReply: on entering: the call failed.
            ContainerFailure: while the messages are iterated: the container failed.
        """
        endpoint = self.endpoint(context)
        configuration = endpoint.configuration
        if configuration.async_inference is not None:
            raise ErrorReply(asynchronous_only(context, "InvokeEndpointWithBidirectionalStream"))
        route = self.route(endpoint, parameters, context)
        container = route.container or PRIMARY
        invocation = Invocation(
            body=b"",
            headers={},
            endpoint=context.endpoint,
            variant=route.variant,
            streaming=True,
            inference_component=route.inference_component,
            messages=messages,
            model_path=parameters.get("ModelInvocationPath"),
            model_query=parameters.get("ModelQueryString"),
        )
        ends_at = asyncio.get_running_loop().time() + (configuration.model_timeout or self._model_timeout)
        async with AsyncExitStack() as stack:
            try:
                async with model_limit(ends_at):
                    if (workers := self._workers.get(context.endpoint)) is not None:
                        await stack.enter_async_context(workers.serve())
                    answers = await stack.enter_async_context(route.backend.converse(invocation))
            except ContainerFailure as failure:
                failed = failure.container or container
                raise ErrorReply(model_error(context, failure.status, failure.message, failed)) from failure
            except ModelTimeoutError as error:
                raise ErrorReply(model_error(context, 0, model_timed_out(container), container)) from error
            yield answers, route.variant

    async def whole_response(
        self,
        operation: Operation,
        parameters: Mapping[str, str],
        body: bytes,
        route: Route,
        context: CallContext,
        *,
        max_bytes: int,
    ) -> tuple[Mapping[str, str], bytes]:
        """Return the headers and the body of a backend's response, without a time limit.

        Args:
            operation: the operation.
            parameters: its validated members.
            body: its payload.
            route: the route to the backend.
            context: the facts of the call.
            max_bytes: the largest response body.

        Raises:
            ContainerFailure: the container failed, or its response exceeds the limit.
            ErrorReply: the container is not ready.
        """
        async with route.backend.open(self._invocation(operation, parameters, body, route, context)) as reply:
            return reply.headers, await whole_body(reply.body, max_bytes)

    def route(self, endpoint: Endpoint, parameters: Mapping[str, str], context: CallContext) -> Route:
        """Return the route of a call: its session's, or a chosen one.

        Args:
            endpoint: the endpoint.
            parameters: the call's validated members.
            context: the facts of the call.

        Raises:
            ErrorReply: the session has ended, or the variant, component or container does not exist or has no capacity.
        """
        session_id = parameters.get("SessionId")
        requested = [parameters.get(name) for name in ("TargetVariant", "InferenceComponentName")]
        hostname = parameters.get("TargetContainerHostname")
        if session_id is None or session_id == NEW_SESSION:
            variant, component = requested
            return endpoint.choose(
                context, self._chance, target_variant=variant, component=component, hostname=hostname
            )
        session = endpoint.sessions.find(session_id, now=context.now)
        if session is None:
            raise ErrorReply(
                validation_error(f"Session {session_id} of Endpoint {context.endpoint} does not exist or has expired.")
            )
        route = session.route
        actual = (route.variant, route.inference_component, route.container)
        if any(name not in (None, own) for name, own in zip((*requested, hostname), actual, strict=True)):
            raise ErrorReply(
                validation_error(f"Session {session_id} of Endpoint {context.endpoint} belongs to another target.")
            )
        return route

    def _invocation(
        self, operation: Operation, parameters: Mapping[str, str], body: bytes, route: Route, context: CallContext
    ) -> Invocation:
        headers = {header: parameters[name] for name, header in _FORWARDED.items() if name in parameters}
        if not operation.openai:
            headers[_FORWARDED_API] = operation.name
        session_id = parameters.get("SessionId")
        new_session = session_id == NEW_SESSION
        if new_session and route.backend.makes_sessions:
            session_id = str(uuid.UUID(int=self._chance.getrandbits(128), version=4))
        return Invocation(
            body=body,
            headers=headers,
            endpoint=context.endpoint,
            variant=route.variant,
            path=CONTAINER_PATH if operation.openai else "/invocations",
            streaming=operation.streams,
            content_type=parameters.get("ContentType"),
            accept=parameters.get("Accept"),
            custom_attributes=parameters.get("CustomAttributes"),
            target_model=parameters.get("TargetModel"),
            target_container_hostname=parameters.get("TargetContainerHostname"),
            inference_component=parameters.get("InferenceComponentName"),
            inference_id=parameters.get("InferenceId"),
            session_id=session_id,
            new_session=new_session,
            prefix_aware_id=parameters.get("PrefixAwareId"),
            enable_explanations=parameters.get("EnableExplanations"),
        )

    def _reply_headers(
        self,
        operation: Operation,
        endpoint: Endpoint,
        invocation: Invocation,
        route: Route,
        reply: ContainerReply,
        context: CallContext,
    ) -> list[tuple[str, str]]:
        values = {
            "ContentType": reply.headers.get("content-type"),
            "CustomAttributes": reply.headers.get("x-amzn-sagemaker-custom-attributes"),
            "InvokedProductionVariant": route.variant,
            "NewSessionId": None,
            "ClosedSessionId": reply.headers.get(CLOSED_SESSION_HEADER.lower()),
        }
        if invocation.new_session:
            announced = announced_session(reply.headers)
            if announced is None and route.backend.makes_sessions and invocation.session_id is not None:
                announced = invocation.session_id, context.now + endpoint.configuration.session_seconds
            if announced is not None:
                values["NewSessionId"] = endpoint.sessions.open(*announced, route).announcement()
        if (closed := values["ClosedSessionId"]) is not None:
            endpoint.sessions.close(closed)
        return [
            (member.header, value)
            for member in operation.results
            if member.header is not None and (value := values.get(member.name)) is not None
        ]


async def _arriving(body: bytes | AsyncIterator[bytes], ends_at: float) -> AsyncGenerator[bytes, None]:
    """Yield a container's response as it arrives.

    Raises:
        ContainerFailure: the container failed, or its time is over.
    """
    parts = single(body) if isinstance(body, bytes) else body
    while True:
        try:
            async with model_limit(ends_at):
                part = await anext(parts, None)
        except ModelTimeoutError as error:
            raise ContainerFailure(0, model_timed_out()) from error
        if part is None:
            return
        yield part


async def _messages(
    body: bytes | AsyncIterator[bytes], ends_at: float, context: CallContext, record: RequestRecord, container: str
) -> AsyncGenerator[bytes, None]:
    """Yield the encoded messages of a response stream, one or more per part of the container's response."""
    parts = single(body) if isinstance(body, bytes) else body
    while True:
        try:
            async with model_limit(ends_at):
                part = await anext(parts, None)
        except ContainerFailure:
            broken = f"An error occurred while streaming the response from container {container}."
            record.error_code = "ModelStreamError"
            yield model_stream_error("StreamBroken", f"{broken} {context.console_link}")
            return
        except ModelTimeoutError:
            record.error_code = "ModelStreamError"
            message = f"{model_timed_out(container)} {context.console_link}"
            yield model_stream_error("ModelInvocationTimeExceeded", message)
            return
        if part is None:
            return
        for start in range(0, len(part), MAX_PART_BYTES):
            yield encode_payload_part(part[start : start + MAX_PART_BYTES])


def model_stream_error(error_code: str, message: str, exception: str = "ModelStreamError") -> bytes:
    """Encode the message that ends a response stream whose model failed after its response had started.

    Args:
        error_code: the ``ErrorCode`` of a ModelStreamError; other exceptions do not have one.
        message: the text.
        exception: the exception's name. Defaults to ``ModelStreamError``.
    """
    document = {"Message": message} | ({"ErrorCode": error_code} if exception == "ModelStreamError" else {})
    return encode_exception(exception, json.dumps(document).encode())
