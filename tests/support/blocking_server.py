"""A server in threads, for tests in which the client's event loop must not run while the server acts."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeAlias

__all__ = ["BlockingServer", "Conversation", "Handler"]


class Conversation:
    """One connection of a client, as its handler uses it.

    Args:
        sock: the connection; a TLS socket if the server has a certificate.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        # what the latest request is for
        self.target = b""
        self._received = b""

    def request(self) -> bytes:
        """Receive a request, take note of its target, and return its body.

        Raises:
            ConnectionError: the client has closed the connection.
        """
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        self.target = head.split(b" ", 2)[1]
        names = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(names.get(b"content-length", b"0"))
        while len(self._received) < length:
            self._receive()
        body, self._received = self._received[:length], self._received[length:]
        return body

    def _receive(self) -> None:
        data = self.sock.recv(2**16)
        if not data:
            raise ConnectionError("closed by the client")
        self._received += data

    def send(self, *pieces: bytes) -> None:
        """Send bytes, each piece in one TLS record."""
        for piece in pieces:
            self.sock.sendall(piece)

    def announce_end(self) -> None:
        """Send TLS's close_notify."""
        assert isinstance(self.sock, ssl.SSLSocket)
        self.sock.setblocking(False)
        # It is sent; the client's is not here yet.
        with suppress(ssl.SSLWantReadError):
            self.sock.unwrap()

    def end(self) -> None:
        """End the TCP connection, whatever TLS has announced."""
        socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def reset(self) -> None:
        """Reset the TCP connection."""
        plain = socket.socket(fileno=self.sock.detach())
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        plain.close()
        # What a detached TLS socket reads from is the descriptor, which is another connection's soon.
        self.sock = plain


Handler: TypeAlias = Callable[[Conversation], None]


class BlockingServer:
    """``with BlockingServer([handler, …]) as server:`` gives each connection to the next handler, in a thread.

    Args:
        handlers: one per connection; the last one serves all further ones.
        tls: serve HTTPS with this.
    """

    def __init__(self, handlers: Sequence[Handler], *, tls: ssl.SSLContext | None = None) -> None:
        self._handlers = handlers
        self._tls = tls
        self._sockets: list[socket.socket] = []
        self.connections_made = 0
        self.failures: list[BaseException] = []

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Wakes the thread, which close() alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            sock.close()
        if error is None and self.failures:
            raise self.failures[0]

    @property
    def url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            # What a handler has sent is on its way, and does not wait for the client to acknowledge what was before.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.append(sock)
            handler = self._handlers[min(self.connections_made, len(self._handlers) - 1)]
            self.connections_made += 1
            threading.Thread(target=self._serve, args=(handler, sock), daemon=True).start()

    def _serve(self, handler: Handler, sock: socket.socket) -> None:
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._sockets.append(sock)
            handler(Conversation(sock))
        except OSError:
            # The client or the test has closed the connection.
            pass
        except BaseException as error:
            self.failures.append(error)
