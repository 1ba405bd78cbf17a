"""The sockets under the connection pool."""

import socket
from collections.abc import Iterator

import pytest

from aiosmrt._transport.sockets import create_socket


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket as the pool opens it, and the peer that it is connected to."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        create_socket((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", server.getsockname())) as ours,
    ):
        ours.connect(server.getsockname())
        peer, _ = server.accept()
        with peer:
            yield ours, peer


def test_reads_grow_with_what_arrives(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = pair
    asked: list[int] = []
    arrived: list[int] = []

    def recv(self: socket.socket, bufsize: int, flags: int = 0) -> bytes:
        asked.append(bufsize)
        return bytes(min(bufsize, arrived.pop(0)))

    monkeypatch.setattr(socket.socket, "recv", recv)
    arrived[:] = [169, 2**16 - 1, 2**20, 2**20, 50_000, 2**20, 169, 169, 10, 2**20]
    for _ in range(8):
        ours.recv(2**18)
    assert len(ours.recv(10)) == 10
    ours.recv(2**15)
    small, large = 2**16, 2**18
    assert asked == [small, small, small, large, large, large, large, small, 10, 2**15]


def test_end_and_flags_are_kept(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = pair
    peer.sendall(b"abc")
    assert ours.recv(2, socket.MSG_PEEK) == b"ab"
    assert ours.recv(100) == b"abc"
    peer.shutdown(socket.SHUT_WR)
    assert ours.recv(100) == b""


def test_dead_peers_are_noticed(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
