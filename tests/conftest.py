"""Options and fixtures of every test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from aiosmrt._transport.choice import TransportName
from tests.support.raw_server import busy_listener
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


@pytest.fixture(autouse=True)
def transport_option(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply ``--transport``; the pooled transport is the default wherever it can do what a client asks for."""
    if request.config.getoption("--transport") == "session":
        set_default_transport(monkeypatch, "session")


@pytest.fixture
def transport_name(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, transport_option: None
) -> TransportName:
    """The transport of a test's clients that name none: a parameter of the test."""
    name: TransportName = request.param
    set_default_transport(monkeypatch, "session" if name == "session" else None)
    return name


@pytest.fixture
async def virtual_time() -> AsyncIterator[VirtualTime]:
    """The running loop's time, which stands still until the test lets it pass."""
    time = VirtualTime()
    with time.drive_loop():
        yield time


@pytest.fixture
def busy_url() -> Iterator[str]:
    """The URL of a listener whose queue is full, so that no connection to it is ever made."""
    with busy_listener() as url:
        yield url
