"""The command line against a local runtime."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiosmrt.local import ContainerFailure, Credentials, Invocation, LocalRuntime
from tests.support.command_line import PROGRAM, Cli, Ended, environment, run
from tests.support.peers import CREDENTIALS, REGION


async def echo(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
    headers = {"Content-Type": invocation.content_type or "application/octet-stream"}
    if invocation.custom_attributes is not None:
        headers["X-Amzn-SageMaker-Custom-Attributes"] = invocation.custom_attributes
    return invocation.body, headers


async def parts(invocation: Invocation) -> AsyncIterator[bytes]:
    for word in invocation.body.split():
        yield word


async def failing(invocation: Invocation) -> bytes:
    raise ContainerFailure(500, "out of\nmemory")


@pytest.fixture
async def runtime() -> AsyncIterator[LocalRuntime]:
    credentials = Credentials(CREDENTIALS.access_key, CREDENTIALS.secret_key)
    endpoints: dict[str, Any] = {"echo": echo, "parts": parts, "failing": failing}
    async with LocalRuntime(endpoints, credentials=credentials, region=REGION, record_bodies=True) as runtime:
        yield runtime


@pytest.fixture
def cli(runtime: LocalRuntime, tmp_path: Path) -> Cli:
    """Run `aiosmrt` against the runtime in a temporary folder."""

    async def call(*arguments: str, stdin: bytes = b"", **variables: str) -> Ended:
        variables.setdefault("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", runtime.url)
        return await run(*PROGRAM, *arguments, env=environment(tmp_path, **variables), stdin=stdin, cwd=tmp_path)

    return call
