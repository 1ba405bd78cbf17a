"""What a caller may pass: values that only look unusual get through whole, and senseless ones get a clear error."""

import enum
import io
import math
from typing import Any

import pytest

from aiosmrt import Client, ParamValidationError
from tests.client.conftest import MakeClient
from tests.support.peers import CREDENTIALS
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
def test_times_that_are_none(name: str, value: Any) -> None:
    with pytest.raises(ParamValidationError, match=name):
        Client("eu-central-1", **{name: value})


async def test_times_beyond_every_calendar(make_client: MakeClient, server: RecordingServer) -> None:
    client = make_client(deadline=1e12, read_timeout=1e12, connect_timeout=1e12)
    await client.invoke_endpoint(**CALL)
    assert server.last.header("amz-sdk-request") == "attempt=1; max=3"


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
async def test_bodies_that_give_no_bytes(client: Client, server: RecordingServer, body: Any) -> None:
    with pytest.raises(ParamValidationError, match="Body"):
        await client.invoke_endpoint(EndpointName="e", Body=body)
    assert server.requests == []
