"""Options and fixtures of every test."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from aiosmrt._transport.factory import TransportName
from tests.support import raw_server
from tests.support.seams import set_default_transport
from tests.support.virtual_time import VirtualTime

pytest_plugins = ["tests.support.seaweed"]

# How long an example takes depends on the machine's load more than on the code.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--transport",
        choices=["pooled", "session"],
        help="transport of clients that name none; the tests of the client, of cancellation and of the transports "
        "run on both anyway",
    )
    parser.addoption(
        "--eager",
        action="store_true",
        help="run every event loop with asyncio.eager_task_factory (Python 3.12 or newer)",
    )


@pytest.fixture(autouse=True)
def transport_option(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply ``--transport``; the pooled transport is the default wherever it can do what a client asks for."""
    if request.config.getoption("--transport") == "session":
        set_default_transport(monkeypatch, "session")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--eager"):
        if sys.version_info < (3, 12):
            raise pytest.UsageError("--eager needs Python 3.12 or newer")
        make_loops_eager()


def make_loops_eager() -> None:
    """Have every new event loop start its tasks eagerly, in fixtures, tests and asyncio.run()."""
    loop_class: Any = asyncio.BaseEventLoop
    init = loop_class.__init__

    def eager_init(loop: Any) -> None:
        init(loop)
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]

    loop_class.__init__ = eager_init


@pytest.fixture
def transport_name(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, transport_option: None
) -> TransportName:
    """The transport of a test's clients that name none: a parameter of the test."""
    name: TransportName = request.param
    set_default_transport(monkeypatch, "session" if name == "session" else None)
    return name


@pytest.fixture
async def plain_tasks() -> None:
    """Tasks that begin in the loop's next turn, also with ``--eager``, for tests that count turns."""
    asyncio.get_running_loop().set_task_factory(None)


@pytest.fixture
async def virtual_time() -> AsyncIterator[VirtualTime]:
    """The running loop's time, which stands still until the test lets it pass."""
    time = VirtualTime()
    with time.drive_loop():
        yield time


@pytest.fixture
def refusing_url() -> Iterator[str]:
    """The URL of a port on which nothing listens."""
    with raw_server.refusing_url() as url:
        yield url


@pytest.fixture
def busy_url() -> Iterator[str]:
    """The URL of a listener whose queue is full, so that no connection to it is ever made."""
    with raw_server.busy_listener() as url:
        yield url
