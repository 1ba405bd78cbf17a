"""The credentials a client signs with: resolved once, shared by all calls, renewed before they expire.

Theory of operation
-------------------
A call asks ``current()``, which compares the clock with ``_check_at`` and nothing else. Until that moment the answer
is the credentials at hand; from then on it is None, and the call goes on to ``await get()``. There, in this order:

1. The provider may have an answer at hand (arguments, environment variables): no task is needed.
2. Otherwise a single task fetches credentials, unless one is under way.
3. While the credentials at hand are valid, the call gets them at once, and the task goes on in the background.
4. Only without valid credentials does the call wait for the task. All that wait share its outcome.

The task belongs to this object. A call that is cancelled while it waits just stops waiting: what the task finds
serves the next call. ``close()`` cancels the task and waits until it is over.

Renewal starts 15 minutes before expiry, or halfway when the credentials live for less than half an hour from now. It
may fail, or bring credentials that expire no later. Then those at hand stay in use until they expire, and the next
attempt follows after a back-off that doubles from 1 to 60 seconds, or to 10 in the last 10 minutes. Nothing runs by a
timer: a client that makes no calls asks nobody for credentials.

Source of the two windows: ``botocore.credentials``, where the second is the one in which calls wait.
"""

import asyncio
import copy
import math
import random
import time
from collections.abc import Callable
from typing import NamedTuple

from aiosmrt._aws.providers import (
    CredentialsFunction,
    Found,
    FrozenCredentialsSource,
    provider_for,
    retrieval_error,
)
from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.errors import AiosmrtError, ClientStateError
from aiosmrt.events import CredentialsRefreshed, CredentialsRefreshFailed, Observer

__all__ = ["CredentialsCache", "CredentialsStatistics"]

# Seconds before expiry.
ADVISORY_WINDOW = 15 * 60.0
MANDATORY_WINDOW = 10 * 60.0

# Seconds between attempts to renew what is still valid.
FIRST_BACKOFF = 1.0
MAX_BACKOFF = 60.0
MAX_MANDATORY_BACKOFF = 10.0


class CredentialsStatistics(NamedTuple):
    """Counts since the cache was made.

    ``source`` is botocore's name for where the credentials came from (None before the first), ``refreshes`` counts
    answers including the first, ``failures`` attempts that brought nothing new, ``expires_at`` is in epoch seconds.
    """

    source: str | None
    refreshes: int
    failures: int
    expires_at: float | None


class CredentialsCache:
    """Credentials for signing, found on first need and kept fresh.

    Args:
        access_key: an access key id; needs ``secret_key``, and wins over every other source.
        secret_key: its secret key.
        session_token: the session token of temporary keys; None for long-lived ones.
        credentials: fixed Credentials, a credentials object of botocore or aiobotocore, or an async function that
            returns Credentials; None takes botocore's provider chain.
        profile_name: a profile of the AWS configuration files; None takes the environment's.
        region_name: the region for calls that credentials are obtained with; None takes the configured one.
        clock: the time in epoch seconds.
        rand: a random number in [0, 1), which spreads retries of failed renewals.
        observer: is told of renewals and of failed ones; None tells nobody.

    Raises:
        PartialCredentialsError: one key came without the other.
        ParamValidationError: ``credentials`` is of no known kind, or keys were given as well.

    >>> cache = CredentialsCache(access_key="AKIDEXAMPLE", secret_key="not-a-real-secret")
    >>> asyncio.run(cache.get()).access_key
    'AKIDEXAMPLE'
    >>> cache.current() is asyncio.run(cache.get())
    True
    """

    def __init__(
        self,
        *,
        access_key: str | None = None,
        secret_key: str | None = None,
        session_token: str | None = None,
        credentials: Credentials | FrozenCredentialsSource | CredentialsFunction | None = None,
        profile_name: str | None = None,
        region_name: str | None = None,
        clock: Callable[[], float] = time.time,
        rand: Callable[[], float] = random.random,
        observer: Observer | None = None,
    ) -> None:
        self._provider = provider_for(
            access_key=access_key,
            secret_key=secret_key,
            session_token=session_token,
            credentials=credentials,
            profile_name=profile_name,
            region_name=region_name,
        )
        self._clock = clock
        self._rand = rand
        self._observer = observer
        self._credentials: Credentials | None = None
        self._source: str | None = None
        self._check_at = -math.inf
        self._task: asyncio.Task[Credentials | AiosmrtError] | None = None
        self._closed = False
        self._failures_in_a_row = 0
        self._refreshes = 0
        self._failures = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"source={self._source!r}"
        return f"<{type(self).__name__} {state} refreshes={self._refreshes} failures={self._failures}>"

    def current(self) -> Credentials | None:
        """The credentials at hand, or None when ``get`` has to be awaited; takes about 0.1 µs.

        >>> CredentialsCache().current() is None
        True
        """
        return self._credentials if self._clock() < self._check_at else None

    async def get(self) -> Credentials:
        """Valid credentials, without waiting as long as any are at hand.

        Raises:
            NoCredentialsError: no source has any.
            PartialCredentialsError: a source has one key without the other.
            CredentialRetrievalError: a source failed, or gave credentials that are expired.
            ProfileNotFoundError: the profile does not exist.
            ConfigFileError: a configuration file cannot be parsed.
            ClientStateError: the cache is closed.

        >>> given = Credentials("AKIDEXAMPLE", "not-a-real-secret")
        >>> asyncio.run(CredentialsCache(credentials=given).get()) == given
        True
        """
        if self._closed:
            raise ClientStateError("the credentials cache is closed")
        credentials = self.current()
        if credentials is not None:
            return credentials
        try:
            if (found := self._provider.peek()) is not None:
                return self._accept(found)
        except AiosmrtError as error:
            self._keep_old(error)
            if (credentials := self.current()) is None:
                raise
            return credentials
        task = self._task
        if task is None:
            task = self._task = asyncio.create_task(self._fetch(), name="aiosmrt-credentials")
        if self._credentials is not None and self._clock() < (expires_at := _expiry(self._credentials)):
            # The task will set this anew; until then no call needs to come here.
            self._check_at = expires_at
            return self._credentials
        # Unlike awaiting the task, this leaves it alone when the caller is cancelled.
        await asyncio.wait((task,))
        if task.cancelled():
            raise ClientStateError("the credentials cache was closed")
        outcome = task.result()
        if isinstance(outcome, Credentials):
            return outcome
        # An instance of its own for each call, because each adds its own facts to it.
        raise copy.copy(outcome) from outcome.__cause__

    async def close(self) -> None:
        """Forget the credentials and end what is under way; may be called again.

        >>> asyncio.run(CredentialsCache().close())
        """
        self._closed = True
        self._credentials = None
        self._check_at = -math.inf
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.wait((task,))
            self._task = None

    def statistics(self) -> CredentialsStatistics:
        """Where the credentials came from, and how often they were renewed.

        >>> CredentialsCache().statistics().refreshes
        0
        """
        expires_at = self._credentials.expires_at if self._credentials is not None else None
        return CredentialsStatistics(self._source, self._refreshes, self._failures, expires_at)

    async def _fetch(self) -> Credentials | AiosmrtError:
        # Failures are returned: nobody may be waiting for this task, and what it raised would then be lost.
        try:
            return self._accept(await self._provider.fetch())
        except AiosmrtError as error:
            self._keep_old(error)
            return error
        except Exception as error:
            failure = retrieval_error("a provider", type(error).__name__)
            failure.__cause__ = error
            self._keep_old(failure)
            return failure
        finally:
            self._task = None

    def _accept(self, found: Found) -> Credentials:
        now = self._clock()
        credentials, old = found.credentials, self._credentials
        if old is not None and credentials == old:
            credentials = old  # the same object, for those who cache by it
        expires_at = _expiry(credentials)
        if now >= expires_at:
            raise retrieval_error(found.source, "the credentials are expired")
        if old is not None and expires_at <= _expiry(old) < math.inf:
            # botocore keeps what it has when renewing fails ahead of time, and a source may have nothing newer yet.
            self._keep_old(retrieval_error(found.source, "there are no newer credentials yet"))
            self._credentials = credentials
            return credentials
        renewed = credentials is not old
        self._credentials = credentials
        self._source = found.source
        self._failures_in_a_row = 0
        if found.reask_after is not None:
            self._check_at = min(now + found.reask_after, expires_at)
        elif expires_at == math.inf:
            self._check_at = math.inf
        else:
            self._check_at = expires_at - min(ADVISORY_WINDOW, (expires_at - now) / 2)
        if renewed:
            self._refreshes += 1
            self._tell(CredentialsRefreshed(found.source, credentials.expires_at))
        return credentials

    def _keep_old(self, failure: AiosmrtError) -> None:
        self._failures += 1
        now = self._clock()
        if self._credentials is None or now >= (expires_at := _expiry(self._credentials)):
            return
        limit = MAX_BACKOFF if expires_at - now > MANDATORY_WINDOW else MAX_MANDATORY_BACKOFF
        backoff = min(limit, FIRST_BACKOFF * 2.0 ** min(self._failures_in_a_row, 16))
        self._failures_in_a_row += 1
        # Between half of it and all of it, so that a fleet that failed together does not return together.
        self._check_at = min(now + backoff * (1 + self._rand()) / 2, expires_at)
        self._tell(CredentialsRefreshFailed(self._source or "unknown", type(failure).__name__))

    def _tell(self, event: CredentialsRefreshed | CredentialsRefreshFailed) -> None:
        if self._observer is None:
            return
        try:
            self._observer(event)
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"observer raised on {type(event).__name__}", "exception": error}
            )


def _expiry(credentials: Credentials) -> float:
    return math.inf if credentials.expires_at is None else credentials.expires_at
