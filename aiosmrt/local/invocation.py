"""From a checked call to the reply that goes out: route, headers for the container, its answer, the session.

The reply of a response stream is an iterator of encoded messages. What a container does wrong before its head is a
ModelError with an HTTP status of its own; after that the status has been sent, and the stream ends with an exception
message instead.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from aiosmrt._wire.operations import Operation
from aiosmrt.local.backends import ContainerFailure, ContainerReply, Invocation, Route
from aiosmrt.local.error_responses import CallContext, ErrorReply, endpoint_not_found, model_error, validation_error
from aiosmrt.local.requestlog import RequestRecord
from aiosmrt.local.routing import Endpoint
from aiosmrt.local.sessions import CLOSED_SESSION_HEADER, NEW_SESSION, announced_session

__all__ = ["MODEL_TIMEOUT", "STREAM_TIMEOUT", "Invoker", "Reply"]

MODEL_TIMEOUT: Final = 60.0  # seconds that a real-time model has to answer, as AWS documents it
STREAM_TIMEOUT: Final = 480.0  # likewise for a whole response stream
MAX_PART_BYTES: Final = 4 * 1024 * 1024  # far below the frame format's limit; larger chunks of a container are cut

EVENT_STREAM: Final = "application/vnd.amazon.eventstream"
NO_ANSWER: Final = (
    "Your invocation timed out while waiting for a response from container primary. Review the latency metrics for "
    "each container in Amazon CloudWatch, resolve the issue, and try again."
)

# Request members that are handed on to the container, and under which header. Accept has a header of its own in the
# service's API for streams; the container gets the plain one. DJL Serving and vLLM read the API's name.
_HANDED_ON: Final = {
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
    """A successful answer.

    Args:
        headers: its own headers.
        body: all of it, or the encoded messages of a response stream, one by one, as they come.
    """

    headers: list[tuple[str, str]]
    body: bytes | AsyncIterator[bytes]


class Invoker:
    """Serves the calls of a runtime's endpoints.

    Args:
        endpoints: by name.
        chance: the source of random numbers: variants, instances, session ids.
        model_timeout: seconds that a model has to begin its answer, and outside of streams to end it.
        stream_timeout: seconds that a response stream may take in all.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        *,
        chance: random.Random,
        model_timeout: float = MODEL_TIMEOUT,
        stream_timeout: float = STREAM_TIMEOUT,
    ) -> None:
        self._endpoints = endpoints
        self._chance = chance
        self._model_timeout = model_timeout
        self._stream_timeout = stream_timeout

    def endpoint(self, context: CallContext) -> Endpoint:
        """The endpoint that a call names.

        Raises:
            ErrorReply: there is none of that name.
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
            parameters: its checked members.
            body: its payload.
            context: where and when.
                record: told the variant and an error inside the stream.

        Raises:
            ErrorReply: on entering, with the service's answer to a call that fails.
        """
        endpoint = self.endpoint(context)
        configuration = endpoint.configuration
        if not configuration.multi_model and "TargetModel" in parameters:
            raise ErrorReply(
                validation_error(
                    f"Endpoint {context.endpoint} is not a multi-model endpoint and does not support target model "
                    "header."
                )
            )
        route = self.route(endpoint, parameters, context)
        record.variant = route.variant
        invocation = self._invocation(operation, parameters, body, route, context)
        model_timeout = configuration.model_timeout or self._model_timeout
        stream_ends_at = asyncio.get_running_loop().time() + max(self._stream_timeout, model_timeout)
        async with AsyncExitStack() as stack:
            payload = b""
            try:
                async with asyncio.timeout(model_timeout):
                    reply = await stack.enter_async_context(route.backend.open(invocation))
                    if not operation.streams:
                        payload = await _collected(reply.body)
            except ContainerFailure as failure:
                raise ErrorReply(model_error(context, failure.status, failure.message)) from failure
            except TimeoutError as error:
                raise ErrorReply(model_error(context, 0, NO_ANSWER)) from error
            headers = self._reply_headers(operation, endpoint, invocation, route, reply, context)
            if operation.streams:
                messages = await stack.enter_async_context(
                    aclosing(_messages(reply.body, stream_ends_at, context, record))
                )
                yield Reply([("Content-Type", EVENT_STREAM), *headers], messages)
            else:
                yield Reply(headers, payload)

    async def answer(
        self, operation: Operation, parameters: Mapping[str, str], body: bytes, route: Route, context: CallContext
    ) -> ContainerReply:
        """The whole answer of a target, however long it takes.

        Args:
            operation: the operation.
            parameters: its checked members.
            body: its payload.
            route: the target.
            context: where and when.

        Raises:
            ContainerFailure: the container failed.
            ErrorReply: it is not ready.
        """
        async with route.backend.open(self._invocation(operation, parameters, body, route, context)) as reply:
            return ContainerReply(reply.headers, await _collected(reply.body))

    def route(self, endpoint: Endpoint, parameters: Mapping[str, str], context: CallContext) -> Route:
        """Where a call goes: to its session's target, or to a chosen one.

        Args:
            endpoint: the endpoint.
            parameters: the call's checked members.
            context: where and when.

        Raises:
            ErrorReply: the session is over, or there is no such variant, component or capacity.
        """
        session_id = parameters.get("SessionId")
        variant, component = parameters.get("TargetVariant"), parameters.get("InferenceComponentName")
        if session_id is None or session_id == NEW_SESSION:
            return endpoint.choose(context, self._chance, target_variant=variant, component=component)
        session = endpoint.sessions.find(session_id, now=context.now)
        if session is None:
            raise ErrorReply(
                validation_error(f"Session {session_id} of Endpoint {context.endpoint} does not exist or has expired.")
            )
        route = session.route
        if (variant or route.variant) != route.variant or (component or route.inference_component) != (
            route.inference_component
        ):
            raise ErrorReply(
                validation_error(f"Session {session_id} of Endpoint {context.endpoint} lives on another target.")
            )
        return route

    def _invocation(
        self, operation: Operation, parameters: Mapping[str, str], body: bytes, route: Route, context: CallContext
    ) -> Invocation:
        headers = {header: parameters[name] for name, header in _HANDED_ON.items() if name in parameters}
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


async def _collected(body: bytes | AsyncIterator[bytes]) -> bytes:
    if isinstance(body, bytes):
        return body
    return b"".join([part async for part in body])


async def _messages(
    body: bytes | AsyncIterator[bytes], ends_at: float, context: CallContext, record: RequestRecord
) -> AsyncGenerator[bytes, None]:
    """The encoded messages of a response stream: a part for each piece that the container gives."""
    parts = _single(body) if isinstance(body, bytes) else body
    while True:
        try:
            async with asyncio.timeout_at(ends_at):
                part = await anext(parts, None)
        except ContainerFailure:
            broken = f"An error occurred while streaming the response from container primary. {context.console_link}"
            record.error_code = "ModelStreamError"
            yield model_stream_error("StreamBroken", broken)
            return
        except TimeoutError:
            record.error_code = "ModelStreamError"
            yield model_stream_error("ModelInvocationTimeExceeded", f"{NO_ANSWER} {context.console_link}")
            return
        if part is None:
            return
        for start in range(0, len(part), MAX_PART_BYTES):
            yield encode_payload_part(part[start : start + MAX_PART_BYTES])


async def _single(body: bytes) -> AsyncIterator[bytes]:
    yield body


def model_stream_error(error_code: str, message: str, exception: str = "ModelStreamError") -> bytes:
    """The message that ends a response stream whose model failed after it had begun to answer."""
    document = {"Message": message} | ({"ErrorCode": error_code} if exception == "ModelStreamError" else {})
    return encode_exception(exception, json.dumps(document).encode())
