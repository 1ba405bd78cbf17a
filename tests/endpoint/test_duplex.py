"""`Endpoint.duplex`: objects in both directions of a bidirectional stream."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import aiosmrt
from aiosmrt._wire.eventstream import encode_payload_part
from aiosmrt.endpoint import DuplexStream, Endpoint
from aiosmrt.errors import (
    ClientStateError,
    DeserializationError,
    ModelStreamError,
    ParamValidationError,
    SerializationError,
    TruncatedStreamError,
)
from aiosmrt.local import Invocation, StreamMessage, faults
from aiosmrt.serializers import BYTES, CSV, JSON, NPY, OFF_LOOP_BYTES, TEXT, TextCodec
from tests.support.http2_peer import http2_server
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.runtime import local_runtime
from tests.support.tracebacks import shown_locals


async def echo(invocation: Invocation) -> AsyncIterator[StreamMessage]:
    async for message in invocation.messages:
        yield message


@asynccontextmanager
async def endpoint_of(
    model: Any, serializer: Any = JSON, deserializer: Any = JSON, **options: Any
) -> AsyncIterator[Endpoint[Any, Any]]:
    """An endpoint whose model talks back."""
    async with (
        local_runtime({"voice": model}, http2_port=0) as runtime,
        aiosmrt.Client(http2_endpoint_url=runtime.http2_url, **CLIENT_ARGUMENTS) as client,
    ):
        yield client.endpoint("voice", serializer=serializer, deserializer=deserializer, **options)
        assert client.statistics().in_use == 0


def saying(*messages: StreamMessage | str | bytes) -> Any:
    """A model that says these messages, and hears nothing."""

    async def model(invocation: Invocation) -> AsyncIterator[StreamMessage | str | bytes]:
        for message in messages:
            yield message

    return model


async def test_objects_go_in_both_directions_at_once() -> None:
    values = [{"n": n, "text": "ä" * n} for n in range(40)]
    async with endpoint_of(echo) as endpoint, endpoint.duplex() as stream, asyncio.TaskGroup() as tasks:
        assert isinstance(stream, DuplexStream)
        tasks.create_task(stream.send_all(values))
        assert [value async for value in stream] == values
        assert (await stream.response())["InvokedProductionVariant"] == "AllTraffic"


async def test_values_come_while_the_input_is_open() -> None:
    async with endpoint_of(echo) as endpoint, endpoint.duplex() as stream:
        for value in (1, [2], None):
            await stream.send(value)
            assert await anext(stream) == value
        await stream.end_input()
        assert [value async for value in stream] == []
        with pytest.raises(ClientStateError, match="input of this stream was ended"):
            await stream.send(1)


@pytest.mark.parametrize(
    ("serializer", "data", "arguments", "received"),
    [
        (JSON, {"a": "é"}, {}, '{"a":"é"}'),
        (TEXT, "é", {}, "é"),
        (CSV, [[1, 2]], {}, "1,2"),
        (BYTES, b"\xff", {}, b"\xff"),
        (TextCodec(content_type="text/plain; charset=latin-1"), "é", {}, b"\xe9"),
        (JSON, 1, {"data_type": "BINARY"}, b"1"),
        (BYTES, b"text", {"data_type": "UTF8"}, "text"),
        (JSON, 1, {"content_type": "application/octet-stream"}, b"1"),
        (BYTES, b"{}", {"content_type": "application/vnd.speech+json"}, "{}"),
    ],
)
async def test_a_message_is_text_or_binary_by_its_content_type(
    serializer: Any, data: Any, arguments: Any, received: str | bytes
) -> None:
    seen: list[str | bytes] = []

    async def model(invocation: Invocation) -> AsyncIterator[str]:
        async for message in invocation.messages:
            seen.append(message.data)
            yield "heard"

    async with endpoint_of(model, serializer, TEXT) as endpoint, endpoint.duplex(**arguments) as stream:
        await stream.send(data)
        assert await anext(stream) == "heard"
    assert seen == [received]


async def test_one_object_may_have_a_serializer_of_its_own() -> None:
    async with endpoint_of(echo, BYTES, TEXT) as endpoint, endpoint.duplex() as stream:
        await stream.send({"type": "Finalize"}, serializer=JSON)
        await stream.send(b"audio")
        raw = [(await anext(stream.stream))["PayloadPart"] for _ in range(2)]
    assert [(part["Bytes"], part.get("DataType")) for part in raw] == [
        (b'{"type":"Finalize"}', "UTF8"),
        (b"audio", "BINARY"),
    ]


async def test_the_deserializer_is_told_text_from_binary() -> None:
    class Either:
        accept = "*/*"

        def deserialize(self, body: bytes, content_type: str) -> Any:
            return content_type, body

    model = saying("text", b"\xff", StreamMessage("two ", complete=False), StreamMessage("parts"))
    async with endpoint_of(model, JSON, Either()) as endpoint, endpoint.duplex() as stream:
        assert [value async for value in stream] == [
            ("text/plain; charset=utf-8", b"text"),
            ("application/octet-stream", b"\xff"),
            ("text/plain; charset=utf-8", b"two parts"),
        ]


async def test_members_and_the_containers_path_reach_the_model() -> None:
    seen: list[Any] = []

    async def model(invocation: Invocation) -> AsyncIterator[str]:
        seen.append((invocation.model_path, invocation.model_query, invocation.variant))
        yield "1"

    async with (
        endpoint_of(model, target_variant="AllTraffic") as endpoint,
        endpoint.duplex(model_invocation_path="v1/listen", model_query_string="a=b") as stream,
    ):
        assert await anext(stream) == 1
    assert seen == [("v1/listen", "a=b", "AllTraffic")]


# What is refused


@pytest.mark.parametrize(
    ("serializer", "data", "arguments", "text"),
    [
        (JSON, {"a": object()}, {}, "JSON lacks"),
        (JSON, {"a": float("nan")}, {}, "NaN"),
        (CSV, b"\xff", {}, "must be UTF-8, and this one is not at byte 0"),
        (TEXT, b"bytes", {}, "must be a str"),
        (BYTES, "text", {}, "must be bytes"),
        (BYTES, b"ab\xff", {"data_type": "UTF8"}, "not at byte 2"),
    ],
)
async def test_what_cannot_be_serialized_is_refused_and_the_stream_goes_on(
    serializer: Any, data: Any, arguments: Any, text: str
) -> None:
    async with endpoint_of(echo, serializer, BYTES) as endpoint, endpoint.duplex(**arguments) as stream:
        with pytest.raises(SerializationError, match=text) as raised:
            await stream.send(data)
        assert (raised.value.operation, raised.value.endpoint_name) == (
            "InvokeEndpointWithBidirectionalStream",
            "voice",
        )
        await stream.send("still there", serializer=TEXT)
        assert await anext(stream) == b"still there"


async def test_a_message_above_16_mib_is_refused() -> None:
    async with endpoint_of(echo, BYTES, BYTES) as endpoint, endpoint.duplex() as stream:
        with pytest.raises(ParamValidationError, match="at most 16777216 bytes"):
            await stream.send(bytes(2**24 + 1))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"data_type": "TEXT"}, "data_type must be 'UTF8', 'BINARY' or None"),
        ({"max_message_bytes": 0}, "max_message_bytes must be an integer >= 1"),
        ({"max_resend_bytes": -1}, "max_resend_bytes"),
        ({"model_invocation_path": "/leading"}, "ModelInvocationPath"),
        ({"model_query_string": "q" * 2049}, "ModelQueryString"),
        ({"inference_id": "1"}, "does not accept inference_id"),
        ({"target_variant": "?"}, "TargetVariant"),
    ],
)
async def test_faulty_arguments_are_refused_before_anything_is_sent(arguments: Any, text: str) -> None:
    async with aiosmrt.Client(http2_endpoint_url="http://127.0.0.1:1", **CLIENT_ARGUMENTS) as client:
        with pytest.raises(ParamValidationError, match=text):
            client.endpoint("voice", serializer=JSON, deserializer=JSON).duplex(**arguments)


async def test_an_option_that_does_not_exist_is_a_type_error() -> None:
    async with aiosmrt.Client(http2_endpoint_url="http://127.0.0.1:1", **CLIENT_ARGUMENTS) as client:
        with pytest.raises(TypeError, match="'timeout'"):
            client.endpoint("voice", serializer=JSON, deserializer=JSON).duplex(timeout=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("items", "text"), [("text", "characters"), (b"bytes", "bytes"), ({"a": 1}, "keys"), (5, "got a int")]
)
async def test_what_iterates_into_something_else_is_not_sent(items: Any, text: str) -> None:
    async with endpoint_of(echo) as endpoint, endpoint.duplex() as stream:
        with pytest.raises(ParamValidationError, match=text):
            await stream.send_all(items)


async def test_an_object_is_no_serializer() -> None:
    async with endpoint_of(echo) as endpoint, endpoint.duplex() as stream:
        with pytest.raises(ParamValidationError, match="serialize"):
            await stream.send(1, serializer=object())  # type: ignore[call-overload]


# Errors


async def test_the_next_value_can_be_read_after_one_that_cannot() -> None:
    model = saying("no json", "1", StreamMessage(bytes(30)), "2", StreamMessage("3", complete=False))
    async with endpoint_of(model) as endpoint, endpoint.duplex(max_message_bytes=20) as stream:
        with pytest.raises(DeserializationError, match="not JSON") as raised:
            await anext(stream)
        response = await stream.response()
        assert raised.value.operation == "InvokeEndpointWithBidirectionalStream"
        assert raised.value.endpoint_name == "voice"
        assert raised.value.request_id == response["ResponseMetadata"]["RequestId"]
        assert raised.value.attempts == 1
        assert await anext(stream) == 1
        with pytest.raises(DeserializationError, match="max_message_bytes of 20") as raised:
            await anext(stream)
        assert raised.value.endpoint_name == "voice"
        assert await anext(stream) == 2
        with pytest.raises(TruncatedStreamError, match="inside a message"):
            await anext(stream)


async def test_a_type_that_nobody_knows_is_binary() -> None:
    async with (
        http2_server() as server,
        aiosmrt.Client(http2_endpoint_url=server.origin, **CLIENT_ARGUMENTS) as client,
        client.endpoint("voice", serializer=BYTES, deserializer=BYTES).duplex() as stream,
    ):
        peer = await server.peer()
        number = await peer.request()
        peer.answer(number)
        peer.send(number, encode_payload_part(b"one", "TEXT") + encode_payload_part(b"two", "UTF8"), end=True)
        assert [value async for value in stream] == [b"one", b"two"]


async def test_text_is_not_read_as_an_array() -> None:
    async with endpoint_of(saying("text"), JSON, NPY) as endpoint, endpoint.duplex() as stream:
        with pytest.raises(DeserializationError, match="'text/plain'"):
            await anext(stream)


async def test_what_breaks_the_stream_is_raised_by_both_sides() -> None:
    async def failing(invocation: Invocation) -> AsyncIterator[str]:
        yield "1"
        raise ValueError("broken")

    async with endpoint_of(failing) as endpoint, endpoint.duplex() as stream:
        assert await anext(stream) == 1
        for _ in range(2):
            with pytest.raises(ModelStreamError, match="broken"):
                await anext(stream)
        with pytest.raises(ModelStreamError, match="broken"):
            await stream.send(1)


async def test_what_was_sent_is_sent_again_before_the_first_value() -> None:
    async with (
        local_runtime({"voice": echo}, http2_port=0) as runtime,
        aiosmrt.Client(
            http2_endpoint_url=runtime.http2_url, retry=aiosmrt.RetryPolicy(base_delay=0.0), **CLIENT_ARGUMENTS
        ) as client,
    ):
        runtime.inject("voice", faults.ModelFailure().next(1))
        async with client.endpoint("voice", serializer=JSON, deserializer=JSON).duplex() as stream:
            await stream.send_all([1, 2])
            assert [value async for value in stream] == [1, 2]
        assert client.statistics().attempts == 2


async def test_a_source_that_fails_does_not_end_the_input() -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        raise LookupError("no microphone")

    async with endpoint_of(echo) as endpoint, endpoint.duplex() as stream:
        with pytest.raises(LookupError, match="no microphone"):
            await stream.send_all(source())
        await stream.send_all([2], end_input=False)
        await stream.send(3)
        assert [await anext(stream) for _ in range(3)] == [1, 2, 3]


async def test_a_large_message_is_made_and_read_in_a_thread_and_a_cancelled_wait_loses_nothing() -> None:
    reading, go = threading.Event(), threading.Event()
    threads: set[str] = set()

    class Slow:
        accept = "*/*"

        def deserialize(self, body: bytes, content_type: str) -> int:
            threads.add(threading.current_thread().name)
            reading.set()
            assert go.wait(20)
            return len(body)

    size = OFF_LOOP_BYTES + 1
    async with endpoint_of(saying(bytes(size), bytes(1)), BYTES, Slow()) as endpoint, endpoint.duplex() as stream:
        waiting = asyncio.ensure_future(anext(stream))
        while not reading.is_set():
            await asyncio.sleep(0.001)
        with pytest.raises(ClientStateError, match="another task"):
            await anext(stream)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go.set()
        assert [await anext(stream) for _ in range(2)] == [size, 1]
    assert threading.main_thread().name in threads  # the small one
    assert len(threads) > 1


async def test_leaving_ends_the_stream_and_nothing_can_be_done_after() -> None:
    async with endpoint_of(echo) as endpoint:
        stream = endpoint.duplex()
        with pytest.raises(ClientStateError, match="must be entered"):
            await stream.send(1)
        async with stream:
            await stream.send(1)
            await anext(stream)
        for use in (stream.send(1), anext(stream), stream.__aenter__()):
            with pytest.raises(ClientStateError):
                await use


async def test_objects_stay_out_of_errors_and_reprs() -> None:
    secret = "payload-of-a-user"
    async with endpoint_of(echo) as endpoint:
        async with endpoint.duplex(model_query_string=f"token={secret}") as stream:
            await stream.send(secret, serializer=TEXT)
            with pytest.raises(DeserializationError) as read:
                await anext(stream)
            with pytest.raises(SerializationError) as sent:
                await stream.send({secret: object()})
            with pytest.raises(SerializationError) as all_sent:
                await stream.send_all([{secret: object()}])
            assert secret not in repr(stream)
        for raised in (read, sent, all_sent):
            assert secret not in str(raised.value)
            assert shown_locals(raised.value, {"payload": secret}) == []
        with pytest.raises(ParamValidationError) as refused:
            endpoint.duplex(model_query_string=f"{secret}\n")
        assert shown_locals(refused.value, {"query": secret}) == []


async def test_values_are_json_of_every_shape() -> None:
    documents = ["[1, 2]", '"text"', "null"]
    async with endpoint_of(saying(*documents)) as endpoint, endpoint.duplex() as stream:
        assert [value async for value in stream] == [json.loads(document) for document in documents]
