"""A local runtime with models that count what they are asked, and jobs on it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aiosmrt import Client
from aiosmrt.local import ContainerFailure, Invocation, LocalRuntime
from tests.support.peers import CLIENT_ARGUMENTS, isolate_aws
from tests.support.runtime import local_runtime

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS setting of the machine reaches a test."""
    isolate_aws(monkeypatch, tmp_path)


class Models:
    """Models that count the bodies they are sent.

    Attributes:
        seen: how often each body came.
        refused: bodies that the model refuses.
    """

    def __init__(self) -> None:
        self.seen: Counter[bytes] = Counter()
        self.refused: set[bytes] = set()
        self.before: Callable[[bytes], Awaitable[object]] | None = None

    async def double(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        """Doubles the n of a JSON object."""
        body = invocation.body
        self.seen[body] += 1
        if self.before is not None:
            await self.before(body)
        if body in self.refused:
            raise ContainerFailure(400, "not this one")
        return json.dumps(2 * json.loads(body)["n"]).encode(), {"Content-Type": "application/json"}

    async def echo(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        self.seen[invocation.body] += 1
        return invocation.body, {"Content-Type": invocation.content_type or "application/octet-stream"}


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


def write_rows(path: Path, count: int) -> Path:
    path.write_text("".join(f'{{"n": {number}}}\n' for number in range(count)))
    return path


def lines_of(path: Path) -> Rows:
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def doubled(count: int) -> Rows:
    return [{"index": number, "value": 2 * number} for number in range(count)]
