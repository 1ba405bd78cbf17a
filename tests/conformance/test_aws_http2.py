"""AWS's own client of bidirectional streams on the local runtime: TLS, signatures, messages, errors."""

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

from aiosmrt.local import faults
from tests.support.availability import unavailable
from tests.support.peers import REGION
from tests.support.runtime import conversation, local_runtime
from tests.support.tls import authority_pem, server_context

CLIENT = Path(__file__).with_name("aws_http2_client.py")
PYTHON = os.environ.get("AIOSMRT_TEST_HTTP2", "")


async def converse(runtime: Any, folder: Path, **order: Any) -> dict[str, Any]:
    """What AWS's client makes of a conversation."""
    if not Path(PYTHON).is_file():
        unavailable("AWS's client of bidirectional streams is not installed; `make peers` does that (Python 3.12)")
    authorities = folder / "authority.pem"
    authorities.write_bytes(authority_pem())
    process = await asyncio.create_subprocess_exec(
        PYTHON,
        str(CLIENT),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            **runtime.environment,
            "SSL_CERT_FILE": str(authorities),
        },
    )
    defaults = {"url": runtime.http2_url, "region": REGION, "endpoint": "echo", "messages": []}
    output, _ = await process.communicate(json.dumps(defaults | order).encode())
    answer: dict[str, Any] = json.loads(output)
    return answer


def _in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_a_conversation(tmp_path: Path) -> None:
    async with local_runtime({"echo": conversation}, http2_port=0, http2_tls=server_context(protocol="h2")) as runtime:
        answer = await converse(
            runtime,
            tmp_path,
            path="v1/listen",
            query="model=nova",
            messages=[{"text": "héllo"}, {"base64": _in_base64(bytes(100_000)), "state": "PARTIAL"}, {"text": "end"}],
        )
        assert answer == {
            "variant": "AllTraffic",
            "parts": [
                [_in_base64(b"v1/listen model=nova"), "UTF8", "COMPLETE"],
                [_in_base64("héllo".encode()), "UTF8", "COMPLETE"],
                [_in_base64(bytes(100_000)), "BINARY", "PARTIAL"],
                [_in_base64(b"end"), "UTF8", "COMPLETE"],
            ],
        }
        (record,) = await runtime.wait_for_requests(1)
        assert record.access_key_id == runtime.environment["AWS_ACCESS_KEY_ID"]
        assert record.outcome == "answered"


async def test_errors_are_what_its_model_says(tmp_path: Path) -> None:
    async with local_runtime({"echo": conversation}, http2_port=0, http2_tls=server_context(protocol="h2")) as runtime:
        answer = await converse(runtime, tmp_path, messages=[{"text": "close"}])
        assert answer == {"error": "ModelStreamError", "message": "tired"}
        runtime.inject("echo", faults.ModelFailure().next(1))
        answer = await converse(runtime, tmp_path, messages=[{"text": "x"}])
        assert answer["error"] == "ModelError"
