"""Response bodies of containers: the limit, and what is read of a body that exceeds it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from aiosmrt.local import Invocation
from tests.support.runtime import Draft, InProcessContainer, RawAnswer, RawConnection, local_runtime

LIMIT = 1000
STREAM = "/endpoints/echo/invocations-response-stream"


async def ask(url: str, path: str = "/endpoints/echo/invocations", body: bytes = b"1,2,3") -> RawAnswer:
    async with RawConnection.to(url) as connection:
        return await connection.exchange(Draft(url, path, body=body).sign().encode())


async def whole(invocation: Invocation) -> bytes:
    return b"x" * int(invocation.body)


async def parts(invocation: Invocation) -> AsyncIterator[bytes]:
    for _ in range(int(invocation.body)):
        yield b"x"


async def with_length(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"x" * int(await request.read()))


async def chunked(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"x" * int(await request.read()))
    await response.write_eof()
    return response


@pytest.mark.parametrize("serve", [whole, parts, with_length, chunked])
async def test_response_over_the_limit_is_a_model_error(serve: Any) -> None:
    async with InProcessContainer(serve) as container:
        target = serve if serve in (whole, parts) else container.url
        async with local_runtime({"echo": target}, max_response_bytes=LIMIT) as runtime:
            answer = await ask(runtime.url, body=b"1000")
            assert (answer.status, answer.body) == (200, b"x" * LIMIT)
            answer = await ask(runtime.url, body=b"1001")
            assert (answer.status, answer.headers["x-amzn-errortype"]) == (424, "ModelError")
            document = json.loads(answer.body)
            message = "The response from container primary exceeded the limit of 1000 bytes."
            assert (document["OriginalStatusCode"], document["OriginalMessage"]) == (0, message)
            assert (await ask(runtime.url, body=b"10")).body == b"x" * 10


async def test_default_limit() -> None:
    async with local_runtime({"echo": whole}) as runtime:
        assert (await ask(runtime.url, body=b"26214400")).status == 200
        assert (await ask(runtime.url, body=b"26214401")).status == 424


class Endless:
    """A container whose body never ends; counts what was sent."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.sent = 0
        self.ended = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=self.status)
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65_536)
                self.sent += 65_536
        finally:
            self.ended.set()


@pytest.mark.parametrize("status", [200, 500, 302, 404])
async def test_endless_body(status: int) -> None:
    serve = Endless(status)
    async with (
        InProcessContainer(serve) as container,
        local_runtime({"echo": container.url}, max_response_bytes=1_000_000) as runtime,
    ):
        answer = await ask(runtime.url)
        assert answer.status == 424
        assert json.loads(answer.body)["OriginalStatusCode"] == (0 if status == 200 else status)
        await serve.ended.wait()
    # the limit, and what sockets hold on loopback
    assert serve.sent < 20_000_000


async def test_error_text_that_arrives_in_pieces() -> None:
    async def serve(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=500)
        await response.prepare(request)
        for word in (b"out ", b"of ", b"memory"):
            await response.write(word)
            await asyncio.sleep(0.01)
        await response.write_eof()
        return response

    async with InProcessContainer(serve) as container, local_runtime({"echo": container.url}) as runtime:
        assert json.loads((await ask(runtime.url)).body)["OriginalMessage"] == "out of memory"


async def test_error_text_that_breaks_off() -> None:
    async def serve(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 100\r\n\r\nout of")
        request.transport.close()
        return web.Response()

    async with InProcessContainer(serve) as container, local_runtime({"echo": container.url}) as runtime:
        document = json.loads((await ask(runtime.url)).body)
    assert (document["OriginalStatusCode"], document["OriginalMessage"]) == (500, "out of")


async def test_error_text_that_stops() -> None:
    async def serve(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=500)
        await response.prepare(request)
        await response.write(b"out of")
        await asyncio.Event().wait()
        return response

    async with (
        InProcessContainer(serve) as container,
        local_runtime({"echo": container.url}, model_timeout=0.1) as runtime,
    ):
        document = json.loads((await ask(runtime.url)).body)
    assert document["OriginalStatusCode"] == 0
    assert document["OriginalMessage"].startswith("Your invocation timed out")


async def test_streams_have_no_size_limit_and_their_records_do() -> None:
    async with local_runtime({"echo": parts}, max_response_bytes=LIMIT, record_bodies=True) as runtime:
        answer = await ask(runtime.url, STREAM, b"200")
        assert answer.status == 200
        (record,) = await runtime.wait_for_requests(1)
    assert record.parts == 200
    assert record.response_bytes == len(answer.body) > LIMIT
    assert record.response_body is not None
    assert answer.body.startswith(record.response_body)
    assert 0 < len(record.response_body) <= LIMIT
