"""What a client writes to the logger ``aiosmrt``, and when it writes nothing."""

import logging
from typing import Any

import pytest

from aiosmrt import Client, RetryPolicy, errors
from aiosmrt._wire.eventstream import encode_payload_part
from tests.support.clients import MakeClient, no_sleep
from tests.support.probes import Pauses, shorten_probe_pauses
from tests.support.recording_server import RecordingServer, Response, respond, respond_in_turn
from tests.support.seams import set_sleep, set_wall_clock

CALL: dict[str, Any] = {"EndpointName": "churn", "Body": b"1,2"}
REQUEST_ID = "1c4468c1-3127-481f-8822-5088110ffcbe"
THROTTLED = Response(
    400, [("x-amzn-errortype", "ThrottlingException"), ("x-amzn-requestid", REQUEST_ID)], b'{"message": "slow down"}'
)
UNAVAILABLE = Response(503, [("x-amzn-errortype", "ServiceUnavailable")], b"{}")
OK = Response(200, [("x-amzn-requestid", "ok-1")], b"ok")


def lines(caplog: pytest.LogCaptureFixture, *levels: int) -> list[str]:
    """What was written at some levels, or at all of them."""
    assert {record.name for record in caplog.records if record.name.startswith("aiosmrt")} <= {"aiosmrt"}
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "aiosmrt" and (not levels or record.levelno in levels)
    ]


async def test_a_retry_is_a_line(
    make_client: MakeClient, server: RecordingServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiosmrt")
    server.answer = respond_in_turn(THROTTLED, OK)
    client = make_client()
    set_sleep(client, no_sleep)
    await client.invoke_endpoint(**CALL)
    (line,) = [line for line in lines(caplog) if "retry in" in line]
    assert line.startswith("InvokeEndpoint churn: attempt 1 failed: ThrottlingError (throttling), retry in 0.")
    assert line.endswith(f" s; request id {REQUEST_ID}")
    assert lines(caplog, logging.DEBUG) == []


async def test_giving_up_is_a_line(
    make_client: MakeClient, server: RecordingServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiosmrt")
    server.answer = respond_in_turn(THROTTLED)
    client = make_client(retry=RetryPolicy(max_attempts=2))
    set_sleep(client, no_sleep)
    with pytest.raises(errors.ThrottlingError):
        await client.invoke_endpoint(**CALL)
    line = lines(caplog)[-1]
    assert line.startswith("InvokeEndpoint churn: attempt 2 failed: ThrottlingError (throttling), gives up; waited ")
    assert line.endswith(f"; request id {REQUEST_ID}")


async def test_calls_that_succeed_write_nothing_at_info(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client()
    await client.invoke_endpoint(**CALL)  # obtains credentials
    caplog.set_level(logging.INFO, "aiosmrt")
    await client.invoke_endpoint(**CALL)
    assert lines(caplog) == []


async def test_attempts_are_lines_at_debug_from_when_it_is_set(
    make_client: MakeClient, server: RecordingServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = respond_in_turn(OK)
    client = make_client()
    await client.invoke_endpoint(**CALL)
    caplog.set_level(logging.DEBUG, "aiosmrt")
    await client.invoke_endpoint(**CALL)
    began, sent, succeeded, ended = lines(caplog, logging.DEBUG)
    assert began.startswith("InvokeEndpoint churn: call ")
    assert sent == "InvokeEndpoint churn: attempt 1 sends 3 bytes"
    assert succeeded.startswith("InvokeEndpoint churn: attempt 1 succeeded after ")
    assert succeeded.endswith(" s, status 200; request id ok-1")
    assert ended.endswith(" s, attempts: 1")


async def test_a_stream_at_debug(
    make_client: MakeClient, server: RecordingServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiosmrt")
    server.answer = respond(200, encode_payload_part(b"one") + encode_payload_part(b"two"))
    response = await make_client().invoke_endpoint_with_response_stream(**CALL)
    async with response["Body"] as stream:
        assert len([event async for event in stream]) == 2
    first, end = lines(caplog)[-2:]
    assert first.startswith("InvokeEndpointWithResponseStream churn: first part after ")
    assert end.endswith("parts: 2, bytes: 6, complete")


async def test_an_outage_is_announced_and_ended(
    make_client: MakeClient,
    server: RecordingServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "aiosmrt")
    shorten_probe_pauses(monkeypatch)
    server.answer = respond_in_turn(*[UNAVAILABLE] * 4, OK)  # the third makes it an outage, the fourth is a probe's
    client = make_client(retry=RetryPolicy(base_delay=0.001))
    Pauses(client)
    await client.invoke_endpoint(**CALL)
    (warning,) = lines(caplog, logging.WARNING)
    assert warning == "churn: outage (ServiceUnavailable); one call probes, the others wait"
    information = lines(caplog, logging.INFO)
    assert [line for line in information if line.startswith("churn: outage is over after ")]
    waits = [line for line in information if line.startswith("InvokeEndpoint churn: waited ")]
    assert len(waits) == 2  # one for each probe
    assert all(line.endswith(" s for its target to recover, outcome: probe") for line in waits)


async def test_credentials_and_the_clock(
    make_client: MakeClient, server: RecordingServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiosmrt")
    client = make_client()
    skewed = Response(
        403,
        [("x-amzn-errortype", "RequestTimeTooSkewed"), ("date", "Thu, 01 Jan 2026 00:00:00 GMT")],
        b'{"message": "m"}',
    )
    server.answer = respond_in_turn(skewed, OK)
    set_wall_clock(client, lambda: 1767225600.0 - 3600.0)
    await client.invoke_endpoint(**CALL)
    assert "credentials obtained from explicit, without expiry" in lines(caplog)
    # An aiohttp that the pooled transport cannot use is another warning.
    (warning,) = [line for line in lines(caplog, logging.WARNING) if "falling back" not in line]
    assert warning == "the local clock is 3600 s behind the service's; signatures correct for it"


async def test_what_a_server_sends_stays_on_its_line(
    make_client: MakeClient, server: RecordingServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiosmrt")
    server.answer = respond(
        400, b'{"__type": "Forged\\nERROR aiosmrt all is lost", "message": "m"}', [("x-amzn-requestid", "r" * 5000)]
    )
    with pytest.raises(errors.ServiceError):
        await make_client().invoke_endpoint(**CALL)
    assert [line for line in lines(caplog) if "\n" in line or len(line) > 400] == []


async def test_without_a_handler_nothing_is_printed(make_client: MakeClient, server: RecordingServer) -> None:
    handlers = logging.getLogger("aiosmrt").handlers
    assert [type(handler) for handler in handlers] == [logging.NullHandler]
    assert isinstance(make_client(), Client)
