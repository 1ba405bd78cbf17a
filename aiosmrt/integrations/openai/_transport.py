"""A transport of httpx2, on which the OpenAI SDK runs, that makes calls of an `aiosmrt.Client`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

import httpx2
import openai

from aiosmrt._one_process import OneProcess
from aiosmrt.client import Client
from aiosmrt.errors import AiosmrtError
from aiosmrt.integrations.openai._errors import answer_for, envelope_of, refusal_answer
from aiosmrt.integrations.openai._json import loads
from aiosmrt.integrations.openai._metering import Meter, meter_of
from aiosmrt.integrations.openai._requests import PATHS, Generation, Refusal, RequestReader, Route
from aiosmrt.integrations.openai._streams import ServedStream

__all__ = ["ClientTransport"]

# A body as large as this takes some 10 ms to read and write, which is too long for the event loop.
_IN_THREAD_BYTES: Final = 512 * 1024

# More distinct timeouts than programs use; bounds memory if they are computed.
_MAX_VIEWS: Final = 64


class ClientTransport(OneProcess, httpx2.AsyncBaseTransport):
    """Answers the requests of an OpenAI client by calls of an endpoint.

    Closing it does not close the client.

    Args:
        client: makes the calls.
        reader: reads the requests.
        route: the route of the calls.
    """

    def __init__(self, client: Client, reader: RequestReader, route: Route) -> None:
        self._client = client
        self._route = route
        self._reader = reader
        # by the limits that a request came with: connect and read timeout, in seconds
        self._views: dict[tuple[float | None, float | None], Client] = {}

    def __repr__(self) -> str:
        return f"<ClientTransport of {self._client!r}>"

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Make the call that a request asks for.

        Raises:
            openai.APITimeoutError, openai.APIConnectionError: no answer in time, or none at all.
        """
        try:
            generation = await self._read(request)
        except Refusal as refusal:
            return refusal_answer(refusal, request)
        meter: Meter | None = None
        try:
            client = self._limited(request.extensions.get("timeout") or {})
            meter = meter_of(client, generation)
            calling = self._call(client, generation)
            # error trackers report locals
            generation.params.clear()
            answer = await calling
        except AiosmrtError as error:
            failure = error
        except asyncio.CancelledError:
            if meter is not None:
                meter.ended("CancelledError")
            raise
        else:
            return await _response(answer, generation, request, meter)
        if meter is not None:
            meter.ended(type(failure).__name__)
        try:
            return answer_for(failure, request)
        finally:
            del failure

    async def _read(self, request: httpx2.Request) -> Generation:
        content = await request.aread()
        try:
            if len(content) > _IN_THREAD_BYTES:
                return await asyncio.to_thread(self._reader.read, request, content)
            return self._reader.read(request, content)
        finally:
            del content

    def _call(self, client: Client, generation: Generation) -> Awaitable[Any]:
        if self._route == "openai":
            return client._chat_completions(generation.params.copy(), streams=generation.streams)
        if generation.streams:
            return client.invoke_endpoint_with_response_stream(**generation.params)
        return client.invoke_endpoint(**generation.params)

    def _limited(self, timeout: dict[str, float | None]) -> Client:
        """The client, or a view on it with the limits of a request, where they are shorter than its own."""
        connect, read = limits = timeout.get("connect"), timeout.get("read")
        if connect is None and read is None:
            return self._client
        view = self._views.get(limits)
        if view is None:
            own = self._client._view
            view = self._client.with_options(
                connect_timeout=_shorter(connect, own.connect_timeout),
                read_timeout=_shorter(read, own.read_timeout),
                deadline=_shorter(read, own.deadline),
            )
            if len(self._views) >= _MAX_VIEWS:
                self._views.clear()
            self._views[limits] = view
        return view

    async def aclose(self) -> None:
        """Do nothing: the client is its owner's to close."""


def _shorter(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)


class Answer(httpx2.Response):
    """A whole answer of OpenAI's schema, whose `json` raises the SDK's errors for a malformed one."""

    def json(self, **arguments: Any) -> Any:
        """The answer.

        Raises:
            openai.APIConnectionError: it is not a JSON object.
            openai.APIError: it is an error, although the container reported success.
        """
        try:
            document: Any = super().json(**arguments) if arguments else loads(self.content)
        except (ValueError, RecursionError):
            document = None
        finally:
            arguments.clear()
        if not isinstance(document, dict):
            document = None
            raise openai.APIConnectionError(message="the answer is not a JSON object", request=self.request)
        if document.get("error") and (found := envelope_of(document)) is not None:
            error = found["error"]
            document = found = None
            raise openai.APIError(error["message"], self.request, body=error)
        return document


async def _response(
    answer: Any, generation: Generation, request: httpx2.Request, meter: Meter | None
) -> httpx2.Response:
    streams, of_openai = generation.streams, generation.path in PATHS
    # For any other content type, the SDK would return a malformed answer as text.
    content_type = "application/json" if of_openai else answer.get("ContentType") or "application/json"
    headers = {"content-type": "text/event-stream" if streams else content_type}
    request_id = answer["ResponseMetadata"].get("RequestId")
    if request_id is not None:
        headers["x-request-id"] = request_id
    variant = answer.get("InvokedProductionVariant")
    if variant is not None:
        headers["x-amzn-invoked-production-variant"] = variant
    body = answer["Body"]
    if streams:
        return httpx2.Response(200, headers=headers, stream=ServedStream(body, request, meter), request=request)
    content = await body.read()
    if meter is not None:
        meter.answered(content)
    headers["content-length"] = str(len(content))
    kind = Answer if of_openai else httpx2.Response
    # As a stream, so that httpx2 reads it, which sets `elapsed`.
    return kind(200, headers=headers, stream=httpx2.ByteStream(content), request=request)
