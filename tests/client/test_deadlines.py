"""A deadline begins with the call, and an error names the call: its operation, its endpoint, and what it waited for."""

import asyncio
import io
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from aiosmrt import AiosmrtError, Client, Credentials, DeadlineExceededError, errors
from aiosmrt._core.body import HASH_INLINE_BYTES
from aiosmrt.events import CallStarted
from aiosmrt.serializers import JSON
from tests.support import seams
from tests.support.clients import MakeClient
from tests.support.peers import REGION
from tests.support.recording_server import RecordedRequest, RecordingServer, Response
from tests.support.virtual_time import VirtualTime

CALL: dict[str, Any] = {"EndpointName": "churn", "Body": b"1,2"}
PLAIN, STREAM, ASYNC = "InvokeEndpoint", "InvokeEndpointWithResponseStream", "InvokeEndpointAsync"


@pytest.fixture
async def silence(server: RecordingServer) -> AsyncIterator[None]:
    """The service does not answer before the test is over."""
    over = asyncio.Event()

    async def answer(request: RecordedRequest) -> Response:
        await over.wait()
        return Response()

    server.answer = answer
    yield
    over.set()


class Hung(io.BytesIO):
    """A file whose reads take until the test lets them go on."""

    def __init__(self) -> None:
        super().__init__(b"1,2")
        self.asked = threading.Event()
        self.go_on = threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        self.asked.set()
        self.go_on.wait(60)
        return super().read(size)


@pytest.mark.parametrize("streams", [False, True], ids=["plain", "stream"])
async def test_what_keeps_the_loop_busy_beyond_the_deadline_is_not_sent(
    make_client: MakeClient, server: RecordingServer, streams: bool
) -> None:
    """The deadline's timer has its turn only when the loop is free again."""
    now = 1000.0

    def busy(event: object) -> None:
        nonlocal now
        if isinstance(event, CallStarted):
            now += 10.0

    client = make_client(deadline=5.0, observers=[busy])
    seams.set_clock(client, lambda: now)
    with pytest.raises(DeadlineExceededError) as caught:
        await client.make_request(STREAM if streams else PLAIN, CALL)
    assert caught.value.attempts == 0
    assert client.statistics().in_use == 0
    assert server.requests == []


async def test_a_file_that_hangs_holds_up_no_other_call(make_client: MakeClient, server: RecordingServer) -> None:
    client, files = make_client(), [Hung() for _ in range(20)]
    hung = [asyncio.create_task(client.invoke_endpoint(EndpointName="churn", Body=file)) for file in files]
    for file in files:
        await asyncio.to_thread(file.asked.wait)
    for body in (b"1" * (HASH_INLINE_BYTES + 1), io.BytesIO(b"3,4")):
        await client.invoke_endpoint(EndpointName="churn", Body=body)
    assert not any(call.done() for call in hung)
    for file in files:
        file.go_on.set()
    await asyncio.gather(*hung)
    assert len(server.requests) == 22


async def test_callers_that_left_hung_files_hold_up_no_other_call(
    make_client: MakeClient, server: RecordingServer
) -> None:
    client, files = make_client(), [Hung() for _ in range(100)]
    for file in files:
        hung = asyncio.create_task(client.invoke_endpoint(EndpointName="churn", Body=file))
        await asyncio.to_thread(file.asked.wait)
        hung.cancel()
        await asyncio.wait({hung})
    await client.invoke_endpoint(EndpointName="churn", Body=io.BytesIO(b"3,4"))
    for file in files:
        file.go_on.set()
    assert len(server.requests) == 1


async def test_a_callers_own_serializer_does_not_outlast_the_deadline(
    make_client: MakeClient, server: RecordingServer
) -> None:
    file = Hung()

    class Slow:
        content_type = "application/json"

        def serialize(self, data: Any) -> bytes:
            return file.read()

    client = make_client()
    await client.invoke_endpoint(**CALL)
    endpoint = client.endpoint("churn", serializer=Slow(), deserializer=JSON, deadline=0.05)

    async def streamed() -> None:
        async with endpoint.stream(1):
            pass

    began = asyncio.get_running_loop().time()
    try:
        for call in (endpoint.predict(1), streamed(), endpoint.submit(1)):
            with pytest.raises(DeadlineExceededError) as caught:
                await call
            assert caught.value.waited.body > 0
        # Otherwise the serializer had held up the loop for as long as it took.
        assert not file.go_on.is_set()
        assert asyncio.get_running_loop().time() - began < 45
    finally:
        file.go_on.set()
    assert len(server.requests) == 1


async def test_the_deadline_covers_a_presigned_url(server: RecordingServer, virtual_time: VirtualTime) -> None:
    asked = asyncio.Event()

    async def never() -> Any:
        asked.set()
        await asyncio.Event().wait()

    async with Client(REGION, endpoint_url=server.url, credentials=never, deadline=30.0) as client:
        virtual_time.drive(client)
        signing = asyncio.create_task(client.generate_presigned_url("invoke_endpoint", CALL))
        await asked.wait()
        await virtual_time.advance(30.0)
        with pytest.raises(DeadlineExceededError, match=r"s for credentials \(InvokeEndpoint of endpoint churn\)$"):
            await signing


@pytest.mark.usefixtures("silence")
async def test_calls_that_wait_for_their_session_have_one_deadline(
    make_client: MakeClient, server: RecordingServer, virtual_time: VirtualTime
) -> None:
    """And not each of them one that begins when the one before it has given up."""
    client = virtual_time.drive(make_client(deadline=5.0))
    endpoint = client.endpoint("churn", serializer=JSON, deserializer=JSON)
    async with endpoint.session() as session:
        calls = [asyncio.create_task(session.predict(number)) for number in range(3)]
        await server.until(lambda server: len(server.requests) == 1)
        await virtual_time.advance(5.0)
        assert all(call.done() for call in calls)
        failures = [call.exception() for call in calls]
    assert [type(failure) for failure in failures] == [DeadlineExceededError] * 3
    assert [failure.attempts for failure in failures if isinstance(failure, AiosmrtError)] == [1, 0, 0]
    for failure in failures[1:]:
        assert "it waited 5.000 s for another call to open the session (" in str(failure)


@pytest.mark.usefixtures("silence")
async def test_a_call_that_has_waited_for_its_session_says_so(
    make_client: MakeClient, server: RecordingServer, virtual_time: VirtualTime
) -> None:
    client = virtual_time.drive(make_client())
    session = client.endpoint("churn", serializer=JSON, deserializer=JSON).session()
    late = client.endpoint("churn", serializer=JSON, deserializer=JSON, deadline=5.0)
    async with session:
        # One session, whose second call has a deadline.
        first = asyncio.create_task(session.predict(1))
        await server.until(lambda server: len(server.requests) == 1)
        session._endpoint = late
        second = asyncio.create_task(session.predict(2))
        await asyncio.sleep(0)
        await virtual_time.advance(2.0)
        first.cancel()
        await server.until(lambda server: len(server.requests) == 2)
        await virtual_time.advance(3.0)
        with pytest.raises(DeadlineExceededError) as caught:
            await second
    assert caught.value.waited == pytest.approx(errors.Waited(session=2.0, attempt=3.0))


@pytest.mark.usefixtures("silence")
async def test_a_late_answer_to_submit_counts_the_making_of_the_body(
    make_client: MakeClient, server: RecordingServer, virtual_time: VirtualTime
) -> None:
    client = virtual_time.drive(make_client(deadline=5.0))

    class Slow:
        content_type = "application/json"

        def serialize(self, data: Any) -> bytes:
            virtual_time.now += 2.0
            return b"{}"

    endpoint = client.endpoint("churn", serializer=Slow(), deserializer=JSON)
    submitting = asyncio.create_task(endpoint.submit(1))
    await server.until(lambda server: len(server.requests) == 1)
    await virtual_time.advance(3.0)
    with pytest.raises(DeadlineExceededError) as caught:
        await submitting
    assert caught.value.waited == pytest.approx(errors.Waited(body=2.0, attempt=3.0))


# Names

Failing = Callable[[Client], Coroutine[Any, Any, Any]]


async def _streamed(client: Client, **options: Any) -> None:
    async with client.endpoint("churn", serializer=JSON, deserializer=JSON).stream(1, **options):
        pass


async def _session_left(client: Client) -> None:
    async with client.endpoint("churn", serializer=JSON, deserializer=JSON).session() as session:
        pass
    await session.predict(1)


async def _session_streamed(client: Client) -> None:
    async with client.endpoint("churn", serializer=JSON, deserializer=JSON).session() as session:
        session.stream(1)


async def _mapped(client: Client, **options: Any) -> None:
    async with client.endpoint("churn", serializer=JSON, deserializer=JSON).map([1], **options):
        pass


async def _closed(client: Client) -> None:
    await client.close()
    await client.invoke_endpoint(**CALL)


async def _duplex(client: Client) -> None:
    async with client.invoke_endpoint_with_bidirectional_stream(EndpointName="churn"):
        pass


def _submitted(*data: Any, **options: Any) -> Failing:
    return lambda client: client.endpoint("churn", serializer=JSON, deserializer=JSON).submit(*data, **options)


UNSENT: dict[str, tuple[str, Failing]] = {
    "missing": (PLAIN, lambda client: client.make_request(PLAIN, {"EndpointName": "churn"})),
    "unknown": (PLAIN, lambda client: client.make_request(PLAIN, {**CALL, "Rows": 1})),
    "wrong-stream": (STREAM, lambda client: client.make_request(STREAM, {**CALL, "Body": 1})),
    "both": (ASYNC, lambda client: client.make_request(ASYNC, {**CALL, "InputLocation": "s3://bucket/key"})),
    "text-file": (PLAIN, lambda client: client.make_request(PLAIN, {**CALL, "Body": io.StringIO("1")})),
    "presigned": (PLAIN, lambda client: client.generate_presigned_url("invoke_endpoint", {"EndpointName": "churn"})),
    "not-json": (PLAIN, lambda client: client.endpoint("churn", serializer=JSON, deserializer=JSON).predict({1})),
    "stream-option": (STREAM, lambda client: _streamed(client, target_model="a")),
    "map-option": (PLAIN, lambda client: _mapped(client, content_type="a\nb")),
    "submit-nothing": (ASYNC, _submitted()),
    "submit-large": (ASYNC, _submitted("x" * 128_000)),
    "session-left": (PLAIN, _session_left),
    "session-streamed": (STREAM, _session_streamed),
    "closed": (PLAIN, _closed),
    "duplex": ("InvokeEndpointWithBidirectionalStream", _duplex),
}


@pytest.mark.parametrize("failure", UNSENT)
async def test_an_error_of_a_call_that_sent_nothing_names_it(client: Client, failure: str) -> None:
    operation, fail = UNSENT[failure]
    with pytest.raises(AiosmrtError) as caught:
        await fail(client)
    assert (caught.value.operation, caught.value.endpoint_name) == (operation, "churn")
    # In the message, or in a note where the message is botocore's.
    assert f"{operation} of endpoint churn" in "".join(traceback.format_exception_only(caught.value))


@pytest.mark.parametrize("operation", [PLAIN, STREAM])
async def test_errors_without_credentials_or_region_name_the_call(server: RecordingServer, operation: str) -> None:
    async def broken() -> Credentials:
        raise OSError("no connection")

    for client in (
        Client(REGION, endpoint_url=server.url),
        Client(endpoint_url=server.url, credentials=broken),
        Client(REGION, endpoint_url=server.url, credentials=broken, patience=0),
    ):
        async with client:
            with pytest.raises(errors.ConfigurationError) as caught:
                await client.make_request(operation, CALL)
        assert (caught.value.operation, caught.value.endpoint_name) == (operation, "churn")


async def test_an_error_names_its_call_once(make_client: MakeClient, server: RecordingServer) -> None:
    """However often it was tried, and although botocore's text stays."""
    server.answer = lambda request: Response(503, [("x-amzn-errortype", "ServiceUnavailable")], b'{"message":"later"}')
    client = make_client(retry={"mode": "standard", "max_attempts": 3})
    seams.set_random(client, lambda: 0.0)
    with pytest.raises(errors.ServiceUnavailable) as caught:
        await client.invoke_endpoint(**CALL)
    assert caught.value.attempts > 1
    assert str(caught.value).startswith("An error occurred (ServiceUnavailable) when calling the InvokeEndpoint oper")
    # As when a stream's error is raised by each of several reads.
    caught.value.note_call(PLAIN, "churn")
    assert caught.value.__notes__ == ["InvokeEndpoint of endpoint churn"]
    # A call that shares its fate has its own.
    other = errors.fresh_copy(caught.value)
    other.note_call(STREAM, "churn")
    assert other.__notes__ == ["InvokeEndpointWithResponseStream of endpoint churn"]
