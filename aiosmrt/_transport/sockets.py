"""Sockets that notice a dead peer and read in pieces of a good size."""

from __future__ import annotations

import socket
from typing import Any

__all__ = ["open_socket"]

# A dead peer is noticed 15 s after the last sign of life, on an idle connection as on one with unacknowledged data.
_KEEPALIVE_IDLE_SECONDS = 5
_KEEPALIVE_INTERVAL_SECONDS = 5
_KEEPALIVE_PROBES = 2
_USER_TIMEOUT_SECONDS = 15

# asyncio reads up to 256 KiB at a time into a new object. The C library maps and unmaps blocks of that size
# (M_MMAP_THRESHOLD in mallopt(3)), which costs more than reading a small answer or a token does. So a socket reads
# little at a time until that is not enough: benchmarks/stream.py, "tokens", 50 µs per event without and 35 with it.
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


def open_socket(address: tuple[Any, ...]) -> socket.socket:
    """Make a TCP socket that notices a dead peer within seconds.

    A half-open connection answers nothing and fails nothing: without keep-alive a call on it waits out its whole read
    timeout, and without ``TCP_USER_TIMEOUT`` unacknowledged data is repeated for up to 15 minutes, during which
    keep-alive probes are not sent (tcp(7), RFC 5482).

    Args:
        address: an entry of ``getaddrinfo``, as aiohttp's ``socket_factory`` is given it.
    """
    family, kind, protocol, _, _ = address
    sock = _Socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # names and availability differ between Linux, macOS and Windows
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
