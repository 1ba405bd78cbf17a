"""A call that has ended is gone at once, and its body with it: nothing is left to the garbage collector."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from aiosmrt import AiosmrtError, Client, RetryPolicy
from aiosmrt._core.call import Call
from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from tests.client.conftest import MakeClient
from tests.support.recording_server import RecordingServer, Response, respond_in_turn

CALL: dict[str, Any] = {"EndpointName": "e", "Body": b"1,2"}
ONE = encode_payload_part(b"one")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Call]]]:
    """The calls that are made, with the collector switched off."""
    made: list[weakref.ref[Call]] = []
    construct = Call.__init__

    def note(self: Call, *arguments: Any) -> None:
        construct(self, *arguments)
        made.append(weakref.ref(self))

    monkeypatch.setattr(Call, "__init__", note)
    gc.disable()
    yield made
    gc.enable()


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
    "deadline-not-reached": (invoke, [None], {"deadline": 10.0}),
    "no-capacity": (invoke, [NO_CAPACITY], {"wait_for_capacity": 1e-9}),
    "no-capacity-before-the-deadline": (invoke, [NO_CAPACITY], {"wait_for_capacity": 1e-9, "deadline": 10.0}),
    "capacity": (invoke, [NO_CAPACITY, Response()], {"wait_for_capacity": 10.0}),
    "capacity-before-the-deadline": (invoke, [NO_CAPACITY, Response()], {"wait_for_capacity": 10.0, "deadline": 10.0}),
    "stream": (read_stream, [Response(body=ONE)], {}),
    "stream-error": (read_stream, [Response(body=BROKEN)], {}),
    "stream-error-later": (read_stream, [Response(body=ONE + BROKEN)], {}),
    "stream-cut-off": (read_stream, [Response(body=ONE[:-1])], {}),
    "stream-malformed": (read_stream, [Response(body=MALFORMED)], {}),
    "stream-recovered": (read_stream, [Response(body=ONE[:-1]), Response(body=ONE)], {}),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_a_call_leaves_nothing(
    make_client: MakeClient, server: RecordingServer, calls: list[weakref.ref[Call]], outcome: str
) -> None:
    act, responses, arguments = OUTCOMES[outcome]

    async def no_sleep(delay: float) -> None:
        await asyncio.sleep(0)

    client = make_client(retry=RetryPolicy(max_attempts=3), **arguments)
    client._core.sleep = no_sleep
    server.answer = respond_in_turn(*responses)
    with suppress(AiosmrtError):
        await act(client)
    assert len(calls) == 1
    # The loop's handles of what has just run hold on until the next turn.
    await asyncio.sleep(0)
    assert [call() for call in calls if call() is not None] == []
