"""A local runtime with models that count what they are asked, and jobs on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiosmrt import Client
from aiosmrt.local import LocalRuntime
from tests.support.peers import CLIENT_ARGUMENTS, isolate_aws
from tests.support.runtime import local_runtime
from tests.support.scoring import Models


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS setting of the machine reaches a test."""
    isolate_aws(monkeypatch, tmp_path)


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
async def runtime(models: Models) -> AsyncIterator[LocalRuntime]:
    async with local_runtime({"double": models.double, "echo": models.echo}, record_bodies=True) as running:
        yield running


@pytest.fixture
async def client(runtime: LocalRuntime) -> AsyncIterator[Client]:
    async with Client(endpoint_url=runtime.url, max_concurrency=8, **CLIENT_ARGUMENTS) as client:
        yield client
