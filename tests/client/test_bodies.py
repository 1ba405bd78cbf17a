"""What may be given as Body, how it is read, and what of it goes out."""

import array
import asyncio
import hashlib
import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from aiosmrt import Client, ParamValidationError, RetryPolicy
from aiosmrt._core.body import HASH_INLINE_BYTES
from tests.support.clients import MakeClient
from tests.support.peers import CREDENTIALS
from tests.support.recording_server import RecordedRequest, RecordingServer, Response, respond_in_turn
from tests.support.signatures import verify_signature


async def sent(client: Client, server: RecordingServer, body: Any) -> bytes:
    """The body as it arrived, its signature verified."""
    await client.invoke_endpoint(EndpointName="e", Body=body)
    verify_signature(server.last, CREDENTIALS.secret_key)
    assert server.last.header("Content-Length") == str(len(server.last.body))
    return server.last.body


LARGE = bytes(range(256)) * 4096 + b"tail"  # 1 MiB and a bit: hashed and read off the loop

KINDS: dict[str, tuple[Any, bytes]] = {
    "bytes": (b"\x00\xff\r\n", b"\x00\xff\r\n"),
    "empty": (b"", b""),
    "large": (LARGE, LARGE),
    "bytearray": (bytearray(b"array"), b"array"),
    "large-bytearray": (bytearray(LARGE), LARGE),
    "str": ("größe 1", "größe 1".encode()),
    "memoryview": (memoryview(b"view"), b"view"),
    "memoryview-slice": (memoryview(b"0123456789")[2:7], b"23456"),
    "memoryview-strided": (memoryview(b"0123456789")[::2], b"02468"),
    "memoryview-backwards": (memoryview(b"0123456789")[::-1], b"9876543210"),
    "memoryview-of-bytearray": (memoryview(bytearray(b"mutable")), b"mutable"),
    "memoryview-of-shorts": (memoryview(array.array("H", [1, 2, 770])), array.array("H", [1, 2, 770]).tobytes()),
    "memoryview-of-doubles": (memoryview(array.array("d", [0.5, -1.0])), array.array("d", [0.5, -1.0]).tobytes()),
    "memoryview-2d": (memoryview(b"abcdef").cast("B", (2, 3)), b"abcdef"),
    "memoryview-large": (memoryview(LARGE), LARGE),
    "memoryview-large-strided": (memoryview(LARGE)[::2], LARGE[::2]),
    "memoryview-empty": (memoryview(b""), b""),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_body_kinds(client: Client, server: RecordingServer, kind: str) -> None:
    body, expected = KINDS[kind]
    assert await sent(client, server, body) == expected
    # The other operations take the same.
    if len(expected) <= 128_000:
        await client.invoke_endpoint_async(EndpointName="e", Body=body)
        assert server.last.body == expected
        response = await client.invoke_endpoint_with_response_stream(EndpointName="e", Body=body)
        response["Body"].close()
        assert server.last.body == expected


async def test_a_numpy_array_goes_out_as_its_bytes(client: Client, server: RecordingServer) -> None:
    numpy = pytest.importorskip("numpy")
    values = numpy.arange(12, dtype="<f4").reshape(3, 4)
    assert await sent(client, server, memoryview(values)) == values.tobytes()
    assert await sent(client, server, memoryview(values[:, ::2])) == values[:, ::2].tobytes()


async def test_a_file_is_read_from_its_position(client: Client, server: RecordingServer, tmp_path: Path) -> None:
    path = tmp_path / "body.bin"
    path.write_bytes(b"header\n" + LARGE)
    with path.open("rb") as file:
        file.seek(7)
        assert await sent(client, server, file) == LARGE
    with path.open("rb", buffering=0) as file:
        file.seek(-4, os.SEEK_END)
        assert await sent(client, server, file) == b"tail"
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        assert await sent(client, server, file) == b""


async def test_bytes_io(client: Client, server: RecordingServer) -> None:
    file = io.BytesIO(b"0123456789")
    file.seek(4)
    assert await sent(client, server, file) == b"456789"


class Watched(io.BytesIO):
    """A file that records which threads use it."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.threads: set[int] = set()

    def seekable(self) -> bool:
        self.threads.add(threading.get_ident())
        return super().seekable()

    def read(self, size: int | None = -1, /) -> bytes:
        self.threads.add(threading.get_ident())
        return super().read(size)


async def test_a_file_is_read_off_the_loop(client: Client, server: RecordingServer) -> None:
    file = Watched(LARGE)
    assert await sent(client, server, file) == LARGE
    assert file.threads
    assert threading.get_ident() not in file.threads


@pytest.mark.parametrize(("size_bytes", "off_loop"), [(HASH_INLINE_BYTES, False), (len(LARGE), True)])
async def test_a_large_body_is_hashed_off_the_loop(
    client: Client, server: RecordingServer, monkeypatch: pytest.MonkeyPatch, size_bytes: int, off_loop: bool
) -> None:
    threads = []
    real = hashlib.sha256

    def watched(data: Any = b"", **options: Any) -> Any:
        if len(data) == size_bytes:
            threads.append(threading.get_ident())
        return real(data, **options)

    monkeypatch.setattr("aiosmrt._core.body.hashlib.sha256", watched)
    await client.invoke_endpoint(EndpointName="e", Body=LARGE[:size_bytes])
    assert len(threads) == 1
    assert (threads[0] != threading.get_ident()) == off_loop


async def test_the_loop_runs_while_a_large_body_is_on_its_way(client: Client, server: RecordingServer) -> None:
    body = LARGE * 24  # 24 MiB: reading, hashing and sending it takes many turns of the loop
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    try:
        assert await sent(client, server, body) == body
    finally:
        counting.cancel()
    assert turns > 50


async def test_a_bytearray_may_change_once_the_call_has_begun(client: Client, server: RecordingServer) -> None:
    """Body and signature are of one moment, whatever the caller does with its buffer afterwards."""
    await client.invoke_endpoint(EndpointName="e", Body=b"")  # prepared: the next call runs at once
    for make in (lambda data: data, memoryview):
        buffer = bytearray(b"as it was when the call began")
        call = asyncio.create_task(client.invoke_endpoint(EndpointName="e", Body=make(buffer)))
        await asyncio.sleep(0)
        buffer[:] = b"x" * len(buffer)
        await call
        assert server.last.body == b"as it was when the call began"
        verify_signature(server.last, CREDENTIALS.secret_key)


async def test_a_file_is_sent_again_whole(make_client: MakeClient, server: RecordingServer) -> None:
    server.answer = respond_in_turn(Response(500, (), b"{}"), Response(503, (), b"{}"), Response())
    client = make_client(retry=RetryPolicy(base_delay=0.0))
    file = io.BytesIO(b"0123456789")
    file.seek(3)
    await client.invoke_endpoint(EndpointName="e", Body=file)
    assert [request.body for request in server.requests] == [b"3456789"] * 3


class InPieces(io.BytesIO):
    """A file that never returns all that is left at once, as a wrapper around a raw device may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(3 if size is None or size < 0 else min(size, 3))


class SaysSeekable:
    """A wrapper whose `seekable` is no method."""

    seekable = True

    def __init__(self) -> None:
        self.file = io.BytesIO(b"0123456789")

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)


@pytest.mark.parametrize("make", [lambda: InPieces(b"0123456789"), SaysSeekable], ids=["in pieces", "attribute"])
async def test_unusual_files_are_sent_whole(client: Client, server: RecordingServer, make: Any) -> None:
    assert await sent(client, server, make()) == b"0123456789"


class Deferred(io.BytesIO):
    """A file whose `read` is a function that returns a coroutine."""

    def read(self, size: int | None = -1, /) -> Any:
        async def read() -> bytes:
            raise AssertionError("awaited")

        return read()


async def test_a_file_that_returns_coroutines_is_refused(client: Client, server: RecordingServer) -> None:
    with pytest.raises(ParamValidationError, match="asynchronous"):
        await client.invoke_endpoint(EndpointName="e", Body=Deferred())
    assert server.requests == []


class Unseekable(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: Any) -> int:
        raise AssertionError("a file that cannot be sent again must not be read")


async def test_files_that_are_refused(client: Client, server: RecordingServer, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("marker")
    refused: list[tuple[Any, str]] = [(Unseekable(), "seekable"), (io.StringIO("marker"), "text mode")]
    for body, why in refused:
        with pytest.raises(ParamValidationError, match=why) as caught:
            await client.invoke_endpoint(EndpointName="e", Body=body)
        assert "marker" not in str(caught.value)
    with path.open() as text, pytest.raises(ParamValidationError, match="text mode"):
        await client.invoke_endpoint(EndpointName="e", Body=text)  # type: ignore[arg-type]
    # The file's own message is clear enough.
    closed = path.open("rb")
    closed.close()
    with pytest.raises(ValueError, match="closed file"):
        await client.invoke_endpoint(EndpointName="e", Body=closed)
    with path.open("wb") as writable, pytest.raises(OSError, match="read"):
        await client.invoke_endpoint(EndpointName="e", Body=writable)
    assert server.requests == []
    assert client.statistics().in_use == 0


async def test_a_pipe_is_refused(client: Client, server: RecordingServer) -> None:
    reader, writer = os.pipe()
    with (
        os.fdopen(reader, "rb") as file,
        os.fdopen(writer, "wb"),
        pytest.raises(ParamValidationError, match="seekable"),
    ):
        await client.invoke_endpoint(EndpointName="e", Body=file)
    assert server.requests == []


@pytest.mark.parametrize(
    "body", [None, 3, 1.5, ["a"], {"a": 1}, object(), (b"x",)], ids=lambda body: type(body).__name__
)
async def test_other_types_are_refused(client: Client, server: RecordingServer, body: Any) -> None:
    with pytest.raises(ParamValidationError, match="Body"):
        await client.invoke_endpoint(EndpointName="e", Body=body)
    assert server.requests == []


async def test_an_inline_body_is_limited_for_asynchronous_inference(client: Client, server: RecordingServer) -> None:
    limit = 128_000
    body: Any
    for body in (b"x" * limit, io.BytesIO(b"x" * limit)):
        await client.invoke_endpoint_async(EndpointName="e", Body=body)
    for body in (b"x" * (limit + 1), io.BytesIO(b"x" * (limit + 1)), "ü" * (limit // 2 + 1)):
        with pytest.raises(ParamValidationError, match="128000"):
            await client.invoke_endpoint_async(EndpointName="e", Body=body)
    assert len(server.requests) == 2


async def test_no_other_body_is_refused_by_its_size(client: Client, server: RecordingServer) -> None:
    received: list[int] = []

    def answer(request: RecordedRequest) -> Response:
        received.append(len(request.body))
        return Response()

    server.answer = answer
    # Above the service model's 6 MiB, which the service itself does not hold to.
    await client.invoke_endpoint(EndpointName="e", Body=bytes(7 * 1024 * 1024))
    assert received == [7 * 1024 * 1024]
