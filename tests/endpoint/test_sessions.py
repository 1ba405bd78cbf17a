"""Stateful sessions on the local runtime, with a model that counts per session."""

import asyncio
from typing import Any

import pytest

from aiosmrt import Client
from aiosmrt.endpoint import Endpoint, Session
from aiosmrt.errors import ClientStateError, DeserializationError, ModelError, SessionClosedError
from aiosmrt.local import LocalRuntime
from aiosmrt.local.backends import ContainerFailure
from aiosmrt.serializers import ARROW, BYTES, CSV, JSON, JSON_LINES, NPY, PARQUET, TEXT
from aiosmrt.testing import FakeClient, FakeResponse
from tests.support.clients import Serve


class Counting:
    """Answers with the number of calls of a session; opens and closes sessions as a container does."""

    def __init__(self, expires: str = "2999-01-01T00:00:00Z") -> None:
        self.counts: dict[str, int] = {}
        self.expires = expires

    async def __call__(self, invocation: Any) -> tuple[bytes, dict[str, str]]:
        headers = {"Content-Type": "application/json"}
        session = invocation.session_id
        if invocation.new_session:
            session = f"session-{len(self.counts)}"
            headers["X-Amzn-SageMaker-Session-Id"] = f"{session}; Expires={self.expires}"
        if session is None:
            return b"null", headers
        self.counts[session] = self.counts.get(session, 0) + 1
        if invocation.body == b'"close"':
            headers["X-Amzn-SageMaker-Closed-Session-Id"] = session
        if invocation.body == b'"fail"':
            raise ContainerFailure(500, "failed")
        return str(self.counts[session]).encode(), headers


def endpoint_of(client: Client) -> Endpoint[Any, Any]:
    return client.endpoint("chat", serializer=JSON, deserializer=JSON)


async def test_calls_of_a_session_stick(serve: Serve):
    model = Counting()
    endpoint = endpoint_of(await serve(chat=model))
    async with endpoint.session() as one, endpoint.session() as other:
        assert one.id is None
        assert [await one.predict("a"), await other.predict("a"), await one.predict("b")] == [1, 1, 2]
        assert (one.id, other.id) == ("session-0", "session-1")
        assert one.is_open
        assert one.expires_at is not None
        assert one.expires_at.year == 2999
        inference = await one.invoke("c")
        assert inference.value == 3
    assert not one.is_open
    assert model.counts == {"session-0": 3, "session-1": 1}


async def test_the_first_calls_open_one_session(serve: Serve):
    model = Counting()
    endpoint = endpoint_of(await serve(chat=model))
    async with endpoint.session() as session:
        values = await asyncio.gather(*(session.predict("a") for _ in range(10)))
    assert sorted(values) == list(range(1, 11))
    assert model.counts == {"session-0": 10}


async def test_opening_and_closing_requests(serve: Serve):
    model = Counting()
    endpoint = endpoint_of(await serve(chat=model))
    async with endpoint.session(open_with="open", close_with="close") as session:
        assert session.id == "session-0"
        assert session.opened_with is not None
        assert session.opened_with.value == 1
        assert await session.predict("a") == 2
    assert model.counts == {"session-0": 3}
    with pytest.raises(SessionClosedError):
        await session.predict("a")


async def test_a_session_that_was_never_opened_is_not_closed(serve: Serve, running: list[LocalRuntime]):
    endpoint = endpoint_of(await serve(chat=Counting()))
    async with endpoint.session(close_with="close"):
        pass
    assert running[0].statistics()["requests"] == 0


async def test_a_session_that_the_model_closes(serve: Serve, running: list[LocalRuntime]):
    endpoint = endpoint_of(await serve(chat=Counting()))
    async with endpoint.session(close_with="close") as session:
        await session.predict("a")
        assert await session.predict("close") == 2
        assert not session.is_open
        with pytest.raises(SessionClosedError, match="closed"):
            await session.predict("a")
    assert running[0].statistics()["requests"] == 2


async def test_a_session_that_has_expired(serve: Serve, running: list[LocalRuntime]):
    now = 1_700_000_000.0
    endpoint = endpoint_of(await serve(chat=Counting("2023-11-14T22:13:30Z"), runtime={"clock": lambda: now}))
    async with Session(endpoint, close_with="close", clock=lambda: now) as session:
        pass
    async with Session(endpoint, close_with="close", clock=lambda: now) as session:
        # the service itself would refuse the skewed signature, so only the session's own clock is moved
        session.id, session.expires_at = "session-0", None
        assert session.is_open
        from datetime import UTC, datetime

        session.expires_at = datetime.fromtimestamp(now, UTC)
        with pytest.raises(SessionClosedError, match="expired at 2023-11-14 22:13:20 UTC"):
            await session.predict("a")
    assert running[0].statistics()["requests"] == 0


async def test_a_model_without_sessions(serve: Serve):
    async def model(invocation: Any) -> bytes:
        raise ContainerFailure(400, "no sessions here")

    endpoint = endpoint_of(await serve(chat=model))
    with pytest.raises(ModelError):
        async with endpoint.session(open_with="open"):
            raise AssertionError
    async with endpoint.session() as session:
        with pytest.raises(ModelError):
            await session.predict("a")
        assert session.id is None


async def test_streams_are_for_open_sessions(serve: Serve):
    async def model(invocation: Any) -> Any:
        if invocation.streaming:
            assert invocation.session_id == "s-1"

            async def parts() -> Any:
                yield b"par"
                yield b"ts"

            return parts()
        return b"1", {"X-Amzn-SageMaker-Session-Id": "s-1; Expires=2999-01-01T00:00:00Z"}

    endpoint = endpoint_of(await serve(chat=model))
    async with endpoint.session() as session:
        with pytest.raises(SessionClosedError, match="not open yet"):
            session.stream("a")
        await session.predict("a")
        async with session.stream("a") as stream:
            assert "".join([text async for text in stream.text()]) == "parts"


async def test_an_opening_answer_that_cannot_be_read_opens_once(serve: Serve):
    """The model has opened the session, even if its answer is unreadable: it is used, and closed."""
    said: list[bytes] = []

    async def model(invocation: Any) -> Any:
        said.append(invocation.body)
        if invocation.new_session:
            return b"{", {
                "Content-Type": "application/json",
                "X-Amzn-SageMaker-Session-Id": "s-1; Expires=2999-01-01T00:00:00Z",
            }
        return b"1", {"Content-Type": "application/json"}

    endpoint = endpoint_of(await serve(chat=model))
    async with endpoint.session(close_with="close") as session:
        with pytest.raises(DeserializationError):
            await session.predict("a")
        assert await session.predict("b") == 1
    assert said == [b'"a"', b'"b"', b'"close"']
    said.clear()
    async with endpoint.session(open_with="open", close_with="close") as session:
        assert session.opened_with is not None
        assert session.opened_with.value == b"{"
    assert said == [b'"open"', b'"close"']


async def test_a_failure_to_close(serve: Serve):
    endpoint = endpoint_of(await serve(chat=Counting()))
    with pytest.raises(ModelError):
        async with endpoint.session(open_with="open", close_with="fail"):
            pass
    with pytest.raises(KeyError) as error:
        async with endpoint.session(open_with="open", close_with="fail"):
            raise KeyError("the block's own")
    assert "closing the session also failed" in error.value.__notes__[0]


async def test_a_cancelled_task_does_not_send_the_closing_request(serve: Serve):
    model = Counting()
    endpoint = endpoint_of(await serve(chat=model))
    opened = asyncio.Event()

    async def run() -> None:
        async with endpoint.session(open_with="open", close_with="close"):
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await opened.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.counts == {"session-0": 1}


async def test_a_session_is_used_in_its_block_and_entered_once(serve: Serve):
    endpoint = endpoint_of(await serve(chat=Counting()))
    session = endpoint.session()
    with pytest.raises(SessionClosedError):
        await session.predict("a")
    async with session:
        pass
    with pytest.raises(ClientStateError):
        async with session:
            pass
    assert "closed" in repr(session)


class Handlers:
    """Session handlers like AWS's, which answer in sentences, around a model that answers in JSON."""

    def __init__(self, content_type: str | None = "text/plain") -> None:
        self.type = {} if content_type is None else {"Content-Type": content_type}

    async def __call__(self, invocation: Any) -> tuple[bytes, dict[str, str]]:
        if invocation.body == b'{"requestType":"NEW_SESSION"}':
            opened = {"X-Amzn-SageMaker-New-Session-Id": "s-1; Expires=2999-01-01T00:00:00Z"}
            return b"Session s-1 is open now.", {**opened, **self.type}
        if invocation.body == b'{"requestType":"CLOSE"}':
            return b"Session s-1 is over.", {"X-Amzn-SageMaker-Closed-Session-Id": "s-1", **self.type}
        return b'"plain"' if invocation.body != b'"broken"' else b"sorry", {"Content-Type": "text/plain"}


class Number:
    """A custom codec, which raises KeyError."""

    content_type = accept = "application/json"

    def serialize(self, data: Any) -> bytes:
        return JSON.serialize(data)

    def deserialize(self, body: bytes, content_type: str) -> Any:
        return {"plain": 1}[body.decode().strip('"')]


@pytest.mark.parametrize("content_type", ["text/plain", "text/plain; charset=utf-8", "application/octet-stream", None])
@pytest.mark.parametrize(("deserializer", "answer"), [(JSON, "plain"), (Number(), 1)])
async def test_session_handlers_answer_in_text(serve: Serve, content_type: str | None, deserializer: Any, answer: Any):
    client = await serve(chat=Handlers(content_type))
    endpoint = client.endpoint("chat", serializer=JSON, deserializer=deserializer)
    opening: Any = {"requestType": "NEW_SESSION"}
    async with endpoint.session(open_with=opening, close_with={"requestType": "CLOSE"}) as session:
        assert session.id == "s-1"
        assert session.opened_with is not None
        assert session.opened_with.value == b"Session s-1 is open now."
        assert await session.predict("a") == answer
    assert not session.is_open


async def test_the_models_own_answers_must_be_readable(serve: Serve):
    """Also if the first call opens the session, and if they are labelled as text."""
    endpoint = endpoint_of(await serve(chat=Handlers()))
    async with endpoint.session(open_with={"requestType": "NEW_SESSION"}) as session:
        with pytest.raises(DeserializationError):
            await session.predict("broken")
    async with endpoint.session() as session:
        with pytest.raises(DeserializationError):
            await session.predict({"requestType": "NEW_SESSION"})
        assert session.is_open


@pytest.mark.parametrize(
    "deserializer",
    [JSON, JSON_LINES, CSV, TEXT, BYTES, NPY, ARROW, PARQUET, Number()],
    ids=lambda one: type(one).__name__,
)
async def test_acknowledgements_of_any_type_are_protocol(serve: Serve, deserializer: Any):
    said: list[tuple[str, bytes]] = []

    async def model(invocation: Any) -> tuple[bytes, dict[str, str]]:
        content_type, body = said[-1]
        name, value = (
            ("X-Amzn-SageMaker-New-Session-Id", "s-1; Expires=2999-01-01T00:00:00Z")
            if invocation.new_session
            else ("X-Amzn-SageMaker-Closed-Session-Id", "s-1")
        )
        return body, {name: value, "Content-Type": content_type}

    client = await serve(chat=model)
    endpoint = client.endpoint("chat", serializer=JSON, deserializer=deserializer)
    for content_type in ("application/json", "text/html", "text/csv", "application/x-parquet", "application/x-npy"):
        for body in (b"", b"Session s-1.", b"<html><p>Session</p></html>", b'{"session": "s-1"}', b"\xff\n"):
            said.append((content_type, body))
            async with endpoint.session(open_with="open", close_with="close") as session:
                assert session.id == "s-1"
                assert session.opened_with is not None
                value = session.opened_with.value
                # read by the deserializer, or passed on
                assert value == body or not isinstance(value, bytes)
            assert not session.is_open
    assert len(said) == 25


async def test_an_answer_without_a_session_opens_none():
    """Whatever its body is."""
    async with FakeClient({"chat": FakeResponse(b"<html></html>", content_type="text/html")}) as client:
        with pytest.raises(SessionClosedError, match="lacks a session id"):
            async with endpoint_of(client).session(open_with="open"):
                raise AssertionError("opened")
