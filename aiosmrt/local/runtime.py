"""A SageMaker Runtime on the loopback interface, inside this process.

``LocalRuntime`` owns everything that the parts beside it need: the listening socket, the HTTP session to model
containers, the containers that it started, the tasks of requests in flight, and those of asynchronous inferences. It
ends in order: no new connections, then a grace period for what is in flight, then cancellation, asynchronous inferences
dropped, then the containers; an impatient caller (who cancels the closing) skips the grace periods and still leaves
nothing behind.

The module is long for its docstrings: it is the runtime's whole public surface.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.errors import ClientStateError, ConfigurationError
from aiosmrt.local.asynchronous import AsyncInference, JobRecord
from aiosmrt.local.delivery import cut_connection
from aiosmrt.local.faultscript import Effect, Fault, Faults, FaultScript, as_faults
from aiosmrt.local.invocation import MODEL_TIMEOUT, STREAM_TIMEOUT, Invoker
from aiosmrt.local.objectstorage import ObjectStorage
from aiosmrt.local.requestlog import Progress, RequestLog, RequestRecord
from aiosmrt.local.routing import Endpoint, EndpointSource, as_configuration
from aiosmrt.local.server import MAX_BODY_BYTES, RequestServer
from aiosmrt.local.targets import Container
from aiosmrt.local.verify import SignatureVerifier

__all__ = ["LocalRuntime", "credentials_from_environment"]

HOST = "127.0.0.1"


class LocalRuntime:
    """A SageMaker Runtime that answers on ``http://127.0.0.1:PORT`` while its ``async with`` block runs.

    Args:
        endpoints: what serves each endpoint, by its name: an async callable that takes an ``Invocation``, the URL of a
            running model container, a ``ModelContainer`` to start, a ``ProductionVariant`` or several, or an
            ``EndpointConfiguration``.
        credentials: whose signatures are accepted; None takes those of this process's environment
            (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``).
        verify_signatures: whether signatures are checked; False takes unsigned and badly signed requests too.
        region: the region that it plays, and to which signatures have to be scoped.
        account_id: the account that it plays.
        port: the TCP port; 0 for a free one.
        object_storage: the S3 for asynchronous inference; None for a runtime without.
        faults: what goes wrong at which endpoint, under ``*`` at all of them; see ``aiosmrt.local.faults``.
        model_timeout: seconds that a model has to answer, or to begin a response stream.
        stream_timeout: seconds that a response stream may take in all.
        max_body_bytes: the largest request body.
        keepalive_timeout: seconds after which an idle connection is closed.
        drain_timeout: seconds that requests in flight are given when it ends.
        record_bodies: whether the request log keeps headers and payloads.
        clock: gives the time in epoch seconds.
        chance: the source of random numbers, for variants, instances, ids and faults; None for a fresh one.

    Raises:
        ConfigurationError: endpoints or faults that make no sense, or signatures to be checked and no credentials.

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
        object_storage: ObjectStorage | None = None,
        faults: Mapping[str, Faults] | None = None,
        model_timeout: float = MODEL_TIMEOUT,
        stream_timeout: float = STREAM_TIMEOUT,
        max_body_bytes: int = MAX_BODY_BYTES,
        keepalive_timeout: float = 75.0,
        drain_timeout: float = 5.0,
        record_bodies: bool = False,
        clock: Callable[[], float] = time.time,
        chance: random.Random | None = None,
    ) -> None:
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
            self._endpoints, chance=self._chance, model_timeout=model_timeout, stream_timeout=stream_timeout
        )
        self._object_storage = object_storage
        self._jobs = AsyncInference(
            self._endpoints,
            invoker=invoker,
            storage=object_storage,
            progress=self._progress,
            clock=clock,
            chance=self._chance,
        )
        self._server = RequestServer(
            invoker=invoker,
            jobs=self._jobs,
            verifier=SignatureVerifier(_accepted(credentials), region=region) if verify_signatures else None,
            scripts=self._scripts,
            log=self._log,
            progress=self._progress,
            region=region,
            account_id=account_id,
            clock=clock,
            chance=self._chance,
            max_body_bytes=max_body_bytes,
            record_bodies=record_bodies,
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
        """A runtime as a TOML file describes it; see ``aiosmrt.local.configuration``.

        Args:
            path: the file.
            port: in place of the file's port; None keeps that.

        Raises:
            ConfigurationError: the file cannot be read, or a key in it is unknown or has a wrong value.
        """
        from aiosmrt.local.configuration import load_settings

        settings = load_settings(Path(path))
        return cls(**(settings if port is None else {**settings, "port": port}))

    def __repr__(self) -> str:
        state = self.url if self._listener is not None else "idle"
        return f"<LocalRuntime {state} endpoints={list(self._endpoints)}>"

    @property
    def port(self) -> int:
        """The TCP port it listens on.

        Raises:
            ClientStateError: it does not run.
        """
        if self._listener is None or not self._listener.sockets:
            raise ClientStateError("the local runtime does not run: use it with `async with`")
        return int(self._listener.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Its address, to be used as a client's endpoint URL.

        Raises:
            ClientStateError: it does not run.
        """
        return f"http://{HOST}:{self.port}"

    @property
    def region(self) -> str:
        """The region that it plays."""
        return self._region

    @property
    def requests(self) -> Sequence[RequestRecord]:
        """The finished requests, oldest first."""
        return self._log.records

    @property
    def jobs(self) -> Sequence[JobRecord]:
        """The asynchronous inferences that have ended, oldest first."""
        return self._jobs.records

    def clear_requests(self) -> None:
        """Forget the finished requests and asynchronous inferences; statistics go on."""
        self._log.clear()
        self._jobs.clear()

    async def wait_for_requests(self, count: int) -> Sequence[RequestRecord]:
        """Wait until so many requests are in the log, and give them."""
        await self._progress.until(lambda: len(self._log.records) >= count)
        return self._log.records

    async def wait_for_jobs(self, count: int) -> Sequence[JobRecord]:
        """Wait until so many asynchronous inferences have ended, and give them."""
        await self._progress.until(lambda: len(self._jobs.records) >= count)
        return self._jobs.records

    async def wait_for_running_jobs(self, count: int) -> None:
        """Wait until at least so many asynchronous inferences are being done at once."""
        await self._progress.until(lambda: self._jobs.running >= count)

    async def wait_for_in_flight(self, count: int) -> None:
        """Wait until at least so many requests are being handled at once."""
        await self._progress.until(lambda: self._server.in_flight >= count)

    async def wait_for_stalled(self, count: int) -> None:
        """Wait until at least so many calls are held by a stall."""
        # A call whose caller has left since then is held until the loop has run.
        await asyncio.sleep(0)
        await self._progress.until(lambda: self._server.stalled >= count)

    def release_stalled(self) -> None:
        """Let every call go on that a stall holds now."""
        self._server.release_stalled()

    def inject(self, endpoint: str, *faults: Effect | Fault) -> None:
        """Script more faults, after those that are there.

        Args:
            endpoint: the endpoint's name; ``*`` for all.
            faults: what goes wrong; a bare effect always does.

        Raises:
            ConfigurationError: there is no such endpoint.
        """
        if endpoint != "*" and endpoint not in self._endpoints:
            raise ConfigurationError(f"faults for an endpoint that is not there: {endpoint!r}")
        self._scripts.setdefault(endpoint, FaultScript((), self._chance)).extend(as_faults(faults))

    def clear_faults(self, endpoint: str | None = None) -> None:
        """Remove the faults of an endpoint (``*``: those for all); None removes every fault."""
        for name, script in self._scripts.items():
            if endpoint is None or name == endpoint:
                script.clear()

    def close_idle_connections(self, *, reset: bool = False) -> int:
        """Close every connection that no request is using, without notice, and say how many.

        Args:
            reset: with a TCP reset.
        """
        closed = 0
        for protocol in [] if self._web is None else self._web.connections:
            if protocol.transport is not None and not self._server.busy(protocol):
                cut_connection(protocol.transport, reset=reset)
                closed += 1
        return closed

    def statistics(self) -> dict[str, Any]:
        """Counts since the start: requests, what is in flight or stalled, connections, jobs, bytes, statuses, errors.

        ``jobs`` are asynchronous inferences: queued and running now, and how those before them ended.
        """
        return {
            "requests": self._log.total,
            "in_flight": self._server.in_flight,
            "stalled": self._server.stalled,
            "connections": 0 if self._web is None else len(self._web.connections),
            "connections_seen": self._server.connections_seen,
            "closes_to_come": self._server.closes_to_come,
            "sessions": sum(len(endpoint.sessions) for endpoint in self._endpoints.values()),
            "jobs": self._jobs.statistics(),
            "request_bytes": self._log.request_bytes,
            "response_bytes": self._log.response_bytes,
            "by_status": dict(self._log.by_status),
            "by_error": dict(self._log.by_error),
            "by_endpoint": dict(self._log.by_endpoint),
        }

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the containers, wait until they are ready, then listen.

        Raises:
            ClientStateError: it runs already.
            ContainerError: a container did not start; the others are stopped again.
            ConfigurationError: the object storage cannot be used.
            OSError: the port is taken.
        """
        if self._web is not None:
            raise ClientStateError("the local runtime runs already")
        self._hurry = asyncio.Event()
        self._web = web.Server(
            self._server.handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,  # a signature covers the bytes that were sent
            keepalive_timeout=self._keepalive_timeout,
        )
        try:
            await self._start_containers()
            if self._object_storage is not None and self._jobs.needs_storage:
                self._jobs.open(await self._storage_access.enter_async_context(self._object_storage.open()))
            # not cancellable half way: a listener that nobody has got yet could not be closed
            await _to_the_end(self._listen(self._web))
        except BaseException:
            await self.close()
            raise

    async def _listen(self, connections: web.Server) -> None:
        self._listener = await asyncio.get_running_loop().create_server(connections, HOST, self._port, backlog=1024)

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
        """End in order; no effect when it does not run. Cancelling this skips the grace periods."""
        if self._web is None:
            return
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await _to_the_end(self._closing, on_cancel=self._hurry.set)

    async def _close(self) -> None:
        try:
            await self._end()
        finally:
            self._web = self._closing = None

    async def _end(self) -> None:
        connections = self._web
        if self._listener is not None:
            # What was accepted in the turn in which a listener is closed is dropped unclosed by asyncio (3.11): stop
            # accepting first. Loops that accept in another way take no notice.
            for listening in self._listener.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            for _ in range(2):
                await asyncio.sleep(0)
            self._listener.close()
        self._server.cancel_timers()
        self._server.release_stalled()
        if connections is not None:
            self.close_idle_connections()
            connections.pre_shutdown()  # the others end with their answer
            await self._drain()
            # taken before their handlers end and forget them: closing alone would wait for those who read nothing
            transports = [protocol.transport for protocol in connections.connections]
            await self._server.cancel_handlers()
            await connections.shutdown(1.0)
            for transport in transports:
                if transport is not None:
                    transport.abort()
            await asyncio.sleep(0)  # a transport's end takes one turn of the loop
        if self._listener is not None:
            await self._listener.wait_closed()
            self._listener = None
        await self._jobs.close()
        await self._storage_access.aclose()
        if self._session is not None:
            await self._session.close()
            self._session = None
        await self._stop_containers()

    async def _drain(self) -> None:
        idle = asyncio.ensure_future(self._progress.until(lambda: self._server.in_flight == 0))
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
                # containers close idle connections after as little as 2 s, and a POST that meets that is lost
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=1.0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session


def credentials_from_environment(environment: Mapping[str, str] | None = None) -> Credentials:
    """The AWS credentials of the environment.

    Args:
        environment: the variables; None for this process's.

    Raises:
        ConfigurationError: there are none.

    >>> credentials_from_environment({"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "not-a-real-secret"})
    Credentials(access_key='AKIDEXAMPLE', expires_at=None)
    """
    variables = os.environ if environment is None else environment
    access_key, secret_key = variables.get("AWS_ACCESS_KEY_ID"), variables.get("AWS_SECRET_ACCESS_KEY")
    if not access_key or not secret_key:
        raise ConfigurationError(
            "the local runtime checks signatures and knows no credentials: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY (any made-up values that its callers use too), give it credentials, or switch "
            "verify_signatures off"
        )
    return Credentials(access_key, secret_key, variables.get("AWS_SESSION_TOKEN") or None)


def _accepted(credentials: Credentials | Sequence[Credentials] | None) -> list[Credentials]:
    if credentials is None:
        return [credentials_from_environment()]
    accepted = [credentials] if isinstance(credentials, Credentials) else list(credentials)
    if not accepted:
        raise ConfigurationError("credentials is empty: no signature could be accepted")
    return accepted


def _distinct(containers: Iterable[Container]) -> list[Container]:
    return list({id(container): container for container in containers}.values())


async def _to_the_end(
    work: Coroutine[Any, Any, None] | asyncio.Future[None], on_cancel: Callable[[], None] = lambda: None
) -> None:
    """Await work to its end even when cancelled meanwhile, and only then pass the cancellation on."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
            on_cancel()
    if cancelled is not None:
        raise cancelled
    task.result()
