"""Bidirectional streams, against the local runtime and against a server whose every frame is the test's."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.events import DataReceived, PingAckReceived, StreamReset, WindowUpdated
from hyperframe.frame import GoAwayFrame

import aiosmrt
from aiosmrt._core.duplex import MAX_PART_BYTES
from aiosmrt._wire.eventstream import Decoder, encode_exception, encode_payload_part
from aiosmrt.errors import (
    ClientStateError,
    ConnectionClosedError,
    CredentialRetrievalError,
    DeserializationError,
    EventStreamFormatError,
    ParameterNameError,
    ParamValidationError,
    TruncatedStreamError,
)
from aiosmrt.events import StreamExpiring
from aiosmrt.local import Invocation, StreamMessage, faults
from tests.support.http2_peer import Http2Server, http2_server
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.progress import stands_still
from tests.support.runtime import local_runtime
from tests.support.virtual_time import VirtualTime


async def echo(invocation: Invocation) -> AsyncIterator[StreamMessage]:
    async for message in invocation.messages:
        yield message


@asynccontextmanager
async def client_of(url: str, **arguments: Any) -> AsyncIterator[aiosmrt.Client]:
    async with aiosmrt.Client(http2_endpoint_url=url, **{**CLIENT_ARGUMENTS, **arguments}) as client:
        yield client


@asynccontextmanager
async def serving(model: Any, **arguments: Any) -> AsyncIterator[tuple[Any, aiosmrt.Client]]:
    """A runtime with a model, and a client of it."""
    async with (
        local_runtime({"echo": model}, http2_port=0) as runtime,
        client_of(runtime.http2_url, **arguments) as client,
    ):
        yield runtime, client


@asynccontextmanager
async def echo_client(**arguments: Any) -> AsyncIterator[tuple[Any, aiosmrt.Client]]:
    async with serving(echo, **arguments) as (runtime, client):
        yield runtime, client


def conversation(client: aiosmrt.Client, **arguments: Any) -> aiosmrt.BidirectionalStream:
    return client.invoke_endpoint_with_bidirectional_stream(**({"EndpointName": "echo"} | arguments))


async def test_messages_go_in_both_directions() -> None:
    async with echo_client() as (runtime, client), conversation(client) as stream:
        await stream.send("text")
        assert await anext(stream) == {
            "PayloadPart": {"Bytes": b"text", "DataType": "UTF8", "CompletionState": "COMPLETE"}
        }
        await stream.send(b"\xff\0", DataType="BINARY", CompletionState="PARTIAL")
        assert await anext(stream) == {
            "PayloadPart": {"Bytes": b"\xff\0", "DataType": "BINARY", "CompletionState": "PARTIAL"}
        }
        await stream.end_input()
        assert [event async for event in stream] == []
        response = await stream.response()
        assert response["InvokedProductionVariant"] == "AllTraffic"
        assert response["ResponseMetadata"]["HTTPStatusCode"] == 200
    (record,) = await runtime.wait_for_requests(1)
    assert (record.outcome, record.operation, record.access_key_id, record.parts) == (
        "answered",
        "InvokeEndpointWithBidirectionalStream",
        CLIENT_ARGUMENTS["aws_access_key_id"],
        2,
    )


async def test_two_tasks_send_and_receive_more_than_all_windows() -> None:
    async with echo_client() as (_, client), conversation(client) as stream:

        async def send_all() -> None:
            for number in range(12):
                await stream.send(bytes([number]) * 200_000)
            await stream.end_input()

        sending = asyncio.create_task(send_all())
        received = [event["PayloadPart"]["Bytes"] async for event in stream]
        await sending
    assert received == [bytes([number]) * 200_000 for number in range(12)]


async def test_send_waits_for_a_model_that_does_not_read() -> None:
    go = asyncio.Event()
    taken: list[int] = []

    async def slow(invocation: Invocation) -> AsyncIterator[str]:
        yield "ready"
        await go.wait()
        async for message in invocation.messages:
            taken.append(len(message.data))
        yield "done"

    async with serving(slow) as (_, client), conversation(client) as stream:
        await anext(stream)
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            for _ in range(20):
                await stream.send(bytes(10_000))
                sent += 1
            await stream.end_input()

        sending = asyncio.create_task(send_all())
        # The window takes six of them, and nothing after it until the model reads.
        while sent < 6:
            await asyncio.sleep(0)
        assert await stands_still(lambda: sent) == 6
        go.set()
        assert (await anext(stream))["PayloadPart"]["Bytes"] == b"done"
        await sending
    assert taken == [10_000] * 20


async def test_send_waits_for_a_full_socket_where_no_window_limits_it() -> None:
    """A caller that awaits nothing but `send` must not fill the memory."""
    async with (
        http2_server(window=2**31 - 1) as server,
        client_of(server.origin) as client,
        conversation(client) as stream,
    ):
        peer = await server.peer()
        await peer.request()
        peer.h2.increment_flow_control_window(2**31 - 2**16)
        peer.h2.ping(b"windows.")
        peer.flush()
        # The client has the window that was sent before.
        await peer.event(PingAckReceived)
        assert peer.transport is not None
        peer.transport.pause_reading()
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            for _ in range(1000):
                await stream.send(bytes(100_000))
                sent += 1

        sending = asyncio.create_task(send_all())
        while not sent:
            await asyncio.sleep(0)
        # What both sockets hold, and no more.
        assert await stands_still(lambda: sent) < 300
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


async def test_a_send_that_is_cancelled_while_it_waits_sends_nothing_whatever_waits_behind_it() -> None:
    """As with two tasks that each give up after a time, and try again, while the service takes nothing."""
    async with http2_server(window=1000) as server, client_of(server.origin) as client, conversation(client) as stream:
        peer = await server.peer()
        number = await peer.request()
        first = asyncio.create_task(stream.send(bytes(5000)))
        while not any(isinstance(event, DataReceived) for event in peer.seen):
            await asyncio.sleep(0)
        before = asyncio.create_task(stream.send("number 0"))
        for count in range(1, 20):
            behind = asyncio.create_task(stream.send(f"number {count}"))
            await asyncio.sleep(0)
            before.cancel()
            await asyncio.wait({before})
            before = behind
        ending = asyncio.create_task(stream.end_input())
        outer = Decoder()
        received: list[bytes] = []
        while not received or received[-1]:
            received += [payload for _, payload in outer.feed(await peer.data(number, 1))]
        await asyncio.gather(first, before, ending)
        messages = [payload for signed in received for _, payload in Decoder().feed(signed)]
    assert messages == [bytes(5000), b"number 19"]


async def test_messages_are_joined_by_their_states() -> None:
    parts: list[StreamMessage] = [
        StreamMessage("caf", complete=False),
        StreamMessage("é", complete=True),
        StreamMessage(b"\x01", complete=False),
        StreamMessage(b"", complete=False),
        StreamMessage(b"\x02"),
        StreamMessage(""),
    ]

    async def model(invocation: Invocation) -> AsyncIterator[StreamMessage]:
        for part in parts:
            yield part

    async with serving(model) as (_, client):
        async with conversation(client) as stream:
            assert [message async for message in stream.messages()] == ["café", b"\x01\x02", ""]
        async with conversation(client) as stream:
            with pytest.raises(DeserializationError, match="max_message_bytes of 2"):
                [message async for message in stream.messages(max_message_bytes=2)]
        parts[:] = [StreamMessage(b"half", complete=False)]
        async with conversation(client) as stream:
            with pytest.raises(TruncatedStreamError, match="inside a message"):
                [message async for message in stream.messages()]
        parts.append(StreamMessage("text"))
        async with conversation(client) as stream:
            with pytest.raises(DeserializationError, match="goes on as UTF8"):
                [message async for message in stream.messages()]


async def test_a_cancelled_wait_for_a_message_loses_nothing() -> None:
    go = asyncio.Event()

    async def model(invocation: Invocation) -> AsyncIterator[StreamMessage]:
        yield StreamMessage("one ", complete=False)
        await go.wait()
        yield StreamMessage("message")

    async with serving(model) as (_, client), conversation(client) as stream:
        await stream.response()
        messages = stream.messages()
        waiting = asyncio.ensure_future(anext(messages))
        while "parts=1" not in repr(stream):
            await asyncio.sleep(0)
        await _settled()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go.set()
        assert await anext(messages) == "one message"
        assert [message async for message in messages] == []


async def test_the_next_message_can_be_read_after_one_that_cannot() -> None:
    async def model(invocation: Invocation) -> AsyncIterator[StreamMessage]:
        yield StreamMessage(bytes(6), complete=False)
        yield StreamMessage(bytes(6), complete=False)
        yield StreamMessage(bytes(6))
        yield StreamMessage("short")
        yield StreamMessage("cut", complete=False)

    async with serving(model) as (_, client), conversation(client) as stream:
        messages = stream.messages(max_message_bytes=10)
        with pytest.raises(DeserializationError, match="max_message_bytes of 10"):
            await anext(messages)
        assert await anext(messages) == "short"
        for _ in range(2):  # the error does not turn into an end
            with pytest.raises(TruncatedStreamError, match="inside a message"):
                await anext(messages)


async def test_a_message_may_not_be_limited_to_nothing() -> None:
    async with client_of("http://127.0.0.1:1") as client:
        with pytest.raises(ParamValidationError, match="max_message_bytes must be an integer >= 1; got 0"):
            conversation(client).messages(max_message_bytes=0)


# Parameters


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"EndpointName": "no spaces"}, "EndpointName"),
        ({"EndpointName": None}, "EndpointName"),
        ({"ModelInvocationPath": "/leading"}, "ModelInvocationPath"),
        ({"ModelInvocationPath": "a" * 101}, "ModelInvocationPath"),
        ({"ModelQueryString": "a" * 2049}, "ModelQueryString"),
        ({"ModelQueryString": "a\nb"}, "ModelQueryString"),
        ({"max_resend_bytes": -1}, "max_resend_bytes"),
        ({"pin_credentials": 1}, "pin_credentials"),
        ({"Body": b""}, "stream.send"),
    ],
)
async def test_faulty_parameters_are_refused_before_anything_is_sent(arguments: dict[str, Any], text: str) -> None:
    async with client_of("http://127.0.0.1:1") as client:
        with pytest.raises(ParamValidationError, match=text):
            conversation(client, **arguments)


async def test_an_unknown_parameter_is_a_type_error_too() -> None:
    async with client_of("http://127.0.0.1:1") as client:
        with pytest.raises(ParameterNameError, match="Reigon") as raised:
            conversation(client, Reigon="x")
    assert "Body" not in str(raised.value)  # which is refused too


@pytest.mark.parametrize(
    ("data", "arguments", "text"),
    [
        (1, {}, "data must be"),
        (bytes(MAX_PART_BYTES + 1), {}, "at most"),
        ("\ud800", {}, "lone surrogates"),
        (b"", {"DataType": "TEXT"}, "DataType"),
        (b"", {"CompletionState": "DONE"}, "CompletionState"),
    ],
)
async def test_a_faulty_message_is_refused_and_the_stream_goes_on(data: Any, arguments: Any, text: str) -> None:
    async with echo_client() as (_, client), conversation(client) as stream:
        with pytest.raises(ParamValidationError, match=text):
            await stream.send(data, **arguments)
        await stream.send("still there")
        assert (await anext(stream))["PayloadPart"]["Bytes"] == b"still there"


async def test_path_and_query_reach_the_model() -> None:
    seen: list[Any] = []

    async def model(invocation: Invocation) -> AsyncIterator[str]:
        seen.append((invocation.model_path, invocation.model_query, invocation.variant))
        yield ""

    async with (
        serving(model) as (_, client),
        conversation(
            client,
            ModelInvocationPath="v1/listen",
            ModelQueryString="model=nova&rate=16000",
            TargetVariant="AllTraffic",
        ) as stream,
    ):
        await anext(stream)
    assert seen == [("v1/listen", "model=nova&rate=16000", "AllTraffic")]


async def test_a_port_of_the_other_endpoint_says_nothing_about_http2() -> None:
    async with aiosmrt.Client(endpoint_url="http://127.0.0.1:1", **CLIENT_ARGUMENTS) as client:
        with pytest.raises(aiosmrt.errors.ConfigurationError, match="http2_endpoint_url"):
            async with conversation(client):
                pass


async def test_the_endpoint_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with local_runtime({"echo": echo}, http2_port=0) as runtime:
        for name, value in runtime.environment.items():
            monkeypatch.setenv(name, value)
        async with aiosmrt.Client() as client, conversation(client) as stream:
            await stream.send("x")
            await anext(stream)


# Errors


EARLY: dict[str, tuple[Any, type[Exception]]] = {
    "validation": (faults.Replaced(faults.ErrorAnswer(400, "InputValidationError", "no")), aiosmrt.ValidationError),
    "throttling": (faults.throttling(), aiosmrt.ThrottlingError),
    "model": (faults.ModelFailure(), aiosmrt.ModelError),
    "internal": (faults.Replaced(faults.ErrorAnswer(500, "InternalServerError", "oops")), aiosmrt.ServiceError),
    "unavailable": (
        faults.Replaced(faults.ErrorAnswer(503, "ServiceUnavailableError", "later")),
        aiosmrt.ServiceUnavailable,
    ),
}


@pytest.mark.parametrize("name", EARLY)
async def test_an_early_error_is_raised_by_sending_and_by_the_iteration(name: str) -> None:
    fault, error_class = EARLY[name]
    async with echo_client(retry={"total_max_attempts": 1}) as (runtime, client):
        runtime.inject("echo", fault)
        with pytest.raises(error_class) as sent:
            async with conversation(client) as stream:
                while True:
                    await stream.send("x")
                    await asyncio.sleep(0)
        with pytest.raises(error_class) as read:
            async with conversation(client) as stream:
                await anext(stream)
        async with conversation(client) as stream:
            with pytest.raises(error_class):
                await stream.response()
            # It does not go away.
            with pytest.raises(error_class):
                await stream.send("x")
            with pytest.raises(error_class):
                await anext(stream)
        assert client.statistics().in_use == 0
    for raised in (sent.value, read.value):
        assert isinstance(raised, aiosmrt.ServiceError)
        assert (raised.operation, raised.endpoint_name) == ("InvokeEndpointWithBidirectionalStream", "echo")


async def test_credentials_that_fail_are_an_error_of_entering_with_its_reason(refusing_url: str) -> None:
    reason = LookupError("lost")

    async def fail() -> aiosmrt.Credentials:
        raise reason

    async with aiosmrt.Client("eu-central-1", http2_endpoint_url=refusing_url, credentials=fail) as client:
        with pytest.raises(CredentialRetrievalError) as caught:
            async with client.invoke_endpoint_with_bidirectional_stream(EndpointName="e"):
                raise AssertionError
    assert isinstance(caught.value, LookupError)
    assert caught.value.__cause__ is reason


async def test_no_connection_is_an_error_of_entering(refusing_url: str) -> None:
    async with client_of(refusing_url, patience=0) as client:
        with pytest.raises(aiosmrt.EndpointConnectionError):
            async with conversation(client):
                pass
        assert client.statistics().in_use == 0


@pytest.mark.parametrize(
    "fault",
    [
        faults.throttling(),
        faults.ModelFailure(),
        faults.ResetStream(error_code="REFUSED_STREAM"),
        faults.ResetBeforeHeaders(),
    ],
)
async def test_what_was_sent_is_sent_again(fault: Any) -> None:
    async with echo_client(retry=aiosmrt.RetryPolicy(base_delay=0.0, throttling_base_delay=0.0)) as (runtime, client):
        runtime.inject("echo", fault.next(2))
        async with conversation(client) as stream:
            for word in ("one", "two"):
                await stream.send(word)
            assert [(await anext(stream))["PayloadPart"]["Bytes"] for _ in range(2)] == [b"one", b"two"]
        assert client.statistics().attempts == 3


async def test_bytes_of_the_request_are_counted_as_they_are_sent() -> None:
    async with echo_client() as (_, client), conversation(client) as stream:
        sent = [client.statistics().bytes_sent]
        for word in ("x" * 1000, "y" * 1000, "z"):
            await stream.send(word)
            sent.append(client.statistics().bytes_sent)
        large, same, small = (after - before for before, after in itertools.pairwise(sent))
        # Each is framed and signed.
        assert large == same == small + 999 > 1000


async def test_more_than_max_resend_bytes_is_not_sent_again() -> None:
    async with http2_server() as server, client_of(server.origin) as client:
        async with conversation(client, max_resend_bytes=100) as stream:
            peer = await server.peer()
            number = await peer.request()
            await stream.send(bytes(200))
            await peer.data(number, 200)
            peer.h2.reset_stream(number, ErrorCodes.INTERNAL_ERROR)
            peer.flush()
            with pytest.raises(ConnectionClosedError, match="INTERNAL_ERROR"):
                await anext(stream)
        assert client.statistics().attempts == 1


BREAKS: dict[str, tuple[Callable[[Any, int], object], type[Exception]]] = {
    "reset": (lambda peer, n: peer.h2.reset_stream(n, ErrorCodes.INTERNAL_ERROR), aiosmrt.ResponseStreamingError),
    "goaway": (
        lambda peer, n: peer.write_raw(GoAwayFrame(0, last_stream_id=0).serialize()),
        aiosmrt.ResponseStreamingError,
    ),
    "cut": (lambda peer, n: peer.abort(), aiosmrt.ResponseStreamingError),
    "short": (lambda peer, n: peer.send(n, encode_payload_part(b"x")[:9], end=True), TruncatedStreamError),
    "damaged": (lambda peer, n: peer.send(n, bytes(16)), EventStreamFormatError),
    "model": (
        lambda peer, n: peer.send(
            n, encode_exception("ModelStreamError", b'{"Message":"bye","ErrorCode":"1011"}'), end=True
        ),
        aiosmrt.ModelStreamError,
    ),
    "service": (
        lambda peer, n: peer.send(n, encode_exception("InternalStreamFailure", b"{}")),
        aiosmrt.InternalStreamFailure,
    ),
}


@pytest.mark.parametrize("reads_first", [True, False])
@pytest.mark.parametrize("name", BREAKS)
async def test_what_breaks_a_stream_is_raised_by_both_sides(name: str, reads_first: bool) -> None:
    act, error_class = BREAKS[name]
    async with http2_server() as server, client_of(server.origin) as client:
        async with conversation(client) as stream:
            peer = await server.peer()
            number = await peer.request()
            peer.answer(number, x_amzn_requestid="an-id")
            peer.send(number, encode_payload_part(b"first"))
            assert (await anext(stream))["PayloadPart"]["Bytes"] == b"first"
            act(peer, number)
            peer.flush()
            errors: list[Any] = []
            if reads_first:
                errors.append(await failure_of(anext(stream)))
                errors.append(await failure_of(stream.send("x")))
            elif name not in ("damaged", "service"):  # where the stream stays open, only the reader can know
                errors.append(await failure_of(send_for_ever(stream)))
            errors.append(await failure_of(anext(stream)))
        assert client.statistics().in_use == 0
    for error in errors:
        assert isinstance(error, error_class)
        assert (error.operation, error.endpoint_name) == ("InvokeEndpointWithBidirectionalStream", "echo")
        assert (error.attempts, error.request_id) == (1, "an-id")


async def failure_of(work: Awaitable[object]) -> aiosmrt.AiosmrtError:
    with pytest.raises(aiosmrt.AiosmrtError) as raised:
        await work
    return raised.value


async def send_for_ever(stream: aiosmrt.BidirectionalStream) -> None:
    while True:
        await stream.send("x")
        await asyncio.sleep(0)


@pytest.mark.parametrize("answers_again", [True, False])
async def test_an_error_has_the_request_id_of_its_own_attempt(answers_again: bool) -> None:
    policy = aiosmrt.RetryPolicy(max_attempts=2, base_delay=0.0)
    async with (
        http2_server() as server,
        client_of(server.origin, retry=policy) as client,
        conversation(client) as stream,
    ):
        peer = await server.peer()
        number = await peer.request()
        peer.answer(number, x_amzn_requestid="the-first")
        await stream.response()
        peer.h2.reset_stream(number, ErrorCodes.INTERNAL_ERROR)
        peer.flush()
        number = await peer.request()
        if answers_again:
            peer.answer(number, x_amzn_requestid="the-second")
        peer.h2.reset_stream(number, ErrorCodes.INTERNAL_ERROR)
        peer.flush()
        error = await failure_of(anext(stream))
    assert (error.attempts, error.request_id) == (2, "the-second" if answers_again else None)


async def test_a_containers_close_frame_is_a_model_stream_error_with_its_code() -> None:
    async def model(invocation: Invocation) -> AsyncIterator[str]:
        from aiosmrt.local.conversation import StreamClosedByContainer

        yield "one"
        raise StreamClosedByContainer(4000, "tired")

    async with serving(model) as (_, client), conversation(client) as stream:
        await anext(stream)
        with pytest.raises(aiosmrt.ModelStreamError, match="tired") as raised:
            await anext(stream)
    assert raised.value.error_code == "4000"


async def test_the_head_may_come_after_the_first_message() -> None:
    async with http2_server() as server, client_of(server.origin) as client, conversation(client) as stream:
        peer = await server.peer()
        number = await peer.request()
        await stream.send("first")
        await peer.data(number, 5)
        peer.answer(number)
        peer.send(number, encode_payload_part(b"answer"))
        assert (await anext(stream))["PayloadPart"]["Bytes"] == b"answer"


async def test_memory_is_bounded_against_a_fast_server() -> None:
    frame = encode_payload_part(bytes(10_000))
    async with http2_server() as server, client_of(server.origin) as client, conversation(client) as stream:
        peer = await server.peer()
        number = await peer.request()
        peer.answer(number)
        sent = read = most_unread = 0

        async def flood() -> None:
            nonlocal sent, most_unread
            for _ in range(400):
                left = frame
                while left:
                    room = min(peer.h2.local_flow_control_window(number), peer.h2.max_outbound_frame_size, len(left))
                    if room:
                        peer.send(number, left[:room])
                        left, sent = left[room:], sent + room
                        most_unread = max(most_unread, sent - read)
                    else:
                        await peer.event(WindowUpdated)
            peer.h2.end_stream(number)
            peer.flush()

        flooding = asyncio.create_task(flood())
        await anext(stream)
        while peer.h2.local_flow_control_window(number):
            await asyncio.sleep(0)
        assert not flooding.done()
        read += len(frame)
        async for _ in stream:
            read += len(frame)
        await flooding
        assert (sent, read) == (400 * len(frame), 400 * len(frame))
        # a window as it arrived, another one in decoded parts, and what these had in the decoder before
        assert most_unread <= 2 * 2**18 + len(frame)


# Life


async def test_leaving_early_resets_at_once_and_returns_the_slot() -> None:
    async with http2_server() as server, client_of(server.origin) as client:
        async with conversation(client) as stream:
            peer = await server.peer()
            number = await peer.request()
            peer.answer(number)
            peer.send(number, encode_payload_part(b"one"))
            await anext(stream)
            assert client.statistics().in_use == 1
        assert client.statistics().in_use == 0
        assert (await peer.event(StreamReset, stream_id=number)).error_code == ErrorCodes.CANCEL
        for use in (stream.send("x"), anext(stream), stream.__aenter__()):
            with pytest.raises(ClientStateError):
                await use


async def test_the_end_of_the_input_is_an_empty_signed_message() -> None:
    async with http2_server() as server, client_of(server.origin) as client, conversation(client) as stream:
        peer = await server.peer()
        number = await peer.request()
        await stream.end_input()
        await stream.end_input()
        await peer.end(number)
        data = b"".join(event.data for event in peer.seen if hasattr(event, "data"))
        ((headers, payload),) = Decoder().feed(data)
        assert payload == b""
        assert set(headers) == {":date", ":chunk-signature"}
        with pytest.raises(ClientStateError, match="ended"):
            await stream.send("x")


async def test_nothing_can_be_sent_once_the_service_has_ended() -> None:
    async with http2_server() as server, client_of(server.origin) as client, conversation(client) as stream:
        peer = await server.peer()
        number = await peer.request()
        peer.answer(number)
        peer.send(number, encode_payload_part(b"one"), end=True)
        assert len([event async for event in stream]) == 1
        with pytest.raises(ClientStateError, match="has ended the stream"):
            await stream.send("x")
        await stream.end_input()


@pytest.mark.parametrize("content_type", [None, "text/html"])
async def test_an_empty_answer_is_no_empty_stream(content_type: str | None) -> None:
    async with http2_server() as server, client_of(server.origin, patience=0) as client:
        async with conversation(client) as stream:
            peer = await server.peer()
            number = await peer.request()
            headers: dict[str, Any] = {} if content_type is None else {"content_type": content_type}
            peer.answer(number, **headers)
            peer.send(number, b"", end=True)
            for work in (anext(stream), stream.send("x"), anext(stream)):
                error = await failure_of(work)
                assert isinstance(error, EventStreamFormatError)
                assert "the response is empty" in str(error)
        assert client.statistics().in_use == 0


async def test_a_stream_may_be_empty() -> None:
    async with http2_server() as server, client_of(server.origin, patience=0) as client, conversation(client) as stream:
        peer = await server.peer()
        number = await peer.request()
        peer.answer(number, content_type="application/vnd.amazon.eventstream")
        peer.send(number, b"", end=True)
        assert [event async for event in stream] == []


async def test_a_closed_client_ends_its_streams() -> None:
    async with http2_server() as server:
        async with client_of(server.origin) as client:
            stream = conversation(client)
            await stream.__aenter__()
            waiting = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
            await (await server.peer()).request()
        with pytest.raises(ClientStateError):
            await waiting
        await stream.aclose()


async def _waiting(name: str, client: aiosmrt.Client, server: Http2Server) -> None:
    """Wait at one of a stream's awaits, without end."""
    async with conversation(client) as stream:
        if name == "next":
            await anext(stream)
        elif name == "response":
            await stream.response()
        elif name == "send":
            await stream.send(bytes(200_000))
            await stream.send(bytes(200_000))
        elif name == "end_input":
            sending = asyncio.ensure_future(stream.send(bytes(200_000)))
            await asyncio.sleep(0)
            try:
                await stream.end_input()
            finally:
                sending.cancel()
        elif name == "next part":
            peer = await server.peer()
            number = await peer.request()
            peer.answer(number)
            peer.send(number, encode_payload_part(b"x"))
            await anext(stream)
            await anext(stream)


@pytest.mark.parametrize("name", ["next", "response", "send", "end_input", "next part", "enter"])
async def test_cancellation_leaves_nothing(name: str) -> None:
    async with http2_server(withholds_settings=name == "enter") as server, client_of(server.origin) as client:
        before = asyncio.all_tasks()
        task = asyncio.create_task(_waiting(name, client, server))
        peer = await server.peer()
        if name == "enter":
            await asyncio.sleep(0)
        else:
            await _settled()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        statistics = client.statistics()
        assert (statistics.in_use, statistics.waiting) == (0, 0)
        if name == "enter":
            await peer.lost.wait()
        else:
            await peer.event(StreamReset)
        assert asyncio.all_tasks() == before


async def _settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_cancelled_read_loses_nothing() -> None:
    async with echo_client() as (_, client), conversation(client) as stream:
        await stream.send("one")
        await anext(stream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(stream)
        await stream.send("two")
        assert (await anext(stream))["PayloadPart"]["Bytes"] == b"two"


async def test_an_unclosed_stream_warns() -> None:
    async with http2_server() as server, client_of(server.origin) as client:
        stream = conversation(client)
        await stream.__aenter__()
        with pytest.warns(ResourceWarning, match="unclosed"):
            stream.__del__()
        await stream.aclose()
        await stream.aclose()  # again


async def test_notice_is_given_a_minute_ahead(virtual_time: VirtualTime) -> None:
    told: list[Any] = []
    async with local_runtime({"echo": echo}, http2_port=0) as runtime:
        import time

        credentials = aiosmrt.Credentials(
            CLIENT_ARGUMENTS["aws_access_key_id"],
            CLIENT_ARGUMENTS["aws_secret_access_key"],
            expires_at=time.time() + 3600,
        )
        async with aiosmrt.Client(
            CLIENT_ARGUMENTS["region_name"],
            credentials=credentials,
            http2_endpoint_url=runtime.http2_url,
            observers=[lambda event: told.append(event) if isinstance(event, StreamExpiring) else None],
        ) as client:
            virtual_time.drive(client)
            async with conversation(client) as stream:
                await stream.send("x")
                await anext(stream)
                await virtual_time.advance(1739.0)
                assert told == []
                await virtual_time.advance(1.0)
                assert [(event.reason, event.seconds) for event in told] == [("lifetime", 60.0)]
            # Of one that was left before, none is given.
            async with conversation(client) as stream:
                await stream.send("x")
                await anext(stream)
            await virtual_time.advance(1800.0)
            assert len(told) == 1


async def test_unsigned_streams_are_not_signed() -> None:
    async with (
        local_runtime({"echo": echo}, http2_port=0, verify_signatures=False) as runtime,
        client_of(runtime.http2_url, sign=False) as client,
        conversation(client) as stream,
    ):
        await stream.send("x")
        assert (await anext(stream))["PayloadPart"]["Bytes"] == b"x"
        await stream.end_input()
        assert [event async for event in stream] == []


async def test_secrets_stay_out_of_reprs_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with echo_client() as (_, client), conversation(client, ModelQueryString="token=hidden") as stream:
        await stream.send("payload-text")
        await anext(stream)
        shown = f"{stream!r} {vars(stream)!r} {caplog.text}"
    for secret in ("payload-text", "hidden", CLIENT_ARGUMENTS["aws_secret_access_key"], "Signature="):
        assert secret not in shown
