"""Which transport a client gets, and what happens when aiohttp is not what the fast one leans on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aioresponses import aioresponses

from aiosmrt import Client, ParamValidationError
from aiosmrt._transport import pooled
from aiosmrt._transport.aiohttp_session.transport import SessionTransport
from aiosmrt._transport.factory import create_transport
from aiosmrt._transport.pooled import PooledTransport, UnsupportedError, check_aiohttp
from aiosmrt.errors import InvalidConfigError
from tests.support.peers import CLIENT_ARGUMENTS, isolate_aws
from tests.support.recording_server import RecordingServer, respond
from tests.support.seams import set_default_transport

NOTHING: dict[str, Any] = {"session": None, "verify": True, "proxy": None}


@pytest.fixture(autouse=True)
def forgetful_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The check of aiohttp is made once per process: here anew in each test."""
    isolate_aws(monkeypatch, tmp_path)
    check_aiohttp.cache_clear()
    yield
    check_aiohttp.cache_clear()


def test_the_installed_aiohttp_has_what_the_pooled_transport_needs() -> None:
    """A failure means that aiohttp has changed; clients take `SessionTransport` until the pooled one is adapted."""
    check_aiohttp()


async def test_the_pooled_one_is_the_default() -> None:
    for name in (None, "pooled"):
        transport = await create_transport(name, "http://127.0.0.1:9", **NOTHING)  # type: ignore[arg-type]
        assert isinstance(transport, PooledTransport)
        await transport.close()


async def test_what_needs_a_session_gets_one() -> None:
    async with aiohttp.ClientSession() as session:
        for name, arguments in (
            ("session", {}),
            (None, {"session": session}),
            ("session", {"session": session}),
            (None, {"proxy": "http://127.0.0.1:9"}),
            ("session", {"proxy": "http://127.0.0.1:9"}),
        ):
            transport = await create_transport(name, "http://127.0.0.1:9", **(NOTHING | arguments))  # type: ignore[arg-type]
            assert isinstance(transport, SessionTransport)
            await transport.close()


async def test_what_the_pooled_one_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ParamValidationError, match="does not accept a session"):
            Client(transport="pooled", session=session)
    with pytest.raises(ParamValidationError, match="'pooled', 'session' or None"):
        Client(transport="fast")  # type: ignore[arg-type]
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    client = Client(endpoint_url="http://sagemaker.invalid", transport="pooled", **CLIENT_ARGUMENTS)
    with pytest.raises(InvalidConfigError, match="does not support proxies"):
        await client.invoke_endpoint(EndpointName="e", Body=b"")
    await client.close()


class OtherConnector(aiohttp.TCPConnector):
    """As a release of aiohttp might have it that finds out about proxies elsewhere."""

    async def connect(self, request: Any, *, timeout: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError


def without_middlewares(signature: Any) -> Any:
    def look(function: Any) -> inspect.Signature:
        found: inspect.Signature = signature(function)
        if function is aiohttp.ClientSession.__init__:
            found = found.replace(parameters=[p for p in found.parameters.values() if p.name != "middlewares"])
        return found

    return look


@pytest.mark.parametrize("missing", ["connect", "middlewares", "transport", "close"])
async def test_another_aiohttp_gives_a_warning_and_the_slower_transport(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = missing
    if missing == "connect":
        monkeypatch.setattr(aiohttp.TCPConnector, "connect", OtherConnector.connect)
        what = r"TCPConnector.connect\(req, traces, timeout\)"
    elif missing == "middlewares":
        monkeypatch.setattr(inspect, "signature", without_middlewares(inspect.signature))
    else:
        monkeypatch.delattr(pooled.Lease, missing)
    with pytest.raises(UnsupportedError, match=rf"aiohttp [0-9.]+ lacks .*{what}"):
        check_aiohttp()
    with pytest.warns(RuntimeWarning, match=f"{what}.*: falling back to transport='session'"):
        transport = await create_transport(None, "http://127.0.0.1:9", **NOTHING)
    assert isinstance(transport, SessionTransport)
    monkeypatch.undo()
    await transport.close()


async def test_a_client_goes_on_with_another_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks() -> None:
        raise UnsupportedError("aiohttp 9.9 lacks everything")

    monkeypatch.setattr(pooled, "check_aiohttp", lacks)
    set_default_transport(monkeypatch, None)
    async with (
        RecordingServer(respond(200, b"0.5", [])) as server,
        Client(endpoint_url=server.url, transport=None, **CLIENT_ARGUMENTS) as client,
    ):
        with pytest.warns(RuntimeWarning, match="aiohttp 9.9 lacks everything"):
            response = await client.invoke_endpoint(EndpointName="e", Body=b"1")
        assert await response["Body"].read() == b"0.5"
        await client.invoke_endpoint(EndpointName="e", Body=b"1")


async def test_a_session_that_somebody_has_replaced_is_used() -> None:
    """aioresponses and its like put themselves in the place of every session's requests."""
    with aioresponses(), pytest.warns(RuntimeWarning, match="does not call its middlewares"):
        transport = await create_transport(None, "http://127.0.0.1:9", **NOTHING)
    assert isinstance(transport, SessionTransport)
    await transport.close()
