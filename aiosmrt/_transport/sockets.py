"""Sockets that detect a dead peer and choose the size of their reads, and how TLS connections end."""

from __future__ import annotations

import socket
import ssl
from typing import Any

__all__ = ["create_socket", "was_closed_properly"]

# A dead peer is detected 15 s after its last packet, whether the connection is idle or has unacknowledged data.
_KEEPALIVE_IDLE_SECONDS = 5
_KEEPALIVE_INTERVAL_SECONDS = 5
_KEEPALIVE_PROBES = 2
_USER_TIMEOUT_SECONDS = 15

# asyncio reads up to 256 KiB at a time into a new object. The C library maps and unmaps blocks of that size
# (M_MMAP_THRESHOLD in mallopt(3)), which costs more than reading a small response or a token. So a socket starts with
# small reads and grows them when they are full: benchmarks/stream.py, "tokens", 35 µs per event instead of 50.
_SMALL_READ_BYTES = 2**16
_LARGE_READ_BYTES = 2**18
_TRICKLE_BYTES = 2**13


class _Socket(socket.socket):
    _read_bytes = _SMALL_READ_BYTES

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        data = socket.socket.recv(self, min(bufsize, self._read_bytes), flags)
        if len(data) >= _SMALL_READ_BYTES:
            self._read_bytes = _LARGE_READ_BYTES
        elif len(data) < _TRICKLE_BYTES:
            self._read_bytes = _SMALL_READ_BYTES
        return data


def create_socket(address: tuple[Any, ...]) -> socket.socket:
    """Create a TCP socket that detects a dead peer within seconds.

    A half-open connection neither responds nor fails. Without keep-alive, a call on it waits for its whole read
    timeout; without ``TCP_USER_TIMEOUT``, unacknowledged data is retransmitted for up to 15 minutes, during which no
    keep-alive probes are sent (tcp(7), RFC 5482).

    Args:
        address: an entry of ``getaddrinfo``, as aiohttp passes it to ``socket_factory``.
    """
    family, kind, protocol, _, _ = address
    sock = _Socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Names and availability differ between Linux, macOS and Windows.
        for name, value in (
            ("TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE", _KEEPALIVE_IDLE_SECONDS),
            ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL_SECONDS),
            ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
            ("TCP_USER_TIMEOUT", _USER_TIMEOUT_SECONDS * 1000),
        ):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except OSError:
        sock.close()
        raise
    return sock


def was_closed_properly(connection: ssl.SSLObject | None) -> bool:
    """Whether an ended connection was closed by its peer and not cut on the way (RFC 9112, 9.8).

    Args:
        connection: the TLS connection's ``ssl_object``; None without TLS, where the two cannot be told apart.
    """
    if connection is None:
        return True
    try:
        return connection.read(1) == b""
    except ssl.SSLZeroReturnError:
        # This side has sent its close_notify too.
        return True
    except ssl.SSLError:
        # It waits for more: the peer has not sent close_notify.
        return False
