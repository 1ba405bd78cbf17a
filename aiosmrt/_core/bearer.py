"""Bearer tokens, with which other HTTP clients call an endpoint's OpenAI route.

A token is made from the client's credentials and kept until it is about to end, or until the credentials are renewed.
It is nowhere in a log, an event or a representation.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

from aiosmrt._one_process import OneProcess
from aiosmrt._wire.sigv4.bearer import MAX_TOKEN_SECONDS, make_token
from aiosmrt.config import is_whole, shown
from aiosmrt.errors import ClientStateError, ParamValidationError

if TYPE_CHECKING:
    from aiosmrt._core.client_core import ClientCore
    from aiosmrt._wire.sigv4.signer import Credentials, Signer

__all__ = ["TOKEN_SECONDS", "BearerToken", "TokenCache", "bearer_token_of"]

TOKEN_SECONDS: Final = 3600

# A token is replaced this long before its end, or when a quarter of its life is left if that is less.
_AHEAD: Final = 300.0


class TokenCache:
    """The token in use.

    Args:
        expires_in: seconds for which a token is valid.
    """

    __slots__ = ("_credentials", "_expires_in", "_made_at", "_renew_at", "_token")

    def __init__(self, expires_in: int) -> None:
        self._expires_in = expires_in
        self._credentials: Credentials | None = None
        self._token = ""
        self._made_at = self._renew_at = 0.0

    def __repr__(self) -> str:
        return f"<TokenCache expires_in={self._expires_in}>"

    def of(self, credentials: Credentials, signer: Signer, now: float) -> str:
        """A token of these credentials that does not end soon.

        Args:
            credentials: the credentials.
            signer: signs for the token's region.
            now: the service's time in seconds since 1970.
        """
        if credentials is not self._credentials or not self._made_at <= now < self._renew_at:
            self._token = make_token(signer, credentials, now, self._expires_in)
            self._credentials = credentials
            self._made_at = now
            life = float(self._expires_in)
            if credentials.expires_at is not None:
                life = min(life, credentials.expires_at - now)
            self._renew_at = now + life - min(_AHEAD, life / 4)
        return self._token


class BearerToken(OneProcess):
    """A bearer token that stays valid; made by `aiosmrt.Client.bearer_token`.

    Awaiting a call of it gives the token: it is what ``api_key=`` of `openai.AsyncOpenAI` takes. `httpx_auth` and
    `aiohttp_middleware` put it into requests to the client's own host, and into no others: anyone with the token may
    do whatever the client's identity may do at SageMaker.

    Args:
        make: returns a token that does not end soon.
        origin: returns scheme and host of the client's URL.
        expires_in: seconds for which a token is valid.
    """

    __slots__ = ("_expires_in", "_make", "_origin")

    def __init__(
        self,
        make: Callable[[], Awaitable[str]],
        origin: Callable[[], Awaitable[tuple[str, str]]],
        expires_in: int,
    ) -> None:
        self._make = make
        self._origin = origin
        self._expires_in = expires_in

    def __repr__(self) -> str:
        return f"<BearerToken expires_in={self._expires_in}>"

    async def __call__(self) -> str:
        """The token, made anew where the last one is about to end.

        Raises:
            NoCredentialsError, NoRegionError: there is nothing to sign with.
            ClientStateError: the client is closed, or belongs to another event loop.
        """
        return await self._make()

    def httpx_auth(self) -> Any:
        """The ``auth=`` of an ``httpx.AsyncClient`` or ``httpx2.AsyncClient``, whichever is imported.

        Raises:
            ClientStateError: neither is imported.
        """
        modules = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
        bases = tuple(module.Auth for module in modules)
        if not bases:
            raise ClientStateError("httpx_auth() is for httpx and httpx2, and neither is imported")
        return _auth_class(bases)(self)

    async def aiohttp_middleware(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Authorize a request; for ``middlewares=`` of an ``aiohttp.ClientSession``."""
        url = request.url
        if await self._is_own(url.scheme, url.host_port_subcomponent):
            request.headers["Authorization"] = f"Bearer {await self()}"
        return await handler(request)

    async def _is_own(self, scheme: str, host: str | None) -> bool:
        """Tell whether a request goes to the client's host."""
        return (scheme, host) == await self._origin()


def bearer_token_of(core: ClientCore, expires_in: int) -> BearerToken:
    """A bearer token of a client.

    Args:
        core: the client's core.
        expires_in: seconds for which a token is valid, 1 to 43,200.

    Raises:
        ParamValidationError: ``expires_in`` is out of its range.
    """
    if not is_whole(expires_in, 1) or expires_in > MAX_TOKEN_SECONDS:
        raise ParamValidationError(
            [f"expires_in must be 1 to {MAX_TOKEN_SECONDS} whole seconds; got {shown(expires_in)}"]
        )
    tokens = TokenCache(expires_in)

    async def make() -> str:
        if not core.is_ready():
            await core.prepare()
        credentials = core.credentials.current() or await core.credentials.get()
        try:
            return tokens.of(credentials, core.signer, core.wall_clock() + core.clock_offset)
        finally:
            del credentials

    async def origin() -> tuple[str, str]:
        if not core.is_ready():
            await core.prepare()
        return urlsplit(core.endpoint.url).scheme, core.endpoint.host

    return BearerToken(make, origin, expires_in)


@cache
def _auth_class(bases: tuple[type, ...]) -> Any:
    """A subclass of the ``Auth`` of each httpx, which each asks for."""

    class BearerAuth(*bases):  # type: ignore[misc]
        """Authorizes the requests to one host."""

        def __init__(self, token: BearerToken) -> None:
            self._token = token

        def __repr__(self) -> str:
            return f"<BearerAuth of {self._token!r}>"

        async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
            """Authorize a request."""
            url = request.url
            if await self._token._is_own(url.scheme, url.netloc.decode()):
                request.headers["Authorization"] = f"Bearer {await self._token()}"
            yield request

        def sync_auth_flow(self, request: Any) -> NoReturn:
            """Refuse: credentials are found asynchronously."""
            raise RuntimeError("a BearerToken is for asynchronous clients")

    return BearerAuth
