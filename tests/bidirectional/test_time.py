"""What time does to bidirectional streams: the end after 30 minutes, dead peers, credentials that expire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from h2.events import PingReceived
from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

import aiosmrt
from aiosmrt._wire.eventstream import Decoder, encode_payload_part
from aiosmrt._wire.sigv4.canonical import SignatureFormatError, signing_key
from aiosmrt._wire.sigv4.events import EventVerifier
from aiosmrt.errors import ConfigurationError, InternalStreamFailure, ModelStreamError, ResponseStreamingError
from aiosmrt.events import StreamExpiring
from aiosmrt.local import Invocation, StreamMessage
from tests.support import seams
from tests.support.http2_peer import http2_server
from tests.support.peers import CLIENT_ARGUMENTS, REGION
from tests.support.runtime import local_runtime
from tests.support.virtual_time import VirtualTime

KEY = (CLIENT_ARGUMENTS["aws_access_key_id"], CLIENT_ARGUMENTS["aws_secret_access_key"])


async def echo(invocation: Invocation) -> AsyncIterator[StreamMessage]:
    async for message in invocation.messages:
        yield message


@asynccontextmanager
async def client_of(
    url: str, told: list[StreamExpiring], credentials: aiosmrt.Credentials | None = None, **arguments: Any
) -> AsyncIterator[aiosmrt.Client]:
    """A client that notes which streams are about to expire."""
    async with aiosmrt.Client(
        REGION,
        credentials=credentials or aiosmrt.Credentials(*KEY),
        http2_endpoint_url=url,
        observers=[lambda event: told.append(event) if isinstance(event, StreamExpiring) else None],
        **arguments,
    ) as client:
        yield client


def conversation(client: aiosmrt.Client, **arguments: Any) -> aiosmrt.BidirectionalStream:
    return client.invoke_endpoint_with_bidirectional_stream(EndpointName="echo", **arguments)


async def exchanged(stream: aiosmrt.BidirectionalStream) -> bytes:
    await stream.send("x")
    return (await anext(stream))["PayloadPart"]["Bytes"]


async def pass_seconds(virtual_time: VirtualTime, seconds: int) -> None:
    """Let time pass so slowly that what it makes both ends send arrives on the way."""
    for _ in range(seconds):
        await virtual_time.advance(1.0)
        for _ in range(20):
            await asyncio.sleep(0)


async def test_a_stream_ends_after_30_minutes_and_observers_know_a_minute_before(virtual_time: VirtualTime) -> None:
    told: list[StreamExpiring] = []
    async with local_runtime({"echo": echo}, http2_port=0) as runtime, client_of(runtime.http2_url, told) as client:
        virtual_time.drive(client)
        async with conversation(client) as stream:
            assert await exchanged(stream) == b"x"
            # Nothing is said for all this time, but for the PINGs and their answers.
            await pass_seconds(virtual_time, 29 * 60 - 1)
            assert told == []
            await pass_seconds(virtual_time, 1)
            assert [(event.reason, event.seconds) for event in told] == [("lifetime", 60.0)]
            await pass_seconds(virtual_time, 58)
            assert await exchanged(stream) == b"x"
            await pass_seconds(virtual_time, 3)
            with pytest.raises(InternalStreamFailure, match="30 minutes"):
                await anext(stream)
            with pytest.raises(InternalStreamFailure, match="30 minutes"):
                await stream.send("x")


async def test_a_stream_of_the_local_runtime_may_end_sooner() -> None:
    async with (
        local_runtime({"echo": echo}, http2_port=0, http2_stream_seconds=0.01) as runtime,
        client_of(runtime.http2_url, [], patience=0) as client,
        conversation(client) as stream,
    ):
        with pytest.raises(InternalStreamFailure, match=r"limit of 0\.01 seconds"):
            await anext(stream)
    (record,) = await runtime.wait_for_requests(1)
    assert record.error_code == "InternalStreamFailure"


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_stream_cannot_end_before_it_begins(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="http2_stream_seconds"):
        local_runtime({"echo": echo}, http2_port=0, http2_stream_seconds=seconds)


async def test_notice_counts_from_the_beginning_and_not_from_the_late_head(virtual_time: VirtualTime) -> None:
    told: list[StreamExpiring] = []
    async with http2_server() as server, client_of(server.origin, told) as client:
        virtual_time.drive(client)
        async with conversation(client) as stream:
            peer = await server.peer()
            number = await peer.request()
            await virtual_time.advance(600.0)
            peer.answer(number)
            await stream.response()
            await pass_seconds(virtual_time, 1139)
            assert told == []
            await pass_seconds(virtual_time, 1)
            assert [(event.reason, event.seconds) for event in told] == [("lifetime", 60.0)]


async def test_a_dead_service_is_noticed_by_reader_and_sender(virtual_time: VirtualTime) -> None:
    async with http2_server() as server, client_of(server.origin, []) as client:
        virtual_time.drive(client)
        async with conversation(client) as stream:
            peer = await server.peer()
            number = await peer.request()
            peer.answer(number)
            peer.send(number, encode_payload_part(b"one"))
            await anext(stream)
            waiting = asyncio.create_task(anext(stream))
            # as long as it answers, it may be silent
            for _ in range(3):
                await pass_seconds(virtual_time, 5)
                await peer.event(PingReceived)
            peer.is_silent = True
            await pass_seconds(virtual_time, 9)
            assert not waiting.done()
            await pass_seconds(virtual_time, 6)
            with pytest.raises(ResponseStreamingError, match="The connection is dead"):
                await waiting
            with pytest.raises(ResponseStreamingError, match="The connection is dead"):
                await stream.send("x")
        assert client.statistics().in_use == 0


@asynccontextmanager
async def container(*, answers_pings: bool) -> AsyncIterator[str]:
    """A container with a WebSocket that says one word, and then is silent, but for its pongs."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = ServerProtocol()
        while data := await reader.read(2**16):
            protocol.receive_data(data)
            for event in protocol.events_received():
                if isinstance(event, Request):
                    if event.path == "/ping":
                        protocol.send_response(protocol.reject(200, ""))
                        continue
                    protocol.send_response(protocol.accept(event))
                    protocol.send_text(b"word")
            for output in protocol.data_to_send():
                # Its answer to a ping is all that it would send of itself.
                if answers_pings or output[:1] != bytes([0x80 | Opcode.PONG]):
                    writer.write(output)
            if protocol.close_expected():
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("answers_pings", [True, False])
async def test_a_container_that_misses_five_pongs_is_given_up(answers_pings: bool, virtual_time: VirtualTime) -> None:
    async with (
        container(answers_pings=answers_pings) as url,
        local_runtime({"echo": url}, http2_port=0) as runtime,
        client_of(runtime.http2_url, []) as client,
    ):
        virtual_time.drive(client)
        async with conversation(client) as stream:
            await anext(stream)
            waiting = asyncio.create_task(anext(stream))
            await pass_seconds(virtual_time, 5 * 60)
            assert not waiting.done()
            await pass_seconds(virtual_time, 61)
            assert waiting.done() != answers_pings
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError if answers_pings else ModelStreamError) as raised:
                await waiting
        if isinstance(raised.value, ModelStreamError):
            assert (raised.value.error_code, raised.value.message) == ("1006", "no pongs")


# Credentials


@pytest.mark.parametrize(("left", "after", "notice"), [(1200.0, 1140.0, 60.0), (30.0, 0.0, 30.0)])
async def test_notice_is_given_of_credentials_that_expire(
    left: float, after: float, notice: float, virtual_time: VirtualTime
) -> None:
    told: list[StreamExpiring] = []
    now = time.time()
    key = aiosmrt.Credentials(*KEY, expires_at=now + left)
    async with (
        local_runtime({"echo": echo}, http2_port=0, clock=lambda: now) as runtime,
        client_of(runtime.http2_url, told, key) as client,
    ):
        virtual_time.drive(client)
        seams.set_wall_clock(client, lambda: now)
        async with conversation(client) as stream:
            assert await exchanged(stream) == b"x"
            await virtual_time.advance(max(0.0, after - 1))
            if after:
                assert told == []
            await virtual_time.advance(1.0)
            assert [(event.reason, round(event.seconds, 3)) for event in told] == [("credentials", notice)]
        assert told[0].endpoint_name == "echo"


async def test_streams_that_follow_the_credentials_do_not_expire_with_them(virtual_time: VirtualTime) -> None:
    told: list[StreamExpiring] = []
    key = aiosmrt.Credentials(*KEY, expires_at=time.time() + 1200)
    async with (
        local_runtime({"echo": echo}, http2_port=0) as runtime,
        client_of(runtime.http2_url, told, key) as client,
    ):
        virtual_time.drive(client)
        async with conversation(client, pin_credentials=False) as stream:
            assert await exchanged(stream) == b"x"
            await virtual_time.advance(1300.0)
            assert told == []
            await virtual_time.advance(440.0)
            assert [event.reason for event in told] == ["lifetime"]


def verifier(secret_key: str, seed: str) -> EventVerifier:
    return EventVerifier(lambda day: signing_key(secret_key, day, REGION, "sagemaker"), REGION, "sagemaker", seed)


@pytest.mark.parametrize("pinned", [True, False])
async def test_later_messages_are_signed_with_later_credentials_unless_they_are_pinned(pinned: bool) -> None:
    seconds = [1_440_938_160.0]
    async with http2_server() as server, client_of(server.origin, []) as client:
        seams.set_wall_clock(client, lambda: seconds[0])
        async with conversation(client, pin_credentials=pinned) as stream:
            peer = await server.peer()
            number, fields = await peer.request_fields()
            frames: list[Any] = []
            decoder = Decoder()

            async def frame() -> tuple[Any, bytes]:
                while not frames:
                    frames.extend(decoder.feed(await peer.data(number, 1)))
                return frames.pop(0)

            seed = fields["authorization"].rpartition("=")[2]
            assert KEY[0] in fields["authorization"]
            await stream.send("one")
            first = await frame()
            seams.replace_credentials(client, aiosmrt.Credentials("AKIDLATER", "later-secret"))
            seconds[0] += 1  # a second's messages share a key
            await stream.send("two")
            second = await frame()

    expected = verifier(KEY[1], seed)
    expected.verify(*first)
    for secret_key, is_right in ((KEY[1], pinned), ("later-secret", not pinned)):
        chain = verifier(secret_key, first[0][":chunk-signature"].hex())
        if is_right:
            chain.verify(*second)
        else:
            with pytest.raises(SignatureFormatError, match="does not match"):
                chain.verify(*second)
