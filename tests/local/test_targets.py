"""Parameters that select a model or a container: accepted where the endpoint has several, rejected elsewhere."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiosmrt.errors import ConfigurationError
from aiosmrt.local import (
    AsyncInferenceConfig,
    ContainerFailure,
    EndpointConfiguration,
    InferenceComponent,
    Invocation,
    LocalRuntime,
    MultiContainer,
    ObjectStorage,
    ProductionVariant,
)
from tests.support.runtime import (
    ACCEPTED,
    Draft,
    InProcessContainer,
    RawAnswer,
    RawConnection,
    aiobotocore_client,
    local_runtime,
)

ACCOUNT = "123456789012"
MODEL = ("X-Amzn-SageMaker-Target-Model", "m.tar.gz")
CALL = "invocations"
STREAM = "invocations-response-stream"


def container(name: str) -> Any:
    """A model that returns its name and the requested target."""

    async def serve(invocation: Invocation) -> str:
        return f"{name} {invocation.target_container_hostname} {invocation.target_model}"

    return serve


def hostname(name: str) -> tuple[str, str]:
    return ("X-Amzn-SageMaker-Target-Container-Hostname", name)


async def ask(runtime: LocalRuntime, endpoint: str, *headers: tuple[str, str], path: str = CALL) -> RawAnswer:
    async with RawConnection.to(runtime.url) as connection:
        draft = Draft(runtime.url, f"/endpoints/{endpoint}/{path}", headers=list(headers)).sign()
        return await connection.exchange(draft.encode())


def rejection(answer: RawAnswer) -> tuple[str, str | None]:
    """Message and ErrorCode of a ValidationError."""
    assert (answer.status, answer.headers["x-amzn-errortype"]) == (400, "ValidationError")
    document = json.loads(answer.body)
    return document["Message"], document.get("ErrorCode")


@pytest.fixture
async def runtime() -> AsyncIterator[LocalRuntime]:
    pair = MultiContainer({"first": container("one"), "second": container("two")})
    endpoints = {
        "single": container("one"),
        "variants": [ProductionVariant(container("one"), "A"), ProductionVariant(container("two"), "B")],
        "components": EndpointConfiguration(inference_components=[InferenceComponent(container("one"), "adapter")]),
        "models": EndpointConfiguration([ProductionVariant(container("one"))], multi_model=True),
        "pair": pair,
        "instances": ProductionVariant([pair, pair]),
        "both": EndpointConfiguration([ProductionVariant(pair)], multi_model=True),
    }
    async with local_runtime(endpoints) as runtime:
        yield runtime


class TestModels:
    @pytest.mark.parametrize("endpoint", ["single", "variants", "pair", "components"])
    async def test_single_model_endpoint_rejects_a_target_model(self, runtime: LocalRuntime, endpoint: str) -> None:
        assert rejection(await ask(runtime, endpoint, MODEL, hostname("first"))) == (
            f"Endpoint {endpoint} is not a multi-model endpoint and does not support target model header.",
            "TARGET_MODEL_HEADER_NOT_SUPPORTED",
        )

    async def test_multi_model_endpoint(self, runtime: LocalRuntime) -> None:
        assert (await ask(runtime, "models", MODEL)).body == b"one None m.tar.gz"

    @pytest.mark.parametrize("path", [CALL, STREAM])
    async def test_multi_model_endpoint_requires_a_target_model(self, runtime: LocalRuntime, path: str) -> None:
        answer = await ask(runtime, "models", path=path)
        message = f"Request {answer.headers['x-amzn-requestid']} is missing a target model header."
        assert rejection(answer) == (message, "TARGET_MODEL_HEADER_MISSING")

    async def test_container_receives_the_target_model(self) -> None:
        async with InProcessContainer() as one:
            endpoint = EndpointConfiguration([ProductionVariant(one.url)], multi_model=True)
            async with local_runtime({"models": endpoint}) as runtime:
                assert (await ask(runtime, "models", MODEL)).status == 200
        (received,) = one.received
        assert received.headers["x-amzn-sagemaker-target-model"] == "m.tar.gz"

    async def test_botocore_raises_its_validation_error(self, runtime: LocalRuntime) -> None:
        async with aiobotocore_client(runtime.url) as client:
            with pytest.raises(client.exceptions.ValidationError, match="is not a multi-model endpoint"):
                await client.invoke_endpoint(EndpointName="single", Body=b"", TargetModel="m.tar.gz")


class TestContainers:
    @pytest.mark.parametrize("endpoint", ["pair", "instances"])
    @pytest.mark.parametrize(("name", "model"), [("first", b"one"), ("second", b"two")])
    async def test_direct_invocation(self, runtime: LocalRuntime, endpoint: str, name: str, model: bytes) -> None:
        assert (await ask(runtime, endpoint, hostname(name))).body == b"%s %s None" % (model, name.encode())
        answer = await ask(runtime, endpoint, hostname(name), path=STREAM)
        assert answer.status == 200
        assert model in answer.body

    @pytest.mark.parametrize("path", [CALL, STREAM])
    async def test_serial_invocation(self, path: str) -> None:
        """Each container gets the response of the one before it, with its type."""
        seen: list[tuple[str, bytes, str | None, str | None, bool]] = []

        def stage(name: str, content_type: str | None) -> Any:
            async def serve(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
                passed_on = invocation.headers.get("Content-Type")
                seen.append((name, invocation.body, invocation.content_type, passed_on, invocation.streaming))
                return invocation.body + name.encode(), {} if content_type is None else {"Content-Type": content_type}

            return serve

        stages = {"a": stage("a", "text/csv"), "b": stage("b", None), "c": stage("c", "application/json")}
        async with local_runtime({"line": MultiContainer(stages, mode="Serial")}) as runtime:
            answer = await ask(runtime, "line", ("Content-Type", "text/plain"), path=path)
            assert answer.status == 200
            assert b"1,2,3abc" in answer.body
            assert rejection(await ask(runtime, "line", hostname("a"), path=path))[1] == (
                "TARGET_CONTAINER_HOSTNAME_HEADER_NOT_SUPPORTED"
            )
        assert seen == [
            ("a", b"1,2,3", "text/plain", "text/plain", False),
            ("b", b"1,2,3a", "text/csv", "text/csv", False),
            ("c", b"1,2,3ab", None, None, path == STREAM),
        ]

    @pytest.mark.parametrize("path", [CALL, STREAM])
    @pytest.mark.parametrize("failing", ["first", "second"])
    async def test_a_pipeline_names_the_container_that_failed(self, path: str, failing: str) -> None:
        async def fails(invocation: Invocation) -> bytes:
            raise ContainerFailure(500, "out of memory")

        stages = {name: fails if name == failing else container(name) for name in ("first", "second")}
        async with local_runtime({"line": MultiContainer(stages, mode="Serial")}) as runtime:
            answer = await ask(runtime, "line", path=path)
        assert answer.status == 424
        assert f"Received server error (500) from {failing} with message" in json.loads(answer.body)["Message"]

    def test_modes(self) -> None:
        with pytest.raises(ConfigurationError, match="must be Direct or Serial; got 'serial'"):
            MultiContainer({"first": container("one")}, mode="serial")  # type: ignore[arg-type]

    async def test_a_components_variant_must_be_the_one_that_is_asked_for(self, runtime: LocalRuntime) -> None:
        def ask_for(variant: str) -> Any:
            component = ("X-Amzn-SageMaker-Inference-Component", "adapter")
            return ask(runtime, "components", component, ("X-Amzn-SageMaker-Target-Variant", variant))

        assert (await ask_for("AllTraffic")).status == 200
        message = f"Variant other of Endpoint components of account {ACCOUNT} not found."
        assert rejection(await ask_for("other")) == (message, None)

    async def test_multi_model_containers(self, runtime: LocalRuntime) -> None:
        assert (await ask(runtime, "both", MODEL, hostname("second"))).body == b"two second m.tar.gz"

    @pytest.mark.parametrize("path", [CALL, STREAM])
    async def test_unknown_container(self, runtime: LocalRuntime, path: str) -> None:
        message = f"Container third of Endpoint pair of account {ACCOUNT} not found."
        assert rejection(await ask(runtime, "pair", hostname("third"), path=path)) == (message, None)

    @pytest.mark.parametrize("path", [CALL, STREAM])
    async def test_direct_invocation_requires_a_container(self, runtime: LocalRuntime, path: str) -> None:
        answer = await ask(runtime, "pair", path=path)
        message = f"Request {answer.headers['x-amzn-requestid']} is missing a target container hostname header."
        assert rejection(answer) == (message, "TARGET_CONTAINER_HOSTNAME_HEADER_MISSING")

    @pytest.mark.parametrize("path", [CALL, STREAM])
    @pytest.mark.parametrize("endpoint", ["single", "variants", "components"])
    async def test_other_endpoints_reject_a_container(self, runtime: LocalRuntime, endpoint: str, path: str) -> None:
        more = [("X-Amzn-SageMaker-Inference-Component", "adapter")] if endpoint == "components" else []
        message, code = rejection(await ask(runtime, endpoint, hostname("first"), *more, path=path))
        assert message.startswith(f"Endpoint {endpoint} is not configured for direct invocation")
        assert code == "TARGET_CONTAINER_HOSTNAME_HEADER_NOT_SUPPORTED"

    async def test_errors_name_the_container(self) -> None:
        async def fails(invocation: Invocation) -> bytes:
            raise ContainerFailure(500, "out of memory")

        async with local_runtime({"pair": MultiContainer({"first": fails})}) as runtime:
            answer = await ask(runtime, "pair", hostname("first"))
        assert answer.status == 424
        assert (
            'Received server error (500) from first with message "out of memory"' in json.loads(answer.body)["Message"]
        )

    async def test_session_belongs_to_its_container(self, runtime: LocalRuntime) -> None:
        def session(name: str) -> tuple[str, str]:
            return ("X-Amzn-SageMaker-Session-Id", name)

        answer = await ask(runtime, "pair", hostname("second"), session("NEW_SESSION"))
        name = answer.headers["x-amzn-sagemaker-new-session-id"].partition(";")[0]
        assert (await ask(runtime, "pair", session(name))).body == b"two None None"
        assert (await ask(runtime, "pair", session(name), hostname("second"))).status == 200
        message, _ = rejection(await ask(runtime, "pair", session(name), hostname("first")))
        assert message == f"Session {name} of Endpoint pair belongs to another target."

    async def test_containers_are_started_and_stopped(self) -> None:
        one, two = InProcessContainer(), InProcessContainer()
        async with local_runtime({"pair": MultiContainer({"first": one, "second": two})}) as runtime:
            assert one.running
            assert two.running
            assert (await ask(runtime, "pair", hostname("second"))).status == 200
        assert (len(one.received), len(two.received)) == (0, 1)
        assert not one.running
        assert not two.running


class TestConfiguration:
    @pytest.mark.parametrize(
        ("containers", "message"),
        [
            ({}, "1 to 15 containers; got 0"),
            ({f"c{number}": container("") for number in range(16)}, "1 to 15 containers; got 16"),
            ({"no_underscores": container("")}, "invalid container hostname 'no_underscores'"),
            ({"c" * 64: container("")}, "invalid container hostname"),
        ],
    )
    def test_invalid_containers(self, containers: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            MultiContainer(containers)

    @pytest.mark.parametrize(
        ("endpoint", "reason"),
        [
            ({"variants": [ProductionVariant(MultiContainer({"first": container("")}))]}, "several containers"),
            ({"variants": [ProductionVariant(container(""))], "multi_model": True}, "several models"),
            ({"inference_components": [InferenceComponent(container(""), "adapter")]}, "inference components"),
        ],
    )
    def test_asynchronous_endpoints_have_one_target(self, endpoint: dict[str, Any], reason: str) -> None:
        storage = ObjectStorage(endpoint_url="http://127.0.0.1:1", credentials=ACCEPTED, buckets=["results"])
        configuration = EndpointConfiguration(**endpoint, async_inference=AsyncInferenceConfig("s3://results"))
        with pytest.raises(ConfigurationError, match=f"endpoint later has {reason} and cannot be asynchronous"):
            local_runtime({"later": configuration}, object_storage=storage)

    def test_inference_component_has_one_container(self) -> None:
        component: Any = InferenceComponent(MultiContainer({"first": container("")}), "adapter")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="got MultiContainer"):
            local_runtime({"shared": EndpointConfiguration(inference_components=[component])})
