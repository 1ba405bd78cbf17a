"""Bearer tokens: what they are, how long they are kept, and where they are sent."""

import asyncio
import base64
import copy
import datetime
import logging
import pickle
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx2
import pytest
from aiohttp import web
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials

from aiosmrt import BearerToken, Client, ClientStateError, Credentials, ParamValidationError
from aiosmrt.errors import NoCredentialsError
from tests.support.peers import REGION
from tests.support.seams import expire_credentials, set_wall_clock

NOW = 1_800_000_000.0
KEYS = Credentials("AKIDEXAMPLE", "MARKsecret", token="MARK/session+token==")


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def client_of(credentials: Any, url: str | None = None) -> tuple[Client, Clock]:
    """A client with these credentials, and its clock."""
    clock = Clock()
    client = Client(REGION, credentials=credentials, endpoint_url=url)
    set_wall_clock(client, clock)
    return client, clock


def of_botocore(credentials: Credentials, expires_in: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The token as AWS's own package makes it, with botocore's signer."""
    monkeypatch.setattr(
        "botocore.auth.get_current_datetime",
        lambda *arguments, **named: datetime.datetime.fromtimestamp(NOW, datetime.UTC),
        raising=False,
    )
    request = AWSRequest(
        method="POST",
        url="https://sagemaker.amazonaws.com/",
        headers={"host": "sagemaker.amazonaws.com"},
        params={"Action": "CallWithBearerToken"},
    )
    keys = BotocoreCredentials(credentials.access_key, credentials.secret_key, credentials.token)
    SigV4QueryAuth(keys, "sagemaker", REGION, expires=expires_in).add_auth(request)
    url = request.url.replace("https://", "") + "&Version=1"
    return "sagemaker-api-key-" + base64.b64encode(url.encode()).decode()


@pytest.mark.parametrize("credentials", [KEYS, Credentials("AKIDEXAMPLE", "secret")], ids=["temporary", "lasting"])
async def test_token_is_botocores_to_the_byte(credentials: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    botocore_auth = pytest.importorskip("botocore.auth")
    if not hasattr(botocore_auth, "get_current_datetime"):
        pytest.skip("this botocore's clock cannot be set")
    client, _ = client_of(credentials)
    async with client:
        assert await client.bearer_token(expires_in=900)() == of_botocore(credentials, 900, monkeypatch)


async def test_token_is_kept_until_it_is_about_to_end() -> None:
    client, clock = client_of(KEYS)
    async with client:
        token = client.bearer_token(expires_in=900)
        first = await token()
        clock.now = NOW + 674
        assert await token() == first
        clock.now = NOW + 676  # a quarter of its life is left
        second = await token()
        assert second != first
        clock.now = NOW + 5  # the clock was set back
        assert await token() not in (first, second)


async def test_long_token_is_renewed_five_minutes_ahead() -> None:
    client, clock = client_of(KEYS)
    async with client:
        token = client.bearer_token(expires_in=43_200)
        first = await token()
        clock.now = NOW + 43_200 - 301
        assert await token() == first
        clock.now = NOW + 43_200 - 299
        assert await token() != first


async def test_token_ends_with_its_credentials() -> None:
    handed_out = []

    async def provide() -> Credentials:
        handed_out.append(Credentials(f"AKID{len(handed_out)}", "secret", expires_at=4_000_000_000.0))
        return handed_out[-1]

    client, clock = client_of(provide)
    async with client:
        token = client.bearer_token(expires_in=900)
        clock.now = 4_000_000_000.0 - 100
        first = await token()
        clock.now += 74
        assert await token() == first
        clock.now += 2
        assert await token() != first


async def test_token_follows_renewed_credentials() -> None:
    async def renew() -> Credentials:
        return Credentials("AKIDSECOND", "secret")

    client, _ = client_of(KEYS)
    async with client:
        token = client.bearer_token()
        first = await token()
        expire_credentials(client, renew)
        second = await token()
    assert [b"AKIDSECOND" in base64.b64decode(one.removeprefix("sagemaker-api-key-")) for one in (first, second)] == [
        False,
        True,
    ]


@pytest.mark.parametrize("expires_in", [0, -1, 43_201, 900.0, True, "900", None])
def test_life_is_out_of_range(expires_in: Any) -> None:
    with pytest.raises(ParamValidationError, match="expires_in must be 1 to 43200 whole seconds"):
        Client(REGION).bearer_token(expires_in=expires_in)


async def test_token_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing() -> Credentials:
        raise NoCredentialsError("Unable to locate credentials")

    async with Client(REGION, credentials=nothing) as client:
        with pytest.raises(NoCredentialsError):
            await client.bearer_token()()


async def test_token_of_a_closed_client() -> None:
    client, _ = client_of(KEYS)
    token = client.bearer_token()
    await token()
    await client.close()
    with pytest.raises(ClientStateError, match="closed"):
        await token()


async def test_token_is_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client, _ = client_of(KEYS)
    async with client:
        token = client.bearer_token()
        text = await token()
        shown = [repr(token), str(token), repr(token.httpx_auth()), caplog.text]
        assert not [one for one in shown if "MARK" in one or text[:60] in one]
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(token)
        with pytest.raises(TypeError, match="cannot be pickled"):
            copy.copy(token)


# Requests of other clients


class Hosts:
    """Two servers, of which the first redirects to the second."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.received: list[list[str | None]] = [[], []]

    async def first(self, request: web.Request) -> web.Response:
        self.received[0].append(request.headers.get("Authorization"))
        if request.path == "/elsewhere":
            return web.Response(status=307, headers={"Location": f"{self.urls[1]}/"})
        return web.Response()

    async def second(self, request: web.Request) -> web.Response:
        self.received[1].append(request.headers.get("Authorization"))
        return web.Response()


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    hosts = Hosts()
    runners = []
    for handler in (hosts.first, hosts.second):
        runner = web.ServerRunner(web.Server(handler), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        hosts.urls.append("http://{}:{}".format(*runner.addresses[0]))
        runners.append(runner)
    yield hosts
    for runner in runners:
        await runner.cleanup()


async def by_httpx(token: BearerToken, urls: list[str]) -> None:
    async with httpx2.AsyncClient(auth=token.httpx_auth(), follow_redirects=True) as http:
        for url in urls:
            await http.post(url)


async def by_aiohttp(token: BearerToken, urls: list[str]) -> None:
    async with aiohttp.ClientSession(middlewares=[token.aiohttp_middleware]) as session:
        for url in urls:
            async with session.post(url):
                pass


@pytest.mark.parametrize("send", [by_httpx, by_aiohttp])
async def test_requests_to_the_clients_host_alone_are_authorized(hosts: Hosts, send: Any) -> None:
    client, _ = client_of(KEYS, hosts.urls[0])
    async with client:
        token = client.bearer_token()
        await send(token, [f"{hosts.urls[0]}/", f"{hosts.urls[0]}/elsewhere", f"{hosts.urls[1]}/"])
        expected = f"Bearer {await token()}"
    assert hosts.received == [[expected, expected], [None, None]]


async def test_synchronous_client_is_refused() -> None:
    client, _ = client_of(KEYS)
    async with client:
        auth = client.bearer_token().httpx_auth()
        with httpx2.Client(auth=auth) as http, pytest.raises(RuntimeError, match="asynchronous"):
            http.get("http://127.0.0.1:1/")


async def test_first_calls_at_once_make_one_token() -> None:
    client, _ = client_of(KEYS)
    async with client:
        token = client.bearer_token()
        assert len(set(await asyncio.gather(*(token() for _ in range(20))))) == 1
