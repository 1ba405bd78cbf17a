"""The views of a stream, its time limits, and leaving it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from aiosmrt import Client
from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from aiosmrt.endpoint import Endpoint, PredictionStream, View
from aiosmrt.errors import (
    ClientStateError,
    DeserializationError,
    ModelStreamError,
    ParamValidationError,
    ReadTimeoutError,
    StreamTimeoutError,
)
from aiosmrt.local import LocalRuntime, faults
from aiosmrt.serializers import JSON, TEXT, TextCodec
from tests.support.clients import Serve
from tests.support.peers import CLIENT_ARGUMENTS, aiosmrt_client
from tests.support.raw_server import LAST_CHUNK, RawServer, response
from tests.support.runtime import local_runtime


def saying(*parts: bytes | asyncio.Event) -> Callable[[Any], AsyncIterator[bytes]]:
    """A model that sends these parts, and waits at an event."""

    async def model(invocation: Any) -> AsyncIterator[bytes]:
        for part in parts:
            if isinstance(part, asyncio.Event):
                await part.wait()
            else:
                yield part

    return model


def endpoint_of(client: Client) -> Endpoint[Any, Any]:
    return client.endpoint("llm", serializer=JSON, deserializer=JSON)


async def viewed(serve: Serve, view: Callable[[PredictionStream], View[Any]], *parts: bytes) -> list[Any]:
    client = await serve(llm=saying(*parts))
    async with endpoint_of(client).stream({}) as stream:
        items = [item async for item in view(stream)]
    assert client.statistics().in_use == 0
    return items


async def test_bytes(serve: Serve):
    items = await viewed(serve, PredictionStream.bytes, b"one ", b"two ", b"three")
    assert b"".join(items) == b"one two three"


async def test_text_never_cuts_a_character(serve: Serve):
    items = await viewed(serve, PredictionStream.text, b"caf\xc3", b"\xa9", b" cr\xc3\xa8me")
    assert "".join(items) == "café crème"
    assert all(items)


async def test_lines_with_the_last_one(serve: Serve):
    assert await viewed(serve, PredictionStream.lines, b"one\ntw", b"o\r", b"\nthree\n\n", b"fo", b"ur") == [
        "one",
        "two",
        "three",
        "",
        "four",
    ]


async def test_json_lines(serve: Serve):
    assert await viewed(serve, PredictionStream.jsonl, b'{"a"', b": 1}\n\n{", b'"a": 2}') == [{"a": 1}, {"a": 2}]


async def test_server_sent_events(serve: Serve):
    events = await viewed(
        serve, PredictionStream.sse, b"event: token\nda", b"ta: a\ndata: b\nid: 7\n", b"\ndata: c\n\n"
    )
    assert [(event.event, event.data, event.id) for event in events] == [("token", "a\nb", "7"), ("message", "c", "7")]


def typed(content_type: str, *parts: bytes) -> Callable[[Any], Any]:
    """A model that labels its parts."""

    async def model(invocation: Any) -> tuple[AsyncIterator[bytes], dict[str, str]]:
        return saying(*parts)(invocation), {"Content-Type": content_type}

    return model


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'{"error": {"message": "maximum context length is 4096 tokens"}}'),
        ("application/json; charset=utf-8", b'[{"generated_text": "hello"}]\n'),
        ("text/html", b"<html><body>data: Bad Gateway</body></html>\n"),
        ("text/csv", b"0.5,0.25\n"),
        ("application/jsonlines", b'{"a": 1}\n'),
        ("application/json", b"data: labelled as JSON\n\n"),
    ],
)
async def test_an_answer_of_another_type_is_not_read_as_events(serve: Serve, content_type: str, body: bytes):
    client = await serve(llm=typed(content_type, body[:9], body[9:]))
    async with endpoint_of(client).stream({}) as stream:
        with pytest.raises(DeserializationError, match=r"is '.*', not 'text/event-stream'") as raised:
            stream.sse()
        assert client.statistics().in_use == 0
    assert (raised.value.endpoint_name, raised.value.attempts) == ("llm", 1)
    assert raised.value.request_id


@pytest.mark.parametrize(
    ("content_type", "body", "view", "items"),
    [
        ("text/plain; charset=ISO-8859-1", b"caf\xe9", PredictionStream.text, ["café"]),
        ("text/plain; charset=iso-2022-jp", "日本".encode("iso2022_jp"), PredictionStream.text, ["日本"]),
        ("text/csv; charset=utf-16", "é,1\nb".encode("utf-16"), PredictionStream.lines, ["é,1", "b"]),
        ("application/jsonlines;charset=cp1252", b'{"a":"\x80"}\n', PredictionStream.jsonl, [{"a": "€"}]),
        (
            'application/json; charset="utf-16-be"',
            '[1] {"a":"é"}'.encode("utf-16-be"),
            PredictionStream.json,
            [[1], {"a": "é"}],
        ),
        ("text/event-stream; charset=latin-1", 'data: "é"\n\n'.encode(), PredictionStream.json, ["é"]),
        ("text/plain; charset=us-ascii", "é".encode(), PredictionStream.text, ["é"]),
    ],
)
async def test_the_charset_of_an_answer(
    serve: Serve, content_type: str, body: bytes, view: Callable[[PredictionStream], View[Any]], items: list[Any]
):
    client = await serve(llm=typed(content_type, body))
    async with endpoint_of(client).stream({}) as stream:
        got = [item async for item in view(stream)]
    assert ["".join(got)] == items if view is PredictionStream.text else got == items


async def test_the_charset_that_was_asked_for(serve: Serve):
    client = await serve(llm=typed("text/plain", b"caf\xe9"))
    endpoint = client.endpoint("llm", serializer=JSON, deserializer=TextCodec(accept="text/plain; charset=latin-1"))
    async with endpoint.stream({}) as stream:
        assert "".join([text async for text in stream.text()]) == await endpoint.predict({}) == "café"


async def test_a_view_outside_the_block_is_refused_whatever_its_charset(serve: Serve):
    client = await serve(llm=typed("text/plain", b"abc"))
    with pytest.raises(ClientStateError):
        endpoint_of(client).stream({}, accept="text/plain; charset=x-unknown").text()


@pytest.mark.parametrize("content_type", ["application/octet-stream", "text/plain", "text/event-stream;charset=utf-8"])
@pytest.mark.parametrize(
    "body",
    [b'{"error": "no tokens"}', b'[{"generated_text": "hello"}]\n', b"<html></html>\n", b"0.5,0.25\n", b"data: hal"],
)
async def test_an_answer_without_events_is_not_empty(serve: Serve, content_type: str, body: bytes):
    client = await serve(llm=typed(content_type, body))
    with pytest.raises(DeserializationError):
        async with endpoint_of(client).stream({}) as stream:
            async for _ in stream.sse():
                raise AssertionError("an event")
    assert client.statistics().in_use == 0


@pytest.mark.parametrize("charset", ["ISO-8859-1", "utf-16le", "Shift_JIS", '"iso-2022-jp"', "us-ascii", "UTF8"])
@pytest.mark.parametrize(
    ("view", "text", "items"),
    [
        (PredictionStream.text, "two{} lines\n", ["two{} lines\n"]),
        (PredictionStream.lines, "two{}\nlines", ["two{}", "lines"]),
        (PredictionStream.jsonl, '"two{}"\n"lines"', ["two{}", "lines"]),
        (PredictionStream.json, '"two{}""lines"', ["two{}", "lines"]),
    ],
)
async def test_the_charset_that_the_answer_names(
    serve: Serve, charset: str, view: Callable[[PredictionStream], View[Any]], text: str, items: list[str]
):
    encoding = charset.strip('"')
    special = "語".encode(encoding, "ignore").decode(encoding) or "é".encode(encoding, "ignore").decode(encoding)
    body = text.replace("{}", special).encode(encoding)
    client = await serve(llm=typed(f"text/plain; charset={charset}", body[:5], body[5:6], body[6:]))
    async with endpoint_of(client).stream({}) as stream:
        got = [item async for item in view(stream)]
    expected = [item.replace("{}", special) for item in items]
    assert ("".join(got) if view is PredictionStream.text else got) == (
        expected[0] if view is PredictionStream.text else expected
    )


@pytest.mark.parametrize(
    "view", [PredictionStream.text, PredictionStream.lines, PredictionStream.jsonl, PredictionStream.json]
)
async def test_a_charset_that_nobody_knows(serve: Serve, view: Callable[[PredictionStream], View[Any]]):
    client = await serve(llm=typed("text/plain; charset=x-klingon", b"one\n"))
    async with endpoint_of(client).stream({}) as stream:
        with pytest.raises(DeserializationError, match="unknown charset") as raised:
            view(stream)
        assert client.statistics().in_use == 0
    assert (raised.value.endpoint_name, raised.value.attempts) == ("llm", 1)


@pytest.mark.parametrize("view", [PredictionStream.sse, PredictionStream.json])
async def test_events_are_utf8_whatever_they_are_labelled(serve: Serve, view: Callable[[PredictionStream], View[Any]]):
    """Servers that label them otherwise send UTF-8 all the same."""
    client = await serve(llm=typed("text/event-stream; charset=ISO-8859-1", 'data: "é"\n\n'.encode()))
    async with endpoint_of(client).stream({}) as stream:
        items = [item if isinstance(item, str) else json.loads(item.data) async for item in view(stream)]
    assert items == ["é"]


async def test_bytes_stay_as_they_are(serve: Serve):
    client = await serve(llm=typed("text/plain; charset=utf-16", b"\xff\xfea\0"))
    async with endpoint_of(client).stream({}) as stream:
        assert b"".join([item async for item in stream.bytes()]) == b"\xff\xfea\0"


@pytest.mark.parametrize("view", [PredictionStream.sse, PredictionStream.json])
async def test_an_error_message_after_events_is_not_lost(serve: Serve, view: Callable[[PredictionStream], View[Any]]):
    client = await serve(llm=saying(b'data: "one"\n\n', b'{"error": "out of memory"}\n'))
    got = []
    with pytest.raises(DeserializationError, match="not a field"):
        async with endpoint_of(client).stream({}) as stream:
            async for item in view(stream):
                got.append(item)
    assert len(got) == 1


@pytest.mark.parametrize("content_type", ["application/octet-stream", "text/plain", "TEXT/Event-Stream; charset=utf-8"])
async def test_events_with_a_general_type(serve: Serve, content_type: str):
    client = await serve(llm=typed(content_type, b"data: one\n\n"))
    async with endpoint_of(client).stream({}) as stream:
        assert [event.data async for event in stream.sse()] == ["one"]


@pytest.mark.parametrize("accept", ["application/json", "*/*", "text/event-stream, application/*"])
async def test_events_with_another_type_that_the_caller_accepts(serve: Serve, accept: str):
    client = await serve(llm=typed("application/json", b"data: one\n\n"))
    async with endpoint_of(client).stream({}) as stream:
        assert [event.data async for event in stream.sse(accept=accept)] == ["one"]


@pytest.mark.parametrize(
    "parts",
    [
        [b'{"a": 1}{"a', b'": 2}', b"3"],
        [b'{"a": 1}\n{"a": ', b"2}\n3\n"],
        [b'data: {"a": 1}\n\nda', b'ta: {"a": 2}\n\ndata: 3\n\ndata: [DONE]\n\n'],
        [b'data: {"a": 1}\ndata: {"a', b'": 2}\ndata: 3\n'],
    ],
)
async def test_json_however_it_is_split(serve: Serve, parts: list[bytes]):
    assert await viewed(serve, PredictionStream.json, *parts) == [{"a": 1}, {"a": 2}, 3]


async def test_items_come_before_the_stream_ends(serve: Serve):
    gate = asyncio.Event()
    client = await serve(llm=saying(b"one\n", gate, b"two\n"))
    async with endpoint_of(client).stream({}) as stream:
        lines = stream.lines()
        assert await anext(lines) == "one"
        gate.set()
        assert [line async for line in lines] == ["two"]


async def test_attributes_of_the_answer(serve: Serve):
    async def model(invocation: Any) -> tuple[AsyncIterator[bytes], dict[str, str]]:
        assert invocation.content_type == "application/json"
        return saying(b"a")(invocation), {"Content-Type": "text/plain", "X-Amzn-SageMaker-Custom-Attributes": "c"}

    client = await serve(llm=model)
    async with endpoint_of(client).stream({}) as stream:
        assert (stream.content_type, stream.variant, stream.custom_attributes) == ("text/plain", "AllTraffic", "c")
        assert stream.request_id
        assert stream.attempts == 1
        assert [text async for text in stream.text()] == ["a"]


async def test_malformed_json_after_good_values(serve: Serve):
    never = asyncio.Event()
    client = await serve(llm=saying(b'{"a": 1}\n{"patient": "jane"]\n', never), runtime={"drain_timeout": 0.01})
    got = []
    with pytest.raises(DeserializationError) as raised:
        async with endpoint_of(client).stream({}) as stream:
            async for value in stream.json():
                got.append(value)
    assert got == [{"a": 1}]
    error = raised.value
    assert (error.operation, error.endpoint_name) == ("InvokeEndpointWithResponseStream", "llm")
    assert "jane" not in f"{error!r} {error}"
    assert client.statistics().in_use == 0


async def test_an_unfinished_value_is_an_error(serve: Serve):
    with pytest.raises(DeserializationError):
        await viewed(serve, PredictionStream.json, b'{"a": 1}{"b": ')


async def test_an_error_inside_the_stream_is_typed(serve: Serve):
    client = await serve(
        llm=saying(b"one\n", b"two\n", b"three\n"),
        runtime={"faults": {"llm": faults.StreamFailure(after_parts=1)}},
    )
    with pytest.raises(ModelStreamError) as error:
        async with endpoint_of(client).stream({}) as stream:
            async for _ in stream.lines():
                pass
    assert error.value.endpoint_name == "llm"
    assert client.statistics().in_use == 0


@pytest.mark.parametrize("view", [PredictionStream.jsonl, PredictionStream.json, PredictionStream.lines])
async def test_half_a_value_is_not_a_value(serve: Serve, view: Callable[[PredictionStream], View[Any]]):
    """Half a value is not returned after the error."""
    client = await serve(
        llm=saying(b"1\n23", b"45\n"),
        client={"retry": {"total_max_attempts": 1}},
        runtime={"faults": {"llm": faults.StreamFailure(after_parts=1)}},
    )
    async with endpoint_of(client).stream({}) as stream:
        items = view(stream)
        assert await anext(items) in (1, "1")
        with pytest.raises(ModelStreamError):
            await anext(items)
        with pytest.raises(StopAsyncIteration):
            await anext(items)


async def test_a_reader_that_was_cancelled_has_lost_parts(serve: Serve):
    """A heartbeat by `asyncio.wait_for` cancels the read; half a value must not become a whole one."""
    client = await serve(llm=saying(b"1\n23", asyncio.Event()), runtime={"drain_timeout": 0.01})
    async with endpoint_of(client).stream({}) as stream:
        items = stream.jsonl()
        assert await anext(items) == 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(items), 0.05)
        for _ in range(2):
            with pytest.raises(ClientStateError, match="cancelled"):
                await anext(items)
    assert client.statistics().in_use == 0


# Leaving


async def test_leaving_the_block_closes_the_connection_at_once(serve: Serve, running: list[LocalRuntime]):
    never = asyncio.Event()
    client = await serve(llm=saying(b"one\n", never))
    async with endpoint_of(client).stream({}) as stream:
        async for _ in stream.lines():
            break
    assert client.statistics().in_use == 0
    (request,) = await running[0].wait_for_requests(1)
    assert (request.outcome, request.parts) == ("disconnected", 1)
    with pytest.raises(ClientStateError):
        stream.text()


async def test_a_view_is_read_inside_the_block(serve: Serve):
    """Items read after the block would look like the whole answer."""
    client = await serve(llm=saying(b"one\n", b"two\n", b"three\n"))
    async with endpoint_of(client).stream({}) as stream:
        lines = stream.lines()
        assert await anext(lines) == "one"
    with pytest.raises(ClientStateError):
        async for _ in lines:
            pass
    async with endpoint_of(client).stream({}) as stream:
        lines = stream.lines()
        assert [line async for line in lines] == ["one", "two", "three"]
    assert [line async for line in lines] == []


async def test_a_view_ends_when_its_reader_closes_the_stream(serve: Serve):
    client = await serve(llm=saying(b"one\n", asyncio.Event()), runtime={"drain_timeout": 0.01})
    async with endpoint_of(client).stream({}) as stream:
        async for line in stream.lines():
            assert line == "one"
            stream.close()


async def test_options_that_streams_do_not_accept(serve: Serve):
    client = await serve(llm=saying(b"one"))
    endpoint = endpoint_of(client).with_options(target_model="model.tar.gz")
    with pytest.raises(ParamValidationError, match="does not accept target_model"):
        endpoint.stream({})
    async with endpoint.stream({}, target_model=None) as stream:
        assert [text async for text in stream.text()] == ["one"]


async def test_a_view_ends_when_its_stream_is_closed_by_another_task(serve: Serve):
    client = await serve(llm=saying(b'{"unfin', asyncio.Event()), runtime={"drain_timeout": 0.01})
    async with endpoint_of(client).stream({}) as stream:

        async def read() -> list[Any]:
            values = stream.json()
            reading.set()
            return [value async for value in values]

        reading = asyncio.Event()
        reader = asyncio.create_task(read())
        await reading.wait()
        stream.close()
        assert await reader == []


async def test_a_stream_is_entered_and_viewed_once(serve: Serve):
    client = await serve(llm=saying(b"one"))
    stream = endpoint_of(client).stream({})
    with pytest.raises(ClientStateError):
        stream.text()
    async with stream:
        stream.text()
        with pytest.raises(ClientStateError):
            stream.lines()
    with pytest.raises(ClientStateError):
        async with stream:
            pass


# Time limits


async def test_the_limit_of_the_first_part(serve: Serve):
    client = await serve(llm=saying(asyncio.Event()), runtime={"drain_timeout": 0.01})
    with pytest.raises(StreamTimeoutError, match="first part"):
        async with endpoint_of(client).stream({}, first_part_timeout=0.05) as stream:
            async for _ in stream.text():
                pass
    assert client.statistics().in_use == 0


async def test_the_limit_of_the_first_part_counts_from_entering(serve: Serve):
    """The head may use it up."""
    client = await serve(llm=saying(b"one"), runtime={"drain_timeout": 0.01, "faults": {"llm": faults.Stall()}})
    with pytest.raises(StreamTimeoutError, match="first part"):
        async with endpoint_of(client).stream({}, first_part_timeout=0.05):
            pass
    assert client.statistics().in_use == 0


async def test_the_limit_between_parts(serve: Serve):
    client = await serve(llm=saying(b"one", asyncio.Event()), runtime={"drain_timeout": 0.01})
    got = []
    with pytest.raises(StreamTimeoutError, match="next part") as error:
        async with endpoint_of(client).stream({}, first_part_timeout=30, part_timeout=0.05) as stream:
            async for text in stream.text():
                got.append(text)
    assert got == ["one"]
    assert isinstance(error.value, TimeoutError)
    assert (error.value.endpoint_name, error.value.attempts) == ("llm", 1)
    assert client.statistics().in_use == 0


async def test_both_limits_replace_the_read_timeout(serve: Serve):
    gate = asyncio.Event()
    client = await serve(llm=saying(gate, b"one"), client={"read_timeout": 0.05}, runtime={"drain_timeout": 0.01})
    with pytest.raises(ReadTimeoutError):
        async with endpoint_of(client).stream({}) as stream:
            async for _ in stream.text():
                pass
    asyncio.get_running_loop().call_later(0.2, gate.set)
    async with endpoint_of(client).stream({}, first_part_timeout=30, part_timeout=30) as stream:
        assert [text async for text in stream.text()] == ["one"]


async def test_a_cancelled_reader_raises_only_cancelled_error(serve: Serve):
    client = await serve(llm=saying(b"one", asyncio.Event()), runtime={"drain_timeout": 0.01})

    async def read() -> None:
        async with endpoint_of(client).stream({}, first_part_timeout=30, part_timeout=30) as stream:
            async for _ in stream.text():
                read_one.set()

    read_one = asyncio.Event()
    reader = asyncio.create_task(read())
    await read_one.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert client.statistics().in_use == 0


@pytest.mark.parametrize("limit", [0, -1, float("inf"), float("nan"), True, "5"])
def test_faulty_limits(limit: Any):
    endpoint = endpoint_of(Client("eu-central-1"))
    with pytest.raises(ParamValidationError, match="part_timeout"):
        endpoint.stream({}, part_timeout=limit)
    with pytest.raises(ParamValidationError, match="first_part_timeout"):
        endpoint.stream({}, first_part_timeout=limit)


async def test_many_small_parts_give_the_same_items(serve: Serve):
    values = [{"token": f"wörd {n}", "n": n} for n in range(500)]
    whole = b"".join(json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in values)
    parts = [whole[i : i + 7] for i in range(0, len(whole), 7)]
    assert await viewed(serve, PredictionStream.json, *parts) == values


async def test_all_parts_that_arrived_come_before_an_error():
    """However many they are."""
    lines = [str(number) for number in range(2000)]
    frames = [encode_payload_part(line.encode() + b"\n") for line in lines]
    failure = encode_exception("ModelStreamError", b'{"Message": "broken", "ErrorCode": "StreamBroken"}')
    async with RawServer() as server:
        server.play([response(200, b"".join([*frames, failure]), chunked=True), LAST_CHUNK])
        async with Client(**{"endpoint_url": server.url, **CLIENT_ARGUMENTS}) as client:
            async with endpoint_of(client).stream({}) as stream:
                view = stream.lines()
                assert [await anext(view) for _ in lines] == lines
                with pytest.raises(ModelStreamError):
                    await anext(view)
            assert client.statistics().in_use == 0


async def keeps_alive(invocation: Any) -> Any:
    """A model that writes an event, and then comments until its caller has left."""
    yield b"data: first\n\n"
    while True:
        yield b": keep-alive\n\n"
        await asyncio.sleep(0.01)


async def test_comments_are_no_values() -> None:
    async with local_runtime({"words": keeps_alive}) as runtime, aiosmrt_client(runtime.url) as client:
        endpoint = client.endpoint("words", serializer=TEXT, deserializer=TEXT)
        async with endpoint.stream("x", part_timeout=0.2, timeouts_count="values") as stream:
            events = stream.sse()
            assert (await anext(events)).data == "first"
            with pytest.raises(StreamTimeoutError, match=r"the next value of the stream did not arrive within 0\.2 s"):
                await anext(events)
        assert stream.timing.parts >= 2


async def test_first_value_is_late() -> None:
    async def silent(invocation: Any) -> Any:
        async for part in keeps_alive(invocation):
            if part.startswith(b":"):
                yield part

    async with local_runtime({"words": silent}) as runtime, aiosmrt_client(runtime.url) as client:
        endpoint = client.endpoint("words", serializer=TEXT, deserializer=TEXT)
        with pytest.raises(StreamTimeoutError, match=r"the first value of the stream did not arrive within 0\.2 s"):
            async with endpoint.stream("x", first_part_timeout=0.2, timeouts_count="values") as stream:
                await anext(stream.sse())


def test_timeouts_of_another_kind() -> None:
    endpoint = Client("eu-central-1").endpoint("words", serializer=TEXT, deserializer=TEXT)
    with pytest.raises(ParamValidationError, match="timeouts_count must be 'parts' or 'values'; got 'bytes'"):
        endpoint.stream("x", timeouts_count="bytes")  # type: ignore[arg-type]
