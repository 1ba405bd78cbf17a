"""AWS's JavaScript core on the local runtime over HTTP/2: its signatures, which name :authority, and its GOAWAY."""

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from aiosmrt.local import LocalRuntime, faults
from tests.support.javascript_sdk import JAVASCRIPT_DIRECTORY
from tests.support.peers import CREDENTIALS, REGION
from tests.support.runtime import conversation, local_runtime
from tests.support.tls import authority_pem, server_context


class Talk:
    """Starts conversations, each in its own process."""

    def __init__(self, node: str, variables: dict[str, str], folder: Path) -> None:
        self.node = node
        self.variables = variables
        self.authorities = folder / "authority.pem"
        self.authorities.write_bytes(authority_pem())

    async def __call__(self, runtime: LocalRuntime, *steps: Any, **order: Any) -> dict[str, Any]:
        """What converse.mjs, which describes the steps, makes of a conversation."""
        process = await asyncio.create_subprocess_exec(
            self.node,
            str(JAVASCRIPT_DIRECTORY / "converse.mjs"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "NODE_EXTRA_CA_CERTS": str(self.authorities), **self.variables},
        )
        defaults = {"url": runtime.http2_url, "region": REGION, "endpoint": "echo", "steps": steps}
        try:
            output, _ = await process.communicate(json.dumps(defaults | order).encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        answer: dict[str, Any] = json.loads(output)
        return answer


@pytest.fixture
def talk(node: str, aws_variables: dict[str, str], tmp_path: Path) -> Talk:
    return Talk(node, aws_variables, tmp_path)


def _in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("tls", [True, False], ids=["TLS", "without TLS"])
async def test_a_conversation(tls: bool, talk: Talk) -> None:
    large = bytes(range(256)) * 1000
    context = server_context(protocol="h2") if tls else False
    async with local_runtime({"echo": conversation}, http2_port=0, http2_tls=context) as runtime:
        answer = await talk(
            runtime,
            # Each message leaves only after the answer to the one before: both directions are open at once.
            {"wait": 1},
            {"text": "héllo"},
            {"wait": 2},
            {"base64": _in_base64(large), "state": "PARTIAL"},
            {"wait": 3},
            {"text": "end", "state": "COMPLETE"},
            path="v1/listen",
            query="model=nova&rate=16000",
            variant="AllTraffic",
        )
        assert answer == {
            "variant": "AllTraffic",
            "status": 200,
            "parts": [
                [_in_base64(b"v1/listen model=nova&rate=16000"), "UTF8", "COMPLETE"],
                [_in_base64("héllo".encode()), "UTF8", "COMPLETE"],
                [_in_base64(large), "BINARY", "PARTIAL"],
                [_in_base64(b"end"), "UTF8", "COMPLETE"],
            ],
        }
        (record,) = await runtime.wait_for_requests(1)
        assert record.outcome == "answered"
        assert record.access_key_id == CREDENTIALS.access_key
        assert "aws-sdk-js" in (record.user_agent or "")


async def test_errors_are_what_its_schema_says(talk: Talk) -> None:
    async with local_runtime({"echo": conversation}, http2_port=0) as runtime:
        answer = await talk(runtime, {"text": "close"})
        assert (answer["status"], answer["error"], answer["message"]) == (200, "ModelStreamError", "tired")
        assert answer["code"] == "4000"
        runtime.inject("echo", faults.ModelFailure().next(1))
        answer = await talk(runtime, {"text": "x"})
        assert (answer["status"], answer["error"]) == (424, "ModelError")
        runtime.inject("echo", faults.ResetStream(after_parts=1).next(1))
        answer = await talk(runtime, {"text": "x"})
        assert "INTERNAL_ERROR" in answer["message"]


async def test_a_wrong_secret_is_refused(talk: Talk) -> None:
    talk.variables["AWS_SECRET_ACCESS_KEY"] = "another-fake-secret"
    async with local_runtime({"echo": conversation}, http2_port=0) as runtime:
        answer = await talk(runtime, {"text": "x"})
    assert (answer["status"], answer["error"]) == (403, "InvalidSignatureException")


async def test_goaway_ends_no_conversation_and_an_abort_does(talk: Talk) -> None:
    async with local_runtime({"echo": conversation}, http2_port=0) as runtime:
        runtime.inject("echo", faults.GoAway(after_parts=1).next(1))
        answer = await talk(runtime, {"wait": 1}, {"text": "one"}, {"wait": 2}, {"text": "two"})
        assert [part for part, *_ in answer["parts"][1:]] == [_in_base64(b"one"), _in_base64(b"two")]
        answer = await talk(runtime, {"wait": 1}, "abort")
        assert len(answer["parts"]) == 1
        assert [record.outcome for record in await runtime.wait_for_requests(2)] == ["answered", "disconnected"]
