"""The credentials a client signs with: found once, shared by all calls, renewed before they expire.

Theory of operation
-------------------
A call asks ``current()``, which compares the clock with ``_check_at`` and nothing else. Until that time, the result is
the known credentials; from then on it is None, and the call awaits ``get()``, which does this:

1. The provider may answer from memory (arguments, environment variables): no task is needed.
2. Otherwise a single task fetches credentials, unless one is under way.
3. While the known credentials are valid, the call gets them at once, and the task runs in the background.
4. Only without valid credentials does the call wait for the task. All that wait share its outcome.

The task belongs to this object. A call that is cancelled while it waits just stops waiting; what the task finds serves
the next call. ``close()`` cancels the task and waits for its end, which does not include blocking work in its thread,
nor what a credentials function does for more than `CLOSE_SECONDS` after it was cancelled: it gets a ResourceWarning.

Renewal starts 15 minutes before expiry, or halfway if the credentials live for less than half an hour from now. It may
fail, or bring credentials that expire no later; then the known ones stay in use until they expire. In either case the
next attempt follows after a back-off, which doubles from 1 to 60 seconds, or to 10 in the last 10 minutes and without
valid credentials. Until then, calls without valid credentials fail with the error of the last attempt. Nothing runs by
a timer: a client that makes no calls fetches no credentials.

Source of the two windows: ``botocore.credentials``, where the second is the one in which calls wait.
"""

import asyncio
import copy
import math
import random
import time
import warnings
from collections.abc import Callable
from typing import Final

from aiosmrt._aws.providers import Found, Provider, retrieval_error
from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.errors import AiosmrtError, ClientStateError
from aiosmrt.events import CredentialsRefreshed, CredentialsRefreshFailed, Observer

__all__ = ["CredentialsCache"]

# Seconds before expiry.
ADVISORY_WINDOW: Final = 15 * 60.0
MANDATORY_WINDOW: Final = 10 * 60.0

# Seconds between attempts after a failure.
FIRST_BACKOFF: Final = 1.0
MAX_BACKOFF: Final = 60.0
MAX_MANDATORY_BACKOFF: Final = 10.0

# How long ``close()`` waits for a cancelled fetch, as it may have to close a connection.
CLOSE_SECONDS: Final = 1.0


class CredentialsCache:
    """Credentials for signing, found when first needed and kept fresh.

    Args:
        provider: where they come from; see `provider_for`.
        clock: returns the time in seconds since 1970.
        rand: returns a random number in [0, 1), which spreads attempts after a failure.
        observer: is called with an event for each renewal and each failed one.

    >>> from aiosmrt._aws.providers import provider_for
    >>> cache = CredentialsCache(provider_for(access_key="AKIDEXAMPLE", secret_key="not-a-real-secret"))
    >>> asyncio.run(cache.get()).access_key
    'AKIDEXAMPLE'
    >>> cache.current() is asyncio.run(cache.get())
    True
    """

    def __init__(
        self,
        provider: Provider,
        *,
        clock: Callable[[], float] = time.time,
        rand: Callable[[], float] = random.random,
        observer: Observer | None = None,
    ) -> None:
        self._provider = provider
        self._clock = clock
        self._rand = rand
        self._observer = observer
        self._credentials: Credentials | None = None
        self._source = "unknown"
        self._check_at = -math.inf
        self._task: asyncio.Task[Credentials | AiosmrtError] | None = None
        self._closed = False
        # Is done when a fetch that does not end is given up; made when a call has to wait.
        self._given_up: asyncio.Future[None] | None = None
        self._failures_in_a_row = 0
        # The outcome of the last fetch if it failed, and when that was and the next one may follow.
        self._failure: AiosmrtError | None = None
        self._failed_at = self._retry_at = -math.inf

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._closed else f'source={self._source!r}'}>"

    def current(self, now: float | None = None) -> Credentials | None:
        """The known credentials, or None if ``get`` has to be awaited; takes about 0.1 µs.

        Args:
            now: the time in seconds since 1970. Defaults to None, for the present.

        >>> from aiosmrt._aws.providers import provider_for
        >>> CredentialsCache(provider_for()).current() is None
        True
        """
        return self._credentials if (self._clock() if now is None else now) < self._check_at else None

    async def get(self) -> Credentials:
        """Valid credentials, without a wait as long as any are known.

        Raises:
            NoCredentialsError: No source has any.
            PartialCredentialsError: A source has one key without the other.
            CredentialRetrievalError: A source failed, or its credentials are expired.
            ProfileNotFoundError: The profile does not exist.
            ConfigFileError: A configuration file cannot be parsed.
            ClientStateError: The cache is closed, or the provider itself asks.

        >>> given = Credentials("AKIDEXAMPLE", "not-a-real-secret")
        >>> from aiosmrt._aws.providers import provider_for
        >>> asyncio.run(CredentialsCache(provider_for(credentials=given)).get()) == given
        True
        """
        if self._closed:
            raise ClientStateError("the credentials cache is closed")
        credentials = self.current()
        if credentials is not None:
            return credentials
        outcome = self._from_memory()
        if isinstance(outcome, Credentials):
            return outcome
        if outcome is not None:
            raise _fresh(outcome)
        task = self._task
        if task is None:
            if self._failure is not None and self._failed_at <= self._clock() < self._retry_at:
                raise _fresh(self._failure)
            task = asyncio.create_task(self._fetch(), name="aiosmrt-credentials")
            # An eager task may have come to its end in create_task().
            if not task.done():
                self._task = task
            elif (credentials := self.current()) is not None:
                return credentials
        elif task is asyncio.current_task():
            raise ClientStateError("the credentials function makes a call that needs the credentials which it obtains")
        if not task.done():
            if self._credentials is not None and self._clock() < (expires_at := _expiry(self._credentials)):
                # The task sets this anew; until then no call needs to come here.
                self._check_at = expires_at
                return self._credentials
            if self._given_up is None:
                self._given_up = asyncio.get_running_loop().create_future()
            # Unlike awaiting the task, this does not cancel it with the caller.
            await asyncio.wait((task, self._given_up), return_when=asyncio.FIRST_COMPLETED)
        if not task.done() or task.cancelled():
            raise ClientStateError("the credentials cache was closed")
        outcome = task.result()
        if isinstance(outcome, Credentials):
            return outcome
        raise _fresh(outcome)

    async def close(self) -> None:
        """Forget the credentials and end the task under way; may be called again.

        Waits up to 1 second for a credentials function that ignores its cancellation; then it warns (ResourceWarning),
        and the function's task is left to itself.

        >>> from aiosmrt._aws.providers import provider_for
        >>> asyncio.run(CredentialsCache(provider_for()).close())
        """
        self._closed = True
        self._credentials = None
        self._failure = None
        self._check_at = -math.inf
        if (task := self._task) is not None:
            task.cancel()
            _, running = await asyncio.wait((task,), timeout=CLOSE_SECONDS)
            self._task = None
            if running:
                if self._given_up is not None and not self._given_up.done():
                    self._given_up.set_result(None)
                warnings.warn(
                    f"the credentials function still runs {CLOSE_SECONDS:.0f} s after it was cancelled: "
                    "let it raise CancelledError",
                    ResourceWarning,
                    stacklevel=2,
                    source=self,
                )

    # Failures are returned: what a task raises is lost if no call waits for it, and a provider's frames contain keys.

    def _from_memory(self) -> Credentials | AiosmrtError | None:
        try:
            found = self._provider.peek()
            return None if found is None else self._accept(found)
        except AiosmrtError as error:
            self._back_off(error)
            return self.current() or error

    async def _fetch(self) -> Credentials | AiosmrtError:
        # Known before create_task() returns: an eager task may make others ask, who have to wait for it.
        self._task = asyncio.current_task()
        failure: AiosmrtError
        try:
            found = await self._provider.fetch()
            if self._closed:
                return ClientStateError("the credentials cache was closed")
            return self._accept(found)
        except AiosmrtError as error:
            failure = error
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            # The provider's own, such as of a task that it awaited.
            failure = retrieval_error(
                "a provider", type(error).__name__, error if isinstance(error, Exception) else None
            )
            failure.__cause__ = error
        finally:
            self._task = None
        self._back_off(failure)
        # It is kept, so without the frames that raised it.
        self._failure = failure.with_traceback(None)
        return failure

    def _accept(self, found: Found) -> Credentials:
        now = self._clock()
        credentials, old = found.credentials, self._credentials
        if old is not None and credentials == old:
            credentials = old  # the signer caches by the identity of this object
        expires_at = _expiry(credentials)
        if now >= expires_at:
            raise retrieval_error(found.source, "the credentials are expired")
        if old is not None and expires_at <= _expiry(old) < math.inf:
            # botocore keeps what it has if renewal fails ahead of time, and a source may have nothing newer yet.
            self._back_off(retrieval_error(found.source, "it still returns the credentials that are about to expire"))
            self._credentials = credentials
            return credentials
        renewed = credentials is not old
        self._credentials = credentials
        self._source = found.source
        self._failures_in_a_row = 0
        self._failure = None
        if found.reask_after is not None:
            self._check_at = min(now + found.reask_after, expires_at)
        elif expires_at == math.inf:
            self._check_at = math.inf
        else:
            self._check_at = expires_at - min(ADVISORY_WINDOW, (expires_at - now) / 2)
        if renewed:
            self._tell(CredentialsRefreshed(found.source, credentials.expires_at))
        return credentials

    def _back_off(self, failure: AiosmrtError) -> None:
        now = self._failed_at = self._clock()
        expires_at = -math.inf if self._credentials is None else _expiry(self._credentials)
        limit = MAX_BACKOFF if expires_at - now > MANDATORY_WINDOW else MAX_MANDATORY_BACKOFF
        backoff = min(limit, FIRST_BACKOFF * 2.0 ** min(self._failures_in_a_row, 16))
        self._failures_in_a_row += 1
        # Between half of it and all of it, so that clients that failed together do not return together.
        self._retry_at = now + backoff * (1 + self._rand()) / 2
        if now < expires_at:
            self._check_at = self._retry_at = min(self._retry_at, expires_at)
            self._tell(CredentialsRefreshFailed(self._source, type(failure).__name__))

    def _tell(self, event: CredentialsRefreshed | CredentialsRefreshFailed) -> None:
        if self._observer is None:
            return
        try:
            self._observer(event)
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"observer raised on {type(event).__name__}", "exception": error}
            )


def _fresh(error: AiosmrtError) -> AiosmrtError:
    """A copy for one call, which adds its own facts to it."""
    fresh = copy.copy(error)
    fresh.__cause__ = error.__cause__
    return fresh


def _expiry(credentials: Credentials) -> float:
    return math.inf if credentials.expires_at is None else credentials.expires_at
