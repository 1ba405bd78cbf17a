"""What a caller may pass: values that only look unusual get through whole, and senseless ones get a clear error."""

import enum
from typing import Any

from aiosmrt import Client
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
