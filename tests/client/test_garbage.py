"""A call that has ended is gone at once, and its body with it: nothing is left to the garbage collector."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from aiosmrt import AiosmrtError, Client, RetryPolicy
from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from tests.support import seams
from tests.support.clients import MakeClient, no_sleep
from tests.support.probes import shorten_probe_pauses
from tests.support.recording_server import RecordedRequest, RecordingServer, Response, respond_in_turn

CALL: dict[str, Any] = {"EndpointName": "e", "Body": b"1,2"}
ONE = encode_payload_part(b"one")


@pytest.fixture
def collector_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only reference counts free objects; pauses are short."""
    shorten_probe_pauses(monkeypatch)
    gc.disable()
    # What earlier tests have left is not listed from here on.
    gc.freeze()
    yield
    gc.unfreeze()
    gc.enable()


def calls_alive() -> list[object]:
    """The calls that exist now, of all clients."""
    return [
        thing
        for thing in gc.get_objects()
        if (type(thing).__module__, type(thing).__name__) == ("aiosmrt._core.call", "Call")
    ]


async def invoke(client: Client) -> None:
    await client.invoke_endpoint(**CALL)


async def read_stream(client: Client) -> None:
    async for _ in (await client.invoke_endpoint_with_response_stream(**CALL))["Body"]:
        pass


NO_CAPACITY = Response(
    400,
    [("x-amzn-errortype", "ValidationError")],
    b'{"Message": "Inference Component has no capacity to process this request."}',
)
MALFORMED = bytes(16)
BROKEN = encode_exception("ModelStreamError", b'{"ErrorCode": "StreamBroken"}')

OUTCOMES: dict[str, tuple[Callable[[Client], Awaitable[None]], list[Response | None], dict[str, Any]]] = {
    "success": (invoke, [Response()], {}),
    "service-error": (invoke, [Response(400, (), b"{}")], {}),
    "service-error-at-last": (invoke, [Response(503, (), b"{}")], {}),
    "no-response": (invoke, [None], {}),
    "body-broken-off": (invoke, [Response(declared_length=9, cut=True)], {}),
    "success-after-retry": (invoke, [None, Response()], {}),
    "deadline": (invoke, [Response(503, (), b"{}")], {"deadline": 1e-9}),
    "deadline-not-reached": (invoke, [None], {"deadline": 60.0}),
    "no-capacity": (invoke, [NO_CAPACITY], {"wait_for_capacity": 1e-9}),
    "no-capacity-before-the-deadline": (invoke, [NO_CAPACITY], {"wait_for_capacity": 1e-9, "deadline": 60.0}),
    "capacity": (invoke, [NO_CAPACITY, Response()], {"wait_for_capacity": 60.0}),
    "capacity-before-the-deadline": (invoke, [NO_CAPACITY, Response()], {"wait_for_capacity": 60.0, "deadline": 60.0}),
    "stream": (read_stream, [Response(body=ONE)], {}),
    "stream-error": (read_stream, [Response(body=BROKEN)], {}),
    "stream-error-later": (read_stream, [Response(body=ONE + BROKEN)], {}),
    "stream-cut-off": (read_stream, [Response(body=ONE[:-1])], {}),
    "stream-malformed": (read_stream, [Response(body=MALFORMED)], {}),
    "stream-recovered": (read_stream, [Response(body=ONE[:-1]), Response(body=ONE)], {}),
}


@pytest.mark.usefixtures("collector_off")
@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_a_call_leaves_nothing(make_client: MakeClient, server: RecordingServer, outcome: str) -> None:
    act, responses, arguments = OUTCOMES[outcome]
    answer = respond_in_turn(*responses)
    during: list[int] = []

    def count_and_answer(request: RecordedRequest) -> Response | None:
        during.append(len(calls_alive()))
        return answer(request)

    client = make_client(retry=RetryPolicy(max_attempts=3), **arguments)
    seams.set_sleep(client, no_sleep)
    server.answer = count_and_answer
    with suppress(AiosmrtError):
        await act(client)
    assert set(during) <= {1}
    # The loop's handles of what has just run keep references until the next turn.
    await asyncio.sleep(0)
    assert calls_alive() == []


@pytest.mark.usefixtures("collector_off")
async def test_a_call_under_way_is_seen(client: Client, server: RecordingServer) -> None:
    """Otherwise the test above could not fail."""
    during: list[int] = []

    def count(request: RecordedRequest) -> Response:
        during.append(len(calls_alive()))
        return Response()

    server.answer = count
    await asyncio.gather(*(invoke(client) for _ in range(3)))
    assert max(during) == 3
