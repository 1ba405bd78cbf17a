"""A raw server, and clients for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import aiosmrt
from tests.support.clients import MakeClient
from tests.support.peers import CLIENT_ARGUMENTS, REGION, isolate_aws
from tests.support.probes import Pauses, shorten_probe_pauses
from tests.support.raw_server import RawServer


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS setting of the machine reaches a test."""
    isolate_aws(monkeypatch, tmp_path)


@pytest.fixture(autouse=True)
def short_probe_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled pause is the same whatever its length."""
    shorten_probe_pauses(monkeypatch)


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with RawServer() as server:
        yield server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run everything on both transports."""
    metafunc.fixturenames.insert(0, "transport_name")  # before the fixtures that make clients
    metafunc.parametrize("transport_name", ["pooled", "session"], indirect=True)


@pytest.fixture
async def make_client(server: RawServer) -> AsyncIterator[MakeClient]:
    """Makes clients of the server, with `Pauses`; closes them at the end."""
    clients = []

    def make(**arguments: Any) -> aiosmrt.Client:
        chosen = {"region_name": REGION} if "credentials" in arguments else CLIENT_ARGUMENTS
        client = aiosmrt.Client(**{"endpoint_url": server.url, **chosen, **arguments})
        Pauses(client)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()
