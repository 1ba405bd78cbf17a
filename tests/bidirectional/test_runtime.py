"""The local runtime's side of bidirectional streams: signatures, the container's WebSocket, faults, limits."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

import aiosmrt
from aiosmrt._transport.http2.pool import Http2Pool
from aiosmrt._wire.eventstream import Decoder, encode_payload_part
from aiosmrt._wire.http2 import Connection, header_fields
from aiosmrt._wire.sigv4.events import EVENTS_PAYLOAD
from aiosmrt._wire.sigv4.signer import Credentials, SignedRequest, Signer
from aiosmrt.errors import ClientStateError, ConfigurationError
from aiosmrt.local import Invocation, StreamMessage, faults
from aiosmrt.local.conversation import call_websocket
from tests.support.cancellation import no_task_is_left
from tests.support.peers import CLIENT_ARGUMENTS, REGION
from tests.support.progress import stands_still
from tests.support.runtime import ACCEPTED, local_runtime

PATH = "/endpoints/echo/invocations-bidirectional-stream"
NOW = 1_440_938_160.0


async def echo(invocation: Invocation) -> AsyncIterator[StreamMessage]:
    async for message in invocation.messages:
        yield message


@asynccontextmanager
async def client_of(runtime: Any, **arguments: Any) -> AsyncIterator[aiosmrt.Client]:
    async with aiosmrt.Client(http2_endpoint_url=runtime.http2_url, **{**CLIENT_ARGUMENTS, **arguments}) as client:
        yield client


def conversation(client: aiosmrt.Client, **arguments: Any) -> aiosmrt.BidirectionalStream:
    return client.invoke_endpoint_with_bidirectional_stream(**({"EndpointName": "echo"} | arguments))


# Signatures, of requests that are put together here


class RawRequest:
    """A signed request on its own stream."""

    def __init__(
        self, pool: Http2Pool, authority: str, *, name: str = "host", credentials: Credentials = ACCEPTED
    ) -> None:
        self.pool = pool
        headers = (("X-Amz-Content-Sha256", EVENTS_PAYLOAD),)
        # The signer calls it host; AWS's JavaScript client signs :authority in its place.
        request = SignedRequest("POST", authority, PATH, "", headers)
        if name == "host":
            signer = Signer(region=REGION)
            added = signer.sign(credentials, NOW, request, EVENTS_PAYLOAD)
        else:
            added = _signed_as_authority(authority, credentials)
        self.seed = dict(added)["Authorization"].rpartition("=")[2]
        self.fields = [(":method", "POST"), (":scheme", "http"), (":authority", authority), (":path", PATH)]
        self.fields += [(key.lower(), value) for key, value in (*headers, *added)]
        self.signer = Signer(region=REGION).event_signer(lambda: credentials, self.seed)

    async def answer(self, frames: list[bytes], *, end: bool = True) -> tuple[int, bytes]:
        """Send frames as they are, and return status and body."""
        link = (await self.pool.acquire(20.0)).open(self.fields, lambda: None)
        assert link is not None
        for frame in frames:
            assert link.write(memoryview(frame)) == len(frame)
        if end:
            link.end_input()
        await link.wait_for_head()
        body = b""
        while chunk := await link.read():
            body += chunk
        link.close()
        return link.status, body


def _signed_as_authority(authority: str, credentials: Credentials) -> list[tuple[str, str]]:
    from aiosmrt._wire.sigv4.canonical import (
        amz_date,
        canonical_request,
        credential_scope,
        signature,
        signing_key,
        string_to_sign,
    )

    date = amz_date(NOW)
    scope = credential_scope(date[:8], REGION, "sagemaker")
    headers = [(":authority", authority), ("x-amz-content-sha256", EVENTS_PAYLOAD), ("x-amz-date", date)]
    text = string_to_sign(date, scope, canonical_request("POST", PATH, "", headers, EVENTS_PAYLOAD))
    signed = signature(signing_key(credentials.secret_key, date[:8], REGION, "sagemaker"), text)
    names = ";".join(name for name, _ in headers)
    claim = f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signed}"
    return [("X-Amz-Date", date), ("Authorization", claim)]


@asynccontextmanager
async def raw_requests(**arguments: Any) -> AsyncIterator[Callable[..., RawRequest]]:
    async with local_runtime({"echo": echo}, http2_port=0, clock=lambda: NOW, **arguments) as runtime:
        pool = Http2Pool(runtime.http2_url, context=None)
        try:
            yield lambda **options: RawRequest(pool, runtime.http2_url.partition("//")[2], **options)
        finally:
            await pool.close()


def messages_in(body: bytes) -> list[tuple[str | None, bytes]]:
    return [(headers.event_type or headers.exception_type, payload) for headers, payload in Decoder().feed(body)]


@pytest.mark.parametrize("name", ["host", ":authority"])
async def test_signed_messages_are_answered(name: str) -> None:
    async with raw_requests() as request:
        raw = request(name=name)
        frames = [raw.signer.sign(NOW, encode_payload_part(b"one")), raw.signer.sign(NOW, b"")]
        status, body = await raw.answer(frames)
    assert (status, messages_in(body)) == (200, [("PayloadPart", b"one")])


@pytest.mark.parametrize(
    "fault", ["tampered", "swapped", "unsigned", "another key", "no end", "after the end", "garbage"]
)
async def test_messages_that_are_not_signed_as_they_must_be_end_the_stream(fault: str) -> None:
    async with raw_requests() as request:
        raw = request()
        signer = raw.signer
        if fault == "another key":
            signer = Signer(region=REGION).event_signer(lambda: Credentials("AKIDEXAMPLE", "other"), raw.seed)
        one, two = (signer.sign(NOW, encode_payload_part(word)) for word in (b"one", b"two"))
        last = signer.sign(NOW, b"")
        frames = {
            "tampered": [one.replace(b"one", b"One"), last],
            "swapped": [two, one, last],
            "unsigned": [encode_payload_part(b"one")],
            "another key": [one, last],
            "no end": [one],
            "after the end": [one, two, last, signer.sign(NOW, encode_payload_part(b"more"))],
            "garbage": [bytes(16)],
        }[fault]
        status, body = await raw.answer(frames)
    assert status == 200
    parts = messages_in(body)
    assert parts[-1][0] == "InputValidationError"
    assert (b"one" in [payload for _, payload in parts]) == (fault in ("no end", "after the end"))


async def test_a_request_that_is_not_signed_as_it_must_be_is_refused() -> None:
    async with raw_requests() as request:
        status, body = await request(credentials=Credentials("AKIDEXAMPLE", "another")).answer([])
        assert (status, b"signature" in body) == (403, True)
        raw = request()
        raw.fields = [(name, value) for name, value in raw.fields if name != "authorization"]
        assert (await raw.answer([]))[0] == 403
        raw = request()
        raw.fields = [(name, "0" * 64 if name == "x-amz-content-sha256" else value) for name, value in raw.fields]
        assert (await raw.answer([]))[0] == 403
        raw = request()
        raw.fields = [(name, "/elsewhere" if name == ":path" else value) for name, value in raw.fields]
        assert (await raw.answer([]))[0] == 404


# The container's WebSocket


@asynccontextmanager
async def container(handler: Callable[[ServerConnection], Any]) -> AsyncIterator[str]:
    """A model container that answers pings over HTTP and hands its WebSocket to a function."""

    def ping(connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(200, "") if request.path == "/ping" else None  # type: ignore[arg-type]

    async with serve(handler, "127.0.0.1", 0, process_request=ping, compression=None) as server:
        yield f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


async def test_frames_go_through_one_for_one() -> None:
    seen: list[Any] = []

    async def model(socket: ServerConnection) -> None:
        assert socket.request is not None
        seen.append(socket.request.path)
        seen.append(await socket.recv())
        seen.append([fragment async for fragment in socket.recv_streaming()])
        await socket.send("text")
        await socket.send(b"\0\xff")
        await socket.send(["frag", "ment"])
        await socket.wait_closed()

    async with (
        container(model) as url,
        local_runtime({"echo": url}, http2_port=0) as runtime,
        client_of(runtime) as client,
        conversation(client, ModelInvocationPath="v1/listen", ModelQueryString="a=b") as stream,
    ):
        await stream.send("hello")
        await stream.send(b"\1", CompletionState="PARTIAL")
        await stream.send(b"\2", CompletionState="COMPLETE")
        parts = [(await anext(stream))["PayloadPart"] for _ in range(5)]
        await stream.end_input()
        # The container closes as it was asked to: an end.
        assert [event async for event in stream] == []
    assert seen == ["/v1/listen?a=b", "hello", [b"\1", b"\2"]]
    assert [(part["Bytes"], part.get("DataType"), part.get("CompletionState")) for part in parts[:2]] == [
        (b"text", "UTF8", "COMPLETE"),
        (b"\0\xff", "BINARY", "COMPLETE"),
    ]
    assert b"".join(part["Bytes"] for part in parts[2:]) == b"fragment"
    assert [part.get("CompletionState") for part in parts[2:4]] == ["PARTIAL", "PARTIAL"]


async def test_the_default_path_is_the_documented_one() -> None:
    paths: list[str] = []

    async def model(socket: ServerConnection) -> None:
        assert socket.request is not None
        paths.append(socket.request.path)
        await socket.send("x")
        await socket.wait_closed()

    async with (
        container(model) as url,
        local_runtime({"echo": url}, http2_port=0) as runtime,
        client_of(runtime) as client,
        conversation(client) as stream,
    ):
        await anext(stream)
    assert paths == ["/invocations-bidirectional-stream"]


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1011, "out of memory"), (4000, "tired")])
async def test_a_close_frame_is_a_model_stream_error_with_its_code_and_reason(code: int, reason: str) -> None:
    async def model(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.close(code, reason)

    async with (
        container(model) as url,
        local_runtime({"echo": url}, http2_port=0) as runtime,
        client_of(runtime, retry=aiosmrt.RetryPolicy(max_attempts=2, base_delay=0.0)) as client,
        conversation(client) as stream,
    ):
        await stream.send("x")
        with pytest.raises(aiosmrt.ModelStreamError) as raised:
            await anext(stream)
        # Before the first part, what says nothing about the messages is tried again.
        assert client.statistics().attempts == (2 if code == 1011 else 1)
    assert (raised.value.error_code, raised.value.message) == (str(code), reason)


async def test_a_container_without_a_websocket_is_a_model_error() -> None:
    async def never(socket: ServerConnection) -> None:
        raise AssertionError

    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(200 if request.path == "/ping" else 404, "")  # type: ignore[arg-type]

    async with serve(never, "127.0.0.1", 0, process_request=refuse) as server:
        url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        async with local_runtime({"echo": url}, http2_port=0) as runtime, client_of(runtime) as client:
            with pytest.raises(aiosmrt.ModelError) as raised:
                async with conversation(client) as stream:
                    await anext(stream)
            # It would refuse the next attempt as well.
            assert client.statistics().attempts == 1
    assert raised.value.original_status_code == 404


async def test_a_handler_that_holds_no_conversation_is_an_error_at_once() -> None:
    async def answer(invocation: Invocation) -> bytes:
        return b"0.25"

    async with local_runtime({"echo": answer}, http2_port=0) as runtime, client_of(runtime) as client:
        with pytest.raises(aiosmrt.ModelError, match="must be an async generator function") as raised:
            async with conversation(client) as stream:
                await anext(stream)
        assert client.statistics().attempts == 1
    assert raised.value.original_status_code == 404


async def test_leaving_closes_the_containers_socket() -> None:
    closed = asyncio.Event()

    async def model(socket: ServerConnection) -> None:
        await socket.send("x")
        await socket.wait_closed()
        closed.set()

    async with (
        container(model) as url,
        local_runtime({"echo": url}, http2_port=0) as runtime,
        client_of(runtime) as client,
    ):
        async with conversation(client) as stream:
            await anext(stream)
        await closed.wait()


@pytest.mark.parametrize("turns", range(6))
async def test_a_stream_that_is_cancelled_while_it_ends_closes_the_containers_socket(turns: int) -> None:
    closed, opened, leave = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def model(socket: ServerConnection) -> None:
        opened.set()
        await socket.wait_closed()
        closed.set()

    async def converse(url: str) -> None:
        invocation = Invocation(body=b"", headers={}, endpoint="echo", variant="AllTraffic")
        async with call_websocket(url, invocation):
            await leave.wait()

    async with container(model) as url:
        before = asyncio.all_tasks()
        task = asyncio.create_task(converse(url))
        await opened.wait()
        leave.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await closed.wait()
        await no_task_is_left(before)


# Callables


async def test_a_callable_that_is_no_generator_is_a_model_error() -> None:
    async def plain(invocation: Invocation) -> bytes:
        return b""

    async with local_runtime({"echo": plain}, http2_port=0) as runtime, client_of(runtime, patience=0) as client:
        with pytest.raises(aiosmrt.ModelError, match="async generator"):
            async with conversation(client) as stream:
                await anext(stream)


async def test_a_model_that_waits_for_nothing_fills_sockets_and_no_more_and_lets_others_run() -> None:
    """Where no window limits it, only the socket can."""
    yielded = longest = 0

    async def hasty(invocation: Invocation) -> AsyncIterator[bytes]:
        nonlocal yielded
        for _ in range(25_000):
            yielded += 1
            yield bytes(4000)

    async def watch() -> None:
        nonlocal longest
        while True:
            before = yielded
            await asyncio.sleep(0)
            longest = max(longest, yielded - before)

    async with local_runtime({"echo": hasty}, http2_port=0, verify_signatures=False, drain_timeout=0.0) as runtime:
        host, port = runtime.http2_url.partition("//")[2].split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        h2 = Connection(client_side=True, stream_window_bytes=2**31 - 1)
        h2.initiate_connection()
        h2.increment_flow_control_window(2**31 - 2**16)
        h2.send_headers(
            1, header_fields([(":method", "POST"), (":scheme", "http"), (":authority", host), (":path", PATH)])
        )
        writer.write(h2.data_to_send())
        watching = asyncio.create_task(watch())
        # Nothing reads what comes, but for one buffer of asyncio's.
        while not yielded:
            await asyncio.sleep(0)
        assert await stands_still(lambda: yielded) < 10_000
        watching.cancel()
        assert longest <= 2 * 2**16 / 4000
        writer.transport.abort()
        await asyncio.wait({watching})


@pytest.mark.parametrize("error_class", [ValueError, TimeoutError])
async def test_a_callable_that_fails_breaks_the_stream(error_class: type[Exception]) -> None:
    async def failing(invocation: Invocation) -> AsyncIterator[str]:
        yield "one"
        raise error_class("broken")

    async with (
        local_runtime({"echo": failing}, http2_port=0) as runtime,
        client_of(runtime) as client,
        conversation(client) as stream,
    ):
        await anext(stream)
        with pytest.raises(aiosmrt.ModelStreamError, match="broken") as raised:
            await anext(stream)
    assert raised.value.error_code == "StreamBroken"


async def test_a_callable_that_fails_as_its_caller_leaves_is_in_the_log_and_in_no_report_of_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))

    began = asyncio.Event()

    async def failing(invocation: Invocation) -> AsyncIterator[bytes]:
        try:
            began.set()
            yield bytes(2**20)
        finally:
            raise TimeoutError("a secret")

    async with local_runtime({"echo": failing}, http2_port=0) as runtime, client_of(runtime) as client:
        async with conversation(client):
            await began.wait()
        (record,) = await runtime.wait_for_requests(1)
    gc.collect()
    assert (record.outcome, reports) == ("disconnected", [])
    assert "The handler of a local endpoint failed: TimeoutError at" in caplog.text
    assert "secret" not in caplog.text


async def test_a_callable_that_fails_as_it_is_left_changes_no_outcome() -> None:
    async def failing(invocation: Invocation) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"one"
        finally:
            raise OSError

    async with local_runtime({"echo": failing}, http2_port=0) as runtime, client_of(runtime) as client:
        runtime.inject("echo", faults.Truncate(after_parts=1, after_bytes=5))
        async with conversation(client) as stream:
            await anext(stream)
            with pytest.raises(aiosmrt.EventStreamFormatError):
                await anext(stream)
        (record,) = await runtime.wait_for_requests(1)
    assert record.outcome == "cut"


# Faults and limits


WITHIN: list[tuple[Any, type[Exception]]] = [
    (faults.ResetStream(after_parts=1), aiosmrt.ResponseStreamingError),
    (faults.GoAway(after_parts=1, graceful=False), aiosmrt.ResponseStreamingError),
    (faults.ResetAfterHeaders(after_parts=1), aiosmrt.ResponseStreamingError),
    (faults.StreamFailure(after_parts=1), aiosmrt.ModelStreamError),
    (faults.Truncate(after_parts=1, after_bytes=5), aiosmrt.EventStreamFormatError),
]


@pytest.mark.parametrize(("fault", "error_class"), WITHIN)
async def test_faults_inside_a_stream(fault: Any, error_class: type[Exception]) -> None:
    async with local_runtime({"echo": echo}, http2_port=0) as runtime, client_of(runtime) as client:
        runtime.inject("echo", fault)
        async with conversation(client) as stream:
            await stream.send("one")
            await anext(stream)
            with pytest.raises(error_class):
                await stream.send("two")
                await anext(stream)
        (record,) = await runtime.wait_for_requests(1)
    assert record.fault == (fault.name,)


async def test_a_graceful_goaway_moves_later_streams_to_another_connection() -> None:
    async with local_runtime({"echo": echo}, http2_port=0) as runtime, client_of(runtime) as client:
        runtime.inject("echo", faults.GoAway().next(1))
        for _ in range(2):
            async with conversation(client) as stream:
                await stream.send("one")
                await anext(stream)
                await stream.end_input()
                assert [event async for event in stream] == []
        assert [record.connection for record in await runtime.wait_for_requests(2)] == [1, 2]


async def test_a_stall_is_released() -> None:
    async with local_runtime({"echo": echo}, http2_port=0) as runtime, client_of(runtime) as client:
        runtime.inject("echo", faults.StallInBody(after_parts=1).next(1), faults.Stall().next(1))
        async with conversation(client) as stream:
            await stream.send("one")
            await runtime.wait_for_stalled(1)
            runtime.release_stalled()
            await anext(stream)
            await stream.send("two")
            await runtime.wait_for_stalled(1)
            runtime.release_stalled()
            await anext(stream)


async def test_small_windows_and_few_streams() -> None:
    async with (
        local_runtime({"echo": echo}, http2_port=0, http2_window_bytes=500, http2_max_streams=2) as runtime,
        client_of(runtime) as client,
    ):

        async def talk() -> bytes:
            async with conversation(client) as stream:
                await stream.send(bytes(5000))
                await stream.end_input()
                return b"".join([event["PayloadPart"]["Bytes"] async for event in stream])

        assert await asyncio.gather(*(talk() for _ in range(5))) == [bytes(5000)] * 5
        assert len({record.connection for record in await runtime.wait_for_requests(5)}) > 1


async def test_tls_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    async with local_runtime({"echo": echo}, http2_port=0, http2_tls=True) as runtime:
        authorities = tmp_path / "authority.pem"
        authorities.write_text(runtime.http2_authority)
        async with client_of(runtime, verify=str(authorities)) as client, conversation(client) as stream:
            await stream.send("x")
            await anext(stream)
        async with client_of(runtime, verify=False) as client, conversation(client) as stream:
            await stream.send("x")
            await anext(stream)
        async with client_of(runtime) as client:
            with pytest.raises(aiosmrt.errors.SSLError):
                async with conversation(client):
                    pass
    import ssl

    async with client_of(runtime_url("https://127.0.0.1:1"), verify=ssl.create_default_context()) as client:
        with pytest.raises(ConfigurationError, match="verify"):
            async with conversation(client):
                pass


class runtime_url:
    """Where a runtime might be."""

    def __init__(self, http2_url: str) -> None:
        self.http2_url = http2_url


async def test_closing_waits_for_streams_and_then_ends_them() -> None:
    runtime = local_runtime({"echo": echo}, http2_port=0, drain_timeout=0.05)
    async with client_of(runtime_url("http://127.0.0.1:1")):
        pass
    await runtime.start()
    async with client_of(runtime) as client, conversation(client) as stream:
        await stream.send("one")
        await anext(stream)
        await runtime.close()
        with pytest.raises(aiosmrt.ResponseStreamingError):
            await anext(stream)


async def test_without_a_port_there_is_no_url() -> None:
    async with local_runtime({"echo": echo}) as runtime:
        with pytest.raises(ClientStateError, match="http2_port"):
            _ = runtime.http2_url
        assert "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME_HTTP2" not in runtime.environment
