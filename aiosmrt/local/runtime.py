"""A SageMaker Runtime on the loopback interface, inside this process.

``LocalRuntime`` owns everything that its parts need: the listening socket, the HTTP session to model containers, the
containers that it started, and the tasks of requests and asynchronous inferences. It shuts down in order: no new
connections, a grace period for requests in flight, their cancellation, the end of asynchronous inferences, then the
containers. Cancelling the shutdown skips the grace periods, and everything is still released.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import aiohttp
from aiohttp import web

from aiosmrt._extras import installed
from aiosmrt._idle import check_idle_connections
from aiosmrt._wire.operations import STREAM_LIFETIME_SECONDS
from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.errors import ClientStateError, ConfigurationError
from aiosmrt.local.asynchronous import AsyncInference, JobRecord
from aiosmrt.local.authentication import SignatureVerifier
from aiosmrt.local.backends import Container
from aiosmrt.local.certificate import self_signed
from aiosmrt.local.fault_schedule import Effect, Fault, Faults, FaultScript, as_faults
from aiosmrt.local.invocation import MAX_RESPONSE_BYTES, MODEL_TIMEOUT, STREAM_TIMEOUT, Invoker
from aiosmrt.local.loopthread import LoopThread
from aiosmrt.local.objectstorage import ObjectStorage
from aiosmrt.local.requestlog import Progress, RequestLog, RequestRecord
from aiosmrt.local.response_body import cut_connection
from aiosmrt.local.routing import Endpoint, EndpointSource, as_configuration
from aiosmrt.local.server import MAX_BODY_BYTES, RequestServer
from aiosmrt.local.service import Service
from aiosmrt.local.tasks import finish

if TYPE_CHECKING:
    from aiosmrt.local.http2 import Http2Server

__all__ = ["LocalRuntime", "credentials_from_environment"]

HOST = "127.0.0.1"

T = TypeVar("T")

# For clients of a runtime that does not verify signatures.
_ANY_CREDENTIALS = Credentials("AKIDEXAMPLE", "not-a-real-secret")

# The environment variables for what a client is given as arguments.
_VARIABLES: Final = {
    "region_name": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "endpoint_url": ("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME",),
    "aws_access_key_id": ("AWS_ACCESS_KEY_ID",),
    "aws_secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
    "aws_session_token": ("AWS_SESSION_TOKEN",),
}


class LocalRuntime:
    """A SageMaker Runtime that listens on ``http://127.0.0.1:PORT`` while its ``async with`` block runs.

    In a ``with`` block, it runs in its own thread and event loop, where the models are called too. Its methods
    may be used from any thread and any event loop.

    Args:
        endpoints: what serves each endpoint, by name: an async callable that takes an ``Invocation``, the URL of a
            running model container, a ``ModelContainer`` to start, a ``MultiContainer``, a ``ProductionVariant`` or
            several, or an ``EndpointConfiguration``.
        credentials: the credentials whose signatures are accepted. Defaults to those in the environment
            (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``).
        verify_signatures: whether signatures are verified. Defaults to True. If False, unsigned and badly signed
            requests are accepted too, unless a web page of another origin sent them.
        region: the region of the runtime, to which signatures must be scoped. Defaults to us-east-1.
        account_id: the account of the runtime, 12 digits. Defaults to 123456789012.
        port: the TCP port. Defaults to a free one.
        http2_port: the TCP port for bidirectional streams over HTTP/2, which needs the extra ``http2``; 0 for a free
            one. If None, these streams are not served.
        http2_tls: whether that port speaks TLS: False for HTTP/2 without TLS, with prior knowledge; True with a
            certificate of the runtime's own (see `http2_authority`); or the ``ssl.SSLContext`` to use. Defaults to
            False.
        http2_window_bytes: how much a client may send on a stream before the model has taken it. Defaults to 65,535.
        http2_max_streams: streams that a connection may have at once. Defaults to 100.
        http2_stream_seconds: seconds after which a bidirectional stream is ended. Defaults to 1,800, the service's.
        object_storage: the S3 for asynchronous inference. Required if an endpoint is asynchronous.
        faults: scripted faults by endpoint name, under ``*`` for all; see ``aiosmrt.local.faults``. Defaults to none.
        model_timeout: seconds that a model has to answer, or to start a response stream. Defaults to 60.
        stream_timeout: total seconds that a response stream may take. Defaults to 480.
        max_body_bytes: the largest request body. Defaults to 25 MiB.
        max_response_bytes: the largest response body of a model outside of streams; a larger one is a ModelError.
            Defaults to 25 MiB.
        keepalive_timeout: seconds after which an idle connection is closed. Defaults to 75.
        drain_timeout: seconds that requests in flight get at shutdown. Defaults to 5.
        record_bodies: whether the request log contains headers and payloads, of response streams the first
            ``max_response_bytes``. Defaults to False.
        clock: returns the time in epoch seconds. Defaults to ``time.time``.
        chance: the source of random numbers, for variants, instances, ids and faults. If None, one is created.

    Raises:
        ConfigurationError: invalid endpoints or faults, or signatures to verify without credentials.

    >>> async def handler(invocation):
    ...     return invocation.body.upper(), {"Content-Type": "text/plain"}
    >>> runtime = LocalRuntime({"shout": handler}, credentials=Credentials("AKIDEXAMPLE", "not-a-real-secret"))
    >>> runtime
    <LocalRuntime idle endpoints=['shout']>
    """

    def __init__(
        self,
        endpoints: Mapping[str, EndpointSource],
        *,
        credentials: Credentials | Sequence[Credentials] | None = None,
        verify_signatures: bool = True,
        region: str = "us-east-1",
        account_id: str = "123456789012",
        port: int = 0,
        http2_port: int | None = None,
        http2_tls: bool | ssl.SSLContext = False,
        http2_window_bytes: int = 65_535,
        http2_max_streams: int = 100,
        http2_stream_seconds: float = STREAM_LIFETIME_SECONDS,
        object_storage: ObjectStorage | None = None,
        faults: Mapping[str, Faults] | None = None,
        model_timeout: float = MODEL_TIMEOUT,
        stream_timeout: float = STREAM_TIMEOUT,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        keepalive_timeout: float = 75.0,
        drain_timeout: float = 5.0,
        record_bodies: bool = False,
        clock: Callable[[], float] = time.time,
        chance: random.Random | None = None,
    ) -> None:
        accepted = _accepted(credentials) if verify_signatures or credentials is not None else [_ANY_CREDENTIALS]
        self._client_credentials = accepted[0]
        # runs the loop of a runtime that is used with `with`
        self._thread: LoopThread | None = None
        self._region = region
        self._port = port
        self._keepalive_timeout = keepalive_timeout
        self._drain_timeout = drain_timeout
        self._chance = random.Random() if chance is None else chance  # noqa: S311 - routing, not secrets
        configurations = {name: as_configuration(source) for name, source in endpoints.items()}
        self._endpoints = {
            name: Endpoint(name, configuration, self._open_session) for name, configuration in configurations.items()
        }
        self._containers = _distinct(
            container for configuration in configurations.values() for container in configuration.containers()
        )
        self._scripts: dict[str, FaultScript] = {}
        for name, listed in (faults or {}).items():
            self.inject(name, *as_faults(listed))
        self._progress = Progress()
        self._log = RequestLog(self._progress)
        invoker = Invoker(
            self._endpoints,
            chance=self._chance,
            model_timeout=model_timeout,
            stream_timeout=stream_timeout,
            max_response_bytes=max_response_bytes,
            changed=self._progress.changed,
        )
        self._invoker = invoker
        self._object_storage = object_storage
        self._jobs = AsyncInference(
            self._endpoints,
            invoker=invoker,
            storage=object_storage,
            progress=self._progress,
            clock=clock,
            chance=self._chance,
        )
        service = Service(
            invoker=invoker,
            verifier=SignatureVerifier(accepted, region=region) if verify_signatures else None,
            scripts=self._scripts,
            log=self._log,
            progress=self._progress,
            region=region,
            account_id=account_id,
            clock=clock,
            chance=self._chance,
        )
        self._server = RequestServer(
            service,
            jobs=self._jobs,
            max_body_bytes=max_body_bytes,
            max_recorded_bytes=max_response_bytes,
            record_bodies=record_bodies,
        )
        self._http2_port = http2_port
        self._http2_tls = http2_tls
        self._http2_authority: str | None = None
        self._http2_listener: asyncio.Server | None = None
        self._http2: Http2Server | None = None
        if http2_port is not None:
            installed("h2", "http2")
            from aiosmrt.local.http2 import Http2Server

            self._http2 = Http2Server(
                service,
                stall=self._server.stall,
                window_bytes=http2_window_bytes,
                max_streams=http2_max_streams,
                lifetime=http2_stream_seconds,
            )
        self._session: aiohttp.ClientSession | None = None
        self._storage_access = AsyncExitStack()
        self._started_containers: list[Container] = []
        self._web: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._hurry = asyncio.Event()
        self._closing: asyncio.Future[None] | None = None

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], *, port: int | None = None) -> Self:
        """Create a runtime from a TOML file; see ``aiosmrt.local.configuration``.

        Args:
            path: the file.
            port: overrides the file's port. If None, the file's.

        Raises:
            ConfigurationError: the file cannot be read, or a key in it is unknown or has an invalid value.
        """
        from aiosmrt.local.configuration import load_settings

        settings = load_settings(Path(path))
        return cls(**(settings if port is None else {**settings, "port": port}))

    def __repr__(self) -> str:
        state = self.url if self._listener is not None else "idle"
        return f"<LocalRuntime {state} endpoints={list(self._endpoints)}>"

    @property
    def port(self) -> int:
        """The TCP port that it listens on.

        Raises:
            ClientStateError: it is not running.
        """
        if self._listener is None or not self._listener.sockets:
            raise ClientStateError("the local runtime is not running; use it with `async with` or `with`")
        return int(self._listener.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Its URL, for a client's ``endpoint_url``.

        Raises:
            ClientStateError: it is not running.
        """
        return f"http://{HOST}:{self.port}"

    @property
    def has_http2(self) -> bool:
        """Whether it has an HTTP/2 port."""
        return self._http2 is not None

    @property
    def http2_url(self) -> str:
        """The URL of its HTTP/2 port, for a client's ``http2_endpoint_url``.

        Raises:
            ClientStateError: it is not running, or has no such port.
        """
        if self._http2_listener is None or not self._http2_listener.sockets:
            raise ClientStateError("the local runtime is not running, or has no http2_port")
        scheme = "http" if self._http2_tls is False else "https"
        return f"{scheme}://{HOST}:{self._http2_listener.sockets[0].getsockname()[1]}"

    @property
    def http2_authority(self) -> str:
        """The certificate authority of its HTTP/2 port in PEM, with ``http2_tls=True``; write it to a file for a
        client's ``verify``.

        Raises:
            ClientStateError: it is not running, or its HTTP/2 port has another certificate.
        """
        if self._http2_authority is None:
            raise ClientStateError("the local runtime has made no certificate: it is not running with http2_tls=True")
        return self._http2_authority

    @property
    def region(self) -> str:
        """The region of the runtime."""
        return self._region

    @property
    def client_settings(self) -> dict[str, str]:
        """Arguments with which a client calls it: `aiosmrt.Client`, or boto3's or aiobotocore's.

        Raises:
            ClientStateError: it is not running.
        """
        key = self._client_credentials
        settings = {
            "region_name": self._region,
            "endpoint_url": self.url,
            "aws_access_key_id": key.access_key,
            "aws_secret_access_key": key.secret_key,
        }
        return settings if key.token is None else {**settings, "aws_session_token": key.token}

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which a client without arguments calls it.

        Raises:
            ClientStateError: it is not running.
        """
        found = {name: value for setting, value in self.client_settings.items() for name in _VARIABLES[setting]}
        if self._http2_listener is not None:
            found["AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME_HTTP2"] = self.http2_url
        return found

    @property
    def requests(self) -> Sequence[RequestRecord]:
        """The finished requests, oldest first; a client that has its response finds its request among them."""
        # Read in the runtime's thread: a response arrives before the step that wrote it has added its record.
        return self._call(lambda: self._log.records)

    @property
    def jobs(self) -> Sequence[JobRecord]:
        """The asynchronous inferences that have ended, oldest first."""
        return self._call(lambda: self._jobs.records)

    def clear_requests(self) -> None:
        """Remove the records of finished requests and asynchronous inferences; statistics keep counting."""
        self._call(self._log.clear)
        self._call(self._jobs.clear)

    async def wait_for_requests(self, count: int) -> Sequence[RequestRecord]:
        """Wait until the log contains this many requests, and return them."""
        await self._until(lambda: len(self._log.records) >= count)
        return self.requests

    async def wait_for_jobs(self, count: int) -> Sequence[JobRecord]:
        """Wait until this many asynchronous inferences have ended, and return their records."""
        await self._until(lambda: len(self._jobs.records) >= count)
        return self.jobs

    async def wait_for_running_jobs(self, count: int) -> None:
        """Wait until at least this many asynchronous inferences are running at once."""
        await self._until(lambda: self._jobs.running >= count)

    async def wait_for_in_flight(self, count: int) -> None:
        """Wait until at least this many requests are being handled at once."""
        await self._until(lambda: self._in_flight >= count)

    async def wait_for_queued(self, count: int) -> None:
        """Wait until at least this many calls wait for a worker of an endpoint with a ``Capacity``."""
        await self._until(lambda: self._invoker.queued >= count)

    async def wait_for_stalled(self, count: int) -> None:
        """Wait until a stall holds at least this many calls."""
        # A call whose client has just disconnected counts until the loop has run once.
        await asyncio.sleep(0)
        await self._until(lambda: self._server.stalled >= count)

    def release_stalled(self) -> None:
        """Let every call continue that a stall holds."""
        self._call(self._server.release_stalled)

    def inject(self, endpoint: str, *faults: Effect | Fault) -> None:
        """Add faults to the end of an endpoint's script.

        Args:
            endpoint: the endpoint's name, or ``*`` for all.
            faults: the faults; a bare effect applies to every call.

        Raises:
            ConfigurationError: unknown endpoint.
        """
        if endpoint != "*" and endpoint not in self._endpoints:
            raise ConfigurationError(f"faults name an unknown endpoint; got {endpoint!r}")
        script = self._scripts.setdefault(endpoint, FaultScript((), self._chance))
        self._call(script.extend, as_faults(faults))

    def clear_faults(self, endpoint: str | None = None) -> None:
        """Remove the faults of an endpoint, or those under ``*``. If None, remove every fault."""
        for name, script in self._scripts.items():
            if endpoint is None or name == endpoint:
                self._call(script.clear)

    def close_idle_connections(self, *, reset: bool = False) -> int:
        """Close every idle connection without notice; return how many.

        Args:
            reset: whether to send a TCP reset. Defaults to False.
        """
        return self._call(self._close_idle_connections, reset)

    def _close_idle_connections(self, reset: bool) -> int:
        closed = 0
        for protocol in [] if self._web is None else self._web.connections:
            if protocol.transport is not None and not self._server.busy(protocol):
                cut_connection(protocol.transport, reset=reset)
                closed += 1
        return closed

    def statistics(self) -> dict[str, Any]:
        """Return counters: requests, calls in flight, stalled and queued, connections, jobs, bytes, statuses, errors.

        ``jobs`` are asynchronous inferences: how many are queued and running, and how many have ended with each
        outcome.
        """
        return self._call(self._statistics)

    def _statistics(self) -> dict[str, Any]:
        return {
            "requests": self._log.total,
            "in_flight": self._in_flight,
            "stalled": self._server.stalled,
            "queued": self._invoker.queued,
            "connections": (0 if self._web is None else len(self._web.connections))
            + (0 if self._http2 is None else len(self._http2.connections)),
            "connections_seen": self._server.connections_seen
            + (0 if self._http2 is None else self._http2.connections_seen),
            "closes_to_come": self._server.closes_to_come,
            "sessions": sum(len(endpoint.sessions) for endpoint in self._endpoints.values()),
            "jobs": self._jobs.statistics(),
            "request_bytes": self._log.request_bytes,
            "response_bytes": self._log.response_bytes,
            "by_status": dict(self._log.by_status),
            "by_error": dict(self._log.by_error),
            "by_endpoint": dict(self._log.by_endpoint),
        }

    @property
    def _in_flight(self) -> int:
        return self._server.in_flight + (0 if self._http2 is None else self._http2.in_flight)

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the thread of the runtime's event loop."""
        thread = self._thread  # another thread may end the runtime
        return function(*arguments) if thread is None else thread.call(function, *arguments)

    async def _until(self, predicate: Callable[[], bool]) -> None:
        waiting = self._progress.until(predicate)
        thread = self._thread
        await (waiting if thread is None else thread.wait_for(waiting))

    def __enter__(self) -> Self:
        if self._web is not None:
            raise ClientStateError("the local runtime is already running")
        thread = LoopThread()
        try:
            thread.run(self.start())
        except BaseException:
            thread.close()
            raise
        self._thread = thread
        return self

    def __exit__(self, *exc_info: object) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            thread.run(self.close())
        finally:
            thread.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the containers, wait until they are ready, then listen.

        Raises:
            ClientStateError: it is already running.
            ContainerError: a container did not start; the others are stopped again.
            ConfigurationError: the object storage cannot be used.
            OSError: the port is in use.
        """
        if self._web is not None:
            raise ClientStateError("the local runtime is already running")
        self._hurry = asyncio.Event()
        self._web = web.Server(
            self._server.handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,  # a signature covers the bytes as sent
            keepalive_timeout=self._keepalive_timeout,
        )
        try:
            await self._start_containers()
            if self._object_storage is not None and self._jobs.needs_storage:
                self._jobs.open(await self._storage_access.enter_async_context(self._object_storage.open()))
            # Not cancellable half way: a listener that is not assigned yet could not be closed.
            await finish(self._listen(self._web))
        except BaseException:
            await self.close()
            raise

    async def _listen(self, connections: web.Server) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(connections, HOST, self._port, backlog=1024)
        if self._http2 is not None and self._http2_port is not None:
            self._http2_listener = await loop.create_server(
                self._http2.protocol, HOST, self._http2_port, ssl=self._http2_context(), backlog=1024
            )

    def _http2_context(self) -> ssl.SSLContext | None:
        if isinstance(self._http2_tls, ssl.SSLContext):
            return self._http2_tls
        if not self._http2_tls:
            return None
        self._http2_authority, key = self_signed("aiosmrt local runtime")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["h2"])
        # ssl loads certificates from files alone
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "certificate.pem")
            path.touch(mode=0o600)
            path.write_text(self._http2_authority + key)
            context.load_cert_chain(path)
        return context

    async def _start_containers(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for container in self._containers:
                    if not container.running:
                        self._started_containers.append(container)
                        group.create_task(container.start())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def close(self) -> None:
        """Shut down in order; no effect if it is not running. Cancelling this skips the grace periods."""
        if self._web is None:
            return
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await finish(self._closing, on_cancel=self._hurry.set)

    async def _close(self) -> None:
        try:
            await self._end()
        finally:
            self._web = self._closing = None

    async def _end(self) -> None:
        connections = self._web
        for listener in (self._listener, self._http2_listener):
            if listener is None:
                continue
            # A connection accepted in the loop iteration in which its listener is closed is never closed by asyncio
            # (3.11): stop accepting first. On event loops that accept in another way this has no effect.
            for listening in listener.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            for _ in range(2):
                await asyncio.sleep(0)
            listener.close()
        self._server.cancel_timers()
        self._server.release_stalled()
        if connections is not None:
            self.close_idle_connections()
            connections.pre_shutdown()  # the others end with their response
            if self._http2 is not None:
                self._http2.say_goodbye()
            await self._drain()
            if self._http2 is not None:
                await self._http2.close()
            # Collected before their handlers end and drop them: closing alone waits for clients that read nothing.
            transports = [protocol.transport for protocol in connections.connections]
            await self._server.cancel_handlers()
            await connections.shutdown(1.0)
            for transport in transports:
                if transport is not None:
                    transport.abort()
            await asyncio.sleep(0)  # the end of a transport takes one loop iteration
        if self._listener is not None:
            await self._listener.wait_closed()
            self._listener = None
        if self._http2_listener is not None:
            await self._http2_listener.wait_closed()
            self._http2_listener = None
        await self._jobs.close()
        await self._storage_access.aclose()
        if self._session is not None:
            await self._session.close()
            self._session = None
        await self._stop_containers()

    async def _drain(self) -> None:
        idle = asyncio.ensure_future(self._progress.until(lambda: self._in_flight == 0))
        hurry = asyncio.ensure_future(self._hurry.wait())
        try:
            await asyncio.wait({idle, hurry}, timeout=self._drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()
            hurry.cancel()
            await asyncio.wait({idle, hurry})

    async def _stop_containers(self) -> None:
        started, self._started_containers = self._started_containers, []
        if not started:
            return
        stops = {asyncio.ensure_future(container.stop()) for container in started}
        hurry = asyncio.ensure_future(self._hurry.wait())
        try:
            pending: set[asyncio.Future[Any]] = set(stops)
            while pending and not hurry.done():
                pending = (await asyncio.wait({*pending, hurry}, return_when=asyncio.FIRST_COMPLETED))[1] - {hurry}
            for stop in pending:
                stop.cancel()
        finally:
            hurry.cancel()
            results = await asyncio.gather(*stops, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Containers close idle connections after as little as 2 s, and a POST that is sent just then is lost.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=1.0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
            check_idle_connections(self._session.connector)
        return self._session


def credentials_from_environment(environment: Mapping[str, str] | None = None) -> Credentials:
    """Return the AWS credentials of the environment.

    Args:
        environment: the variables. Defaults to this process's environment.

    Raises:
        ConfigurationError: the environment does not contain credentials.

    >>> credentials_from_environment({"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "not-a-real-secret"})
    Credentials(access_key='AKIDEXAMPLE', expires_at=None)
    """
    variables = os.environ if environment is None else environment
    access_key, secret_key = variables.get("AWS_ACCESS_KEY_ID"), variables.get("AWS_SECRET_ACCESS_KEY")
    if not access_key or not secret_key:
        raise ConfigurationError(
            "the local runtime verifies signatures and needs credentials: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY (to any made-up values that its clients use too), pass credentials, or set "
            "verify_signatures to False"
        )
    return Credentials(access_key, secret_key, variables.get("AWS_SESSION_TOKEN") or None)


def _accepted(credentials: Credentials | Sequence[Credentials] | None) -> list[Credentials]:
    if credentials is None:
        return [credentials_from_environment()]
    accepted = [credentials] if isinstance(credentials, Credentials) else list(credentials)
    if not accepted:
        raise ConfigurationError("credentials must not be an empty sequence")
    return accepted


def _distinct(containers: Iterable[Container]) -> list[Container]:
    return list({id(container): container for container in containers}.values())
