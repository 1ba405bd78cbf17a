"""Calls of the local runtime through boto3 and aiobotocore: routing, container contract, errors, sessions."""

import asyncio
import io
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from botocore.exceptions import ClientError, EventStreamError

from aiosmrt.errors import ConfigurationError
from aiosmrt.local import (
    ContainerFailure,
    EndpointConfiguration,
    InferenceComponent,
    Invocation,
    LocalRuntime,
    ModelContainer,
    MultiContainer,
    ProductionVariant,
)
from aiosmrt.local.backends import ModelTimeoutError, model_limit
from tests.support.peers import boto3_client
from tests.support.raw_server import CLOSE, RESET, RawServer, response
from tests.support.runtime import (
    Draft,
    InProcessContainer,
    RawAnswer,
    RawConnection,
    aiobotocore_client,
    echo,
    local_runtime,
)

ACCOUNT = "123456789012"
CONTAINER_PROGRAM = Path(__file__).with_name("container_program.py")


async def invoke(runtime: LocalRuntime, endpoint: str, **members: Any) -> tuple[dict[str, Any], bytes]:
    """One call through aiobotocore; its result and body."""
    async with aiobotocore_client(runtime.url) as client:
        result = await client.invoke_endpoint(EndpointName=endpoint, **({"Body": b""} | members))
        async with result["Body"] as body:
            return result, await body.read()


async def refusal(runtime: LocalRuntime, endpoint: str, **members: Any) -> dict[str, Any]:
    """The response dictionary of a call that fails."""
    with pytest.raises(ClientError) as caught:
        await invoke(runtime, endpoint, **members)
    response: dict[str, Any] = caught.value.response
    return response


async def model_failure(runtime: LocalRuntime, endpoint: str, **members: Any) -> tuple[int, str]:
    response = await refusal(runtime, endpoint, **members)
    assert response["Error"]["Code"] == "ModelError"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    return response["OriginalStatusCode"], response["OriginalMessage"]


async def validation_message(runtime: LocalRuntime, endpoint: str, **members: Any) -> str:
    response = await refusal(runtime, endpoint, **members)
    assert response["Error"]["Code"] == "ValidationError"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 400
    message: str = response["Error"]["Message"]
    return message


class Stuck:
    """A model that never answers."""

    ended = False

    async def __call__(self, invocation: Invocation) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True
        return b""


class TestCallables:
    async def test_invocation_contains_every_parameter(self) -> None:
        seen: list[Invocation] = []

        async def model(invocation: Invocation) -> bytes:
            seen.append(invocation)
            return b""

        endpoint = EndpointConfiguration([ProductionVariant(MultiContainer({"second": model}))], multi_model=True)
        async with local_runtime({"churn": endpoint}) as runtime:
            await invoke(
                runtime,
                "churn",
                Body=b"1,2",
                ContentType="text/csv",
                Accept="application/json",
                CustomAttributes="trace=1",
                TargetModel="a/model.tar.gz",
                TargetVariant="AllTraffic",
                TargetContainerHostname="second",
                InferenceId="inference 1",
                EnableExplanations="`true`",
            )
        (invocation,) = seen
        assert invocation.body == b"1,2"
        assert invocation.endpoint == "churn"
        assert invocation.variant == "AllTraffic"
        assert invocation.streaming is False
        assert invocation.content_type == "text/csv"
        assert invocation.accept == "application/json"
        assert invocation.custom_attributes == "trace=1"
        assert invocation.target_model == "a/model.tar.gz"
        assert invocation.target_container_hostname == "second"
        assert invocation.inference_id == "inference 1"
        assert invocation.enable_explanations == "`true`"
        assert invocation.session_id is None
        assert "1,2" not in repr(invocation)
        assert "trace=1" not in repr(invocation)

    @pytest.mark.parametrize(
        "result", [b"done", bytearray(b"done"), memoryview(b"done"), "done", (b"done", {"Content-Type": "text/plain"})]
    )
    async def test_results_of_a_callable(self, result: Any) -> None:
        async def model(invocation: Invocation) -> Any:
            return result

        async with local_runtime({"churn": model}) as runtime:
            answer, body = await invoke(runtime, "churn")
        assert body == b"done"
        assert answer["ContentType"] == ("text/plain" if isinstance(result, tuple) else "application/octet-stream")

    async def test_async_generator_is_collected(self) -> None:
        async def model(invocation: Invocation) -> AsyncIterator[bytes]:
            yield b"one "
            yield b"two"

        async with local_runtime({"churn": model}) as runtime:
            assert (await invoke(runtime, "churn"))[1] == b"one two"

    async def test_response_headers(self) -> None:
        async def model(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
            return b"{}", {
                "content-type": "application/json; charset=utf-8",
                "X-Amzn-SageMaker-Custom-Attributes": "out",
                "X-Internal": "secret",
                "Set-Cookie": "a=b",
            }

        async with local_runtime({"churn": model}) as runtime:
            answer, _ = await invoke(runtime, "churn")
        assert answer["ContentType"] == "application/json; charset=utf-8"
        assert answer["CustomAttributes"] == "out"
        assert answer["InvokedProductionVariant"] == "AllTraffic"
        assert not {"x-internal", "set-cookie"} & set(answer["ResponseMetadata"]["HTTPHeaders"])

    async def test_container_failure(self) -> None:
        async def model(invocation: Invocation) -> bytes:
            raise ContainerFailure(400, "too few columns")

        async with local_runtime({"churn": model}) as runtime:
            response = await refusal(runtime, "churn")
        assert response["OriginalStatusCode"] == 400
        assert response["OriginalMessage"] == "too few columns"
        assert response["LogStreamArn"] == (
            f"arn:aws:logs:eu-central-1:{ACCOUNT}:log-group:/aws/sagemaker/Endpoints/churn"
        )
        assert response["Error"] == {
            "Code": "ModelError",
            "Message": (
                'Received client error (400) from primary with message "too few columns". See '
                "https://eu-central-1.console.aws.amazon.com/cloudwatch/home?region=eu-central-1"
                f"#logEventViewer:group=/aws/sagemaker/Endpoints/churn in account {ACCOUNT} for more information."
            ),
        }

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (KeyError("column"), "KeyError: 'column'"),
            (TimeoutError("inner"), "TimeoutError: inner"),
            (None, "TypeError: a handler must return bytes, text or an async iterator of bytes, optionally with"),
        ],
    )
    async def test_exception_in_a_callable_is_a_500_and_logged(
        self, error: Exception | None, message: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def model(invocation: Invocation) -> Any:
            if error is not None:
                raise error

        async with local_runtime({"churn": model}) as runtime:
            status, text = await model_failure(runtime, "churn")
        assert status == 500
        assert text.startswith(message)
        (line,) = caplog.messages
        assert line.startswith(f"The handler of a local endpoint failed: {message.partition(':')[0]} at ")
        assert "column" not in caplog.text
        assert "inner" not in caplog.text

    async def test_line_break_in_a_header_is_a_500(self, caplog: pytest.LogCaptureFixture) -> None:
        async def model(invocation: Invocation) -> Any:
            return b"", {"Content-Type": "text/plain\r\nX-Injected: 1"}

        async with local_runtime({"churn": model}) as runtime:
            assert (await model_failure(runtime, "churn"))[0] == 500
        assert len(caplog.messages) == 1

    async def test_model_timeout(self) -> None:
        model = Stuck()
        async with local_runtime({"churn": model}, model_timeout=0.05) as runtime:
            status, text = await model_failure(runtime, "churn")
            assert status == 0
            assert text.startswith("Your invocation timed out while waiting for a response from container primary.")
            assert model.ended
        patient = EndpointConfiguration([ProductionVariant(model)], model_timeout=0.01)
        async with local_runtime({"churn": patient}) as runtime:
            assert (await model_failure(runtime, "churn"))[0] == 0

    async def test_a_timeout_of_another_origin_is_no_timeout_of_the_model(self) -> None:
        later = asyncio.get_running_loop().time() + 60
        with pytest.raises(TimeoutError, match="another"):
            async with model_limit(later):
                raise TimeoutError("another")
        with pytest.raises(ModelTimeoutError):
            async with model_limit(0.0):
                await asyncio.Event().wait()

    async def test_disconnect_cancels_the_invocation(self) -> None:
        model = Stuck()
        async with local_runtime({"echo": model}) as runtime:
            async with RawConnection.to(runtime.url) as connection:
                await connection.write(Draft(runtime.url).sign().encode())
                await runtime.wait_for_in_flight(1)
            (record,) = await runtime.wait_for_requests(1)
            assert model.ended
        assert record.outcome == "disconnected"
        assert record.status is None
        assert record.request_bytes == 5


class TestContainers:
    async def test_request_to_a_container_and_its_response(self) -> None:
        async def serve(request: web.Request) -> web.Response:
            headers = {"X-Amzn-SageMaker-Custom-Attributes": "out", "X-Internal": "1", "Content-Type": "text/plain"}
            return web.Response(body=b"scored", headers=headers)

        async with InProcessContainer(serve) as container, local_runtime({"churn": container.url}) as runtime:
            answer, body = await invoke(
                runtime,
                "churn",
                Body=b"1,2",
                ContentType="text/csv",
                Accept="text/plain",
                CustomAttributes="in",
                InferenceId="id",
            )
            assert container.pings == 1
            async with RawConnection.to(runtime.url) as connection:
                bare = await connection.exchange(Draft(runtime.url, "/endpoints/churn/invocations").sign().encode())
            assert bare.status == 200
            assert container.pings == 1
        assert body == b"scored"
        assert answer["ContentType"] == "text/plain"
        assert answer["CustomAttributes"] == "out"
        assert "x-internal" not in answer["ResponseMetadata"]["HTTPHeaders"]
        first, second = container.received
        assert first.path == "/invocations"
        assert first.body == b"1,2"
        assert first.headers == {
            "host": container.url.removeprefix("http://"),
            "content-length": "3",
            "content-type": "text/csv",
            "accept": "text/plain",
            "x-amzn-sagemaker-custom-attributes": "in",
            "x-amzn-sagemaker-inference-id": "id",
            "x-amzn-sagemaker-forwarded-api": "InvokeEndpoint",
        }
        assert set(second.headers) == {"host", "content-length", "x-amzn-sagemaker-forwarded-api"}

    async def test_container_fails(self) -> None:
        async def serve(request: web.Request) -> web.Response:
            return web.Response(status=507, text="out of memory")

        async with InProcessContainer(serve) as container, local_runtime({"churn": container.url}) as runtime:
            assert await model_failure(runtime, "churn") == (507, "out of memory")

    async def test_redirect_is_a_failure(self) -> None:
        async def serve(request: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": "/elsewhere"})

        async with InProcessContainer(serve) as container, local_runtime({"churn": container.url}) as runtime:
            assert (await model_failure(runtime, "churn"))[0] == 302

    async def test_long_error_is_truncated(self) -> None:
        async def serve(request: web.Request) -> web.Response:
            return web.Response(status=500, text="x" * 100_000)

        async with InProcessContainer(serve) as container, local_runtime({"churn": container.url}) as runtime:
            response = await refusal(runtime, "churn")
        assert len(response["OriginalMessage"]) == 2048
        assert len(response["Error"]["Message"]) == 2048

    @pytest.mark.parametrize("after", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"])
    async def test_container_dies_during_its_response(self, after: bytes) -> None:
        async def serve(request: web.Request) -> web.Response:
            assert request.transport is not None
            request.transport.write(after)
            request.transport.close()
            return web.Response()

        async with InProcessContainer(serve) as container, local_runtime({"churn": container.url}) as runtime:
            assert await model_failure(runtime, "churn") == (
                0,
                "An error occurred while handling request as the model process exited.",
            )

    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    async def test_a_response_without_length_ends_when_the_container_closes_it(self, version: str) -> None:
        """Not when the connection is reset."""
        answer = f"HTTP/{version} 200 OK\r\nContent-Type: text/plain\r\n\r\nhalf".encode()
        goes_on = asyncio.Event()
        async with (
            RawServer([[response(200)], [answer, CLOSE], [answer, goes_on, RESET]]) as container,
            local_runtime({"churn": container.url}) as runtime,
            aiobotocore_client(runtime.url) as client,
        ):
            assert (await invoke(runtime, "churn"))[1] == b"half"
            result = await client.invoke_endpoint_with_response_stream(EndpointName="churn", Body=b"")
            with pytest.raises(EventStreamError, match="ModelStreamError"):
                async for event in result["Body"]:
                    assert event == {"PayloadPart": {"Bytes": b"half"}}
                    goes_on.set()

    async def test_container_is_not_ready(self) -> None:
        async with InProcessContainer() as container, local_runtime({"churn": container.url}) as runtime:
            container.ping_status = 503
            response = await refusal(runtime, "churn")
            assert response["Error"]["Code"] == "ModelNotReadyException"
            assert response["ResponseMetadata"]["HTTPStatusCode"] == 429
            assert container.received == []
            container.ping_status = 200
            assert (await invoke(runtime, "churn", Body=b"now"))[1] == b"now"

    async def test_container_restarts(self) -> None:
        async with InProcessContainer() as container, local_runtime({"churn": container.url}) as runtime:
            await invoke(runtime, "churn")
            await container.stop()
            assert (await model_failure(runtime, "churn"))[0] == 0
            assert (await refusal(runtime, "churn"))["Error"]["Code"] == "ModelNotReadyException"
            await container.start()
            assert (await invoke(runtime, "churn", Body=b"back"))[1] == b"back"

    async def test_container_is_started_and_stopped(self) -> None:
        container = InProcessContainer()
        variants = [ProductionVariant(container, "A"), ProductionVariant(container, "B")]
        async with local_runtime({"churn": variants, "other": container}) as runtime:
            assert container.running
            assert (await invoke(runtime, "churn", Body=b"1"))[1] == b"1"
            assert (await invoke(runtime, "other", Body=b"2"))[1] == b"2"
        assert not container.running

    async def test_running_container_is_left_running(self) -> None:
        async with InProcessContainer() as container:
            async with local_runtime({"churn": container}) as runtime:
                await invoke(runtime, "churn")
            assert container.running

    async def test_container_process(self) -> None:
        container = ModelContainer([sys.executable, str(CONTAINER_PROGRAM)])
        async with local_runtime({"churn": container}) as runtime:
            assert (await invoke(runtime, "churn", Body=b"scored elsewhere"))[1] == b"scored elsewhere"
            await container.stop()
            assert (await refusal(runtime, "churn"))["Error"]["Code"] == "ModelNotReadyException"
            await container.start()
            assert (await invoke(runtime, "churn", Body=b"again"))[1] == b"again"
        assert not container.running

    @pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://h:x", "http://h/?a=b"])
    async def test_invalid_urls(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="http://host:port"):
            local_runtime({"churn": url})


def shares(*weights: float) -> list[ProductionVariant]:
    def model(name: str) -> Any:
        async def serve(invocation: Invocation) -> str:
            assert invocation.variant == name
            return name

        return serve

    return [ProductionVariant(model(f"v{i}"), f"v{i}", weight) for i, weight in enumerate(weights)]


class TestVariants:
    async def test_weights(self) -> None:
        counts: Counter[str] = Counter()
        async with (
            local_runtime({"ab": shares(1, 3, 0)}, chance=random.Random(7)) as runtime,
            aiobotocore_client(runtime.url) as client,
        ):
            for _ in range(200):
                result = await client.invoke_endpoint(EndpointName="ab", Body=b"")
                counts[result["InvokedProductionVariant"]] += 1
                async with result["Body"] as body:
                    assert (await body.read()).decode() == result["InvokedProductionVariant"]
        assert counts.total() == 200
        assert set(counts) == {"v0", "v1"}
        assert 120 < counts["v1"] < 180
        assert Counter(record.variant for record in runtime.requests) == counts

    async def test_target_variant(self) -> None:
        async with local_runtime({"ab": shares(1, 1, 0)}) as runtime:
            for name in ("v2", "v0", "v2", "v1"):
                answer, body = await invoke(runtime, "ab", TargetVariant=name)
                assert body.decode() == answer["InvokedProductionVariant"] == name
            message = await validation_message(runtime, "ab", TargetVariant="v9")
        assert message == f"Variant v9 of Endpoint ab of account {ACCOUNT} not found."

    async def test_instances_of_a_variant(self) -> None:
        containers = InProcessContainer(), InProcessContainer()
        variant = ProductionVariant(containers)
        async with local_runtime({"churn": variant}, chance=random.Random(1)) as runtime:
            for _ in range(20):
                await invoke(runtime, "churn")
        served = [len(container.received) for container in containers]
        assert sum(served) == 20
        assert min(served) > 2

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (shares(0, 0), "weight 0"),
            (shares(-1), "must be a number >= 0"),
            (shares(float("nan")), "must be a number >= 0"),
            ([*shares(1), *shares(1)], "two production variants named v0"),
            (
                [ProductionVariant(echo, "no_underscores")],
                "invalid production variant name .* 'no_underscores'",
            ),
            (ProductionVariant([]), "needs a target"),
            (EndpointConfiguration(), "either production variants or inference components"),
            ([echo], "ProductionVariant objects only"),
            (7, "got int"),
        ],
    )
    async def test_invalid_endpoints(self, source: Any, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            local_runtime({"churn": source})

    async def test_invalid_endpoint_name(self) -> None:
        with pytest.raises(ConfigurationError, match="invalid endpoint name 'under_score'"):
            local_runtime({"under_score": echo})


class TestInferenceComponents:
    @pytest.fixture
    async def runtime(self) -> AsyncIterator[LocalRuntime]:
        async def named(invocation: Invocation) -> str:
            return f"{invocation.inference_component} on {invocation.variant}"

        components = [
            InferenceComponent(named, "alpha"),
            InferenceComponent(named, "beta", "Spare"),
            InferenceComponent([], "asleep"),
        ]
        endpoints = {"shared": EndpointConfiguration(inference_components=components), "plain": echo}
        async with local_runtime(endpoints) as runtime:
            yield runtime

    async def test_component_is_chosen_by_name(self, runtime: LocalRuntime) -> None:
        answer, body = await invoke(runtime, "shared", InferenceComponentName="beta")
        assert body == b"beta on Spare"
        assert answer["InvokedProductionVariant"] == "Spare"
        assert (await invoke(runtime, "shared", InferenceComponentName="alpha"))[1] == b"alpha on AllTraffic"
        assert [record.inference_component for record in runtime.requests] == ["beta", "alpha"]

    async def test_rejected_components(self, runtime: LocalRuntime) -> None:
        assert (await validation_message(runtime, "shared")).startswith(
            "Inference Component Name header is required for endpoints"
        )
        message = await validation_message(runtime, "shared", InferenceComponentName="gamma")
        assert message == f"Inference Component gamma of account {ACCOUNT} not found."
        assert (await validation_message(runtime, "shared", InferenceComponentName="asleep")).startswith(
            "Inference Component has no capacity to process this request. ApplicationAutoScaling may be in-progress"
        )
        assert (await validation_message(runtime, "plain", InferenceComponentName="alpha")).startswith(
            "Inference Component Name header is not allowed for endpoints"
        )


class Chat:
    """Calls with a session, over a socket: the oldest botocore does not support sessions."""

    def __init__(self, runtime: LocalRuntime) -> None:
        self.runtime = runtime

    async def __call__(self, session_id: str, body: bytes = b"", variant: str | None = None) -> RawAnswer:
        headers = [("X-Amzn-SageMaker-Session-Id", session_id)]
        if variant is not None:
            headers.append(("X-Amzn-SageMaker-Target-Variant", variant))
        draft = Draft(self.runtime.url, "/endpoints/chat/invocations", body=body, headers=headers).sign()
        async with RawConnection.to(self.runtime.url) as connection:
            return await connection.exchange(draft.encode())

    async def new(self, variant: str | None = None) -> str:
        answer = await self("NEW_SESSION", variant=variant)
        assert answer.status == 200
        return answer.headers["x-amzn-sagemaker-new-session-id"].partition(";")[0]

    async def refusal(self, session_id: str, variant: str | None = None) -> str:
        answer = await self(session_id, variant=variant)
        assert (answer.status, answer.headers["x-amzn-errortype"]) == (400, "ValidationError")
        message: str = json.loads(answer.body)["Message"]
        return message


class TestSessions:
    @pytest.fixture
    def now(self) -> list[float]:
        return [1_700_000_000.0]

    @pytest.fixture
    async def runtime(self, now: list[float]) -> AsyncIterator[LocalRuntime]:
        async def stateful(invocation: Invocation) -> Any:
            if invocation.body == b"close":
                return b"", {"X-Amzn-SageMaker-Closed-Session-Id": str(invocation.session_id)}
            return f"{invocation.variant} {invocation.session_id} {invocation.new_session}"

        variants = [ProductionVariant(stateful, "A"), ProductionVariant(stateful, "B")]
        async with local_runtime(
            {"chat": variants}, verify_signatures=False, clock=lambda: now[0], chance=random.Random(3)
        ) as runtime:
            yield runtime

    @pytest.fixture
    def chat(self, runtime: LocalRuntime) -> Chat:
        return Chat(runtime)

    async def test_session_stays_on_its_variant(self, chat: Chat, runtime: LocalRuntime) -> None:
        made = {}
        for _ in range(6):
            answer = await chat("NEW_SESSION")
            session_id, _, expires = answer.headers["x-amzn-sagemaker-new-session-id"].partition("; ")
            assert expires == "Expires=2023-11-14T22:33:20Z"
            variant = answer.headers["x-amzn-invoked-production-variant"]
            assert answer.body.decode() == f"{variant} {session_id} True"
            made[session_id] = variant
        assert len(made) == 6
        assert set(made.values()) == {"A", "B"}
        for session_id, variant in [*made.items()] * 3:
            answer = await chat(session_id)
            assert answer.body.decode() == f"{variant} {session_id} False"
            assert "x-amzn-sagemaker-new-session-id" not in answer.headers
        assert runtime.statistics()["sessions"] == 6
        assert runtime.requests[0].session_id == "NEW_SESSION"

    async def test_session_is_closed(self, chat: Chat, runtime: LocalRuntime) -> None:
        session_id = await chat.new()
        answer = await chat(session_id, b"close")
        assert answer.headers["x-amzn-sagemaker-closed-session-id"] == session_id
        message = await chat.refusal(session_id)
        assert message == f"Session {session_id} of Endpoint chat does not exist or has expired."
        assert runtime.statistics()["sessions"] == 0

    async def test_session_expires(self, chat: Chat, now: list[float]) -> None:
        session_id = await chat.new()
        now[0] += 1199
        assert (await chat(session_id)).status == 200
        now[0] += 1
        assert "has expired" in await chat.refusal(session_id)

    async def test_session_with_another_variant(self, chat: Chat) -> None:
        session_id = await chat.new("A")
        assert (await chat(session_id, variant="A")).status == 200
        assert "belongs to another target" in await chat.refusal(session_id, "B")

    async def test_session_of_another_endpoint(self) -> None:
        async with local_runtime({"chat": echo, "other": echo}) as runtime:
            session_id = await Chat(runtime).new()
            draft = Draft(runtime.url, "/endpoints/other/invocations")
            draft.headers.append(("X-Amzn-SageMaker-Session-Id", session_id))
            async with RawConnection.to(runtime.url) as connection:
                assert (await connection.exchange(draft.sign().encode())).status == 400

    @pytest.mark.parametrize("name", ["X-Amzn-SageMaker-Session-Id", "X-Amzn-SageMaker-New-Session-Id"])
    async def test_session_made_by_a_container(self, name: str) -> None:
        async def serve(request: web.Request) -> web.Response:
            session_id = request.headers.get("X-Amzn-SageMaker-Session-Id")
            if session_id == "NEW_SESSION":
                return web.Response(headers={name: "chat-1; Expires=2100-01-01T00:00:00Z"})
            if await request.read() == b"close":
                return web.Response(headers={"X-Amzn-SageMaker-Closed-Session-Id": session_id or ""})
            return web.Response(text=session_id or "")

        async with InProcessContainer(serve) as container, local_runtime({"chat": container.url}) as runtime:
            chat = Chat(runtime)
            answer = await chat("NEW_SESSION")
            assert answer.headers["x-amzn-sagemaker-new-session-id"] == "chat-1; Expires=2100-01-01T00:00:00Z"
            assert (await chat("chat-1")).body == b"chat-1"
            answer = await chat("chat-1", b"close")
            assert answer.headers["x-amzn-sagemaker-closed-session-id"] == "chat-1"
            await chat.refusal("chat-1")

    async def test_container_without_sessions(self) -> None:
        async with InProcessContainer() as container, local_runtime({"chat": container.url}) as runtime:
            answer = await Chat(runtime)("NEW_SESSION")
            assert answer.status == 200
            assert "x-amzn-sagemaker-new-session-id" not in answer.headers
            assert runtime.statistics()["sessions"] == 0

    async def test_botocore_reads_the_session(self) -> None:
        async with local_runtime({"chat": echo}) as runtime, aiobotocore_client(runtime.url) as client:
            members = client.meta.service_model.operation_model("InvokeEndpoint").output_shape.members
            if "NewSessionId" not in members:
                pytest.skip("this botocore does not support sessions")
            result = await client.invoke_endpoint(EndpointName="chat", Body=b"", SessionId="NEW_SESSION")
            result["Body"].close()
            assert result["NewSessionId"].partition("; ")[2].startswith("Expires=")

    async def test_streams_do_not_make_sessions(self) -> None:
        async with local_runtime({"chat": echo}) as runtime:
            path = "/endpoints/chat/invocations-response-stream"
            draft = Draft(runtime.url, path, headers=[("X-Amzn-SageMaker-Session-Id", "NEW_SESSION")]).sign()
            async with RawConnection.to(runtime.url) as connection:
                answer = await connection.exchange(draft.encode())
        assert answer.status == 400
        assert json.loads(answer.body)["Message"] == (
            "1 validation error detected: Value 'NEW_SESSION' at 'sessionId' failed to satisfy constraint: "
            "Member must satisfy regular expression pattern: ^[a-zA-Z0-9](-*[a-zA-Z0-9])*$"
        )


class TestRejectedCalls:
    @pytest.fixture
    async def runtime(self) -> AsyncIterator[LocalRuntime]:
        async with local_runtime({"echo": echo}, max_body_bytes=2_000_000) as runtime:
            yield runtime

    async def test_unknown_endpoint(self, runtime: LocalRuntime) -> None:
        assert await validation_message(runtime, "nowhere") == f"Endpoint nowhere of account {ACCOUNT} not found."

    async def test_every_invalid_parameter_is_listed(self, runtime: LocalRuntime) -> None:
        message = await validation_message(
            runtime, "-" * 64, TargetVariant="under_score", CustomAttributes="x" * 1025, InferenceId=" "
        )
        failed, pattern = "failed to satisfy constraint: Member must", r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*"
        faults = [
            f"Value '{'-' * 64}' at 'endpointName' {failed} have length less than or equal to 63",
            f"Value '{'-' * 64}' at 'endpointName' {failed} satisfy regular expression pattern: {pattern}",
            f"Value at 'customAttributes' {failed} have length less than or equal to 1024",
            f"Value 'under_score' at 'targetVariant' {failed} satisfy regular expression pattern: {pattern}",
        ]
        assert message.startswith("6 validation errors detected: ")
        for fault in faults:
            assert fault in message

    async def test_integers_of_the_asynchronous_operation(self, runtime: LocalRuntime) -> None:
        headers = [
            ("X-Amzn-SageMaker-InputLocation", "s3://bucket/key"),
            ("X-Amzn-SageMaker-RequestTTLSeconds", "59"),
            ("X-Amzn-SageMaker-InvocationTimeoutSeconds", "soon"),
        ]
        draft = Draft(runtime.url, "/endpoints/echo/async-invocations", body=b"", headers=headers).sign()
        async with RawConnection.to(runtime.url) as connection:
            answer = await connection.exchange(draft.encode())
        assert json.loads(answer.body)["Message"] == (
            "2 validation errors detected: Value '59' at 'requestTTLSeconds' failed to satisfy constraint: Member must "
            "have value greater than or equal to 60; Value 'soon' at 'invocationTimeoutSeconds' failed to satisfy "
            "constraint: Member must be an integer"
        )

    async def test_asynchronous_call_to_a_synchronous_endpoint(self, runtime: LocalRuntime) -> None:
        async with aiobotocore_client(runtime.url) as client:
            with pytest.raises(client.exceptions.ValidationError) as caught:
                await client.invoke_endpoint_async(EndpointName="echo", InputLocation="s3://bucket/key")
        assert caught.value.response["Error"]["Message"] == (
            f"Endpoint echo of account {ACCOUNT} does not have an asynchronous inference configuration."
        )

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/"),
            ("POST", "/endpoints"),
            ("POST", "/endpoints//invocations"),
            ("POST", "/endpoints/echo"),
            ("POST", "/endpoints/echo/invocations/"),
            ("POST", "/endpoints/echo/ping"),
            ("POST", "/endpoints/e/c/h/invocations"),
            ("GET", "/endpoints/echo/invocations"),
            ("PUT", "/endpoints/echo/invocations"),
            ("GET", "/ping"),
        ],
    )
    async def test_unknown_routes(self, runtime: LocalRuntime, method: str, path: str) -> None:
        async with RawConnection.to(runtime.url) as connection:
            answer = await connection.exchange(Draft(runtime.url, path, method=method).encode())
        assert answer.status == 404
        assert answer.headers["x-amzn-errortype"] == "UnknownOperationException"
        assert answer.body == b"<UnknownOperationException/>\n"
        (record,) = runtime.requests
        assert record.operation is None
        assert record.error_code == "UnknownOperationException"

    async def test_body_over_the_limit(self, runtime: LocalRuntime) -> None:
        assert len((await invoke(runtime, "echo", Body=io.BytesIO(b"x" * 2_000_000)))[1]) == 2_000_000
        response = await refusal(runtime, "echo", Body=io.BytesIO(b"x" * 2_000_001))
        assert response["ResponseMetadata"]["HTTPStatusCode"] == 413
        assert response["Error"] == {"Code": "413", "Message": "HTTP content length exceeded 2000000 bytes."}

    async def test_chunked_body_over_the_limit(self, runtime: LocalRuntime) -> None:
        head = Draft(runtime.url, body=b"").encode().replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        async with RawConnection.to(runtime.url) as connection:
            await connection.write(head)
            for _ in range(3):
                await connection.write(b"f4240\r\n" + bytes(1_000_000) + b"\r\n")
            await connection.write(b"0\r\n\r\n")
            assert (await connection.answer()).status == 413

    async def test_every_response_has_a_request_id(self, runtime: LocalRuntime) -> None:
        await invoke(runtime, "echo")
        await refusal(runtime, "nowhere")
        ids = [record.request_id for record in runtime.requests]
        assert len(set(ids)) == 2
        response = await refusal(runtime, "nowhere")
        assert response["ResponseMetadata"]["RequestId"] == runtime.requests[-1].request_id

    async def test_absolute_form_of_a_target(self, runtime: LocalRuntime) -> None:
        request = Draft(runtime.url, query="a=b").sign().encode().replace(b"POST /", b"POST HTTP://any.example/")
        async with RawConnection.to(runtime.url) as connection:
            assert (await connection.exchange(request)).status == 200
        assert runtime.requests[0].path == "/endpoints/echo/invocations"

    async def test_expect_100_continue(self, runtime: LocalRuntime) -> None:
        draft = Draft(runtime.url).sign()
        draft.headers.append(("Expect", "100-continue"))
        head, _, body = draft.encode().partition(b"\r\n\r\n")
        async with RawConnection.to(runtime.url) as connection:
            await connection.write(head + b"\r\n\r\n")
            assert await connection.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await connection.write(body)
            answer = await connection.answer()
        assert (answer.status, answer.body) == (200, body)

    async def test_compressed_body_is_passed_on(self, runtime: LocalRuntime) -> None:
        draft = Draft(runtime.url, body=b"not gzip at all", headers=[("Content-Encoding", "gzip")]).sign()
        async with RawConnection.to(runtime.url) as connection:
            assert (await connection.exchange(draft.encode())).body == b"not gzip at all"


async def test_boto3_in_threads() -> None:
    async with (
        local_runtime({"echo": echo}) as runtime,
        boto3_client(runtime.url, max_pool_connections=8) as client,
    ):

        def call(number: int) -> bytes:
            result = client.invoke_endpoint(EndpointName="echo", Body=str(number).encode(), ContentType="text/csv")
            body: bytes = result["Body"].read()
            return body

        answers = await asyncio.gather(*(asyncio.to_thread(call, number) for number in range(50)))
        assert answers == [str(number).encode() for number in range(50)]
        assert len(await runtime.wait_for_requests(50)) == 50
        assert runtime.statistics()["by_status"] == {200: 50}
