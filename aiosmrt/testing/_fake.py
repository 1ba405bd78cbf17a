"""A client that answers from a table and records its calls."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, NoReturn, TypeAlias
from urllib.parse import unquote, urlsplit

from aiosmrt._core.configure import Configuration
from aiosmrt._transport.base import Reply, Request
from aiosmrt._wire.operations import EVENT_STREAM, OPERATIONS, Operation
from aiosmrt.client import Client
from aiosmrt.errors import AiosmrtError, ClientStateError, EndpointNotFoundError, fresh_copy
from aiosmrt.testing._errors import REQUEST_ID, make_error
from aiosmrt.testing._streams import PartsReply

__all__ = ["FakeClient", "FakeResponse", "RecordedCall"]

_BY_SUFFIX = {operation.path_suffix: operation for operation in OPERATIONS}
_NO_HTTP2 = "FakeClient does not answer bidirectional streams: use aiosmrt.local.LocalRuntime(http2_port=0) for them"


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A call that reached a `FakeClient`.

    Args:
        operation: the API operation, such as ``"InvokeEndpoint"``.
        endpoint_name: the endpoint.
        params: the other parameters under AWS's names, except the body.
        body: the request body.
    """

    operation: str
    endpoint_name: str
    params: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """The request body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class FakeResponse:
    """What a `FakeClient` answers.

    Args:
        body: the response body; a sequence has one element for each part of a stream.
        content_type: the body's media type.
        custom_attributes: the response's CustomAttributes. Defaults to none.
        error: what a stream raises after its parts. If None, it ends.

    Raises:
        TypeError: one of them has another type.
    """

    body: bytes | Sequence[bytes] = field(default=b"", repr=False)
    content_type: str = "application/octet-stream"
    custom_attributes: str | None = field(default=None, repr=False)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        body: object = self.body
        wrong: type | None = None
        if isinstance(body, str) or not isinstance(body, (bytes, Sequence)):
            wrong = type(body)
        elif not isinstance(body, bytes):
            wrong = next((type(part) for part in body if not isinstance(part, bytes)), None)
        if wrong is not None:
            raise TypeError(f"body must be bytes, or a sequence of bytes with the parts of a stream; got {wrong}")
        if not isinstance(self.content_type, str):
            raise TypeError(f"content_type must be a string; got {type(self.content_type)}")
        if not isinstance(self.custom_attributes, (str, NoneType)):
            raise TypeError(f"custom_attributes must be a string; got {type(self.custom_attributes)}")
        if not isinstance(self.error, (BaseException, NoneType)):
            raise TypeError(f"error must be an exception; got {self.error!r:.80}")


# What stands for a response; the last is JSON.
Fixed: TypeAlias = FakeResponse | BaseException | bytes | str | dict[str, Any] | list[Any]
Answer: TypeAlias = Fixed | Callable[[RecordedCall], "Fixed | Awaitable[Fixed]"]


class FakeClient(Client):
    """A client that sends nothing: it answers from a table, and records its calls.

    Everything but the transport is the real client's: parameter checks, results, errors, views, endpoints,
    observers and statistics. It reads neither credentials nor a network. Calls are not repeated, unless ``patience`` is
    given. Bidirectional streams raise `ClientStateError`.

    Args:
        answers: what each endpoint answers, by name, or under ``*`` for all others: bytes, text, JSON as a dictionary
            or list, a `FakeResponse`, an exception to raise, or a function or coroutine function of the `RecordedCall`
            that returns one of these. An endpoint without an answer does not exist.
        arguments: those of `aiosmrt.Client`.

    Raises:
        TypeError: what is given as answers, or as one of them, cannot be one; an answer that a function returns is
            looked at when it is called.

    Attributes:
        calls: the calls so far, oldest first; a view records in the same list.

    >>> import asyncio
    >>> async def main():
    ...     async with FakeClient({"churn": {"score": 0.25}}) as client:
    ...         response = await client.invoke_endpoint(EndpointName="churn", Body=b"1,2", ContentType="text/csv")
    ...         return await response["Body"].read(), client.calls[0].body
    >>> asyncio.run(main())
    (b'{"score": 0.25}', b'1,2')
    """

    def __init__(self, answers: Mapping[str, Answer], **arguments: Any) -> None:
        if not isinstance(answers, Mapping):
            raise TypeError(f"answers must map the names of endpoints to their answers; got {type(answers)}")
        for name, answer in answers.items():
            if isinstance(answer, type) or not callable(answer):
                _response_of(answer, name)
        super().__init__(
            **{
                "region_name": "us-east-1",
                "endpoint_url": "http://sagemaker.invalid",
                "aws_access_key_id": "AKIDEXAMPLE",
                "aws_secret_access_key": "not-a-real-secret",
                "patience": 0.0,
                **arguments,
            }
        )
        self.calls: list[RecordedCall] = []
        transport = _FakeTransport(answers, self.calls)

        async def create(configuration: Configuration) -> _FakeTransport:
            return transport

        self._core.create_transport = create
        self._core.http2_pool = _refuse


async def _refuse() -> NoReturn:
    raise ClientStateError(_NO_HTTP2)


class _FakeTransport:
    """A transport that sends nothing.

    Args:
        answers: as `FakeClient`'s.
        calls: where calls are recorded.
    """

    def __init__(self, answers: Mapping[str, Answer], calls: list[RecordedCall]) -> None:
        self._answers = answers
        self._calls = calls

    async def send(self, request: Request) -> Reply:
        operation, answer = await self._answer(request)
        if operation.status != 200:
            location = "s3://fake/output"
            return Reply(operation.status, {**_headers(answer), "x-amzn-sagemaker-outputlocation": location}, _ACCEPTED)
        if answer.error is not None:
            raise _raisable(answer.error)
        return Reply(200, _headers(answer), b"".join(_parts(answer)))

    async def send_streaming(self, request: Request) -> PartsReply:
        _, answer = await self._answer(request)
        error = None if answer.error is None else _raisable(answer.error)
        headers = {
            **_headers(answer),
            "content-type": EVENT_STREAM,
            "x-amzn-sagemaker-content-type": answer.content_type,
        }
        return PartsReply(_parts(answer), error, headers)

    async def close(self) -> None:
        """Do nothing, because nothing is connected."""

    async def _answer(self, request: Request) -> tuple[Operation, FakeResponse]:
        operation, call = _recorded(request)
        self._calls.append(call)
        answer: Any = self._answers.get(call.endpoint_name, self._answers.get("*"))
        if answer is None:
            message = f"Endpoint {call.endpoint_name} of account 123456789012 not found."
            raise make_error(EndpointNotFoundError, message)
        if callable(answer):
            answer = answer(call)
            if isinstance(answer, Awaitable):
                answer = await answer
        response = _response_of(answer, call.endpoint_name)
        if isinstance(response, BaseException):
            raise _raisable(response)
        return operation, response


_ACCEPTED = b'{"InferenceId": "00000000-0000-4000-8000-000000000000"}'


def _response_of(answer: object, endpoint_name: str) -> FakeResponse | BaseException:
    """What an answer stands for.

    Raises:
        TypeError: it cannot be one.
    """
    if isinstance(answer, (FakeResponse, BaseException)):
        return answer
    if isinstance(answer, bytes):
        return FakeResponse(answer)
    if isinstance(answer, str):
        return FakeResponse(answer.encode(), "text/plain; charset=utf-8")
    if isinstance(answer, type) and issubclass(answer, BaseException):
        hint = f"make_error({answer.__name__})" if issubclass(answer, AiosmrtError) else f"{answer.__name__}(...)"
        raise TypeError(f"the answer of {endpoint_name!r} is the class of an error; give an error: {hint}")
    if answer is None:
        raise TypeError(f"the answer of {endpoint_name!r} is None; for an empty body, give b''")
    try:
        return FakeResponse(json.dumps(answer).encode(), "application/json")
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the answer of {endpoint_name!r} must be bytes, text, JSON, a FakeResponse, an exception, or a function "
            f"that returns one of these; got {type(answer)}: {error}"
        ) from None


def _raisable(error: BaseException) -> BaseException:
    """The error for one call, which adds its own facts to it."""
    return fresh_copy(error) if isinstance(error, AiosmrtError) else error


def _parts(answer: FakeResponse) -> Sequence[bytes]:
    return [answer.body] if isinstance(answer.body, bytes) else answer.body


def _headers(answer: FakeResponse) -> dict[str, str]:
    headers = {
        "x-amzn-requestid": REQUEST_ID,
        "content-type": answer.content_type,
        "x-amzn-invoked-production-variant": "AllTraffic",
    }
    if answer.custom_attributes is not None:
        headers["x-amzn-sagemaker-custom-attributes"] = answer.custom_attributes
    return headers


def _recorded(request: Request) -> tuple[Operation, RecordedCall]:
    _, _, name, suffix = urlsplit(request.target).path.split("/", 3)
    operation = _BY_SUFFIX[f"/{suffix}"]
    lines = (line.partition(": ") for line in request.headers.split("\r\n") if line)
    headers = {header.lower(): value for header, _, value in lines}
    params = {
        member.name: headers[member.header.lower()]
        for member in operation.members
        if member.header is not None and member.header.lower() in headers
    }
    return operation, RecordedCall(operation.name, unquote(name), params, bytes(request.body))
