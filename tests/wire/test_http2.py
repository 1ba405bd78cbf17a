"""What is changed about h2, and why."""

import logging
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived
from h2.exceptions import ProtocolError

from aiosmrt._wire.http2 import DEFAULT_WINDOW_BYTES, LAST_STREAM_ID, Connection, header_fields

REQUEST = header_fields([(":method", "POST"), (":path", "/"), (":scheme", "http"), (":authority", "x")])


def exchange(sender: H2Connection, receiver: H2Connection) -> list[Any]:
    return receiver.receive_data(sender.data_to_send())


def connected(client: H2Connection, server: H2Connection) -> None:
    client.initiate_connection()
    server.initiate_connection()
    exchange(client, server)
    exchange(server, client)
    client.send_headers(1, REQUEST)
    exchange(client, server)


def h2s_own(*, client_side: bool) -> H2Connection:
    return H2Connection(H2Configuration(client_side=client_side, header_encoding=None))


def ours(*, client_side: bool) -> H2Connection:
    return Connection(client_side=client_side, stream_window_bytes=2**18)


def test_h2_still_closes_at_goaway() -> None:
    """When this fails, h2 is repaired, and `aiosmrt._wire.http2.Connection` need not override it any more."""
    client, server = h2s_own(client_side=True), h2s_own(client_side=False)
    connected(client, server)
    server.close_connection(last_stream_id=1)
    exchange(server, client)
    with pytest.raises(ProtocolError):
        client.send_data(1, b"more")


def test_a_stream_goes_on_after_goaway_in_both_directions() -> None:
    client, server = ours(client_side=True), ours(client_side=False)
    connected(client, server)
    # Not with close_connection(): that would close the sender's own state machine, which is another matter.
    from hyperframe.frame import GoAwayFrame

    (event,) = client.receive_data(GoAwayFrame(0, last_stream_id=1).serialize())
    assert (event.last_stream_id, event.error_code) == (1, 0)
    client.send_data(1, b"up")
    assert [event.data for event in exchange(client, server) if isinstance(event, DataReceived)] == [b"up"]
    server.receive_data(GoAwayFrame(0, last_stream_id=LAST_STREAM_ID).serialize())
    server.send_headers(1, header_fields([(":status", "200")]))
    server.send_data(1, b"down", end_stream=True)
    assert [event.data for event in exchange(server, client) if isinstance(event, DataReceived)] == [b"down"]


def test_a_body_of_another_length_takes_nothing_off_the_connections_window() -> None:
    client, server = h2s_own(client_side=True), ours(client_side=False)
    client.initiate_connection()
    server.initiate_connection()
    exchange(client, server)
    exchange(server, client)
    for number in range(1, 21, 2):
        client.send_headers(number, [*REQUEST, *header_fields([("content-length", "3")])])
        client.send_data(number, bytes(10_000))
        reset = exchange(client, server)[-1]
        assert (reset.stream_id, reset.error_code) == (number, ErrorCodes.PROTOCOL_ERROR)
        exchange(server, client)
    assert client.outbound_flow_control_window == DEFAULT_WINDOW_BYTES


def test_no_secret_is_logged_or_compressed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("hpack").setLevel(logging.DEBUG)
    client, server = ours(client_side=True), ours(client_side=False)
    connected(client, server)
    secret = "a-secret-token"
    client.send_headers(3, [*REQUEST, *header_fields([("X-Amz-Security-Token", secret)])])
    exchange(client, server)
    assert "hpack" not in {record.name.partition(".")[0] for record in caplog.records}
    assert secret not in caplog.text
    client.send_headers(5, [*REQUEST, *header_fields([("X-Amz-Security-Token", secret)])])
    first = client.data_to_send()
    client.send_headers(7, [*REQUEST, *header_fields([("X-Amz-Security-Token", secret)])])
    # A field in the table would take one byte the second time.
    assert len(client.data_to_send()) == len(first)
