"""A fast server that answers each request with the request's own number, or does what the request asks for.

A request's body is ``NUMBER VERB``. A stream's parts all hold the number too, so that an answer that reaches another
call than its own is seen. Run as a program, it prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import sys

from aiosmrt._wire.eventstream import encode_payload_part

PARTS = 3
# The number and spaces, so that a response is cut off in its body as often as in its head.
BODY_BYTES = 200
# How long after its answer a connection is closed at most, so that some are idle by then and some in use.
CLOSE_WITHIN = 0.02

_REQUEST = re.compile(rb"POST [^ ]*?(-stream)? HTTP/1\.1\r\n(?:[^\r\n]+\r\n)*?[Cc]ontent-[Ll]ength: (\d+)\r\n")


def plain(number: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nx-amzn-RequestId: %b\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (
        number,
        BODY_BYTES,
        number.ljust(BODY_BYTES),
    )


def chunked(number: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nx-amzn-RequestId: %b\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
        number,
        len(number),
        number,
    )


def stream(number: bytes) -> bytes:
    part = encode_payload_part(number)
    return (
        b"HTTP/1.1 200 OK\r\nx-amzn-RequestId: %b\r\nContent-Type: application/vnd.amazon.eventstream\r\n"
        b"X-Amzn-SageMaker-Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
        % number
        + (b"%x\r\n%b\r\n" % (len(part), part)) * PARTS
        + b"0\r\n\r\n"
    )


class Connection(asyncio.Protocol):
    """One connection; requests on it are answered in turn."""

    made = 0
    chance = random.Random(0)

    def __init__(self) -> None:
        self._received = bytearray()
        self._deaf = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        Connection.made += 1

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        request = _REQUEST.match(self._received, 0, end + 2)
        if request is None:
            raise AssertionError(f"not a request: {bytes(self._received)!r}")
        length = int(request[2])
        if len(self._received) < end + 4 + length:
            return
        number, verb = bytes(self._received[end + 4 : end + 4 + length]).split()
        streams = request[1] is not None
        del request
        self._received.clear()
        self._answer(number, verb.decode(), stream(number) if streams else plain(number))

    def _answer(self, number: bytes, verb: str, whole: bytes) -> None:
        write = self._transport.write
        if verb == "count":
            write(plain(b"%d" % Connection.made))
        elif verb == "chunks":
            write(chunked(number))
        elif verb == "reset":
            self._reset()
        elif verb == "fin":
            self._transport.close()
        elif verb == "truncate":
            # Anywhere after the first byte: before that it is a reset or an end.
            write(whole[: self.chance.randrange(1, len(whole))])
            self._transport.close()
        elif verb == "leave":
            write(whole[:-10])
            self._deaf = True
        elif verb == "stall":
            write(whole[: self.chance.randrange(0, len(whole))])
            self._deaf = True
        else:
            write(whole)
            if verb == "close-idle":
                loop = asyncio.get_running_loop()
                end = self._reset if self.chance.random() < 0.5 else self._transport.close
                loop.call_later(self.chance.random() * CLOSE_WITHIN, end)
                # What arrives from now on arrives on a closed connection.
                self._deaf = True

    def _reset(self) -> None:
        if self._transport.is_closing():
            # The client went first, and with it the socket.
            return
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
