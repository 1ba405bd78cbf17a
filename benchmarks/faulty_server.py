"""A loopback stand-in for SageMaker Runtime that falls ill on command, for endurance.py.

One process serves any number of services, each on its own port. Commands are JSON objects, one per line on standard
input; each is answered by one line on standard output. Standard input's end ends the process.

- ``{"do": "open", ...}`` opens a service; the other members are the arguments of `Service`. Answer: ``service``, its
  number, and ``port``.
- ``{"do": "fall_ill", "service": N, "seconds": S}`` starts the illness. Answer: ``until``, when it ends.
- ``{"do": "counts", "service": N}`` answers what the service has counted; see `Service.counts`.
- ``{"do": "close", "service": N}`` closes it.

Times are `time.monotonic`'s, which every process on the machine shares.

A healthy service answers after ``model_seconds``: a JSON object, or a stream of `STREAM_PARTS` parts. An ill one
refuses at once, with a status from `REPLIES`, or on the connection:

- ``refused``: the listening socket is closed and open connections are reset. A second socket, bound but not listening,
  keeps the port, so that no other program gets it before the service listens again.
- ``reset``: each request is answered by a reset. A stream gets its head first, and the reset takes the place of its
  first part.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import contextlib
import json
import os
import random
import re
import socket
import struct
import sys
from typing import Any, cast

from loopback_server import JSON_BODY, LAST_CHUNK, REQUEST_ID, chunk, payload_part, raise_descriptor_limit

STREAM_PARTS = 3
# A request with this text in its CustomAttributes is counted separately as well.
LATE = "late"
BUCKET_SECONDS = 0.1

HTML = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><h1>502 Bad Gateway</h1></body>\r\n</html>\r\n"
_COMMON = b"x-amzn-requestid: " + REQUEST_ID + b"\r\nx-Amzn-Invoked-Production-Variant: AllTraffic\r\n"
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*\r\n", re.IGNORECASE)
_LATE = re.compile(rb"\r\nx-amzn-sagemaker-custom-attributes:[ \t]*" + LATE.encode() + rb"\r\n", re.IGNORECASE)
# The client reads a stream's head before the reset arrives.
_RESET_DELAY = 0.01


def reply(status: str, body: bytes, error: str = "", content_type: str = "application/json") -> bytes:
    """A complete response."""
    kind = f"x-amzn-ErrorType: {error}\r\n" if error else ""
    head = f"HTTP/1.1 {status}\r\n{kind}Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + _COMMON + b"\r\n" + body


HEALTHY = reply("200 OK", JSON_BODY)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\n" + _COMMON + b"X-Amzn-SageMaker-Content-Type: application/octet-stream\r\n"
    b"Content-Type: application/vnd.amazon.eventstream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
STREAM_BODY = chunk(payload_part(b"part")) * STREAM_PARTS + LAST_CHUNK

REPLIES = {
    "503": reply("503 Service Unavailable", b'{"Message":"unavailable"}', "ServiceUnavailable"),
    "500": reply("500 Internal Server Error", b'{"Message":"internal"}', "InternalFailure"),
    "502 HTML": reply("502 Bad Gateway", HTML, content_type="text/html"),
    "530": reply("530 Unknown", b'{"Message":"dependency"}', "InternalDependencyException"),
    "ThrottlingException": reply("400 Bad Request", b'{"message":null}', "ThrottlingException"),
    "bare 429": reply("429 Too Many Requests", b""),
    "ModelNotReady": reply("429 Too Many Requests", b'{"Message":"not ready"}', "ModelNotReadyException"),
    "throttled": reply("429 Too Many Requests", b'{"message":"Rate exceeded"}', "ThrottlingException"),
}
ON_THE_CONNECTION = ("refused", "reset")


class Service:
    """One port, its health, and its counts.

    Args:
        illness: A key of `REPLIES`, or one of `ON_THE_CONNECTION`.
        model_seconds: Seconds that a healthy service takes for each request.
        ill_after: Start the illness after this many good answers. If None, only on command.
        ill_seconds: Seconds that an illness started by ``ill_after`` lasts.
        slots: Requests that the model takes at once; it refuses the others. If None, no limit.
        refused_share: Probability that a request is refused although the service is healthy.
        seed: Seed for ``refused_share``.
    """

    def __init__(
        self,
        illness: str,
        *,
        model_seconds: float = 0.0,
        ill_after: int | None = None,
        ill_seconds: float = 0.0,
        slots: int | None = None,
        refused_share: float = 0.0,
        seed: int = 1,
    ) -> None:
        self._illness = illness
        self._model_seconds = model_seconds
        self._ill_after = ill_after
        self._ill_seconds = ill_seconds
        self._slots = slots
        self._refused_share = refused_share
        self._random = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self._reserve = bound(0)
        self.port: int = self._reserve.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._return: asyncio.Task[None] | None = None
        self.connections: set[Connection] = set()
        self._requests = array.array("d")
        self._answered = 0
        self._late = 0
        self._in_model = 0
        self._peak_in_model_after = 0
        self._ill_from = self._ill_until = 0.0

    async def listen(self) -> None:
        self._server = await self._loop.create_server(lambda: Connection(self), sock=bound(self.port), backlog=4096)

    def close(self) -> None:
        if self._return is not None:
            self._return.cancel()
        self._stop()
        self._reserve.close()

    def fall_ill(self, seconds: float) -> float:
        """Start the illness; returns when it ends."""
        self._ill_from = self._loop.time()
        self._ill_until = self._ill_from + seconds
        if self._illness == "refused":
            self._stop()
            self._return = self._loop.create_task(self._listen_again())
        return self._ill_until

    async def _listen_again(self) -> None:
        await asyncio.sleep(self._ill_until - self._loop.time())
        await self.listen()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in tuple(self.connections):
            connection.reset()

    def handle(self, connection: Connection, head: bytes) -> None:
        """Answer a request."""
        now = self._loop.time()
        self._requests.append(now)
        self._late += _LATE.search(head) is not None
        streams = b"/invocations-response-stream" in head[: head.index(b"\r\n")]
        ill = self._ill_from <= now < self._ill_until
        if ill and self._illness == "reset":
            if streams:
                connection.write(STREAM_HEAD)
            self._loop.call_later(_RESET_DELAY if streams else 0, connection.reset)
        elif ill or self._is_refused():
            connection.write(REPLIES[self._illness])
        else:
            self._in_model += 1
            if self._ill_from and self._in_model > self._peak_in_model_after:
                self._peak_in_model_after = self._in_model
            answer = STREAM_HEAD + STREAM_BODY if streams else HEALTHY
            if self._model_seconds:
                self._loop.call_later(self._model_seconds, self._answer, connection, answer)
            else:
                self._answer(connection, answer)

    def _is_refused(self) -> bool:
        if self._slots is not None and self._in_model >= self._slots:
            return True
        return self._refused_share > 0 and self._random.random() < self._refused_share

    def _answer(self, connection: Connection, answer: bytes) -> None:
        self._in_model -= 1
        if not connection.write(answer):
            return
        self._answered += 1
        if self._answered == self._ill_after:
            self.fall_ill(self._ill_seconds)

    def counts(self) -> dict[str, Any]:
        """What was counted since the service was opened.

        ``requests`` that arrived, those ``late`` among them and those ``answered`` with success; the illness's
        ``ill_from`` and ``ill_until``; ``while_ill`` and ``after``, requests in each tenth of a second from either on;
        ``peak_in_model_after``, the most requests in the model at once since the illness.
        """
        while_ill, after = [], []
        if self._ill_from:
            while_ill = self._by_bucket(self._ill_from, self._ill_until)
            after = self._by_bucket(self._ill_until, self._loop.time())
        return {
            "requests": len(self._requests),
            "late": self._late,
            "answered": self._answered,
            "ill_from": self._ill_from,
            "ill_until": self._ill_until,
            "while_ill": while_ill,
            "after": after,
            "peak_in_model_after": self._peak_in_model_after,
        }

    def _by_bucket(self, start: float, end: float) -> list[int]:
        buckets = [0] * (int(max(0.0, end - start) / BUCKET_SECONDS) + 1)
        for arrived in self._requests:
            if start <= arrived < end:
                buckets[int((arrived - start) / BUCKET_SECONDS)] += 1
        return buckets


def bound(port: int) -> socket.socket:
    """A socket that shares its port with others of this process and does not listen yet."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


class Connection(asyncio.Protocol):
    """One keep-alive connection. Finds the end of each request; bodies need a Content-Length."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._service.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._service.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[: end + 2])
            length = _CONTENT_LENGTH.search(head)
            taken = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < taken:
                return
            del self._received[:taken]
            self._service.handle(self, head)

    def write(self, data: bytes) -> bool:
        """Write, unless the connection is closed; returns whether it was open."""
        if self._transport.is_closing():
            return False
        self._transport.write(data)
        return True

    def reset(self) -> None:
        """Close at once, with a reset in place of a proper end."""
        if not self._transport.is_closing():
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()


async def obey(services: list[Service], command: dict[str, Any]) -> dict[str, Any]:
    """Carry out a command; returns its answer."""
    what = command.pop("do")
    if what == "open":
        service = Service(**command)
        await service.listen()
        services.append(service)
        return {"service": len(services) - 1, "port": service.port}
    chosen: Service = services[command["service"]]
    if what == "fall_ill":
        return {"until": chosen.fall_ill(command["seconds"])}
    if what == "counts":
        return chosen.counts()
    if what == "close":
        chosen.close()
        return {}
    raise ValueError(f"unknown command {what!r}")


async def serve() -> None:
    """Obey commands until standard input ends."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    services: list[Service] = []
    while line := await commands.readline():
        print(json.dumps(await obey(services, json.loads(line))), flush=True)
    for service in services:
        service.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer SageMaker Runtime calls, and fall ill on command.")
    parser.add_argument("--core", type=int, help="the core to run on (Linux)")
    arguments = parser.parse_args()
    if arguments.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {arguments.core})
    raise_descriptor_limit()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
