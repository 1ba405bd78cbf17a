"""Answers that contradict the service model still become typed errors."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from aiosmrt import Client, EventStreamFormatError, ModelError
from aiosmrt._wire.eventstream import encode_payload_part
from aiosmrt.serializers import TEXT
from tests.support.recording_server import RecordingServer, Response, respond, respond_in_turn

CALL: dict[str, Any] = {"EndpointName": "e", "Body": b"1,2"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (b"503", 503),
        (b'"503"', 503),
        (b"null", None),
        (b"[1]", None),
        (b'{"a": 1}', None),
        (b'"busy"', None),
        (b"NaN", None),
        (b"Infinity", None),
        (b"1e999", None),
    ],
)
async def test_an_original_status_code_of_any_kind(
    client: Client, server: RecordingServer, status: bytes, expected: int | None
) -> None:
    body = b'{"Message": "m", "OriginalStatusCode": %b}' % status
    server.answer = respond(424, body, [("x-amzn-errortype", "ModelError")])
    with pytest.raises(ModelError) as caught:
        await client.invoke_endpoint(**CALL)
    assert caught.value.original_status_code == expected


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"5", "5"),
        (b"NaN", "nan"),
        (b'{"a": 1}', "{'a': 1}"),
        (b'["x"]', "['x']"),
        (b"false", ""),
        (b"null", ""),
        (b'"\\ud83d"', "\ud83d"),
    ],
)
async def test_a_message_of_any_kind_is_text(
    client: Client, server: RecordingServer, message: bytes, text: str
) -> None:
    server.answer = respond(424, b'{"Message": %b}' % message, [("x-amzn-errortype", "ModelError")])
    with pytest.raises(ModelError) as caught:
        await client.invoke_endpoint(**CALL)
    assert caught.value.message == text


STREAM_TYPE = "application/vnd.amazon.eventstream"
# Empty answers that are not event streams: from a proxy, a load balancer, or some other server.
NO_STREAMS: dict[str, tuple[int, list[tuple[str, str]]]] = {
    "no type": (200, []),
    "page": (200, [("Content-Type", "text/html")]),
    "document": (200, [("Content-Type", "application/json")]),
    "type of a model": (200, [("X-Amzn-SageMaker-Content-Type", STREAM_TYPE)]),
    "longer type": (200, [("Content-Type", f"{STREAM_TYPE}s")]),
    "no content": (204, []),
}


async def read_parts(client: Client) -> list[bytes]:
    response = await client.invoke_endpoint_with_response_stream(**CALL)
    async with response["Body"] as stream:
        return [event["PayloadPart"]["Bytes"] async for event in stream]


async def receive_parts(client: Client) -> list[bytes]:
    response = await client.invoke_endpoint_with_response_stream(**CALL)
    async with response["Body"] as stream:
        return await stream.receive()


async def read_view(client: Client) -> list[bytes]:
    async with client.endpoint("e", serializer=TEXT, deserializer=TEXT).stream("1,2") as stream:
        return [part async for part in stream.bytes()]


async def read_text(client: Client) -> str:
    async with client.endpoint("e", serializer=TEXT, deserializer=TEXT).stream("1,2") as stream:
        return "".join([piece async for piece in stream.text()])


READS: dict[str, Callable[[Client], Awaitable[bytes | str | list[bytes]]]] = {
    "events": read_parts,
    "batches": receive_parts,
    "view": read_view,
    "text": read_text,
}
each_read = pytest.mark.parametrize("read", READS.values(), ids=READS)


@each_read
@pytest.mark.parametrize("answer", NO_STREAMS.values(), ids=NO_STREAMS)
async def test_an_empty_answer_is_no_empty_stream(
    client: Client, server: RecordingServer, answer: tuple[int, list[tuple[str, str]]], read: Any
) -> None:
    status, headers = answer
    server.answer = respond(status, b"", headers)
    with pytest.raises(EventStreamFormatError, match=f"is empty, and its content type is not {STREAM_TYPE}") as caught:
        await read(client.with_options(patience=0))
    error = caught.value
    assert (error.operation, error.endpoint_name) == ("InvokeEndpointWithResponseStream", "e")
    assert (error.attempts, error.retry_safe) == (1, True)
    assert client.statistics().in_use == 0


async def test_an_empty_answer_is_asked_for_again(client: Client, server: RecordingServer) -> None:
    events = encode_payload_part(b"ok")
    server.answer = respond_in_turn(Response(200, (), b""), Response(200, [("Content-Type", STREAM_TYPE)], events))
    assert await read_parts(client) == [b"ok"]
    assert len(server.requests) == 2


@each_read
@pytest.mark.parametrize("content_type", [STREAM_TYPE, f"{STREAM_TYPE.title()} ; charset=utf-8"])
async def test_a_stream_may_be_empty(client: Client, server: RecordingServer, content_type: str, read: Any) -> None:
    server.answer = respond(200, b"", [("Content-Type", content_type)])
    assert not await read(client.with_options(patience=0))


async def test_what_is_not_empty_is_told_by_its_frames(client: Client, server: RecordingServer) -> None:
    """A byte at a time, so that no frame lies in one piece."""

    async def bytewise() -> AsyncIterator[bytes]:
        for byte in encode_payload_part(b"ok"):
            yield bytes([byte])

    server.answer = lambda request: Response(200, [("Content-Type", "text/plain")], bytewise())
    assert await read_parts(client.with_options(patience=0)) == [b"ok"]
