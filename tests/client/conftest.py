"""What the tests of the client share: a clean AWS environment, a recording server, and clients closed in the end."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from aiosmrt import Client
from tests.support.clients import MakeClient
from tests.support.peers import CLIENT_ARGUMENTS, isolate_aws
from tests.support.recording_server import RecordingServer

# What they are about has nothing to do with a transport.
ON_ONE_TRANSPORT = {"test_arguments", "test_construction", "test_log_setup"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the others on both."""
    if metafunc.module.__name__.rpartition(".")[2] not in ON_ONE_TRANSPORT:
        metafunc.fixturenames.insert(0, "transport_name")  # before the fixtures that make clients
        metafunc.parametrize("transport_name", ["pooled", "session"], indirect=True)


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS setting of the machine reaches a test."""
    isolate_aws(monkeypatch, tmp_path)


@pytest.fixture
async def server() -> AsyncIterator[RecordingServer]:
    """A server that answers every request with an empty 200 until a test sets another answer."""
    async with RecordingServer() as server:
        yield server


@pytest.fixture
async def make_client(server: RecordingServer) -> AsyncIterator[MakeClient]:
    """Makes clients of the server, with fake credentials and the constructor's other arguments."""
    async with AsyncExitStack() as stack:

        def make(**arguments: Any) -> Client:
            client = Client(**{"endpoint_url": server.url, **CLIENT_ARGUMENTS, **arguments})
            stack.push_async_callback(client.close)
            return client

        yield make


@pytest.fixture
async def client(make_client: MakeClient) -> Client:
    """A client with the default settings."""
    return make_client()
