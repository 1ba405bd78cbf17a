"""What a client and its views share: connections, credentials, clocks, counters, and their life.

A `ClientCore` is made without I/O and belongs to the first event loop that uses it. `ClientCore.prepare` does, once and
off the loop, all that needs files or heavy imports. From then on a call finds everything ready in attributes.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import cache, partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4
from weakref import WeakSet

from aiosmrt._aws.credentials import CredentialsCache
from aiosmrt._aws.hosts import ResolvedEndpoint, http2_endpoint
from aiosmrt._aws.settings import CaBundle
from aiosmrt._aws.tls import UnusableAuthoritiesError, http2_context
from aiosmrt._core.admission import Admissions, CallLater, MaxConcurrency, Timer
from aiosmrt._core.bearer import TOKEN_SECONDS, TokenCache
from aiosmrt._core.configure import (
    Configuration,
    Verify,
    app_id_of,
    authorities_error,
    check_verify,
    configure,
    is_in_lambda,
)
from aiosmrt._core.log import LOGGER, apply_environment
from aiosmrt._core.template import OperationCodec
from aiosmrt._core.view import View
from aiosmrt._daemon import run_in_daemon_thread
from aiosmrt._extras import installed
from aiosmrt._one_process import OneProcess
from aiosmrt._policy.retry import invocation_ids
from aiosmrt._transport.factory import TransportName, check_transport, create_transport
from aiosmrt._transport.pooled import PooledTransport
from aiosmrt._wire.operations import INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM, OPENAI_OPERATIONS, OPERATIONS
from aiosmrt._wire.sigv4.signer import Signer
from aiosmrt.errors import ClientStateError, ConfigurationError, NoRegionError

if TYPE_CHECKING:
    import aiohttp

    from aiosmrt._aws.s3 import ObjectStore
    from aiosmrt._transport.base import Transport
    from aiosmrt._transport.http2.pool import Http2Pool
    from aiosmrt._wire.sigv4.signer import Credentials

__all__ = ["ClientCore", "Counters"]

T = TypeVar("T")

# Files that are read at once, beside those whose callers have left.
_FILE_READERS: Final = 64


class Counters:
    """Running totals of a client and its views."""

    __slots__ = ("attempts", "bytes_received", "bytes_sent", "calls", "failures", "retries", "throttles", "waited")

    def __init__(self) -> None:
        self.calls = 0
        self.attempts = 0
        self.throttles = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        # repeated requests by cause, failed attempts by the error's class, seconds by what was waited for
        self.retries: dict[str, int] = {}
        self.failures: dict[str, int] = {}
        self.waited: dict[str, float] = {}

    def count_failure(self, error: Exception) -> None:
        """Count a failed attempt."""
        name = type(error).__name__
        self.failures[name] = self.failures.get(name, 0) + 1

    def count_wait(self, reason: str, seconds: float) -> None:
        """Count what a call has waited."""
        self.waited[reason] = self.waited.get(reason, 0.0) + seconds


class _SignerWithoutRegion(Signer):
    """Stands in for a signer while the region is unknown; unsigned calls never use it."""

    __slots__ = ()

    def sign_lines(self, *arguments: Any, **named: Any) -> NoReturn:
        raise NoRegionError("You must specify a region.")

    presign = sign_lines


class ClientCore(OneProcess):
    """What a client and its views share.

    Args:
        settings: the client's arguments for `aiosmrt._aws.settings.resolve_settings`.
        credentials: where credentials come from.
        s3_endpoint_url: as the client's argument.
        http2_endpoint_url: as the client's argument.
        verify: as the client's argument.
        session: the caller's aiohttp session. If None, one is created when it is needed.
        transport: which transport carries the calls. Defaults to the fastest that can.
    """

    def __init__(
        self,
        *,
        settings: dict[str, Any],
        credentials: CredentialsCache,
        s3_endpoint_url: str | None = None,
        http2_endpoint_url: str | None = None,
        verify: Verify,
        session: aiohttp.ClientSession | None,
        transport: TransportName | None = None,
    ) -> None:
        check_transport(transport, session)
        check_verify(verify)
        apply_environment()
        self._settings_arguments = settings
        self._s3_endpoint_url = s3_endpoint_url
        self._http2_endpoint_url = http2_endpoint_url
        self._verify = verify
        self._session = session
        self._transport_name: TransportName | None = transport
        self._configuration: Configuration | None = None
        self._bound_to: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        # binds to a loop where it is waited for, not where it is made
        self._lock = asyncio.Lock()
        self._executor: ThreadPoolExecutor | None = None
        # binds to a loop where it is waited for
        self._file_readers = asyncio.Semaphore(_FILE_READERS)
        self._object_store: ObjectStore | None = None
        self._http2_endpoint: ResolvedEndpoint | None = None
        self._http2_pool: Http2Pool | None = None
        self._tokens: TokenCache | None = None
        self.closed = False
        self._prepared = False
        # The thread in which everything below is ready while the loop runs; 0 until then.
        self.ready_in = 0
        self.loop: asyncio.AbstractEventLoop
        self.transport: Transport
        self.credentials = credentials
        self.signer: Signer
        self.endpoint: ResolvedEndpoint
        self.base_path = ""
        # the application's id as a part of the User-Agent header, a blank before it
        self.user_agent_app = ""
        self.passes_trace = False
        self.codecs = {
            operation.name: OperationCodec(operation)
            for operation in (*OPERATIONS, *OPENAI_OPERATIONS, INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM)
        }
        self.counters = Counters()
        # Whether the service has answered anything yet. What was never reached may not exist.
        self.reached = False
        # Seconds by which the service's clock is ahead of this machine's, and the last value that a signature was
        # accepted with.
        self.clock_offset = self.confirmed_clock_offset = 0.0
        self.wall_clock: Callable[[], float] = time.time
        self.clock: Callable[[], float] = time.monotonic
        self.random: Callable[[], float] = random.random
        # of each call, its ``amz-sdk-invocation-id``; not from `random`, which programs seed alike in all workers
        self.invocation_ids = invocation_ids(lambda: uuid4().int)
        self.create_transport: Callable[[Configuration], Awaitable[Transport]] = self._create_transport
        self.http2_pool: Callable[[], Awaitable[Http2Pool]] = self._shared_http2_pool
        self.call_later: CallLater = self._call_later
        self.sleep: Callable[[float], Awaitable[None]] = self._sleep
        self._sleepers: set[asyncio.Future[None]] = set()
        # those of the client and of its views
        self._admissions: WeakSet[Admissions] = WeakSet()

    def bearer_line(self, credentials: Credentials, now: float) -> str:
        """The header that authorizes a call of the OpenAI route, as a line of HTTP/1.1.

        Args:
            credentials: those to make the token of.
            now: the service's time in seconds since 1970.
        """
        tokens = self._tokens
        if tokens is None:
            tokens = self._tokens = TokenCache(TOKEN_SECONDS)
        return f"Authorization: Bearer {tokens.of(credentials, self.signer, now)}\r\n"

    def new_admissions(self, max_concurrency: MaxConcurrency) -> Admissions:
        """Admissions for the client or one of its views, which end with the client.

        Raises:
            ParamValidationError: ``max_concurrency`` is neither an integer >= 1 nor an adaptive limit.
        """
        admissions = Admissions(self, max_concurrency)
        self._admissions.add(admissions)
        return admissions

    # Configuration

    def configuration(self) -> Configuration:
        """Resolve arguments, environment and files, once; reads files and may import botocore.

        Raises:
            ConfigurationError: something is missing or contradictory.
        """
        if self._configuration is None:
            self._configuration = configure(
                self._settings_arguments, self._verify, session_given=self._session is not None
            )
        return self._configuration

    def settle(self, view: View) -> None:
        """Let a view know what environment and profile say about retries."""
        settings = self.configuration().settings
        view.settle(settings.retry_mode, settings.max_attempts, self.clock())

    # Life

    def is_ready(self) -> bool:
        """Whether a call on the running loop can go straight on.

        On Python 3.11, `asyncio.get_running_loop` asks for the process id, at a system call per call. A thread runs one
        loop at a time, so this is as good.
        """
        return self.ready_in == get_ident() and self.loop.is_running()

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tie this to the running loop, or raise why it cannot be used on it.

        Raises:
            ClientStateError: closed, or tied to another loop or process.
        """
        if self.closed:
            raise ClientStateError("the client is closed")
        if self._bound_to is None:
            self._bound_to = self.loop = loop
            self._pid = os.getpid()
        elif self._pid != os.getpid():
            raise ClientStateError(
                "the client was first used in another process and its connections cannot be shared after a fork: "
                "make a client in each process"
            )
        elif self._bound_to is not loop:
            raise ClientStateError("the client belongs to another event loop: make a client for each loop")

    @property
    def is_prepared(self) -> bool:
        """Whether `prepare` has succeeded, on whichever thread."""
        return self._prepared

    async def prepare(self) -> None:
        """Make everything ready for calls on the running loop.

        Raises:
            ClientStateError: closed, or tied to another loop or process.
            ConfigurationError: something is missing or contradictory.
        """
        loop = asyncio.get_running_loop()
        self.bind(loop)
        async with self._lock:
            if self.closed:
                raise ClientStateError("the client is closed")
            if self._prepared:
                # Another call was first, or the loop runs in another thread now.
                self.ready_in = get_ident()
                return
            configuration = await self.off_loop(self.configuration)
            if self.closed:
                raise ClientStateError("the client is closed")
            settings, endpoint = configuration.settings, configuration.endpoint
            self.endpoint = endpoint
            self.base_path = configuration.base_path
            self.user_agent_app = app_id_of(settings)
            self.passes_trace = is_in_lambda()
            if endpoint.signing_region is None:
                self.signer = _SignerWithoutRegion(region="")
            else:
                self.signer = Signer(region=endpoint.signing_region, service=endpoint.signing_name)
            transport = await self.create_transport(configuration)
            if self.closed:
                await transport.close()
                raise ClientStateError("the client is closed")
            self.transport = transport
            if self._transport_name is None and self._session is None and not isinstance(transport, PooledTransport):
                LOGGER.info(
                    'falling back to transport="session"%s', "" if configuration.proxy is None else ", for the proxy"
                )
            _connected().add(self)
            self._prepared = True
            self.ready_in = get_ident()

    async def _create_transport(self, configuration: Configuration) -> Transport:
        return await create_transport(
            self._transport_name,
            configuration.origin,
            session=self._session,
            verify=configuration.verify,
            proxy=configuration.proxy,
        )

    def forget(self) -> None:
        """Mark the client unusable after a fork, so that `bind` can report why even on the parent's loop."""
        self.ready_in = 0

    async def close(self) -> None:
        """Close connections and background work; may be called more than once.

        If the loop of the calls has been closed, its connections are closed when they are collected.

        Raises:
            ClientStateError: called on another loop, or in another process, than the one of the calls.
        """
        if self.closed:
            return
        if self._bound_to is not None and self._bound_to.is_closed() and self._pid == os.getpid():
            # Its tasks are gone, and nothing of it can be awaited any more.
            self.closed = True
            self.ready_in = 0
            self._close_executor()
            return
        self.bind(asyncio.get_running_loop())
        self.closed = True
        for sleeper in self._sleepers:
            _wake(sleeper)
        # An abandoned stream keeps its slot, and the calls in line behind it would never wake up.
        for admissions in self._admissions:
            admissions.close()
        async with AsyncExitStack() as stack:
            # All of it, the last first, whatever fails or is cancelled on the way.
            stack.callback(self._close_executor)
            stack.push_async_callback(self.credentials.close)
            if self._object_store is not None:
                stack.push_async_callback(self._object_store.close)
            if self._http2_pool is not None:
                stack.push_async_callback(self._http2_pool.close)
            if self.ready_in:
                self.ready_in = 0
                await self.transport.close()

    def _close_executor(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "ready_in", 0):
            _warn("unclosed aiosmrt.Client: use `async with`, or `await client.close()`", ResourceWarning, source=self)

    def http2_endpoint(self) -> ResolvedEndpoint:
        """Where bidirectional streams go.

        Raises:
            ConfigurationError: neither the arguments nor the environment say.
        """
        if self._http2_endpoint is None:
            self._http2_endpoint = http2_endpoint(
                self.configuration().endpoint,
                self._http2_endpoint_url or os.environ.get("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME_HTTP2") or None,
            )
        return self._http2_endpoint

    async def _shared_http2_pool(self) -> Http2Pool:
        """The connections for bidirectional streams; made on first need, closed with the client.

        Raises:
            ClientStateError: the client was closed.
            ConfigurationError: the extra ``http2`` is not installed, a proxy is configured, or ``verify`` is an SSL
                context.
        """
        if self._http2_pool is None:
            installed("h2", "http2")
            from aiosmrt._transport.http2.pool import Http2Pool

            configuration = self.configuration()
            if configuration.proxy is not None:
                raise ConfigurationError("bidirectional streams do not go through proxies, and one is configured")
            parts = urlsplit(self.http2_endpoint().url)
            context = None
            if parts.scheme == "https":
                if isinstance(self._verify, ssl.SSLContext):
                    raise ConfigurationError(
                        "bidirectional streams cannot use an ssl.SSLContext, whose ALPN is that of HTTP/1.1: give "
                        "`verify` the path of its authorities"
                    )
                context = await self.off_loop(self._http2_context, configuration.ca_bundle)
            if self.closed:
                raise ClientStateError("the client is closed")
            if self._http2_pool is None:
                self._http2_pool = Http2Pool(f"{parts.scheme}://{parts.netloc}", context=context)
        return self._http2_pool

    async def object_store(self) -> ObjectStore:
        """Access to S3 in the same region, with the same credentials; made on first need, closed with the client.

        Raises:
            ClientStateError: closed, or tied to another loop or process.
            ConfigurationError: something is missing or contradictory, or ``verify`` is an SSL context.
        """
        if not self.is_ready():
            await self.prepare()
        if self._object_store is None:
            if isinstance(self._verify, ssl.SSLContext):
                raise ConfigurationError(
                    "S3 cannot be called with an ssl.SSLContext: give `verify` the path of its authorities"
                )
            # needed by asynchronous inference alone
            from aiosmrt._aws.s3 import ObjectStore

            settings, bundle = self.configuration().settings, self.configuration().ca_bundle
            self._object_store = ObjectStore(
                self.credentials,
                region_name=settings.region_name,
                endpoint_url=self._s3_endpoint_url,
                profile_name=settings.profile_name,
                use_fips_endpoint=settings.use_fips_endpoint,
                use_dualstack_endpoint=settings.use_dualstack_endpoint,
                verify=False if self._verify is False else bundle,
            )
        return self._object_store

    def _http2_context(self, bundle: CaBundle | None) -> ssl.SSLContext:
        verify = self._verify is not False
        if bundle is None:
            return http2_context(None, verify=verify)
        try:
            return http2_context(bundle.path, verify=verify)
        except UnusableAuthoritiesError as error:
            # The service's other URL may have no TLS, and then nothing has looked at the path yet.
            raise authorities_error(bundle, error) from error

    def _call_later(self, seconds: float, function: Callable[..., object], *arguments: Any) -> Timer:
        return self.loop.call_later(seconds, function, *arguments)

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not beyond the client's closing: a call in back-off then finds out at once."""
        if self.closed:
            return  # close() has woken the others, and will not come back
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_later(seconds, _wake, sleeper)
        self._sleepers.add(sleeper)
        try:
            await sleeper
        finally:
            timer.cancel()
            self._sleepers.discard(sleeper)

    # Work off the loop

    async def off_loop(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a blocking function in this client's one thread.

        Raises:
            ClientStateError: the client was closed.
        """
        if self.closed:
            raise ClientStateError("the client is closed")
        if self._executor is None:
            # One thread: four uploads hashed at once would only take turns, and hold up the loop in between.
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aiosmrt")
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def read_file(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function that reads a file in its own thread, for which no one waits once its caller has left.

        Raises:
            ClientStateError: the client was closed.
        """
        if self.closed:
            raise ClientStateError("the client is closed")
        async with self._file_readers:
            return await run_in_daemon_thread(partial(function, *arguments), name="aiosmrt-file")


@cache
def _connected() -> WeakSet[ClientCore]:
    """The clients with connections, which a forked child would share with its parent; watched from the first one on."""
    connected: WeakSet[ClientCore] = WeakSet()

    def forget_all() -> None:
        for core in connected:
            core.forget()

    if hasattr(os, "register_at_fork"):
        # Cheaper than asking for the process id at every call.
        os.register_at_fork(after_in_child=forget_all)
    return connected


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
