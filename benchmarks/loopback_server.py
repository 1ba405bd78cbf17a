"""A loopback stand-in for SageMaker Runtime, for benchmarks, that takes almost no time itself.

Theory of operation
-------------------
The server must never be the bottleneck, so it does no work per request beyond finding its end. It runs in a separate
process on one core, the client on another. Every response is a bytes object made at start-up. A request's head is
searched for two things only: its path, which selects the response, and its Content-Length, the bytes of body to
discard. Bodies go into one scratch buffer shared by all connections (asyncio's BufferedProtocol), so a request of 6 MiB
takes no memory.

The path selects the response:

- ``.../invocations``: a JSON object of 33 bytes.
- ``.../invocations-response-stream``: event-stream frames, chunked. The endpoint's name is ``KIND-COUNT``, with at most
  1,000,000 parts:

  - ``small-10000``: 10,000 parts of 64 bytes, about 64 KiB of them per HTTP chunk;
  - ``large-1000``: 1,000 parts of 64 KiB, one per chunk; both kinds are written four chunks at a time, as fast as the
    client reads;
  - ``paced-200``: 200 parts of 64 bytes, one every 2.5 to 7.5 ms, each in its own chunk and write, as a model emits
    tokens; with an even pace the parts of all streams would arrive in bursts, larger ones for a slower client;
  - ``json-10000``, ``sse-10000``: as ``small-10000``, with a JSON line or a server-sent event in each part.

  Other names get ``small-100``.

Signatures are not checked. ``Expect: 100-continue`` and chunked requests are not supported; the server refuses them
with an error status, which fails the benchmark.

The frames are made here and not by ``aiosmrt._wire``, so that a benchmark does not depend on the code that it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import resource
import ssl
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import cast

JSON_BODY = b'{"predictions": [0.25, 0.5, 1.0]}'
REQUEST_ID = b"00000000-0000-4000-8000-000000000000"
COMMON_HEADERS = (
    b"x-amzn-requestid: " + REQUEST_ID + b"\r\n"
    b"x-Amzn-Invoked-Production-Variant: AllTraffic\r\n"
    b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
)
INVOKE_RESPONSE = (
    b"HTTP/1.1 200 OK\r\n" + COMMON_HEADERS + b"Content-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(JSON_BODY)
) + JSON_BODY
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\n" + COMMON_HEADERS + b"X-Amzn-SageMaker-Content-Type: application/octet-stream\r\n"
    b"Content-Type: application/vnd.amazon.eventstream\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
# 64 bytes each.
JSON_PART = b'{"token":{"id":13,"text":" word","logprob":-0.25,"special":1}}' + b"\n\n"
SSE_PART = b'data: {"choices": [{"index": 0, "delta": {"content": "a w"}}]}' + b"\n\n"

MAX_HEAD_BYTES = 64 * 1024
SCRATCH_BYTES = 256 * 1024
SMALL_PART_BYTES = 64
LARGE_PART_BYTES = 64 * 1024
CHUNK_BYTES = 64 * 1024
CHUNKS_PER_PIECE = 4
MAX_PARTS = 1_000_000
PACE_SECONDS = 0.005
DESCRIPTORS = 10_000

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*\r\n", re.IGNORECASE)
_STREAM_PATH = re.compile(rb"/endpoints/(small|large|paced|json|sse)-(\d{1,7})/invocations-response-stream")


def payload_part(payload: bytes) -> bytes:
    """Frame one PayloadPart event as the service does."""
    headers = b"".join(
        struct.pack("!B", len(name)) + name + struct.pack("!BH", 7, len(value)) + value
        for name, value in (
            (b":event-type", b"PayloadPart"),
            (b":content-type", b"application/octet-stream"),
            (b":message-type", b"event"),
        )
    )
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    checked = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
    return checked + struct.pack("!I", zlib.crc32(checked))


def chunk(data: bytes) -> bytes:
    """Frame bytes as one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@lru_cache(maxsize=32)
def stream_pieces(kind: bytes, count: int) -> tuple[bytes, int, bytes]:
    """Return a stream as a repeated piece, the number of repetitions, and the rest with the end of the body."""
    payloads = {b"large": bytes(LARGE_PART_BYTES), b"json": JSON_PART, b"sse": SSE_PART}
    frame = payload_part(payloads.get(kind, bytes(SMALL_PART_BYTES)))
    per_chunk, per_piece = (1, 1) if kind == b"paced" else (max(1, CHUNK_BYTES // len(frame)), CHUNKS_PER_PIECE)
    chunks, rest = divmod(count, per_chunk)
    repeats, chunks = divmod(chunks, per_piece)
    full = chunk(frame * per_chunk)
    return full * per_piece, repeats, full * chunks + (chunk(frame * rest) if rest else b"") + LAST_CHUNK


def stream_of(path: bytes) -> tuple[bytes, int]:
    """Return the kind and number of parts of the stream that a request line or path names."""
    wanted = _STREAM_PATH.search(path)
    return (wanted[1], min(int(wanted[2]), MAX_PARTS)) if wanted else (b"small", 100)


def response_bytes(endpoint: str) -> int:
    """Return the size of this endpoint's response on the wire, including its head."""
    piece, repeats, rest = stream_pieces(*stream_of(f"/endpoints/{endpoint}/invocations-response-stream".encode()))
    return len(STREAM_HEAD) + len(piece) * repeats + len(rest)


class Connection(asyncio.BufferedProtocol):
    """One keep-alive connection: finds the end of each request and writes the response that its path selects."""

    def __init__(self, scratch: memoryview) -> None:
        self._scratch = scratch
        self._head = bytearray()
        self._skip = 0
        self._answer = INVOKE_RESPONSE
        self._stream: tuple[bytes, int, bool] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._writer: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not an instance of it

    def connection_lost(self, exc: Exception | None) -> None:
        if self._writer is not None:
            self._writer.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        if self._skip >= nbytes:
            self._skip -= nbytes
            if not self._skip:
                self._reply()
            return
        self._head += self._scratch[self._skip : nbytes]
        if self._skip:
            self._skip = 0
            self._reply()
        while (end := self._head.find(b"\r\n\r\n")) >= 0:
            self._read_head(bytes(self._head[: end + 2]))
            taken = end + 4 + self._skip
            self._skip = max(0, taken - len(self._head))
            del self._head[:taken]
            if self._skip:
                return
            self._reply()
        if len(self._head) > MAX_HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")

    def _read_head(self, head: bytes) -> None:
        length = _CONTENT_LENGTH.search(head)
        self._skip = int(length[1]) if length else 0
        path = head[: head.index(b"\r\n")]
        if not length and b"\r\ntransfer-encoding:" in head.lower():
            self._refuse(b"411 Length Required")
        elif b"/invocations-response-stream" in path:
            kind, count = stream_of(path)
            piece, repeats, rest = stream_pieces(kind, count)
            self._stream = piece, repeats, kind == b"paced"
            self._answer = rest
        elif b"/invocations" in path:
            self._answer = INVOKE_RESPONSE
        else:
            self._refuse(b"404 Not Found")

    def _reply(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._stream is None:
            self._transport.write(self._answer)
            return
        piece, repeats, paced = self._stream
        self._stream = None
        self._writer = asyncio.get_running_loop().create_task(self._write_stream(piece, repeats, paced, self._answer))

    async def _write_stream(self, piece: bytes, repeats: int, paced: bool, rest: bytes) -> None:
        assert self._transport is not None
        self._transport.write(STREAM_HEAD)
        for _ in range(repeats):
            await self._writable.wait()
            self._transport.write(piece)
            if paced:
                await asyncio.sleep(random.uniform(0.5, 1.5) * PACE_SECONDS)
        self._transport.write(rest)

    def _refuse(self, status: bytes) -> None:
        if self._transport is not None:
            self._transport.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
            self._transport.close()


def raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as the benchmarks need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def serve(port: int, tls: ssl.SSLContext | None, *, until_eof: bool) -> None:
    """Serve on 127.0.0.1 until cancelled or, with ``until_eof``, until standard input (a pipe to the parent) ends."""
    loop = asyncio.get_running_loop()
    scratch = memoryview(bytearray(SCRATCH_BYTES))
    server = await loop.create_server(lambda: Connection(scratch), "127.0.0.1", port, ssl=tls, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    if until_eof:
        loop.add_reader(sys.stdin.fileno(), ended.set)
    async with server:
        await ended.wait()


def self_signed_certificate(directory: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 and localhost with openssl; returns the paths of it and its key."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout", str(key), "-out", str(certificate),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate, key


@contextlib.contextmanager
def running(*, core: int | None = None, loop: str = "asyncio", tls: bool = False) -> Iterator[tuple[str, Path | None]]:
    """Run the server in a child process; yields its URL and, under TLS, the certificate to trust."""
    with tempfile.TemporaryDirectory(prefix="loopback-server-") as name:
        command = [sys.executable, str(Path(__file__)), "--until-eof", "--loop", loop]
        if core is not None:
            command += ["--core", str(core)]
        certificate = None
        if tls:
            certificate, key = self_signed_certificate(Path(name))
            command += ["--certificate", str(certificate), "--key", str(key)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                port = int(process.stdout.readline())
                yield f"{'https' if tls else 'http'}://127.0.0.1:{port}", certificate
            finally:
                process.stdin.close()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer SageMaker Runtime calls on 127.0.0.1 at almost no cost.")
    parser.add_argument("--port", type=int, default=0, help="0 (default): a free one; printed on its own line")
    parser.add_argument("--core", type=int, help="the core to run on (Linux)")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input (a pipe) ends")
    parser.add_argument("--certificate", type=Path, help="serve TLS with this certificate (PEM)")
    parser.add_argument("--key", type=Path, help="the certificate's key (PEM)")
    arguments = parser.parse_args()
    if arguments.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {arguments.core})
    raise_descriptor_limit()
    tls = None
    if arguments.certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(arguments.certificate, arguments.key)
    factory = None
    if arguments.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(arguments.port, tls, until_eof=arguments.until_eof))


if __name__ == "__main__":
    main()
