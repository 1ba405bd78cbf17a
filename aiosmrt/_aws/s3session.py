"""The object store's use of aiobotocore: a session whose clients sign with the credentials of a `CredentialsCache`.

Importing this module imports aiobotocore, which takes a quarter of a second and belongs off the event loop.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from aiobotocore.credentials import AioCredentials
from aiobotocore.session import AioSession
from botocore.credentials import ReadOnlyCredentials
from botocore.loaders import Loader, create_loader

from aiosmrt._aws.credentials import CredentialsCache

__all__ = ["warm_session"]


class _SharedCredentials(AioCredentials):  # type: ignore[misc] # aiobotocore is untyped
    """Credentials that come from the cache for each signature."""

    def __init__(self, cache: CredentialsCache) -> None:
        super().__init__("", "", method="aiosmrt")
        self._cache = cache

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        credentials = self._cache.current() or await self._cache.get()
        return ReadOnlyCredentials(credentials.access_key, credentials.secret_key, credentials.token)


class _OneProvider:
    """Replaces the session's chain of credential providers."""

    def __init__(self, cache: CredentialsCache) -> None:
        self._cache = cache

    async def load_credentials(self) -> _SharedCredentials:
        return _SharedCredentials(self._cache)


@cache
def _data_loader(data_path: str | None) -> Loader:
    """The service models, shared by all sessions: the second one's client takes 6 ms in place of 80."""
    loader: Loader = create_loader(data_path)
    return loader


async def warm_session(
    credentials: CredentialsCache, profile_name: str | None, arguments: dict[str, Any]
) -> AioSession:
    """A session that has made a client once, so that the next one takes 3 ms in place of 150.

    Blocks, so it belongs on a loop in another thread. The session holds nothing of that loop, and ``credentials`` is
    not used.

    Args:
        credentials: the source of the clients' credentials.
        profile_name: the profile of the AWS configuration files. Defaults to the environment's.
        arguments: arguments of ``create_client`` after the service.
    """
    session = AioSession(profile=profile_name)
    session.register_component("credential_provider", _OneProvider(credentials))
    session.register_component("data_loader", _data_loader(session.get_config_variable("data_path")))
    async with session.create_client("s3", **arguments):
        return session
