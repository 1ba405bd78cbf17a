"""The OpenAI route of the local runtime: tokens, the container's path, errors in OpenAI's envelope."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from aiosmrt._wire.sigv4.bearer import make_token
from aiosmrt._wire.sigv4.canonical import EMPTY_SHA256
from aiosmrt._wire.sigv4.signer import Credentials, SignedRequest, Signer
from aiosmrt.local import (
    ContainerFailure,
    EndpointConfiguration,
    InferenceComponent,
    Invocation,
    LocalRuntime,
    ProductionVariant,
    faults,
)
from tests.support.peers import REGION
from tests.support.runtime import ACCEPTED, Draft, InProcessContainer, RawAnswer, RawConnection, local_runtime
from tests.support.virtual_time import VirtualTime

NOW = 1_800_000_000.0
ROUTE = "/openai/v1/chat/completions"
BODY = b'{"model": "", "messages": []}'


async def said(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
    return json.dumps({"path": invocation.path}).encode(), {"Content-Type": "application/json; charset=utf-8"}


@pytest.fixture
async def runtime() -> AsyncIterator[LocalRuntime]:
    endpoints: dict[str, Any] = {
        "llm": said,
        "shared": EndpointConfiguration(
            inference_components=(InferenceComponent(said, "adapter"), InferenceComponent((), "asleep"))
        ),
        "many": EndpointConfiguration((ProductionVariant(said),), multi_model=True),
    }
    async with local_runtime(endpoints, record_bodies=True, clock=lambda: NOW) as runtime:
        yield runtime


def token(
    credentials: Credentials = ACCEPTED, *, at: float = NOW, region: str = REGION, expires_in: int = 900
) -> tuple[str, str]:
    """The header of a valid token."""
    return "Authorization", f"Bearer {make_token(Signer(region=region), credentials, at, expires_in)}"


async def asked(
    runtime: LocalRuntime,
    path: str = f"/endpoints/llm{ROUTE}",
    *headers: tuple[str, str],
    body: bytes = BODY,
    method: str = "POST",
    query: str = "",
) -> RawAnswer:
    draft = Draft(
        runtime.url,
        path,
        method=method,
        body=body,
        query=query,
        headers=[("Content-Type", "application/json"), *headers],
    )
    async with RawConnection.to(runtime.url) as connection:
        return await connection.exchange(draft.encode())


def error_of(answer: RawAnswer) -> tuple[int, str, str]:
    """Status, code and message of an error in OpenAI's envelope."""
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status, error["code"], error["message"]


async def test_answer_is_the_containers(runtime: LocalRuntime) -> None:
    answer = await asked(runtime, f"/endpoints/llm{ROUTE}", token())
    assert (answer.status, answer.body) == (200, b'{"path": "/v1/chat/completions"}')
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    (record,) = runtime.requests
    assert (record.operation, record.endpoint, record.access_key_id) == (
        "OpenAIChatCompletions",
        "llm",
        ACCEPTED.access_key,
    )
    assert record.headers is not None
    assert "authorization" not in record.headers


async def test_component_is_in_the_path(runtime: LocalRuntime) -> None:
    path = f"/endpoints/shared/inference-components/adapter{ROUTE}"
    assert (await asked(runtime, path, token())).status == 200
    (record,) = runtime.requests
    assert record.inference_component == "adapter"
    header = ("X-Amzn-SageMaker-Inference-Component", "adapter")
    status, code, message = error_of(await asked(runtime, path, token(), header))
    assert (status, code) == (400, "ValidationError")
    assert "its header is not allowed" in message


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"/endpoints/nowhere{ROUTE}", "Endpoint nowhere of account"),
        (f"/endpoints/shared{ROUTE}", "Inference Component Name header is required"),
        (f"/endpoints/shared/inference-components/other{ROUTE}", "Inference Component other of account"),
        (f"/endpoints/shared/inference-components/asleep{ROUTE}", "Inference Component has no capacity"),
        (f"/endpoints/llm/inference-components/adapter{ROUTE}", "Inference Component Name header is not allowed"),
        (f"/endpoints/many{ROUTE}", "missing a target model header"),
        (f"/endpoints/-{ROUTE}", "failed to satisfy constraint"),
    ],
)
async def test_refused_target(runtime: LocalRuntime, path: str, message: str) -> None:
    status, code, said = error_of(await asked(runtime, path, token()))
    assert (status, code) == (400, "ValidationError")
    assert message in said


async def test_another_method_or_path(runtime: LocalRuntime) -> None:
    assert (await asked(runtime, f"/endpoints/llm{ROUTE}", token(), method="GET", body=b"")).status == 404
    assert (await asked(runtime, "/endpoints/llm/openai/v1/embeddings", token())).status == 404


def token_for(action: str, expires_in: int) -> str:
    """A token with a signature that fits."""
    request = SignedRequest("POST", "sagemaker.amazonaws.com", "/", f"Action={action}", ())
    query = Signer(region=REGION).presign(ACCEPTED, NOW, request, EMPTY_SHA256, expires_in=expires_in)
    text = f"sagemaker.amazonaws.com/?{query}&Version=1"
    return f"sagemaker-api-key-{base64.b64encode(text.encode()).decode()}"


def longer() -> str:
    """A token whose life was prolonged after it was signed."""
    _, value = token(expires_in=900)
    text = base64.b64decode(value.removeprefix("Bearer sagemaker-api-key-"))
    changed = text.replace(b"X-Amz-Expires=900", b"X-Amz-Expires=901")
    assert changed != text
    return f"sagemaker-api-key-{base64.b64encode(changed).decode()}"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "MissingAuthenticationTokenException"),
        ([token(at=NOW - 901)], "InvalidSignatureException"),
        ([token(at=NOW + 301)], "InvalidSignatureException"),
        ([token(region="us-west-2")], "InvalidSignatureException"),
        ([token(Credentials(ACCEPTED.access_key, "another"))], "InvalidSignatureException"),
        ([token(Credentials("AKIDOTHER", "another"))], "UnrecognizedClientException"),
        ([token(Credentials(ACCEPTED.access_key, ACCEPTED.secret_key, "session"))], "UnrecognizedClientException"),
        ([("Authorization", "Bearer sagemaker-api-key-AAAA")], "IncompleteSignatureException"),
        ([("Authorization", "Bearer sagemaker-api-key-")], "IncompleteSignatureException"),
        ([("Authorization", "Bearer \xff")], "IncompleteSignatureException"),
        ([("Authorization", f"Bearer {token_for('Another', 900)}")], "IncompleteSignatureException"),
        ([("Authorization", f"Bearer {longer()}")], "InvalidSignatureException"),
        ([("Authorization", f"Bearer {token_for('CallWithBearerToken', 43_201)}")], "InvalidSignatureException"),
        ([token(), token()], "IncompleteSignatureException"),
    ],
)
async def test_faulty_token(runtime: LocalRuntime, headers: list[tuple[str, str]], code: str) -> None:
    status, said, _ = error_of(await asked(runtime, f"/endpoints/llm{ROUTE}", *headers))
    assert (status in (400, 403), said) == (True, code)
    assert runtime.requests[0].variant is None  # no model was reached


async def test_signature_is_no_token(runtime: LocalRuntime) -> None:
    signed = Draft(runtime.url, f"/endpoints/llm{ROUTE}", body=BODY).sign(at=NOW)
    presigned = Draft(runtime.url, f"/endpoints/llm{ROUTE}", body=BODY).presign(at=NOW, body=BODY)
    for draft, code in (
        (signed, "IncompleteSignatureException"),
        (presigned, "MissingAuthenticationTokenException"),
    ):
        async with RawConnection.to(runtime.url) as connection:
            assert error_of(await connection.exchange(draft.encode()))[1] == code


async def test_token_is_none_for_other_operations(runtime: LocalRuntime) -> None:
    assert (await asked(runtime, "/endpoints/llm/invocations", token())).status in (400, 403)


async def test_foreign_origin_without_signatures() -> None:
    async with local_runtime({"llm": said}, verify_signatures=False) as runtime:
        assert (await asked(runtime, f"/endpoints/llm{ROUTE}")).status == 200
        answer = await asked(runtime, f"/endpoints/llm{ROUTE}", ("Origin", "https://evil.example"))
        assert error_of(answer)[:2] == (403, "AccessDeniedException")


async def test_container_is_called_on_its_own_path() -> None:
    async def serve(request: web.Request) -> web.StreamResponse:
        if (await request.json())["messages"]:
            return web.json_response({"object": "error", "message": "too long"}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: [DONE]\n\n")
        return response

    async with InProcessContainer(serve) as container, local_runtime({"llm": container}, clock=lambda: NOW) as runtime:
        path = f"/endpoints/llm{ROUTE}"
        answer = await asked(runtime, path, token(), body=b'{"messages": [], "stream": true}')
        assert (answer.status, answer.body) == (200, b"data: [DONE]\n\n")
        assert answer.headers["content-type"] == "text/event-stream"
        failed = await asked(runtime, path, token(), body=b'{"messages": [1]}')
        assert (failed.status, json.loads(failed.body)) == (400, {"object": "error", "message": "too long"})
        received = container.received[0]
        assert (received.path, received.headers["content-type"]) == ("/v1/chat/completions", "application/json")
        assert not [name for name in received.headers if name.startswith("x-amzn") or name == "authorization"]
        assert [record.operation for record in runtime.requests] == [
            "OpenAIChatCompletionsStream",
            "OpenAIChatCompletions",
        ]


async def test_failing_container(runtime: LocalRuntime) -> None:
    for failure, expected in (
        (faults.ModelFailure(500, "out of memory"), (500, "model_error", "out of memory")),
        (faults.ModelFailure(0, "died"), (502, "model_error", "died")),
    ):
        runtime.clear_faults()
        runtime.inject("llm", failure)
        assert error_of(await asked(runtime, f"/endpoints/llm{ROUTE}", token())) == expected


async def test_container_fails_in_its_stream() -> None:
    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        yield b"data: {}\n\n"
        raise ContainerFailure(500, "gone")

    async with local_runtime({"llm": model}, clock=lambda: NOW) as runtime:
        answer = await asked(runtime, f"/endpoints/llm{ROUTE}", token(), body=b'{"stream": true}')
        assert (answer.status, answer.body, answer.ended) == (200, b"data: {}\n\n", "closed")
        (record,) = await runtime.wait_for_requests(1)
        assert (record.outcome, record.error_code) == ("cut", "ContainerFailure")


async def test_stream_takes_too_long(virtual_time: VirtualTime) -> None:
    silent = asyncio.Event()

    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        yield b"data: {}\n\n"
        silent.set()
        await runtime.wait_for_requests(1)

    async with local_runtime({"llm": model}, clock=lambda: NOW, stream_timeout=20.0, model_timeout=10.0) as runtime:
        asking = asyncio.create_task(asked(runtime, f"/endpoints/llm{ROUTE}", token(), body=b'{"stream": true}'))
        await silent.wait()
        await virtual_time.advance(20.0)
        answer = await asking
        assert (answer.body, answer.ended) == (b"data: {}\n\n", "closed")


@pytest.mark.parametrize("operation", ["OpenAIChatCompletions", "OpenAIChatCompletionsStream"])
async def test_faults_apply_by_operation(runtime: LocalRuntime, operation: str) -> None:
    runtime.inject("llm", faults.Fault(faults.throttling(1.5), faults.Schedule(operation=operation)))
    answers = {
        name: await asked(runtime, f"/endpoints/llm{ROUTE}", token(), body=body)
        for name, body in (("OpenAIChatCompletions", b"{}"), ("OpenAIChatCompletionsStream", b'{"stream": true}'))
    }
    assert [name for name, answer in answers.items() if answer.status != 200] == [operation]
    assert error_of(answers[operation])[1] == "ThrottlingException"
    assert answers[operation].headers["x-amz-retry-after"] == "1500"


async def test_body_that_is_no_json_is_for_the_container(runtime: LocalRuntime) -> None:
    for body in (b"", b"{", b"[]", b"[" * 100_000, b"\xff"):
        assert (await asked(runtime, f"/endpoints/llm{ROUTE}", token(), body=body)).status == 200
