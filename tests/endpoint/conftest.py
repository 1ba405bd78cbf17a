"""A local runtime with the test's own models, and a client for it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from aiosmrt import Client
from aiosmrt.local import LocalRuntime
from tests.support.clients import Serve
from tests.support.peers import CLIENT_ARGUMENTS, isolate_aws
from tests.support.runtime import local_runtime


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS setting of the machine reaches a test."""
    isolate_aws(monkeypatch, tmp_path)


@pytest.fixture
async def running() -> AsyncIterator[list[LocalRuntime]]:
    """The runtimes that `serve` has started."""
    return []


@pytest.fixture
async def serve(running: list[LocalRuntime]) -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(
            client: dict[str, Any] | None = None, runtime: dict[str, Any] | None = None, **models: Any
        ) -> Client:
            served = await stack.enter_async_context(local_runtime(models, **(runtime or {})))
            running.append(served)
            return await stack.enter_async_context(
                Client(**{"endpoint_url": served.url, **CLIENT_ARGUMENTS, **(client or {})})
            )

        yield start
