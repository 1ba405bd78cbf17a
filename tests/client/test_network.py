"""What lies between the client and the service: TLS, proxies, sockets, the pool, and a session of the caller's own."""

import asyncio
import contextlib
import inspect
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import pytest
import trustme
from aioresponses import aioresponses
from botocore import exceptions as boto

from aiosmrt import Client, ReadTimeoutError, RetryPolicy, errors
from aiosmrt._wire.operations import EVENT_STREAM
from tests.support import seams
from tests.support.clients import MakeClient
from tests.support.peers import CLIENT_ARGUMENTS, CREDENTIALS
from tests.support.recording_server import RecordedRequest, RecordingServer, Response, respond
from tests.support.signatures import verify_signature
from tests.support.virtual_time import VirtualTime

CALL: dict[str, Any] = {"EndpointName": "e", "Body": b"1,2"}


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no client trusts by default."""
    return trustme.CA()


@pytest.fixture
async def tls_server(authority: trustme.CA) -> AsyncIterator[RecordingServer]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    async with RecordingServer(respond(200, b"over TLS"), tls=context) as server:
        yield server


@pytest.fixture
def authorities_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "authorities.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


async def read(client: Client) -> bytes:
    response = await client.invoke_endpoint(**CALL)
    return await response["Body"].read()


async def test_a_private_authority(
    make_client: MakeClient,
    tls_server: RecordingServer,
    authority: trustme.CA,
    authorities_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    for verify in (str(authorities_file), authorities_file, context, False):
        assert await read(make_client(endpoint_url=tls_server.url, verify=verify)) == b"over TLS"
        verify_signature(tls_server.last, CREDENTIALS.secret_key)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authorities_file))
    assert await read(make_client(endpoint_url=tls_server.url)) == b"over TLS"


async def test_an_unknown_authority_is_not_tried_twice(make_client: MakeClient, tls_server: RecordingServer) -> None:
    async def no_sleep(delay: float) -> None:
        raise AssertionError("a certificate does not get better by trying again")

    client = make_client(endpoint_url=tls_server.url)
    seams.set_sleep(client, no_sleep)
    with pytest.raises(errors.SSLError) as caught:
        await client.invoke_endpoint(**CALL)
    assert isinstance(caught.value, boto.SSLError)
    assert caught.value.attempts == 1
    assert tls_server.requests == []


async def test_a_certificate_for_another_name(
    make_client: MakeClient, authority: trustme.CA, authorities_file: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("somewhere.example").configure_cert(context)
    async with RecordingServer(tls=context) as server:
        client = make_client(endpoint_url=server.url, verify=authorities_file, retry=RetryPolicy(max_attempts=1))
        with pytest.raises(errors.SSLError):
            await client.invoke_endpoint(**CALL)
        assert server.requests == []


@pytest.mark.parametrize(
    "answer",
    [b"\x15\x03\x03\x00\x02\x02\x50", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"],
    ids=["alert", "plain text"],
)
async def test_a_handshake_that_fails_is_tried_again(
    answer: bytes, make_client: MakeClient, authority: trustme.CA, authorities_file: Path
) -> None:
    """A balancer that is ill answers by the alert internal_error, or without TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    handshakes = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal handshakes
        handshakes += 1
        try:
            if handshakes <= 2:
                await reader.read(1)
                writer.write(answer)
            else:
                await writer.start_tls(context)
                await reader.readuntil(b"1,2")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as balancer:
        port = balancer.sockets[0].getsockname()[1]
        client = make_client(endpoint_url=f"https://localhost:{port}", verify=authorities_file)
        assert await read(client) == b"ok"
        assert client.statistics().retries == {"connection": 2}
        await client.close()


async def test_plain_http_where_tls_is_spoken_and_the_reverse(
    make_client: MakeClient, server: RecordingServer, tls_server: RecordingServer, virtual_time: VirtualTime
) -> None:
    once = RetryPolicy(max_attempts=1)
    client = make_client(endpoint_url=tls_server.url.replace("https", "http"), retry=once)
    with pytest.raises(errors.TransportError):
        await client.invoke_endpoint(**CALL)
    # A server of plain HTTP waits for the rest of what it takes for a request's head.
    client = make_client(endpoint_url=server.url.replace("http", "https"), retry=once)
    call = asyncio.create_task(client.invoke_endpoint(**CALL))
    await server.until(lambda server: server.connections_made == 1)
    await virtual_time.advance(6.0)
    with pytest.raises(errors.ConnectTimeoutError):
        await call
    assert server.requests == tls_server.requests == []


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_authorities_that_cannot_be_loaded(make_client: MakeClient, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "authorities.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(errors.ParamValidationError, match=r"authorities\.pem"):
        await make_client(verify=path).invoke_endpoint(**CALL)


async def test_a_stream_over_tls(make_client: MakeClient, tls_server: RecordingServer, authorities_file: Path) -> None:
    from aiosmrt._wire.eventstream import encode_payload_part

    go_on = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield encode_payload_part(b"one")
        await go_on.wait()
        yield encode_payload_part(b"two")

    tls_server.answer = lambda request: Response(200, (), parts())
    client = make_client(endpoint_url=tls_server.url, verify=authorities_file)
    response = await client.invoke_endpoint_with_response_stream(**CALL)
    async with response["Body"] as stream:
        assert await anext(stream) == {"PayloadPart": {"Bytes": b"one"}}
        go_on.set()
        assert [event async for event in stream] == [{"PayloadPart": {"Bytes": b"two"}}]


# Proxies


async def test_http_proxy(make_client: MakeClient, server: RecordingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with RecordingServer(respond(200, b"by proxy")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        client = make_client(endpoint_url="http://runtime.example:8080")
        assert await read(client) == b"by proxy"
        # The absolute form of the target (RFC 9112, 3.2.2), and the service's own host, signed.
        assert proxy.last.target == "http://runtime.example:8080/endpoints/e/invocations"
        assert proxy.last.header("Host") == "runtime.example:8080"
        assert server.requests == []

        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert await read(make_client()) == b""
        assert len(server.requests) == len(proxy.requests) == 1


async def test_a_proxy_without_a_scheme(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async with RecordingServer(respond(200, b"by proxy")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.host)
        assert await read(make_client(endpoint_url="http://runtime.example:8080")) == b"by proxy"


async def test_hosts_that_bypass_the_proxy(
    make_client: MakeClient, server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # botocore does not read it either, and aiohttp speaks no SOCKS
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert await read(make_client()) == b""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for exception in (server.host, "127.0.0.1", "*"):
        monkeypatch.setenv("NO_PROXY", exception)
        assert await read(make_client()) == b""
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "url", ["socks5://u:pass-word@127.0.0.1:9", "http://[::1", "http://u:pass-word@h:x", "http://"]
)
async def test_invalid_proxy_urls(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", url)
    with pytest.raises(errors.InvalidConfigError, match="HTTP_PROXY") as caught:
        await make_client(endpoint_url="http://runtime.example").invoke_endpoint(**CALL)
    assert "pass-word" not in str(caught.value)


class Tunnel:
    """A proxy that knows CONNECT alone."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b" ", 2)
            assert method == b"CONNECT"
            self.targets.append(target.decode())
            port = int(target.rpartition(b":")[2])
            onward, back = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(self._copy(reader, back), self._copy(onward, writer))
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def ended(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_https_through_a_tunnel(
    tls_server: RecordingServer, authorities_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tunnel = Tunnel()
    proxy = await asyncio.start_server(tunnel.serve, "127.0.0.1", 0)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
    try:
        async with Client(endpoint_url=tls_server.url, verify=authorities_file, **CLIENT_ARGUMENTS) as client:
            assert await read(client) == b"over TLS"
            assert await read(client) == b"over TLS"
        assert tunnel.targets == [f"localhost:{tls_server.port}"]
        # What goes through the tunnel is the same request as without one.
        assert tls_server.last.target == "/endpoints/e/invocations"
        verify_signature(tls_server.last, CREDENTIALS.secret_key)
    finally:
        proxy.close()
        await tunnel.ended()
        await proxy.wait_closed()


async def test_a_proxy_that_refuses_connections(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, refusing_url: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", refusing_url)
    client = make_client(endpoint_url="http://runtime.example", retry=RetryPolicy(max_attempts=1))
    with pytest.raises(errors.ProxyConnectionError) as caught:
        await client.invoke_endpoint(**CALL)
    assert isinstance(caught.value, boto.ProxyConnectionError)


# Sockets


def sockets_to(port: int) -> Iterator[socket.socket]:
    """Copies of this process's TCP sockets that are connected to a port."""
    for link in Path("/proc/self/fd").iterdir():
        try:
            copy = socket.socket(fileno=os.dup(int(link.name)))
        except OSError:
            continue
        with copy:
            try:
                peer = copy.getpeername()
            except OSError:
                continue
            if copy.family == socket.AF_INET and peer[1] == port:
                yield copy


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the sockets are found in /proc")
async def test_a_dead_peer_is_noticed_within_seconds(client: Client, server: RecordingServer) -> None:
    await client.invoke_endpoint(**CALL)
    found = 0
    for sock in sockets_to(server.port):
        found += 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        interval = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        probes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
        assert idle + interval * probes <= 30
        # Without it, unacknowledged data is sent again for up to 15 minutes while no probe goes out.
        assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 30_000
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert found == 1


async def test_a_connection_is_used_again(client: Client, server: RecordingServer) -> None:
    for _ in range(5):
        await client.invoke_endpoint(**CALL)
        await client.invoke_endpoint_async(EndpointName="e", InputLocation="s3://b/k")
    assert server.connections_made == 1


async def test_a_connection_idle_too_long_is_not_used_again(
    make_client: MakeClient, server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiosmrt._transport import pooled
    from aiosmrt._transport.aiohttp_session import connector as session
    from aiosmrt._transport.base import IDLE_SECONDS

    # NAT gateways and VPC endpoints forget a connection after 350 s, many load balancers after 60.
    assert 1.0 <= IDLE_SECONDS < 60.0
    for module in (pooled, session):
        monkeypatch.setattr(module, "IDLE_SECONDS", 1e-9)
    client = make_client()
    for _ in range(3):
        await client.invoke_endpoint(**CALL)
    assert [request.connection for request in server.requests] == [0, 1, 2]


async def test_a_connection_that_the_service_has_closed(client: Client, server: RecordingServer) -> None:
    server.answer = respond(200, b"", [], close=True)
    await client.invoke_endpoint(**CALL)
    await server.until(lambda server: server.connections_open == 0)
    await client.invoke_endpoint(**CALL)
    assert [request.connection for request in server.requests] == [0, 1]
    assert client.statistics().attempts == 2


async def test_a_response_that_is_too_large(client: Client, server: RecordingServer) -> None:
    """It is not asked for again."""
    server.answer = respond(200, b"0123456789", [])
    limited = client.with_options(max_response_bytes=9)
    with pytest.raises(errors.ResponseStreamingError, match="exceeds max_response_bytes of 9") as caught:
        await limited.invoke_endpoint(**CALL)
    assert (caught.value.cause, caught.value.attempts, len(server.requests)) == ("none", 1, 1)
    for enough in (client, limited.with_options(max_response_bytes=10), limited.with_options(max_response_bytes=None)):
        assert await (await enough.invoke_endpoint(**CALL))["Body"].read() == b"0123456789"


async def test_the_pool_is_as_wide_as_the_limiter(make_client: MakeClient, server: RecordingServer) -> None:
    # More than aiohttp's own default of 100, which would be a second queue behind the limiter.
    wide = 130
    arrived = asyncio.Event()

    async def answer(request: RecordedRequest) -> Response:
        if len(server.requests) == wide:
            arrived.set()
        await arrived.wait()
        return Response()

    server.answer = answer
    client = make_client(max_concurrency=wide)
    await asyncio.gather(*(client.invoke_endpoint(**CALL) for _ in range(wide)))
    assert server.connections_made == wide


# Time


async def test_read_timeout(make_client: MakeClient, server: RecordingServer, virtual_time: VirtualTime) -> None:
    never = asyncio.Event()

    async def silence(request: RecordedRequest) -> Response:
        await never.wait()
        return Response()

    server.answer = silence
    call = asyncio.create_task(make_client().invoke_endpoint(**CALL))
    await server.until(lambda server: len(server.requests) == 1)
    await virtual_time.advance(69.0)
    assert not call.done()
    # aiohttp rounds a timeout up to whole seconds.
    await virtual_time.advance(2.0)
    with pytest.raises(ReadTimeoutError):
        await call
    # The model may still be at work: a second request would double its load.
    assert len(server.requests) == 1
    never.set()
    await server.until(lambda server: server.connections_open == 0)


@pytest.mark.parametrize("read_timeout", [70.0, 0.02])
async def test_connect_timeout(make_client: MakeClient, busy_url: str, read_timeout: float) -> None:
    # A shorter read timeout does not make this a read timeout, after which there would be no second attempt.
    client = make_client(
        endpoint_url=busy_url, connect_timeout=0.05, read_timeout=read_timeout, retry=RetryPolicy(max_attempts=2)
    )
    with pytest.raises(errors.ConnectTimeoutError) as caught:
        await client.invoke_endpoint(**CALL)
    assert isinstance(caught.value, boto.ConnectTimeoutError)
    assert caught.value.attempts == 2


# The caller's session


async def test_the_callers_session_is_used_and_left_open(server: RecordingServer) -> None:
    server.answer = respond(200, b"", [("Content-Type", EVENT_STREAM), ("Set-Cookie", "a=b; Path=/")])
    async with aiohttp.ClientSession(headers={"X-Mine": "1"}) as session:
        async with Client(endpoint_url=server.url, session=session, **CLIENT_ARGUMENTS) as client:
            await client.invoke_endpoint(**CALL)
            verify_signature(server.last, CREDENTIALS.secret_key)
            assert server.last.header("X-Mine") == "1"
            response = await client.invoke_endpoint_with_response_stream(**CALL)
            async with response["Body"] as stream:
                assert [event async for event in stream] == []
        assert not session.closed
        async with session.get(server.url) as answer:
            assert answer.status == 200


async def test_a_closed_session_of_the_caller(server: RecordingServer) -> None:
    session = aiohttp.ClientSession()
    await session.close()
    async with Client(endpoint_url=server.url, session=session, **CLIENT_ARGUMENTS) as client:
        with pytest.raises(errors.ClientStateError, match="session"):
            await client.invoke_endpoint(**CALL)


async def test_trace_configs_of_the_callers_session_see_the_requests(server: RecordingServer) -> None:
    seen = []

    async def on_start(session: Any, context: Any, params: aiohttp.TraceRequestStartParams) -> None:
        seen.append(params.url.path)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(on_start)
    async with (
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        Client(endpoint_url=server.url, session=session, **CLIENT_ARGUMENTS) as client,
    ):
        await client.invoke_endpoint(**CALL)
    assert seen == ["/endpoints/e/invocations"]


async def test_a_wait_in_the_pool_of_the_callers_session_does_not_time_out(
    server: RecordingServer, virtual_time: VirtualTime
) -> None:
    """The first call's answer takes longer than both timeouts would let the second wait for its connection."""
    go_on = asyncio.Event()

    async def answer(request: RecordedRequest) -> Response:
        await go_on.wait()
        return Response()

    server.answer = answer
    once = RetryPolicy(max_attempts=1)
    arguments: dict[str, Any] = {**CLIENT_ARGUMENTS, "retry": once, "connect_timeout": 5.0}
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session,
        Client(endpoint_url=server.url, session=session, **arguments) as client,
    ):
        first = asyncio.create_task(client.with_options(read_timeout=300.0).invoke_endpoint(**CALL))
        await server.until(lambda server: len(server.requests) == 1)
        second = asyncio.create_task(client.with_options(read_timeout=20.0).invoke_endpoint(**CALL))
        await virtual_time.advance(100.0)
        assert not second.done()
        go_on.set()
        await asyncio.gather(first, second)


async def test_the_callers_session_may_raise_for_statuses(server: RecordingServer) -> None:
    server.answer = respond(400, b'{"message": "m"}', [("x-amzn-errortype", "ValidationError")])
    async with (
        aiohttp.ClientSession(raise_for_status=True) as session,
        Client(endpoint_url=server.url, session=session, **CLIENT_ARGUMENTS) as client,
    ):
        with pytest.raises(errors.ValidationError):
            await client.invoke_endpoint(**CALL)
        with pytest.raises(errors.ValidationError):
            await client.invoke_endpoint_with_response_stream(**CALL)
    assert len(server.requests) == 2


class MockedResponse(aiohttp.ClientResponse):
    """aioresponses 0.7.9 does not know what aiohttp 3.14 wants a response to be made of."""

    def __init__(self, method: str, url: Any, **facts: Any) -> None:
        if "stream_writer" in inspect.signature(aiohttp.ClientResponse.__init__).parameters:
            facts.setdefault("stream_writer", mock.Mock())
        super().__init__(method, url, **facts)


@pytest.mark.parametrize("own", [False, True])
async def test_aioresponses(own: bool) -> None:
    url = "https://runtime.sagemaker.eu-central-1.amazonaws.com/endpoints/churn/invocations"
    failed = {"Message": "m", "OriginalStatusCode": 500}
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession()) if own else None
        mocked = stack.enter_context(aioresponses())
        mocked.post(url, body=b"0.25", headers={"Content-Type": "text/csv"}, response_class=MockedResponse)
        mocked.post(
            url,
            status=424,
            payload=failed,
            headers={"x-amzn-errortype": "ModelError"},
            response_class=MockedResponse,
        )
        client = await stack.enter_async_context(Client(session=session, transport="session", **CLIENT_ARGUMENTS))
        response = await client.invoke_endpoint(EndpointName="churn", Body=b"1,2,3")
        assert response["ContentType"] == "text/csv"
        assert await response["Body"].read() == b"0.25"
        with pytest.raises(errors.ModelError) as caught:
            await client.invoke_endpoint(EndpointName="churn", Body=b"1,2,3")
        assert caught.value.original_status_code == 500
