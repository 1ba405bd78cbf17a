"""What a client and its views share: configuration, connections, credentials, clock offset, counters.

A `Shared` is made without I/O and belongs to the first event loop that uses it. `Shared.prepare` does, once and off
the loop, all that needs files or heavy imports. From then on a call finds everything ready in attributes.

It is long because a client's whole life is here, from settings to closing; what calls do is elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import os
import random
import re
import ssl
import time
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakSet

from aiosmrt.aws.credentials import CredentialsCache
from aiosmrt.aws.hosts import ResolvedEndpoint, resolve_endpoint
from aiosmrt.aws.settings import Settings, resolve_settings
from aiosmrt.capacitygate import CallLater, CapacityGate, Target, Timer
from aiosmrt.config import DEFAULT_MAX_ATTEMPTS, RetryPolicy, faulty_limits, is_whole
from aiosmrt.errors import ClientStateError, ConfigurationError, InvalidConfigError, NoRegionError, ParamValidationError
from aiosmrt.events import Event, Observer
from aiosmrt.limiter import Limiter
from aiosmrt.policy.retry import RetryBucket, invocation_id
from aiosmrt.transport.choice import TransportName, check_choice, open_transport
from aiosmrt.wire.operations import OPERATIONS, Operation
from aiosmrt.wire.params import HeadBuilder
from aiosmrt.wire.replies import ReplyReader
from aiosmrt.wire.sigv4 import Signer

if TYPE_CHECKING:
    import aiohttp

    from aiosmrt.aws.s3 import ObjectStore
    from aiosmrt.call import Prepared
    from aiosmrt.transport import Transport
    from aiosmrt.types import Body

__all__ = ["HASH_INLINE_BYTES", "Counters", "Limiters", "Options", "Plan", "Shared"]

T = TypeVar("T")

# Above this size a thread's hand-over costs less than the loop's stall (docs/design/architecture.md, Hashing).
HASH_INLINE_BYTES = 256 * 1024

# What may not be in a part of the User-Agent header, as in botocore: a token (RFC 9110, 5.6.2) less "#", and a comma.
_UNFIT_FOR_USER_AGENT = re.compile(r"[^A-Za-z0-9!$%&'*+.^_`|~,-]")

# Endpoint names whose limiters are kept although nobody uses them.
_MAX_IDLE_LIMITERS = 1024


class Limiters:
    """The limiters of a client or view, one per endpoint.

    Args:
        max_concurrency: calls in flight per endpoint.

    Raises:
        ParamValidationError: ``max_concurrency`` is no whole number from 1.
    """

    def __init__(self, max_concurrency: int) -> None:
        if not is_whole(max_concurrency, 1):
            raise ParamValidationError([f"max_concurrency must be a whole number from 1; got {max_concurrency!r}"])
        self.max_concurrency = max_concurrency
        self.by_endpoint: dict[str, Limiter] = {}

    def of(self, endpoint_name: str) -> Limiter:
        """The endpoint's limiter."""
        limiter = self.by_endpoint.get(endpoint_name)
        if limiter is None:
            if len(self.by_endpoint) >= _MAX_IDLE_LIMITERS:
                self._drop_idle()
            limiter = self.by_endpoint[endpoint_name] = Limiter(self.max_concurrency)
        return limiter

    def close(self) -> None:
        """Tell the calls that wait that the client is closed."""
        for limiter in self.by_endpoint.values():
            limiter.refuse_waiters(lambda: ClientStateError("the client was closed during the call"))

    def _drop_idle(self) -> None:
        for name, limiter in list(self.by_endpoint.items()):
            state = limiter.statistics()
            if not state.in_use and not state.waiting:
                del self.by_endpoint[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What may differ between a client and its views; see `aiosmrt.Client` for each."""

    connect_timeout: float | None
    read_timeout: float | None
    deadline: float | None
    wait_for_capacity: float | None
    retry: RetryPolicy
    sign: bool
    user_agent: str
    observers: tuple[Observer, ...]
    limiters: Limiters
    bucket: RetryBucket
    # by the identities of request heads
    prepared: dict[int, Prepared] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        faults = faulty_limits(
            connect_timeout=self.connect_timeout,
            read_timeout=self.read_timeout,
            deadline=self.deadline,
            wait_for_capacity=self.wait_for_capacity,
        )
        if not isinstance(self.sign, bool):
            faults.append(f"sign must be True or False; got {self.sign!r:.80}")
        faults += [f"observers must be callables; got {type(o)}" for o in self.observers if not callable(o)]
        if faults:
            raise ParamValidationError(faults)


class Plan:
    """An operation with what builds its requests and reads its replies."""

    __slots__ = ("heads", "operation", "reader")

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.heads = HeadBuilder(operation)
        self.reader = ReplyReader(operation)


class _SignerWithoutRegion(Signer):
    """In the place of a signer where no region is known; calls that are not signed never ask it."""

    __slots__ = ()

    def sign_lines(self, *arguments: Any, **named: Any) -> NoReturn:
        raise NoRegionError("You must specify a region.")

    presign = sign_lines


class Counters:
    """Running totals of a client and its views."""

    __slots__ = ("attempts", "bytes_received", "bytes_sent", "calls", "retries", "throttles")

    def __init__(self) -> None:
        self.calls = 0
        self.attempts = 0
        self.throttles = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.retries: dict[str, int] = {}


class Configuration(NamedTuple):
    """What arguments, environment and files amount to."""

    settings: Settings
    endpoint: ResolvedEndpoint
    origin: str
    base_path: str
    verify: bool | ssl.SSLContext
    proxy: str | None


class Shared:
    """What a client and its views share.

    Args:
        settings: the client's arguments for `aiosmrt.aws.settings.resolve_settings`.
        credentials: where credentials come from.
        s3_endpoint_url: as the client's argument.
        verify: as the client's argument.
        session: the caller's own aiohttp session; None for an own one.
        transport: which transport carries the calls; None for the fastest that can.
    """

    def __init__(
        self,
        *,
        settings: dict[str, Any],
        credentials: CredentialsCache,
        s3_endpoint_url: str | None = None,
        verify: bool | str | os.PathLike[str] | ssl.SSLContext,
        session: aiohttp.ClientSession | None,
        transport: TransportName | None = None,
    ) -> None:
        check_choice(transport, session)
        if not isinstance(verify, (bool, str, os.PathLike, ssl.SSLContext)) or verify == "":
            raise ParamValidationError([f"verify must be True, False, a path or an ssl.SSLContext; got {verify!r:.80}"])
        self._settings_arguments = settings
        self._s3_endpoint_url = s3_endpoint_url
        self._verify = verify
        self._session = session
        self._transport_name: TransportName | None = transport
        self._configuration: Configuration | None = None
        self._bound_to: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        # binds to a loop where it is waited for, not where it is made
        self._lock = asyncio.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._object_store: ObjectStore | None = None
        self.closed = False
        self._prepared = False
        # The thread in which everything below is ready while the loop runs; 0 as long as it is not.
        self.ready_in = 0
        self.loop: asyncio.AbstractEventLoop
        self.transport: Transport
        self.credentials = credentials
        self.signer: Signer
        self.endpoint: ResolvedEndpoint
        self.base_path = ""
        self.max_attempts = DEFAULT_MAX_ATTEMPTS
        # the application's id as a part of the User-Agent header, a blank before it
        self.user_agent_app = ""
        self.plans = {operation.name: Plan(operation) for operation in OPERATIONS}
        self.counters = Counters()
        # Seconds by which the service's clock is ahead of this machine's.
        self.clock_offset = 0.0
        self.wall_clock: Callable[[], float] = time.time
        self.clock: Callable[[], float] = time.monotonic
        self.random: Callable[[], float] = random.random
        # Invocation ids are version 4 UUIDs that differ in their last 12 digits, which are counted: forming one from
        # random bits each time takes three times as long.
        self._invocation_ids = invocation_id(random.getrandbits(128))[:24]
        self._invocations = random.getrandbits(47)
        self.call_later: CallLater = self._call_later
        self.sleep: Callable[[float], Awaitable[None]] = self._sleep
        self._sleepers: set[asyncio.Future[None]] = set()
        # What has no capacity now, and calls that wait for it: empty nearly always.
        self.gates: dict[Target, CapacityGate] = {}
        # those of the client and of its views
        self.limiters: WeakSet[Limiters] = WeakSet()

    def next_invocation_id(self) -> str:
        """A call's ``amz-sdk-invocation-id``."""
        self._invocations += 1
        return f"{self._invocation_ids}{self._invocations:012x}"

    # Configuration

    def configuration(self) -> Configuration:
        """Resolve arguments, environment and files, once; reads files and may import botocore.

        Raises:
            ConfigurationError: something is missing or contradictory.
        """
        if self._configuration is None:
            settings = resolve_settings(**self._settings_arguments)
            endpoint = resolve_endpoint(
                settings.region_name,
                use_fips=settings.use_fips_endpoint,
                use_dualstack=settings.use_dualstack_endpoint,
                endpoint_url=settings.endpoint_url,
            )
            parts = urlsplit(endpoint.url)
            self._configuration = Configuration(
                settings=settings,
                endpoint=endpoint,
                origin=f"{parts.scheme}://{parts.netloc}",
                base_path=endpoint.path,
                # Loading the bundle takes 18 ms and 800 KiB, and plain HTTP has no use for it.
                verify=self._tls(settings.ca_bundle if parts.scheme == "https" else None),
                proxy=None if self._session is not None else _proxy(parts.scheme, parts.netloc, parts.hostname or ""),
            )
        return self._configuration

    def _tls(self, ca_bundle: str | None) -> bool | ssl.SSLContext:
        verify: Any = self._verify
        if verify is True and ca_bundle is not None:
            verify = ca_bundle
        if isinstance(verify, (bool, ssl.SSLContext)):
            return verify
        path = os.fspath(verify)
        try:
            if Path(path).is_dir():
                return ssl.create_default_context(capath=path)
            return ssl.create_default_context(cafile=path)
        except (OSError, ssl.SSLError) as error:
            raise ParamValidationError([f"verify: {path!r} cannot be loaded as CA certificates: {error}"]) from error

    # Life

    def is_ready(self) -> bool:
        """Whether a call on the running loop can go straight on.

        On Python 3.11, `asyncio.get_running_loop` asks for the process id, at a system call per call. A thread runs one
        loop at a time, so this is as good.
        """
        return self.ready_in == get_ident() and self.loop.is_running()

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tie this to the running loop, or say why it cannot be used on it.

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
            self.max_attempts = settings.max_attempts or DEFAULT_MAX_ATTEMPTS
            if settings.user_agent_appid is not None:
                self.user_agent_app = f" app/{_UNFIT_FOR_USER_AGENT.sub('-', settings.user_agent_appid)}"
            if endpoint.signing_region is None:
                self.signer = _SignerWithoutRegion(region="")
            else:
                self.signer = Signer(region=endpoint.signing_region, service=endpoint.signing_name)
            transport = await open_transport(
                self._transport_name,
                configuration.origin,
                session=self._session,
                verify=configuration.verify,
                proxy=configuration.proxy,
            )
            if self.closed:
                await transport.close()
                raise ClientStateError("the client is closed")
            self.transport = transport
            _connected().add(self)
            self._prepared = True
            self.ready_in = get_ident()

    def forget(self) -> None:
        """Be unprepared in a forked child, so that `bind` gets to say why even on the parent's loop."""
        self.ready_in = 0

    async def close(self) -> None:
        """Close connections and background work; may be called more than once.

        Raises:
            ClientStateError: called on another loop, or in another process, than the one of the calls.
        """
        if self.closed:
            return
        self.bind(asyncio.get_running_loop())
        self.closed = True
        for sleeper in self._sleepers:
            _wake(sleeper)
        # A stream that nobody reads keeps its place, and those behind it would wait for ever.
        for limiters in self.limiters:
            limiters.close()
        for gate in list(self.gates.values()):
            gate.open()
        async with AsyncExitStack() as stack:
            # All of it, the last first, whatever fails or is cancelled on the way.
            stack.callback(self._close_executor)
            stack.push_async_callback(self.credentials.close)
            if self._object_store is not None:
                stack.push_async_callback(self._object_store.close)
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

    async def object_store(self) -> ObjectStore:
        """Access to S3 in the same region, with the same credentials; made on first need, closed with the client.

        Raises:
            ClientStateError: closed, or tied to another loop or process.
            ConfigurationError: something is missing or contradictory, or the client checks certificates with a context
                of its user's.
        """
        if not self.is_ready():
            await self.prepare()
        if self._object_store is None:
            if isinstance(self._verify, ssl.SSLContext):
                raise ConfigurationError(
                    "S3 cannot be called with an ssl.SSLContext: give `verify` the path of its authorities"
                )
            # needed by asynchronous inference alone
            from aiosmrt.aws.s3 import ObjectStore

            given, settings = self._verify, self.configuration().settings
            self._object_store = ObjectStore(
                self.credentials,
                region_name=settings.region_name,
                endpoint_url=self._s3_endpoint_url,
                profile_name=settings.profile_name,
                use_fips_endpoint=settings.use_fips_endpoint,
                use_dualstack_endpoint=settings.use_dualstack_endpoint,
                # True leaves AWS_CA_BUNDLE to botocore, which takes no context of anybody's.
                verify=False if given is False else os.fspath(given) if isinstance(given, (str, os.PathLike)) else None,
            )
        return self._object_store

    def _call_later(self, seconds: float, function: Callable[..., object], *arguments: Any) -> Timer:
        return self.loop.call_later(seconds, function, *arguments)

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not beyond the client's closing: a call in back-off then finds out at once."""
        if self.closed:
            return  # whoever would wake it up has done so
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

    async def body_bytes(self, body: Body) -> bytes | memoryview:
        """A request body as bytes that nobody changes.

        Raises:
            ParamValidationError: a text without an encoding, or a file that is not binary or not seekable.
        """
        if isinstance(body, bytes):
            return body
        if isinstance(body, str):
            try:
                return body.encode()
            except UnicodeEncodeError:
                # without the error as its cause, which holds the body
                fault = "Body: the text has halves of surrogate pairs, which have no encoding"
            raise ParamValidationError([fault])
        if isinstance(body, memoryview):
            # read-only memory over bytes is as good as bytes; anything else may change under the signature
            if body.readonly and body.c_contiguous and isinstance(body.obj, bytes):
                return body.cast("B")
            return bytes(body)
        if isinstance(body, bytearray):
            return bytes(body)
        return await self.off_loop(_read_file, body)


@cache
def _connected() -> WeakSet[Shared]:
    """The clients with connections, which a forked child would share with its parent; watched from the first one on."""
    connected: WeakSet[Shared] = WeakSet()

    def forget_all() -> None:
        for shared in connected:
            shared.forget()

    if hasattr(os, "register_at_fork"):
        # Cheaper than asking for the process id at every call.
        os.register_at_fork(after_in_child=forget_all)
    return connected


def emit(observers: tuple[Observer, ...], event: Event) -> None:
    """Hand an event to observers; what one raises goes to the loop's exception handler."""
    for observer in observers:
        try:
            observer(event)
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"an observer failed on {type(event).__name__}", "exception": error}
            )


def with_max_attempts(policy: RetryPolicy, max_attempts: int) -> RetryPolicy:
    """The policy with its number of attempts filled in where it leaves it open."""
    return policy if policy.max_attempts is not None else replace(policy, max_attempts=max_attempts)


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


def body_digest(body: bytes | memoryview) -> str:
    """The body's SHA-256 in hexadecimal; above `HASH_INLINE_BYTES` this belongs off the loop."""
    return hashlib.sha256(body).hexdigest()


def _read_file(file: Any) -> bytes:
    if inspect.iscoroutinefunction(file.read):
        raise ParamValidationError(["Body: the file is an asynchronous one; read it and pass its bytes"])
    if not hasattr(file, "seekable") or not file.seekable():
        raise ParamValidationError(["Body: the file is not seekable; read it and pass its bytes"])
    # nothing is read yet: a text file shows by the type of what it gives
    if isinstance(file.read(0), str):
        raise ParamValidationError(['Body: the file is open in text mode; open it with "rb"'])
    data = file.read()
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ParamValidationError([f"Body: the file's read() gave {type(data)} in place of bytes"])
    return bytes(data)


def _proxy(scheme: str, netloc: str, host: str) -> str | None:
    """The proxy that the environment names for a scheme and host, by botocore's rules (botocore.httpsession).

    Raises:
        InvalidConfigError: it is no URL of an HTTP proxy.
    """
    proxies = getproxies()
    proxy = proxies.get(scheme)
    # an entry of NO_PROXY may name the port
    if not proxy or proxy_bypass(netloc) or proxy_bypass(host):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy.removeprefix('//')}"
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # not quoted: it may hold a password
        raise InvalidConfigError(f"{scheme.upper()}_PROXY must be the URL of an HTTP proxy, such as http://host:3128")
    return proxy
