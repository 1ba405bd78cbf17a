"""One call: request, answer, and errors."""

import asyncio
import json
import pickle
import threading
from dataclasses import dataclass, fields
from typing import Any

import pytest

from aiosmrt import Client
from aiosmrt.endpoint import Endpoint
from aiosmrt.errors import (
    AiosmrtError,
    DeadlineExceededError,
    DeserializationError,
    ModelError,
    ParamValidationError,
    SerializationError,
)
from aiosmrt.local import EndpointConfiguration, MultiContainer, ProductionVariant
from aiosmrt.local.backends import ContainerFailure
from aiosmrt.serializers import BYTES, CSV, JSON, TEXT
from tests.support.clients import Serve
from tests.support.runtime import echo
from tests.support.seams import limits_of


async def test_python_in_python_out(serve: Serve):
    async def model(invocation: Any) -> tuple[bytes, dict[str, str]]:
        rows = invocation.body.decode().splitlines()
        return json.dumps([len(row) for row in rows]).encode(), {"Content-Type": "application/json"}

    client = await serve(churn=model)
    assert await client.endpoint("churn", serializer=CSV, deserializer=JSON).predict([[1, 2, 3], ["ab", "c"]]) == [5, 4]


async def test_types_come_from_the_codecs_and_members_from_the_options(serve: Serve):
    seen = []

    async def model(invocation: Any) -> bytes:
        seen.append(invocation)
        return b"{}"

    client = await serve(churn=model)
    endpoint = client.endpoint("churn", serializer=TEXT, deserializer=JSON, custom_attributes="from=endpoint")
    await endpoint.predict("a", inference_id="42")
    await endpoint.predict("a", accept="text/csv", content_type="text/x-row", custom_attributes="from=call")
    await endpoint.predict("a", accept=None, custom_attributes=None)
    await endpoint.with_options(inference_id="43").predict("a")
    # aiohttp's session accepts any type by default
    accepted = [None if i.accept == "*/*" else i.accept for i in seen]
    assert [(i.content_type, a, i.custom_attributes, i.inference_id) for i, a in zip(seen, accepted, strict=True)] == [
        (TEXT.content_type, JSON.accept, "from=endpoint", "42"),
        ("text/x-row", "text/csv", "from=call", None),
        (TEXT.content_type, None, None, None),
        (TEXT.content_type, JSON.accept, "from=endpoint", "43"),
    ]


async def test_every_member_of_the_operation_is_an_option(serve: Serve):
    seen = []

    async def model(invocation: Any) -> bytes:
        seen.append(invocation)
        return b"{}"

    both = MultiContainer({"first": model, "second": model})
    client = await serve(churn=EndpointConfiguration([ProductionVariant(both)], multi_model=True))
    given = {
        "target_model": "a.tar.gz",
        "target_container_hostname": "second",
        "enable_explanations": "`true`",
        "prefix_aware_id": "prefix",
        "inference_id": "42",
    }
    await client.endpoint("churn", serializer=JSON, deserializer=JSON, **given).predict({})  # type: ignore[arg-type]
    (invocation,) = seen
    assert {name: getattr(invocation, name) for name in given} == given


async def test_invoke_returns_what_the_service_reports(serve: Serve):
    async def model(invocation: Any) -> tuple[bytes, dict[str, str]]:
        return b"[1]", {"Content-Type": "application/json", "X-Amzn-SageMaker-Custom-Attributes": "secret=1"}

    client = await serve(churn=model)
    inference = await client.endpoint("churn", serializer=JSON, deserializer=JSON).invoke([0])
    assert inference.value == [1]
    assert (inference.content_type, inference.variant, inference.attempts) == ("application/json", "AllTraffic", 1)
    assert inference.custom_attributes == "secret=1"
    assert inference.request_id
    assert 0 < inference.latency < 30
    assert "secret" not in repr(inference)
    assert "value" not in repr(inference)
    assert {field.name for field in fields(inference)} > {"value", "latency"}
    assert pickle.loads(pickle.dumps(inference)) == inference


@dataclass
class Failing:
    content_type: str = "application/x-failing"
    accept: str = "*/*"

    def serialize(self, data: object) -> bytes:
        raise SerializationError("not that")

    def deserialize(self, body: bytes, content_type: str) -> None:
        raise DeserializationError("not this")


async def test_data_that_cannot_be_serialized_is_not_sent(serve: Serve, running: list[Any]):
    client = await serve(churn=echo)
    with pytest.raises(SerializationError):
        await client.endpoint("churn", serializer=Failing(), deserializer=JSON).predict(1)
    with pytest.raises(SerializationError) as error:
        await client.endpoint("churn", serializer=JSON, deserializer=JSON).predict({"a": object()})
    assert "object at" not in str(error.value)
    assert (error.value.operation, error.value.endpoint_name) == ("InvokeEndpoint", "churn")
    assert running[0].statistics()["requests"] == 0
    assert client.statistics().in_use == 0


async def test_a_deserialization_error_has_the_request_id(serve: Serve):
    client = await serve(churn=echo)
    with pytest.raises(DeserializationError) as raised:
        await client.endpoint("churn", serializer=BYTES, deserializer=JSON, content_type="application/json").predict(
            b'{"patient": "jane'
        )
    error = raised.value
    assert (error.operation, error.endpoint_name, error.attempts) == ("InvokeEndpoint", "churn", 1)
    assert error.request_id
    assert "jane" not in f"{error!r} {error}"
    assert error.__cause__ is None
    assert error.__context__ is None


async def test_errors_of_the_service_are_the_clients(serve: Serve):
    async def model(invocation: Any) -> bytes:
        raise ContainerFailure(503, "loading")

    client = await serve(churn=model)
    with pytest.raises(ModelError) as error:
        await client.endpoint("churn", serializer=JSON, deserializer=JSON).predict({})
    assert (error.value.original_status_code, error.value.endpoint_name) == (503, "churn")


async def test_deadline(serve: Serve):
    async def model(invocation: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    client = await serve(churn=model, runtime={"drain_timeout": 0.01})
    for endpoint in (
        client.endpoint("churn", serializer=JSON, deserializer=JSON, deadline=0.05),
        client.endpoint("churn", serializer=JSON, deserializer=JSON).with_options(deadline=0.05),
    ):
        with pytest.raises(DeadlineExceededError):
            await endpoint.predict({})


async def test_the_deadline_covers_the_making_of_a_body(serve: Serve):
    """However small it is: a serializer may take its time."""

    async def model(invocation: Any) -> bytes:
        return b"{}"

    class Slow:
        content_type = "application/json"

        def serialize(self, data: Any) -> bytes:
            threading.Event().wait(0.2)
            return b"{}"

    client = await serve(churn=model)
    await client.endpoint("churn", serializer=Slow(), deserializer=JSON).predict({})
    with pytest.raises(DeadlineExceededError):
        await client.endpoint("churn", serializer=Slow(), deserializer=JSON, deadline=0.05).predict({})


def test_none_drops_a_setting():
    client = Client("eu-central-1", deadline=1.0, wait_for_capacity=2.0)
    plain = client.endpoint("churn", serializer=JSON, deserializer=JSON, upload_to="s3://bucket/in")
    without = plain.with_options(deadline=None, wait_for_capacity=None, upload_to=None)
    at_once = client.endpoint("churn", serializer=JSON, deserializer=JSON, deadline=None, wait_for_capacity=None)
    for endpoint, limits in (
        (plain, (1.0, 2.0)),
        (plain.with_options(accept="a/b"), (1.0, 2.0)),
        (without, (None, None)),
        (at_once, (None, None)),
    ):
        assert limits_of(endpoint) == limits
    assert (plain.with_options().upload_to, without.upload_to) == ("s3://bucket/in", None)


async def test_an_endpoint_shows_what_it_was_made_of() -> None:
    client = Client("eu-central-1")
    endpoint = client.endpoint("churn", serializer=CSV, deserializer=JSON, target_variant="blue")
    assert (endpoint.client, endpoint.serializer, endpoint.deserializer) == (client, CSV, JSON)
    assert endpoint.options == {"target_variant": "blue"}
    endpoint.options["target_variant"] = "green"
    assert endpoint.options == {"target_variant": "blue"}


async def test_large_bodies_are_coded_off_the_loop(serve: Serve):
    import threading

    where = []

    class Here:
        content_type = accept = "application/octet-stream"

        def serialize(self, data: bytes) -> bytes:
            where.append(threading.current_thread() is threading.main_thread())
            return data

        def deserialize(self, body: bytes, content_type: str) -> bytes:
            where.append(threading.current_thread() is threading.main_thread())
            return body

    client = await serve(churn=echo)
    endpoint = client.endpoint("churn", serializer=Here(), deserializer=Here())
    assert await endpoint.predict(b"small") == b"small"
    large = bytes(2**20)
    assert await endpoint.predict(large) == large
    assert where == [True, True, False, False]


@pytest.mark.parametrize("size", [10, 2**20])
async def test_a_codec_that_raises_stop_iteration_does_not_hang(serve: Serve, size: int):
    class Stopping:
        content_type = accept = "application/octet-stream"

        def serialize(self, data: bytes) -> bytes:
            return next(iter([]))

    client = await serve(churn=echo)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(
            client.endpoint("churn", serializer=Stopping(), deserializer=BYTES).predict(bytes(size)), 10
        )


def test_faulty_arguments_are_refused_at_once():
    client = Client("eu-central-1")
    with pytest.raises(ParamValidationError) as error:
        client.endpoint("churn", serializer=dict, deserializer=None)  # type: ignore[arg-type]
    assert len(error.value.faults) == 2
    for name in (None, "", 5):
        with pytest.raises(ParamValidationError, match="name"):
            client.endpoint(name, serializer=JSON, deserializer=JSON)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="targt_model"):
        client.endpoint("churn", serializer=JSON, deserializer=JSON, targt_model="a")  # type: ignore[call-arg]
    endpoint = client.endpoint("churn", serializer=JSON, deserializer=JSON)
    assert repr(endpoint).startswith("<Endpoint churn ")


async def test_a_member_of_another_operation_is_refused(serve: Serve, running: list[Any]):
    client = await serve(llm=echo)
    endpoint: Endpoint[Any, Any] = client.endpoint("llm", serializer=JSON, deserializer=JSON, target_model="a.tar.gz")
    with pytest.raises(ParamValidationError, match="TargetModel"):
        async with endpoint.stream({}):
            pass
    with pytest.raises(AiosmrtError):
        await endpoint.predict({}, target_variant="no spaces allowed")
    assert running[0].statistics()["requests"] == 0


async def test_half_an_emoji_is_sent_and_read(serve: Serve):
    """A message that was cut inside a surrogate pair is still JSON."""

    async def echo(invocation: Any) -> tuple[bytes, dict[str, str]]:
        return invocation.body, {"Content-Type": "application/json"}

    client = await serve(echo=echo)
    data = {"inputs": "hi \ud83d", "é": "naïve 😀"}
    assert await client.endpoint("echo", serializer=JSON, deserializer=JSON).predict(data) == data
