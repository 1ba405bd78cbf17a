"""Connections between two requests: which are reused, and that no request affects another one."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest
from aiohttp.client_proto import ResponseHandler

from aiosmrt._transport.base import Reply, Transport
from aiosmrt._transport.pooled import PooledTransport
from aiosmrt.errors import ClientStateError, ConnectionClosedError, ReadTimeoutError, ResponseStreamingError
from tests.support.cancellation import Moment, cancel_everywhere
from tests.support.raw_server import (
    BODY,
    CLOSE,
    EARLY,
    LAST_CHUNK,
    OK,
    RESET,
    End,
    RawServer,
    Script,
    chunk,
    response,
)
from tests.support.seams import (
    connection_objects,
    connections_idle,
    connections_in_use,
    connections_remembered,
    watches_idle,
)
from tests.support.tls import client_context, server_context
from tests.support.virtual_time import VirtualTime
from tests.transport.carrying import MODULES, Carry, MakeTransport, Wire, each_way, only_pooled, request, whole

each_moment = pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)
each_end = pytest.mark.parametrize("end", [CLOSE, RESET], ids=["fin", "reset"])


async def fill(transport: Transport, server: RawServer, count: int) -> None:
    """Fill the pool with idle connections."""
    go_on = asyncio.Event()
    server.play(*([go_on, *OK] for _ in range(count)))
    before = len(server.requests)
    calls = [asyncio.create_task(_as_task(transport.send(request()))) for _ in range(count)]
    await server.received(before + count)
    go_on.set()
    await asyncio.gather(*calls)
    assert connections_idle(transport) == count


async def _as_task(awaited: Awaitable[Any]) -> Any:
    return await awaited


async def nothing_is_held(transport: Transport, server: RawServer) -> None:
    """Only idle connections are held, and the server has them open too."""
    assert connections_in_use(transport) == 0
    await server.until(lambda: server.connections_open <= connections_idle(transport))


# Connections that were closed while they were idle


@each_end
@each_way
async def test_a_connection_that_was_closed_while_idle(
    end: End, carry: Carry, transport: Transport, server: RawServer
) -> None:
    """It is noticed before the next request, which is sent once, on a fresh connection."""
    server.play([*OK, end])
    await transport.send(request())
    await server.until(lambda: server.connections_open == 0)
    while connections_idle(transport):
        await asyncio.sleep(0)
    assert (await carry(transport, request(b"next"))).body == b"ok"
    assert [(asked.connection, asked.body) for asked in server.requests] == [(0, b"1,2"), (1, b"next")]


@each_end
@each_way
@only_pooled
async def test_a_connection_that_is_closed_upon_the_request(
    end: End, carry: Carry, transport: Transport, server: RawServer
) -> None:
    """The server closed it while the request was on its way: the request is sent once more, on a fresh connection."""
    await transport.send(request())
    server.play([end])
    assert (await carry(transport, request(b"next"))).body == b"ok"
    assert [(asked.connection, asked.body) for asked in server.requests[1:]] == [(0, b"next"), (1, b"next")]
    await nothing_is_held(transport, server)
    assert connections_idle(transport) == 1


@each_end
@each_way
async def test_a_fresh_connection_that_is_closed_upon_the_request(
    end: End, carry: Carry, transport: Transport, server: RawServer
) -> None:
    server.play([end])
    with pytest.raises(ConnectionClosedError):
        await carry(transport, request())
    assert len(server.requests) == 1
    await nothing_is_held(transport, server)


@each_end
@each_way
async def test_a_request_that_is_not_to_be_sent_again(
    end: End, carry: Carry, transport: Transport, server: RawServer
) -> None:
    """aiohttp's session never does."""
    await transport.send(request())
    server.play([end])
    with pytest.raises(ConnectionClosedError):
        await carry(transport, request(b"next", resend=False))
    assert len(server.requests) == 2
    await nothing_is_held(transport, server)


@each_way
@only_pooled
async def test_only_one_idle_connection_is_tried(carry: Carry, transport: Transport, server: RawServer) -> None:
    """The others may be closed as well: the second attempt is on a fresh one, and the last."""
    await fill(transport, server, 5)
    asked = len(server.requests)
    server.play([CLOSE], [CLOSE])
    with pytest.raises(ConnectionClosedError):
        await carry(transport, request(b"next"))
    assert [sent.body for sent in server.requests[asked:]] == [b"next"] * 2
    assert server.requests[-1].connection == 5
    assert connections_idle(transport) == 4


@each_way
@only_pooled
@pytest.mark.parametrize("sent", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"], ids=["byte", "100"])
async def test_a_byte_of_a_response_and_it_is_not_sent_again(
    sent: bytes, carry: Carry, transport: Transport, server: RawServer
) -> None:
    """The service has taken notice of the request."""
    await transport.send(request())
    server.play([sent, CLOSE])
    with pytest.raises(ConnectionClosedError):
        await carry(transport, request())
    assert len(server.requests) == 2


@only_pooled
async def test_a_large_request_is_sent_again_whole(transport: Transport, server: RawServer) -> None:
    body = bytes(range(256)) * (2**22 // 256)
    await transport.send(request())
    server.play([EARLY, 2**16, CLOSE])
    assert (await transport.send(request(memoryview(body)))).body == b"ok"
    assert server.requests[-1].connection == 1
    same = server.requests[-1].body == body
    assert same
    assert len(server.requests) == 3


@only_pooled
async def test_cancelled_while_it_is_sent_again(transport: Transport, server: RawServer) -> None:
    for moment in Moment:

        async def prepare() -> Coroutine[Any, Any, Reply]:
            server.forget_scripts()
            await transport.send(request())
            server.play([CLOSE])
            return transport.send(request(b"next"))

        # Waiting for the first connection's answer, for a fresh connection, for its answer.
        assert await cancel_everywhere(prepare, moment, after=lambda: nothing_is_held(transport, server)) >= 3


# Idle connections


@pytest.mark.parametrize("unsolicited", [b"x", OK[0]], ids=["byte", "response"])
async def test_data_on_an_idle_connection(
    unsolicited: bytes, wire: Wire, transport: Transport, server: RawServer
) -> None:
    """A response without a request belongs to no call: its connection is not used again."""
    go_on = asyncio.Event()
    server.play([*OK, go_on, unsolicited])
    wire.cut()
    await transport.send(request())
    received = wire.received
    go_on.set()
    await wire.has_received(received + len(unsolicited))
    server.play([response(200, b"mine")])
    assert (await transport.send(request())).body == b"mine"
    assert [asked.connection for asked in server.requests] == [0, 1]


async def test_a_connection_idle_for_long_is_not_used(
    transport_name: str, make_transport: MakeTransport, monkeypatch: pytest.MonkeyPatch, server: RawServer
) -> None:
    assert MODULES[transport_name].IDLE_SECONDS == 50.0
    if transport_name == "session":
        # aiohttp's pool uses its own clock.
        monkeypatch.setattr(MODULES[transport_name], "IDLE_SECONDS", 1e-9)
        transport = make_transport()
        for _ in range(2):
            await transport.send(request())
    else:
        loop, now = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        monkeypatch.setattr(loop, "time", lambda: now)
        transport = make_transport()
        await transport.send(request())
        now += 50.0
        await transport.send(request())
        assert [asked.connection for asked in server.requests] == [0, 0]
        # The timer has not run; the request checks the age itself.
        now += 50.1
        await transport.send(request())
    assert server.requests[-1].connection == 1
    await server.until(lambda: server.connections_open == 1)


@only_pooled
async def test_idle_connections_are_closed_in_time(clock: VirtualTime, transport: Transport, server: RawServer) -> None:
    """Those that a burst needed go although one is used all the time."""
    assert isinstance(transport, PooledTransport)
    await fill(transport, server, 5)
    for _ in range(3):
        await clock.advance(20.0)
        await transport.send(request())
    await server.until(lambda: server.connections_open == 1)
    assert connections_idle(transport) == 1
    assert connections_in_use(transport) == 0
    await clock.advance(49.0)
    assert connections_idle(transport) == 1
    await clock.advance(2.0)
    await server.until(lambda: server.connections_open == 0)
    # No idle connections are left, so no timer runs.
    assert not watches_idle(transport)
    await transport.send(request())
    assert watches_idle(transport)


@only_pooled
async def test_the_connection_used_last_is_used_next(transport: Transport, server: RawServer) -> None:
    await fill(transport, server, 3)
    go_on = asyncio.Event()
    server.play([go_on, *OK])
    held = asyncio.create_task(_as_task(transport.send(request())))
    await server.received(4)
    last = server.requests[-1].connection
    await transport.send(request())
    second = server.requests[-1].connection
    go_on.set()
    await held
    for _ in range(3):
        await transport.send(request())
        assert server.requests[-1].connection == last
    assert second != last


# Cancellation


@each_moment
@pytest.mark.parametrize("fresh", [False, True], ids=["pooled connection", "fresh connection"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_cancelling_an_exchange(
    moment: Moment, fresh: bool, tls: bool, make_transport: MakeTransport, transport_name: str
) -> None:
    async with RawServer(tls=server_context() if tls else None) as server:
        made: list[Transport] = [make_transport(server.url, verify=client_context())]
        gates: list[asyncio.Event] = []

        async def prepare() -> Coroutine[Any, Any, Reply]:
            if fresh:
                made.append(make_transport(server.url, verify=client_context()))
            else:
                server.forget_scripts()
                await made[-1].send(request())
            gates.append(asyncio.Event())
            server.play([response(200, b"o", length=2), gates[-1], b"k"])
            return made[-1].send(request())

        async def after() -> None:
            gates[-1].set()
            await nothing_is_held(made[-1], server)
            server.forget_scripts()
            assert (await made[-1].send(request())).body == b"ok"
            if fresh:
                await made[-1].close()

        def move_on(number: int) -> None:
            gates[-1].set()

        suspensions = await cancel_everywhere(prepare, moment, after=after, on_suspend=move_on)
        assert suspensions >= (2 if fresh else 1)
        for transport in made:
            await transport.close()


@each_moment
async def test_cancelling_a_stream(moment: Moment, transport: Transport, server: RawServer) -> None:
    """A cancelled `send_streaming` leaves nothing; the stream of a cancelled reader is closed by its owner."""
    await transport.send(request())
    gates: list[asyncio.Event] = []

    async def read() -> None:
        stream = await transport.send_streaming(request())
        try:
            assert await whole(stream) == b"onetwo"
        finally:
            stream.close()

    async def prepare() -> Coroutine[Any, Any, None]:
        server.forget_scripts()
        gates[:] = [asyncio.Event() for _ in range(3)]
        head = response(200, b"", chunked=True)
        server.play([head, gates[0], chunk(b"one"), gates[1], chunk(b"two"), gates[2], LAST_CHUNK])
        return read()

    def move_on(number: int) -> None:
        if 0 < number <= 3:
            gates[number - 1].set()

    async def after() -> None:
        for gate in gates:
            gate.set()
        await nothing_is_held(transport, server)
        server.forget_scripts()
        assert (await transport.send(request())).body == b"ok"

    # The head, two pieces and the end.
    assert await cancel_everywhere(prepare, moment, after=after, on_suspend=move_on) >= 4


@each_moment
async def test_cancelling_a_large_request(moment: Moment, make_transport: MakeTransport) -> None:
    async with RawServer(receive_buffer=2**16) as server:
        transport = make_transport(server.url)

        async def prepare() -> Coroutine[Any, Any, Reply]:
            server.forget_scripts()
            await transport.send(request())
            server.play([EARLY, BODY, *OK])
            return transport.send(request(bytes(2**22)))

        async def after() -> None:
            await nothing_is_held(transport, server)
            server.forget_scripts()
            assert (await transport.send(request())).body == b"ok"

        assert await cancel_everywhere(prepare, moment, after=after) >= 1
        await transport.close()


class Begun:
    """A coroutine that runs at once until it waits, and continues when this is awaited."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._awaited = coroutine.send(None)

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            try:
                value = yield self._awaited
                resume = self._coroutine.send
            except BaseException as error:
                value, resume = error, self._coroutine.throw
            try:
                self._awaited = resume(value)
            except StopIteration as stop:
                return stop.value


async def lent_out_again(
    first: asyncio.Task[Any], transport: Transport, read_timeout: float | None = 30.0
) -> asyncio.Task[Reply]:
    """Send another request on the connection of one that has just ended, and cancel the first one's task.

    All of this happens before that task wakes up, in the iteration of the loop in which its last byte arrived.
    """
    while not connections_idle(transport):
        await asyncio.sleep(0)
    second = Begun(transport.send(request(b"second", read_timeout=read_timeout)))
    assert not connections_idle(transport)
    assert not first.done()
    first.cancel()
    return asyncio.create_task(_as_task(second))


@each_way
@only_pooled
async def test_a_cancelled_task_whose_connection_is_anothers_already(
    carry: Carry, transport: Transport, server: RawServer
) -> None:
    """The first task is cancelled when it wakes up; by then the connection serves another request."""
    await transport.send(request())
    go_on, answer = asyncio.Event(), asyncio.Event()
    server.play([go_on, *OK], [answer, response(200, b"second")])
    first = asyncio.create_task(_as_task(carry(transport, request())))
    await server.received(2)
    go_on.set()
    second = await lent_out_again(first, transport)
    await asyncio.wait([first])
    assert first.cancelled()
    answer.set()
    assert (await second).body == b"second"
    assert [asked.connection for asked in server.requests] == [0, 0, 0]


@each_way
@pytest.mark.parametrize("status", [408, 421])
@pytest.mark.parametrize("whole_at_once", [True, False])
async def test_a_status_that_asks_for_another_connection(
    carry: Carry, status: int, whole_at_once: bool, transport: Transport, server: RawServer
) -> None:
    rest = asyncio.Event()
    answer = response(status, b"no")
    server.play([answer] if whole_at_once else [answer[:-1], rest, answer[-1:]])
    first = asyncio.create_task(_as_task(carry(transport, request())))
    await server.received(1)
    rest.set()
    assert (await first).status == status
    assert [(await carry(transport, request())).status for _ in range(2)] == [200, 200]
    assert [asked.connection for asked in server.requests] == [0, 1, 1]


@each_way
@only_pooled
async def test_a_cancelled_task_whose_connection_is_idle(carry: Carry, transport: Transport, server: RawServer) -> None:
    """Its response was complete, so the connection is reused."""
    await transport.send(request())
    first = asyncio.create_task(_as_task(carry(transport, request())))
    while connections_idle(transport):
        await asyncio.sleep(0)
    while not connections_idle(transport):
        await asyncio.sleep(0)
    assert not first.done()
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    assert (await transport.send(request())).body == b"ok"
    assert [asked.connection for asked in server.requests] == [0, 0, 0]


@only_pooled
async def test_a_cancelled_reader_whose_connection_is_anothers_already(
    clock: VirtualTime, transport: Transport, server: RawServer
) -> None:
    """Nor does it end the other one's read timeout."""
    await transport.send(request())
    end, never = asyncio.Event(), asyncio.Event()
    server.play([response(200, b"one", chunked=True), end, LAST_CHUNK], [never])
    stream = await transport.send_streaming(request())
    assert await stream.read() == b"one"
    first = asyncio.create_task(_as_task(stream.read()))
    await asyncio.sleep(0)
    end.set()
    second = await lent_out_again(first, transport, read_timeout=20.0)
    await asyncio.wait([first])
    assert first.cancelled()
    stream.close()
    await server.received(3)
    await clock.advance(40.0)
    with pytest.raises(ReadTimeoutError):
        await second
    assert [asked.connection for asked in server.requests] == [0, 0, 0]


# Closing


@each_way
async def test_closing_during_an_exchange(
    carry: Carry, transport_name: str, transport: Transport, server: RawServer
) -> None:
    """All fail at once; over the pooled transport with the reason."""
    await transport.send(request())
    scripts: list[Script] = [
        [asyncio.Event()],
        [response(200, b"o", length=2), asyncio.Event()],
        [response(200, b"o", chunked=True), asyncio.Event()],
        [b"HTTP/1.1 200 OK\r\n\r\no", asyncio.Event()],
    ]
    server.play(*scripts)
    calls = [asyncio.create_task(_as_task(carry(transport, request()))) for _ in scripts]  # type: ignore[arg-type]
    await server.received(1 + len(scripts))
    for _ in range(10):
        await asyncio.sleep(0)
    await transport.close()
    await asyncio.wait(calls)
    expected: set[type[Exception]] = {ClientStateError}
    if transport_name == "session":
        expected |= {ConnectionClosedError, ResponseStreamingError}
    assert {type(call.exception()) for call in calls} <= expected
    await server.until(lambda: server.connections_open == 0)
    with pytest.raises(ClientStateError):
        await carry(transport, request())
    await transport.close()


@each_way
async def test_closing_while_a_name_is_looked_up(
    carry: Carry, make_transport: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp cancels the name look-up, which must not look like a cancelled call."""
    asked, never = asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any, **named: Any) -> Any:
        asked.set()
        await never.wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", slow)
    transport = make_transport("http://runtime.example:8080")
    call = asyncio.create_task(_as_task(carry(transport, request())))
    await asked.wait()
    await transport.close()
    await asyncio.wait([call])
    assert not call.cancelled()
    assert isinstance(call.exception(), ClientStateError)


@only_pooled
@each_way
async def test_closing_during_a_handshake(carry: Carry, make_transport: MakeTransport, server: RawServer) -> None:
    transport = make_transport(server.url.replace("http", "https"))
    call = asyncio.create_task(_as_task(carry(transport, request())))
    await server.until(lambda: server.connections_open == 1)
    await transport.close()
    await asyncio.wait([call])
    assert isinstance(call.exception(), ClientStateError)
    await server.until(lambda: server.connections_open == 0)


@only_pooled
async def test_aiohttp_is_told_when_a_connection_is_lost(
    make_transport: MakeTransport, monkeypatch: pytest.MonkeyPatch, server: RawServer
) -> None:
    """Its handler lives on beside our protocol; without this, tasks that wait for its end would never wake up."""
    told: list[Any] = []
    connection_lost = ResponseHandler.connection_lost

    def note(self: ResponseHandler, error: BaseException | None) -> None:
        told.append(self)
        connection_lost(self, error)

    monkeypatch.setattr(ResponseHandler, "connection_lost", note)
    transport = make_transport()
    for end in (CLOSE, RESET):
        server.play([*OK, end])
        await transport.send(request())
        while connections_idle(transport):
            await asyncio.sleep(0)
    await transport.send(request())
    await transport.close()
    await server.until(lambda: server.connections_open == 0)
    await asyncio.sleep(0)
    assert len(set(told)) == len(told) == server.connections_made == 3


@only_pooled
async def test_closing_waits_for_no_connection(transport: Transport, server: RawServer) -> None:
    """aiohttp's connector waits for each of its connections to be lost; here, two turns of the loop close all."""
    assert isinstance(transport, PooledTransport)
    await fill(transport, server, 20)
    closing = asyncio.create_task(transport.close())
    for _ in range(5):
        await asyncio.sleep(0)
    assert closing.done()
    assert (connections_in_use(transport), connections_idle(transport)) == (0, 0)
    await server.until(lambda: server.connections_open == 0)


@only_pooled
async def test_nothing_is_remembered_of_connections_that_are_gone(transport: Transport, server: RawServer) -> None:
    """Including connections that died while idle; neither here nor in aiohttp's connector."""
    assert isinstance(transport, PooledTransport)
    for end in (CLOSE, RESET) * 3:
        go_on = asyncio.Event()
        server.play(*([go_on, *OK, end] for _ in range(10)))
        asked = len(server.requests)
        calls = [asyncio.create_task(_as_task(transport.send(request()))) for _ in range(10)]
        await server.received(asked + 10)
        go_on.set()
        await asyncio.gather(*calls)
        await server.until(lambda: server.connections_open == 0)
        while connections_idle(transport):
            await asyncio.sleep(0)
        assert connections_remembered(transport) == 0
    gc.collect()
    assert not connection_objects(transport)


@only_pooled
async def test_writing_goes_on_where_another_exchange_had_stopped(make_transport: MakeTransport) -> None:
    """A connection whose buffer was full during one request takes all of the next one."""
    body = bytes(2**22)
    async with RawServer(otherwise=OK, receive_buffer=2**16) as server:
        transport = make_transport(server.url)
        for _ in range(5):
            reply = await transport.send(request(body))
            assert reply.body == b"ok"
            assert len(server.requests[-1].body) == len(body)
        assert server.connections_made == 1
        await transport.close()
