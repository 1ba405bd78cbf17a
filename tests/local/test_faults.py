"""Every scripted fault, observed by a client."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from aiosmrt._wire.eventstream import Decoder
from aiosmrt.errors import ConfigurationError, EventStreamFormatError, TruncatedStreamError
from aiosmrt.local import Invocation, LocalRuntime, faults
from aiosmrt.local.fault_schedule import Effect, Fault, FaultScript
from tests.support.runtime import (
    Draft,
    RawAnswer,
    RawConnection,
    aiobotocore_client,
    echo,
    local_runtime,
    words,
)
from tests.support.virtual_time import VirtualTime

NOW = 1_700_000_000.0
STREAM = "/endpoints/words/invocations-response-stream"


@pytest.fixture
async def runtime() -> AsyncIterator[LocalRuntime]:
    async with local_runtime({"echo": echo, "words": words}, clock=lambda: NOW) as runtime:
        yield runtime


async def ask(runtime: LocalRuntime, path: str = "/endpoints/echo/invocations", body: bytes = b"one two") -> RawAnswer:
    """One call on a new connection."""
    async with RawConnection.to(runtime.url) as connection:
        return await connection.exchange(Draft(runtime.url, path, body=body).sign(at=NOW).encode())


HTML = "text/html"
ERRORS: list[tuple[Effect, int, str | None, str | None, str]] = [
    # effect, status, x-amzn-errortype, message, content type
    (faults.throttling(), 400, "ThrottlingException", None, "application/json"),
    (faults.model_not_ready(), 429, "ModelNotReadyException", "Either a serverless", "application/json"),
    (faults.internal_failure(), 500, "InternalFailure", "An internal failure", "application/json"),
    (faults.service_unavailable(), 503, "ServiceUnavailable", "The service is", "application/json"),
    (faults.internal_dependency(), 530, "InternalDependencyException", "A dependency", "application/json"),
    (faults.no_capacity(), 400, "ValidationError", "Inference Component has no capacity", "application/json"),
    (faults.validation_failure("no such thing"), 400, "ValidationError", "no such thing", "application/json"),
    (faults.ModelFailure(503, "busy"), 424, "ModelError", "Received server error (503)", "application/json"),
    (faults.ModelFailure(0, "late"), 424, "ModelError", "Received server error (0)", "application/json"),
    (faults.SignatureExpired(), 403, "InvalidSignatureException", "Signature expired: 2023", "application/json"),
    (faults.too_many_requests(), 429, None, None, "application/json"),
    (faults.bad_gateway(), 502, None, None, HTML),
    (faults.gateway_timeout(), 504, None, None, HTML),
]


@pytest.mark.parametrize(
    ("effect", "status", "code", "message", "content_type"),
    ERRORS,
    ids=[error[0].name + str(i) for i, error in enumerate(ERRORS)],
)
async def test_errors(
    runtime: LocalRuntime, effect: Effect, status: int, code: str | None, message: str | None, content_type: str
) -> None:
    runtime.inject("echo", effect)
    answer = await ask(runtime)
    assert answer.status == status
    assert answer.headers.get("x-amzn-errortype") == code
    assert answer.headers["content-type"] == content_type
    assert answer.headers["x-amzn-requestid"] == runtime.requests[0].request_id
    if content_type == HTML:
        assert answer.body.startswith(b"<html>")
    elif code is None:
        assert answer.body == b""
    else:
        document = json.loads(answer.body)
        text = document.get("Message", document.get("message"))
        assert text is None if message is None else text.startswith(message)
    (record,) = runtime.requests
    assert (record.status, record.fault, record.variant) == (status, (effect.name,), None)
    assert record.error_code == (code or str(status))


async def test_throttling_has_its_type_in_the_header_only(runtime: LocalRuntime) -> None:
    runtime.inject("echo", faults.throttling())
    assert (await ask(runtime)).body == b'{"message": null}'


async def test_members_of_a_model_error() -> None:
    script = {"echo": faults.ModelFailure(429, "slow down")}
    async with local_runtime({"echo": echo}, faults=script) as runtime, aiobotocore_client(runtime.url) as client:
        with pytest.raises(client.exceptions.ModelError) as caught:
            await client.invoke_endpoint(EndpointName="echo", Body=b"")
    assert caught.value.response["OriginalStatusCode"] == 429
    assert caught.value.response["OriginalMessage"] == "slow down"


@pytest.mark.parametrize(
    "effect",
    [
        faults.throttling(1.5),
        faults.too_many_requests(1.5),
        faults.internal_failure(1.5),
        faults.service_unavailable(1.5),
    ],
)
async def test_retry_hint(runtime: LocalRuntime, effect: Effect) -> None:
    runtime.inject("echo", effect)
    assert (await ask(runtime)).headers["x-amz-retry-after"] == "1500"


async def test_custom_error(runtime: LocalRuntime) -> None:
    answer = faults.ErrorAnswer(
        400, "com.amazon.coral#ThrottlingException:http://internal/", "slow", message_key="message"
    )
    runtime.inject("echo", faults.Replaced(answer))
    assert (await ask(runtime)).headers["x-amzn-errortype"] == "com.amazon.coral#ThrottlingException:http://internal/"
    assert runtime.requests[0].error_code == "ThrottlingException"


class TestSchedules:
    async def statuses(self, runtime: LocalRuntime, count: int, path: str = "/endpoints/echo/invocations") -> list[int]:
        return [(await ask(runtime, path)).status for _ in range(count)]

    async def test_next_calls(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.throttling().next(2), faults.internal_failure().next(1))
        assert await self.statuses(runtime, 5) == [400, 400, 500, 200, 200]

    async def test_each_nth_call(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.internal_failure().every(3))
        assert await self.statuses(runtime, 7) == [200, 200, 500, 200, 200, 500, 200]

    async def test_always_and_clear(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.internal_failure())
        runtime.inject("*", faults.bad_gateway())
        assert await self.statuses(runtime, 2) == [500, 500]
        runtime.clear_faults("echo")
        assert await self.statuses(runtime, 2) == [502, 502]
        runtime.clear_faults()
        assert await self.statuses(runtime, 1) == [200]

    async def test_one_endpoint_and_all(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.throttling())
        assert await self.statuses(runtime, 1, "/endpoints/words/invocations") == [200]
        runtime.inject("*", faults.internal_failure())
        assert await self.statuses(runtime, 1, "/endpoints/words/invocations") == [500]
        assert await self.statuses(runtime, 1, "/endpoints/nowhere/invocations") == [500]

    async def test_one_operation(self, runtime: LocalRuntime) -> None:
        runtime.inject("words", faults.internal_failure().always(operation="InvokeEndpointWithResponseStream"))
        assert await self.statuses(runtime, 1, "/endpoints/words/invocations") == [200]
        assert await self.statuses(runtime, 1, STREAM) == [500]

    async def test_seeded_probability_is_repeatable(self) -> None:
        async def drawn(seed: int) -> list[int]:
            script = {"echo": faults.throttling().with_probability(0.3)}
            async with local_runtime(
                {"echo": echo}, faults=script, chance=random.Random(seed), clock=lambda: NOW
            ) as runtime:
                return await self.statuses(runtime, 30)

        first = await drawn(11)
        assert first == await drawn(11)
        assert 3 < first.count(400) < 18

    def test_one_effect_per_stage(self) -> None:
        script = FaultScript(
            [faults.SkewedClock(60), faults.Drip(), faults.Truncate(), faults.IdleClose()], random.Random(1)
        )
        assert list(script.effects("InvokeEndpoint")) == ["clock", "body", "connection"]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: faults.throttling().next(0), "integer >= 1; got 0"),
            (lambda: faults.throttling().every(0), "integer >= 1; got 0"),
            (lambda: faults.throttling().with_probability(1.1), "from 0 to 1; got 1.1"),
            (lambda: faults.throttling().always(operation="Invoke"), "got 'Invoke'"),
            (lambda: faults.Drip(piece_bytes=0), "piece_bytes must be an integer >= 1; got 0"),
            (lambda: faults.StreamFailure(exception="Boom"), "got 'Boom'"),  # type: ignore[arg-type]
            (
                lambda: local_runtime({"echo": echo}, faults={"ehco": faults.throttling()}),
                "endpoint; got 'ehco'",
            ),
            (lambda: local_runtime({"echo": echo}, faults={"echo": ["throttling"]}), "got str"),
        ],
    )
    def test_invalid_faults(self, make: Any, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            make()


class TestConnections:
    @pytest.mark.parametrize(
        ("effect", "ended"), [(faults.ResetBeforeHeaders, "reset"), (faults.CloseBeforeHeaders, "closed")]
    )
    @pytest.mark.parametrize("after_model", [False, True])
    async def test_no_response(self, effect: Any, ended: str, after_model: bool) -> None:
        calls = []

        async def model(invocation: Invocation) -> bytes:
            calls.append(invocation)
            return b"lost"

        script = {"echo": effect(after_model=after_model).next(1)}
        async with local_runtime({"echo": model}, faults=script, clock=lambda: NOW) as runtime:
            answer = await ask(runtime)
            assert (answer.status, answer.body, answer.ended) == (0, b"", ended)
            assert len(calls) == int(after_model)
            (record,) = await runtime.wait_for_requests(1)
            assert (record.outcome, record.status) == ("cut", None)
            assert (await ask(runtime)).body == b"lost"

    @pytest.mark.parametrize("after_bytes", [0, 3, 7, 100])
    async def test_reset_in_the_body(self, runtime: LocalRuntime, after_bytes: int) -> None:
        runtime.inject("echo", faults.ResetAfterHeaders(after_bytes=after_bytes))
        async with RawConnection.to(runtime.url) as connection:
            await connection.write(Draft(runtime.url, body=b"one two").sign(at=NOW).encode())
            data, ended = await connection.rest()
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert body == b"one two"[:after_bytes]
        assert ended == "reset"
        assert runtime.requests[0].outcome == "cut"
        assert runtime.requests[0].response_bytes == min(after_bytes, 7)

    async def test_reset_in_a_stream(self, runtime: LocalRuntime) -> None:
        runtime.inject("words", faults.ResetAfterHeaders(after_parts=1))
        answer = await ask(runtime, STREAM)
        assert answer.ended == "reset"
        assert [payload for _, payload in Decoder().feed(answer.body)] == [b"one"]
        assert runtime.requests[0].parts == 1

    @pytest.mark.parametrize("reset", [False, True])
    async def test_close_idle_connections(self, runtime: LocalRuntime, reset: bool) -> None:
        async with RawConnection.to(runtime.url) as connection:
            assert (await connection.exchange(Draft(runtime.url).sign(at=NOW).encode())).status == 200
            assert runtime.statistics()["connections"] == 1
            assert runtime.close_idle_connections(reset=reset) == 1
            assert await connection.rest() == (b"", "reset" if reset else "closed")

    async def test_busy_connections_are_not_idle(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.Stall())
        async with RawConnection.to(runtime.url) as connection:
            await connection.write(Draft(runtime.url).sign(at=NOW).encode())
            await runtime.wait_for_stalled(1)
            assert runtime.close_idle_connections() == 0
            runtime.release_stalled()
            assert (await connection.answer()).status == 200

    async def test_idle_close_after_the_response(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.IdleClose())
        async with RawConnection.to(runtime.url) as connection:
            answer = await connection.exchange(Draft(runtime.url).sign(at=NOW).encode())
            assert (answer.status, answer.ended) == (200, "complete")
            assert "connection" not in answer.headers
            assert await connection.rest() == (b"", "closed")
        assert runtime.requests[0].outcome == "answered"

    async def test_connection_reused_before_its_idle_close(
        self, runtime: LocalRuntime, virtual_time: VirtualTime
    ) -> None:
        runtime.inject("echo", faults.IdleClose(0.3).next(1))
        async with RawConnection.to(runtime.url) as connection:
            request = Draft(runtime.url).sign(at=NOW).encode()
            await connection.exchange(request)
            runtime.inject("echo", faults.Stall().next(1))
            await connection.write(request)
            await runtime.wait_for_stalled(1)
            assert runtime.statistics()["closes_to_come"] == 1
            await virtual_time.advance(0.3)
            assert runtime.statistics()["closes_to_come"] == 0
            runtime.release_stalled()
            assert (await connection.answer()).status == 200
            assert (await connection.exchange(request)).status == 200
        assert {record.connection for record in runtime.requests} == {1}


class TestBodies:
    async def test_truncated_body(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.Truncate(after_bytes=3))
        answer = await ask(runtime)
        assert (answer.status, answer.headers["content-length"]) == (200, "7")
        assert (answer.body, answer.ended) == (b"one", "closed")
        assert runtime.requests[0].outcome == "cut"

    async def test_truncated_body_with_clean_ending(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.Truncate(after_bytes=3, clean_ending=True))
        answer = await ask(runtime)
        assert "content-length" not in answer.headers
        assert (answer.body, answer.ended) == (b"one", "complete")
        assert runtime.requests[0].outcome == "answered"

    @pytest.mark.parametrize("clean_ending", [False, True])
    async def test_stream_cut_inside_a_frame(self, runtime: LocalRuntime, clean_ending: bool) -> None:
        runtime.inject("words", faults.Truncate(after_parts=1, after_bytes=20, clean_ending=clean_ending))
        answer = await ask(runtime, STREAM)
        assert answer.ended == ("complete" if clean_ending else "closed")
        decoder = Decoder()
        assert [payload for _, payload in decoder.feed(answer.body)] == [b"one"]
        assert decoder.pending_bytes == 20
        with pytest.raises(TruncatedStreamError):
            decoder.finish()
        assert runtime.requests[0].parts == 1

    async def test_stream_cut_between_frames(self, runtime: LocalRuntime) -> None:
        runtime.inject("words", faults.Truncate(after_parts=1, clean_ending=True))
        answer = await ask(runtime, STREAM)
        decoder = Decoder()
        assert [payload for _, payload in decoder.feed(answer.body)] == [b"one"]
        decoder.finish()

    @pytest.mark.parametrize("after_bytes", [0, 4, 8, 50, 105])
    async def test_corrupt_stream(self, runtime: LocalRuntime, after_bytes: int) -> None:
        runtime.inject("words", faults.Corrupt(after_parts=1, after_bytes=after_bytes).next(1))
        damaged, sound = await ask(runtime, STREAM), await ask(runtime, STREAM)
        at = len(sound.body) // 2 + after_bytes
        assert damaged.ended == "complete"
        assert damaged.body == sound.body[:at] + bytes([sound.body[at] ^ 0xFF]) + sound.body[at + 1 :]
        decoder = Decoder()
        assert [payload for _, payload in decoder.feed(damaged.body)] == [b"one"]
        with pytest.raises(EventStreamFormatError):
            decoder.finish()

    async def test_corruption_after_the_end(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.Corrupt(after_bytes=7))
        assert (await ask(runtime)).body == b"one two"

    async def test_cut_does_not_wait_for_the_next_part(self) -> None:
        async def model(invocation: Invocation) -> AsyncIterator[bytes]:
            yield b"one"
            await asyncio.Event().wait()

        script = {"words": faults.Truncate(after_parts=1)}
        async with local_runtime({"words": model}, faults=script, clock=lambda: NOW) as runtime:
            assert (await ask(runtime, STREAM)).ended == "closed"

    async def test_stall_in_a_stream(self, runtime: LocalRuntime) -> None:
        runtime.inject("words", faults.StallInBody(after_parts=1, after_bytes=5))
        async with RawConnection.to(runtime.url) as connection:
            await connection.write(Draft(runtime.url, STREAM, body=b"one two").sign(at=NOW).encode())
            await runtime.wait_for_stalled(1)
            assert runtime.statistics()["stalled"] == 1
            runtime.release_stalled()
            answer = await connection.answer()
        assert [payload for _, payload in Decoder().feed(answer.body)] == [b"one", b"two"]
        assert runtime.requests[0].parts == 2

    async def test_stall_in_a_plain_body(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.StallInBody(after_bytes=3, seconds=0.01))
        assert (await ask(runtime)).body == b"one two"

    async def test_drip(self, runtime: LocalRuntime) -> None:
        runtime.inject("*", faults.Drip(piece_bytes=2, seconds=0.0001))
        async with RawConnection.to(runtime.url) as connection:
            answer = await connection.exchange(Draft(runtime.url, body=b"one two").sign(at=NOW).encode())
            assert answer.body == b"one two"
            answer = await connection.exchange(Draft(runtime.url, STREAM, body=b"one two").sign(at=NOW).encode())
        assert [payload for _, payload in Decoder().feed(answer.body)] == [b"one", b"two"]
        assert runtime.requests[1].parts == 2

    @pytest.mark.parametrize("error_code", ["StreamBroken", "ModelInvocationTimeExceeded"])
    async def test_model_error_in_a_stream(self, runtime: LocalRuntime, error_code: str) -> None:
        runtime.inject("words", faults.StreamFailure(after_parts=1, error_code=error_code, message="gone"))
        (_, first), (headers, payload) = Decoder().feed((await ask(runtime, STREAM)).body)
        assert first == b"one"
        assert headers.exception_type == "ModelStreamError"
        assert json.loads(payload) == {"Message": "gone", "ErrorCode": error_code}
        assert runtime.requests[0].error_code == "ModelStreamError"
        assert runtime.requests[0].parts == 1

    async def test_internal_failure_in_a_stream(self, runtime: LocalRuntime) -> None:
        runtime.inject("words", faults.StreamFailure(exception="InternalStreamFailure"))
        ((headers, payload),) = Decoder().feed((await ask(runtime, STREAM)).body)
        assert headers.exception_type == "InternalStreamFailure"
        assert set(json.loads(payload)) == {"Message"}

    async def test_stream_failure_does_not_affect_plain_responses(self, runtime: LocalRuntime) -> None:
        runtime.inject("words", faults.StreamFailure())
        answer = await ask(runtime, "/endpoints/words/invocations")
        assert (answer.status, answer.body, answer.ended) == (200, b"onetwo", "complete")

    async def test_error_body_can_be_cut(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.internal_failure(), faults.Truncate(after_bytes=4))
        answer = await ask(runtime)
        assert (answer.status, answer.body, answer.ended) == (500, b'{"Me', "closed")
        assert runtime.requests[0].fault == ("internal_failure", "truncate")


class TestTime:
    async def test_stall_until_released(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.Stall().next(2))
        calls = [asyncio.create_task(ask(runtime)) for _ in range(2)]
        await runtime.wait_for_stalled(2)
        assert runtime.requests == ()
        runtime.release_stalled()
        assert [(await call).body for call in calls] == [b"one two"] * 2
        assert runtime.statistics()["stalled"] == 0

    async def test_stall_for_a_time(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.Stall(0.02))
        assert (await ask(runtime)).status == 200
        assert runtime.requests[0].seconds >= 0.02

    async def test_client_disconnects_from_a_stall(self, runtime: LocalRuntime) -> None:
        runtime.inject("echo", faults.Stall())
        async with RawConnection.to(runtime.url) as connection:
            await connection.write(Draft(runtime.url).sign(at=NOW).encode())
            await runtime.wait_for_stalled(1)
        assert (await runtime.wait_for_requests(1))[0].outcome == "disconnected"
        assert runtime.statistics()["stalled"] == 0

    @pytest.mark.parametrize(
        ("skew", "message"), [(600, "Signature expired: "), (-600, "Signature not yet current: "), (200, None)]
    )
    async def test_skewed_clock(self, runtime: LocalRuntime, skew: float, message: str | None) -> None:
        runtime.inject("echo", faults.SkewedClock(skew).next(1))
        answer = await ask(runtime)
        minutes = {600: "23:20", -600: "03:20", 200: "16:40"}[int(skew)]
        assert answer.headers["date"] == f"Tue, 14 Nov 2023 22:{minutes} GMT"
        if message is None:
            assert answer.status == 200
        else:
            assert answer.status == 403
            assert json.loads(answer.body)["message"].startswith(message)
        assert (await ask(runtime)).status == 200


async def test_aiobotocore_retries() -> None:
    script: list[Effect | Fault] = [faults.internal_failure().next(1), faults.ResetBeforeHeaders().next(1)]
    async with (
        local_runtime({"echo": echo}, faults={"echo": script}) as runtime,
        aiobotocore_client(runtime.url, retries={"mode": "standard", "total_max_attempts": 3}) as client,
    ):
        result = await client.invoke_endpoint(EndpointName="echo", Body=b"at last")
        async with result["Body"] as body:
            assert await body.read() == b"at last"
        first, second, third = await runtime.wait_for_requests(3)
    assert [record.attempt for record in (first, second, third)] == [1, 2, 3]
    assert len({record.invocation_id for record in (first, second, third)}) == 1
    assert (first.error_code, second.outcome, third.status) == ("InternalFailure", "cut", 200)


async def test_botocore_reports_the_status_of_an_html_page() -> None:
    script = {"*": faults.bad_gateway()}
    async with local_runtime({"echo": echo}, faults=script) as runtime, aiobotocore_client(runtime.url) as client:
        with pytest.raises(ClientError) as caught:
            await client.invoke_endpoint(EndpointName="echo", Body=b"")
    assert caught.value.response["Error"]["Code"] == "502"
