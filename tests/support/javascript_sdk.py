"""AWS's JavaScript client, run in its own process and driven over its standard input and output.

The protocol is described at the top of `tests/conformance/js/harness.mjs`.
"""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

JAVASCRIPT_DIRECTORY = Path(__file__).parent.parent / "conformance" / "js"


class JavaScriptError(Exception):
    """The JavaScript client rejected; `details` are the error's properties by name."""

    def __init__(self, details: dict[str, Any]) -> None:
        super().__init__(f"{details['name']}: {details.get('message')}")
        self.name: str = details["name"]
        self.details = details


def _encode(value: object) -> object:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _decode(value: Any) -> Any:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) and set(value) == {"base64"} else value


@dataclass(slots=True)
class JavaScriptCall:
    """One call under way; its events in the order in which the client handed them over."""

    number: int
    events: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)

    async def _next(self) -> dict[str, Any]:
        event = await self.events.get()
        if event["event"] == "error":
            raise JavaScriptError(event["error"])
        return event

    async def output(self) -> dict[str, Any]:
        event = await self._next()
        assert event["event"] == "output", event
        return {name: _decode(value) for name, value in event["output"].items()}

    async def part(self) -> bytes | None:
        """The next PayloadPart's bytes; None at the stream's end."""
        event = await self._next()
        if event["event"] == "end":
            return None
        assert event["event"] == "part", event
        return base64.b64decode(event["bytes"])


@dataclass(slots=True)
class JavaScriptClient:
    """A running harness with one configured client."""

    _stdin: asyncio.StreamWriter
    _calls: dict[int, JavaScriptCall] = field(default_factory=dict)

    def start(self, operation: str, **members: Any) -> JavaScriptCall:
        call = JavaScriptCall(len(self._calls))
        self._calls[call.number] = call
        wire = {name: _encode(value) for name, value in members.items()}
        self._write({"id": call.number, "operation": operation, "input": wire})
        return call

    async def call(self, operation: str, **members: Any) -> dict[str, Any]:
        return await self.start(operation, **members).output()

    def cancel(self, call: JavaScriptCall) -> None:
        self._write({"cancel": call.number})

    def _write(self, line: Mapping[str, object]) -> None:
        self._stdin.write(json.dumps(line).encode() + b"\n")

    async def _dispatch(self, stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            event = json.loads(line)
            self._calls[event["id"]].events.put_nowait(event)
        # The process ended, so no call may wait for it any longer.
        for call in self._calls.values():
            call.events.put_nowait({"event": "error", "error": {"name": "HarnessEnded"}})


@asynccontextmanager
async def javascript_client(
    node: str, *, endpoint: str, region: str, environment: Mapping[str, str], **config: Any
) -> AsyncIterator[JavaScriptClient]:
    """Start the harness; `environment` holds the AWS variables and nothing else of ours is passed on but PATH."""
    process = await asyncio.create_subprocess_exec(
        node,
        str(JAVASCRIPT_DIRECTORY / "harness.mjs"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED": "true", **environment},
        limit=1 << 26,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    client = JavaScriptClient(process.stdin)
    client._write({"endpoint": endpoint, "region": region, **config})
    dispatch = asyncio.create_task(client._dispatch(process.stdout))
    try:
        yield client
        process.stdin.close()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await dispatch
        process.stdin.close()
