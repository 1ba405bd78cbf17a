"""What a caller may pass: unusual values arrive intact, and invalid ones raise a clear error."""

import asyncio
import copy
import enum
import io
import math
import re
import threading
from typing import Any

import botocore.exceptions
import botocore.session
import pytest

from aiosmrt import Client, ParamValidationError, RetryPolicy, errors
from aiosmrt.serializers import BYTES
from tests.support.clients import MakeClient
from tests.support.peers import CLIENT_ARGUMENTS, CREDENTIALS
from tests.support.recording_server import RecordingServer, respond
from tests.support.signatures import verify_signature

CALL: dict[str, Any] = {"EndpointName": "e", "Body": b"1,2"}


class Name(str, enum.Enum):  # noqa: UP042 (a StrEnum prints as its value; this one does not)
    CHURN = "churn-1"


class Seconds(int, enum.Enum):
    MINUTE = 60


async def test_members_of_an_enumeration_travel_as_their_values(client: Client, server: RecordingServer) -> None:
    await client.invoke_endpoint(EndpointName=Name.CHURN, Body=b"", TargetVariant=Name.CHURN, InferenceId=Name.CHURN)
    assert server.last.path == "/endpoints/churn-1/invocations"
    assert server.last.header("X-Amzn-SageMaker-Target-Variant") == "churn-1"
    assert server.last.header("X-Amzn-SageMaker-Inference-Id") == "churn-1"
    verify_signature(server.last, CREDENTIALS.secret_key)
    assert list(client.statistics().endpoints) == ["churn-1"]

    server.answer = respond(202, b"{}")
    await client.invoke_endpoint_async(EndpointName="e", Body=b"", RequestTTLSeconds=Seconds.MINUTE)
    assert server.last.header("X-Amzn-SageMaker-RequestTTLSeconds") == "60"


# Times


@pytest.mark.parametrize("name", ["connect_timeout", "read_timeout", "deadline"])
@pytest.mark.parametrize("value", [0, -1, True, "5", math.inf, math.nan])
def test_invalid_timeouts(name: str, value: Any) -> None:
    with pytest.raises(ParamValidationError, match=name):
        Client("eu-central-1", **{name: value})


async def test_very_long_timeouts(make_client: MakeClient, server: RecordingServer) -> None:
    client = make_client(deadline=1e12, read_timeout=1e12, connect_timeout=1e12)
    await client.invoke_endpoint(**CALL)
    assert server.last.header("amz-sdk-request") == "attempt=1"


# Bodies


class AsynchronousFile:
    def seekable(self) -> bool:
        return True

    async def read(self, size: int = -1) -> bytes:
        return b""


class FileWithNothing(io.RawIOBase):
    """As a raw file that would block."""

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> Any:
        return b"" if size == 0 else None


@pytest.mark.parametrize("body", ["\ud800", AsynchronousFile(), FileWithNothing()], ids=["str", "async", "nothing"])
async def test_bodies_that_yield_no_bytes(client: Client, server: RecordingServer, body: Any) -> None:
    with pytest.raises(ParamValidationError, match="Body"):
        await client.invoke_endpoint(EndpointName="e", Body=body)
    assert server.requests == []


async def test_a_client_closed_while_it_reads_a_file_has_no_thread_left(
    client: Client, server: RecordingServer
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    class SlowFile(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if size != 0:
                reading.set()
                assert go_on.wait(10)
            return super().read(size)

    await client.invoke_endpoint(**CALL)
    call = asyncio.create_task(client.invoke_endpoint(EndpointName="e", Body=SlowFile(bytes(1_000_000))))
    await asyncio.to_thread(reading.wait, 10)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("aiosmrt")]
    await client.close()
    go_on.set()
    with pytest.raises(errors.ClientStateError, match="closed"):
        await call
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("aiosmrt")]
    assert len(server.requests) == 1


# The client's own


@pytest.mark.parametrize("verify", [None, 0, 1, b"x", "", 1.5])
def test_invalid_verify(verify: Any) -> None:
    with pytest.raises(ParamValidationError, match="verify"):
        Client("eu-central-1", verify=verify)


@pytest.mark.parametrize("extra", [5, b"app/1", "app\n", "größe"])
def test_user_agent_extra_that_cannot_be_sent(extra: Any) -> None:
    with pytest.raises(ParamValidationError, match="user_agent_extra"):
        Client("eu-central-1", user_agent_extra=extra)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("region_name", 5),
        ("endpoint_url", b"http://127.0.0.1"),
        ("profile_name", 5),
        ("aws_access_key_id", b"AKIDEXAMPLE"),
        ("aws_secret_access_key", 123454321),
        ("aws_session_token", 123454321),
        ("use_fips_endpoint", "false"),
        ("use_dualstack_endpoint", 0),
        ("sign", "no"),
        ("sign", None),
        ("observers", print),
        ("observers", [None]),
        ("retry", None),
    ],
)
def test_arguments_of_the_wrong_type(name: str, value: Any) -> None:
    with pytest.raises(ParamValidationError, match=name) as caught:
        Client(**{name: value})
    assert "123454321" not in str(caught.value)
    if name in ("sign", "observers", "retry"):
        with pytest.raises(ParamValidationError, match=name):
            Client("eu-central-1").with_options(**{name: value})


def test_a_fips_pseudo_region_is_its_region_in_meta() -> None:
    from botocore.session import get_session

    theirs = get_session().create_client("sagemaker-runtime", "fips-us-east-1")
    ours = Client("fips-us-east-1")
    assert (ours.meta.region_name, ours.meta.endpoint_url) == (theirs.meta.region_name, theirs.meta.endpoint_url)


async def test_parameters_must_be_a_mapping(client: Client, server: RecordingServer) -> None:
    wrong: list[Any] = [[], "EndpointName", 5]
    for params in wrong:
        with pytest.raises(ParamValidationError, match="mapping"):
            await client.make_request("InvokeEndpoint", params)
        with pytest.raises(ParamValidationError, match="mapping"):
            await client.generate_presigned_url("invoke_endpoint", params)
    assert server.requests == []


async def test_the_applications_id(make_client: MakeClient, server: RecordingServer, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_SDK_UA_APP_ID", "batch scoring\r\nX: y")
    client = make_client(user_agent_extra="extra/1")
    for caller in (client, client.with_options(user_agent_extra=None)):
        await caller.invoke_endpoint(**CALL)
        assert "app/batch-scoring--X--y" in str(server.last.header("User-Agent")).split(" ")
        assert server.last.header("X") is None


async def test_signing_without_a_region(server: RecordingServer) -> None:
    keys = {name: value for name, value in CLIENT_ARGUMENTS.items() if name != "region_name"}
    async with Client(endpoint_url=server.url, sign=False, **keys) as client:
        await client.invoke_endpoint(**CALL)
        with pytest.raises(errors.NoRegionError) as caught:
            await client.with_options(sign=True).invoke_endpoint(**CALL)
        assert caught.value.attempts == 0
        with pytest.raises(errors.NoRegionError):
            await client.generate_presigned_url("invoke_endpoint", CALL)
    assert len(server.requests) == 1


# Retries


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_attempts", 0),
        ("max_attempts", True),
        ("max_attempts", "3"),
        ("base_delay", "0.05"),
        ("base_delay", 10**400),
        ("throttling_base_delay", -1),
        ("max_delay", math.nan),
        ("base_delay", math.inf),
        ("base_delay", math.nan),
        ("retry_model_statuses", 503),
        ("retry_model_statuses", {"503"}),
        ("retry_read_timeouts", "False"),
        ("retry_read_timeouts", None),
        ("retry_stale_connections", 0),
        ("retry_stale_connections", None),
    ],
)
def test_invalid_retry_policies(name: str, value: Any) -> None:
    with pytest.raises(ParamValidationError, match=name):
        RetryPolicy(**{name: value})


def test_stale_connections_are_replaced_unless_the_policy_says_otherwise() -> None:
    assert RetryPolicy().retry_stale_connections
    assert not RetryPolicy(retry_stale_connections=False).retry_stale_connections


def test_statuses_of_a_retry_policy_stay_as_they_were_given() -> None:
    statuses = {429, 503}
    policy = RetryPolicy(retry_model_statuses=statuses)
    statuses.clear()
    assert policy == RetryPolicy(retry_model_statuses=frozenset({429, 503}))
    assert hash(policy) == hash(RetryPolicy(retry_model_statuses={503, 429}))


HUGE = 10**6000
"""More digits than Python prints."""


@pytest.mark.parametrize(
    "arguments",
    [{"patience": -HUGE}, {"max_waiting": -HUGE}, {"max_response_bytes": -HUGE}, {"sign": HUGE}, {"deadline": HUGE}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_numbers_that_python_does_not_print(arguments: dict[str, Any]) -> None:
    with pytest.raises(ParamValidationError, match=next(iter(arguments))):
        Client("eu-central-1", **arguments)


async def test_members_that_python_does_not_print() -> None:
    async with Client("eu-central-1", aws_access_key_id="AKID", aws_secret_access_key="secret") as client:
        with pytest.raises(ParamValidationError, match="RequestTTLSeconds"):
            await client.invoke_endpoint_async(
                EndpointName="e", InputLocation="s3://bucket/key", RequestTTLSeconds=HUGE
            )
        with pytest.raises(ParamValidationError, match="ExpiresIn"):
            await client.generate_presigned_url("invoke_endpoint", {"EndpointName": "e", "Body": b""}, HUGE)


@pytest.mark.parametrize(
    ("call", "faults"),
    [
        (
            lambda client: client.invoke_endpoint_with_bidirectional_stream(),
            ['Missing required parameter in input: "Endp'],
        ),
        (
            lambda client: client.invoke_endpoint_with_bidirectional_stream(Bogus=1, max_resend_bytes=-1),
            ["max_resend_bytes must be", 'Unknown parameter in input: "Bogus"', "Missing required parameter"],
        ),
        (
            lambda client: client.endpoint("e", serializer=BYTES, deserializer=BYTES).map([], bogus=1, other=2),
            ["unexpected keyword argument 'bogus'", "unexpected keyword argument 'other'"],
        ),
    ],
)
async def test_every_name_that_is_missing_or_unknown_is_reported(
    make_client: MakeClient, call: Any, faults: list[str]
) -> None:
    with pytest.raises(botocore.exceptions.ParamValidationError) as caught:
        call(make_client())
    assert isinstance(caught.value, TypeError)
    assert [fault.startswith(start) for fault, start in zip(caught.value.faults, faults, strict=True)] == [True] * len(
        faults
    )


@pytest.mark.parametrize(
    ("member", "value", "shown"),
    [
        ("EndpointName", 5, " value: 5,"),
        ("TargetVariant", True, " value: True,"),
        ("EndpointName", b"secret", ""),
        ("ContentType", ["secret"], ""),
        ("CustomAttributes", 5, ""),
    ],
)
async def test_a_member_of_the_wrong_type_is_a_type_error(
    make_client: MakeClient, server: RecordingServer, member: str, value: Any, shown: str
) -> None:
    """In botocore's words; what may be a payload in the wrong place is not quoted."""
    with pytest.raises(TypeError) as caught:
        await make_client().invoke_endpoint(**{**CALL, member: value})
    assert isinstance(caught.value, botocore.exceptions.ParamValidationError)
    assert str(caught.value).splitlines()[1:] == [
        f"Invalid type for parameter {member},{shown} type: {type(value)}, valid types: <class 'str'>"
    ]
    assert server.requests == []


@pytest.mark.parametrize("method", ["invoke_endpont", ["x"], None])
async def test_a_url_for_an_unknown_method(make_client: MakeClient, method: Any) -> None:
    with pytest.raises(botocore.exceptions.UnknownClientMethodError, match="Client does not have method") as caught:
        await make_client().generate_presigned_url(method, CALL)
    assert isinstance(caught.value, ParamValidationError)


async def test_an_unknown_exception_names_those_that_exist(make_client: MakeClient) -> None:
    exceptions: Any = make_client().exceptions
    with pytest.raises(AttributeError, match=r"'Nope'; valid exceptions are: ClientError, .*ModelError, ") as caught:
        exceptions.Nope  # noqa: B018
    named = str(caught.value).partition("are: ")[2].split(", ")
    assert [name for name in named if not issubclass(getattr(exceptions, name), Exception)] == []


async def test_the_service_model_is_all_of_botocores(make_client: MakeClient) -> None:
    model: Any = make_client().meta.service_model
    peer: Any = botocore.session.get_session().get_service_model("sagemaker-runtime")
    assert model.metadata == peer.metadata
    members = model.operation_model("InvokeEndpoint").input_shape.members
    assert list(members) == list(peer.operation_model("InvokeEndpoint").input_shape.members)
    assert [name for name in dir(peer) if not (name.startswith("_") or hasattr(model, name))] == []
    assert copy.copy(model) == model


@pytest.mark.parametrize("params", [{}, {"InputLocation": None}, {"Body": None}])
async def test_neither_body_nor_location(make_client: MakeClient, params: dict[str, Any]) -> None:
    """A missing member is a TypeError too, as that of a method of Python."""
    with pytest.raises(TypeError, match='Missing required parameter in input: "InputLocation" or "Body"') as caught:
        await make_client().invoke_endpoint_async(EndpointName="e", **params)
    assert isinstance(caught.value, botocore.exceptions.ParamValidationError)


@pytest.mark.parametrize(
    ("name", "alternative"),
    [
        ("events", "observers="),
        ("service_model.nonsense", "no attribute 'nonsense'"),
        ("config.proxies", "it has region_name, user_agent, connect_timeout"),
        ("nonsense", "no 'nonsense'"),
    ],
)
async def test_what_meta_lacks_names_an_alternative(make_client: MakeClient, name: str, alternative: str) -> None:
    found: Any = make_client().meta
    *above, last = name.split(".")
    for part in above:
        found = getattr(found, part)
    with pytest.raises(AttributeError, match=re.escape(alternative)):
        getattr(found, last)
