"""What holds for every test."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from aiosmrt import Client

pytest_plugins = ["tests.support.seaweed"]

# How long an example takes says more about the machine's load than about the code.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--transport",
        choices=["pooled", "session"],
        help="what carries the calls of clients that do not say it themselves; "
        "the tests of the client, of cancellation and of the transports run on both anyway",
    )
    parser.addoption(
        "--eager",
        action="store_true",
        help="run every event loop with asyncio.eager_task_factory (Python 3.12 or newer)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--transport") == "session":
        client_defaults()["transport"] = "session"
    if config.getoption("--eager"):
        if sys.version_info < (3, 12):
            raise pytest.UsageError("--eager needs Python 3.12 or newer")
        make_loops_eager()


def make_loops_eager() -> None:
    """Have every new event loop start its tasks eagerly, whoever creates it: a fixture, a test or asyncio.run()."""
    loop_class: Any = asyncio.BaseEventLoop
    init = loop_class.__init__

    def eager_init(loop: Any) -> None:
        init(loop)
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]

    loop_class.__init__ = eager_init


def client_defaults() -> dict[str, Any]:
    """The defaults of a client's arguments, to be changed; ``transport`` is the pooled one wherever that will do."""
    defaults: dict[str, Any] = Client.__init__.__kwdefaults__
    assert "transport" in defaults
    return defaults


@pytest.fixture
def transport_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What carries the calls of all clients that the test makes, unless they say it themselves."""
    name: str = request.param
    monkeypatch.setitem(client_defaults(), "transport", None if name == "pooled" else name)
    return name
