"""Answers that contradict the service model still become typed errors."""

from typing import Any

import pytest

from aiosmrt import Client, ModelError
from tests.support.recording_server import RecordingServer, respond

CALL: dict[str, Any] = {"EndpointName": "e", "Body": b"1,2"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (b"503", 503),
        (b'"503"', 503),
        (b"null", None),
        (b"[1]", None),
        (b'{"a": 1}', None),
        (b'"busy"', None),
        (b"NaN", None),
        (b"Infinity", None),
        (b"1e999", None),
    ],
)
async def test_an_original_status_code_of_any_kind(
    client: Client, server: RecordingServer, status: bytes, expected: int | None
) -> None:
    body = b'{"Message": "m", "OriginalStatusCode": %b}' % status
    server.answer = respond(424, body, [("x-amzn-errortype", "ModelError")])
    with pytest.raises(ModelError) as caught:
        await client.invoke_endpoint(**CALL)
    assert caught.value.original_status_code == expected
