"""FastAPI: a client per application, streams as server-sent events, errors as statuses; needs the extra ``fastapi``.

::

    app = FastAPI(lifespan=client_lifespan(region_name="eu-central-1"))
    install_exception_handlers(app)
    Llm = Annotated[Endpoint[Any, Any], Depends(endpoint("llm", serializer=JSON, deserializer=JSON))]

    @app.post("/answer")
    async def answer(question: Question, llm: Llm) -> SSEResponse:
        return sse_response(llm.stream({"inputs": question.text}), heartbeat=15.0)

    @app.post("/summary")
    async def summary(document: Document, llm: Llm, request: Request) -> Summary:
        return await cancel_on_disconnect(request, llm.predict({"inputs": document.text}))

Work that nobody waits for any more ends. Left to itself it would not: Starlette never cancels a handler, and cancels a
`StreamingResponse` only where the server speaks ASGI before 2.4. With later ones it waits for a ``send`` to fail: a
silent model puts that off, and a server may drop what is sent instead ("HTTP & WebSocket ASGI Message Format", 2.4).
Every server has ``http.disconnect`` for those who ask for it, so it is asked for here.

Whoever calls the application is told an error's kind and nothing else: messages quote models, which may say anything.

The module is long because it is all that an application imports, each part of it explained.
"""

import asyncio
import inspect
import logging
import math
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from types import TracebackType
from typing import Annotated, Any, Final, ParamSpec, TypeAlias, TypeVar, Unpack, cast, overload

from fastapi import Depends
from fastapi.exception_handlers import http_exception_handler
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from aiosmrt._wire.lines import ServerSentEvent
from aiosmrt.client import Client
from aiosmrt.config import UNSET, Unset, faulty_limits
from aiosmrt.endpoint import CallOptions, Endpoint, PredictionStream
from aiosmrt.errors import (
    AiosmrtError,
    ClientStateError,
    DeserializationError,
    EventStreamError,
    EventStreamFormatError,
    InternalDependencyException,
    InternalFailure,
    JobFailedError,
    ModelError,
    ModelNotReadyException,
    ModelStreamError,
    NoCapacityError,
    ObjectStoreError,
    ParamValidationError,
    SerializationError,
    ServiceError,
    ServiceUnavailable,
    SessionClosedError,
    ThrottlingError,
    TooManyFailuresError,
    TooManyWaitingError,
    TransportError,
)
from aiosmrt.serializers import JSON, Deserializer, Serializer

__all__ = [
    "ClientDisconnectedError",
    "SSEResponse",
    "SageMakerClient",
    "cancel_on_disconnect",
    "client_lifespan",
    "endpoint",
    "http_exception",
    "install_exception_handlers",
    "sagemaker_client",
    "sse_response",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")
Arguments = ParamSpec("Arguments")
Lifespan: TypeAlias = Callable[[Starlette], AbstractAsyncContextManager[Mapping[str, Client]]]

_CLIENT: Final = "sagemaker_client"


# The client, and endpoints


def _lifespan_of(make_client: Callable[Arguments, Client]) -> Callable[Arguments, Lifespan]:
    """`client_lifespan`, with the arguments of what makes the client."""

    def client_lifespan(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Lifespan:
        """A lifespan for an application: a client that is opened when it starts and closed when it ends.

        ::

            app = FastAPI(lifespan=client_lifespan(region_name="eu-central-1"))

        A lifespan of your own enters it and may use the client::

            open_client = client_lifespan(region_name="eu-central-1")

            @asynccontextmanager
            async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
                async with open_client(app) as state:
                    await state["sagemaker_client"].endpoint(...).predict(...)
                    yield state

        What it yields is for applications that are mounted in this one; where there are none, yield what you like.

        Args:
            args, kwargs: those of `aiosmrt.Client`. One is made at each start, in the application's event loop.

        Entering it raises what `aiosmrt.Client` raises, and `ClientStateError` where the application has a client.
        """

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, Client]]:
            if hasattr(app.state, _CLIENT):
                raise ClientStateError("the application has a client already: enter client_lifespan(...) once")
            async with make_client(*args, **kwargs) as client:
                setattr(app.state, _CLIENT, client)
                try:
                    yield {_CLIENT: client}
                finally:
                    delattr(app.state, _CLIENT)

        return lifespan

    return client_lifespan


client_lifespan = _lifespan_of(Client)


async def sagemaker_client(connection: HTTPConnection) -> Client:
    """The application's client, as a dependency; ``app.dependency_overrides`` puts another in its place.

    Args:
        connection: a request, or a WebSocket.

    Raises:
        ClientStateError: the application has no client.
    """
    client: Client | None = connection.scope.get("state", {}).get(_CLIENT)
    if client is None:
        client = getattr(connection.app.state, _CLIENT, None)
    if client is None:
        raise ClientStateError(
            "the application has no client: make it with FastAPI(lifespan=client_lifespan(...)), or enter that in a "
            "lifespan of yours, which has to yield what it gives where applications are mounted in this one"
        )
    return client


SageMakerClient: TypeAlias = Annotated[Client, Depends(sagemaker_client)]


def endpoint(
    name: str,
    *,
    serializer: Serializer[In],
    deserializer: Deserializer[Out],
    deadline: float | Unset | None = UNSET,
    patience: float | Unset | None = UNSET,
    wait_for_capacity: float | Unset | None = UNSET,
    upload_to: str | None = None,
    **options: Unpack[CallOptions],
) -> Callable[[Client], Coroutine[Any, Any, Endpoint[In, Out]]]:
    """A dependency: an endpoint of the application's client.

    ::

        Churn = Annotated[Endpoint[Any, Any], Depends(endpoint("churn", serializer=CSV, deserializer=JSON))]

    Args:
        name, serializer, deserializer, deadline, patience, wait_for_capacity, upload_to, options: those of
            `aiosmrt.Client.endpoint`, which is called, and may raise, with each request.
    """

    async def dependency(client: SageMakerClient) -> Endpoint[In, Out]:
        return client.endpoint(
            name,
            serializer=serializer,
            deserializer=deserializer,
            deadline=deadline,
            patience=patience,
            wait_for_capacity=wait_for_capacity,
            upload_to=upload_to,
            **options,
        )

    return dependency


# Errors

_OWN_FAULT: Final = "InternalServerError"

_STATUSES: Final[tuple[tuple[int, tuple[type[BaseException], ...]], ...]] = (
    (429, (ThrottlingError,)),
    (503, (ModelNotReadyException, NoCapacityError, ServiceUnavailable, TooManyWaitingError)),
    (504, (TimeoutError,)),
    (410, (SessionClosedError,)),
    (502, (ModelError, InternalFailure, InternalDependencyException, EventStreamError, JobFailedError)),
    (502, (TransportError, EventStreamFormatError, DeserializationError, ObjectStoreError, TooManyFailuresError)),
)


class ClientDisconnectedError(HTTPException):
    """The caller left before its answer was there; what was done for it has ended.

    As a response, which nobody gets any more, it has nginx's status for that: 499.
    """

    def __init__(self) -> None:
        super().__init__(499, "the client closed the connection")


def http_exception(error: AiosmrtError) -> HTTPException:
    """What a caller of the application is told about an error: a status, and the error's class as the detail.

    ===  ==================================================================================
    429  `ThrottlingError`; with ``Retry-After``
    503  `ModelNotReadyException`, `NoCapacityError`, `ServiceUnavailable`, a gateway's 503, and `TooManyWaitingError`
         where ``max_waiting`` sheds load; with ``Retry-After``
    504  whatever took too long, a model that ran into SageMaker's limits included
    410  `SessionClosedError`
    502  the model, the service or the network failed, a map had too many failures, or what came back makes no sense
    500  the application's own fault: what it asks for, how it is configured, what it may do
    ===  ==================================================================================

    Args:
        error: the error.

    >>> from aiosmrt.errors import EndpointConnectionError
    >>> told = http_exception(EndpointConnectionError("Could not connect to the endpoint URL"))
    >>> told.status_code, told.detail
    (502, 'EndpointConnectionError')
    """
    status = _status(error)
    if status == 500:
        return HTTPException(status, _OWN_FAULT)
    headers = None
    if status in (429, 503):
        # Whole seconds (RFC 9110, section 10.2.3); without the service's word, the one that AWS's SDKs begin with.
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after or 1)))}
    return HTTPException(status, type(error).__name__, headers)


def _status(error: AiosmrtError) -> int:
    if isinstance(error, ModelError) and error.original_status_code == 0:
        return 504
    if isinstance(error, ModelStreamError) and error.error_code == "ModelInvocationTimeExceeded":
        return 504
    for status, classes in _STATUSES:
        if isinstance(error, classes):
            return status
    if isinstance(error, ServiceError) and error.status is not None and error.status >= 500:
        # Not named by the service model: a gateway's, before the service.
        return error.status if error.status in (503, 504) else 502
    return 500


def install_exception_handlers(app: Starlette) -> None:
    """Have an application answer with `http_exception` where a handler lets an `AiosmrtError` through.

    What is the application's own fault stays an exception that nobody handles, with a traceback in the server's log.

    Args:
        app: the application.
    """

    async def handle(connection: Request, error: Exception) -> Response:
        # A WebSocket has no status to answer with.
        if not isinstance(error, AiosmrtError) or connection.scope["type"] != "http":
            raise error
        told = http_exception(error)
        if told.status_code == 500:
            raise error
        _log(error, f"answered with {told.status_code}")
        return await http_exception_handler(connection, told)

    app.add_exception_handler(AiosmrtError, handle)


def _log(error: AiosmrtError, outcome: str) -> None:
    logger.warning(
        "%s to %s failed (%s, request id %s), %s",
        *(error.operation, error.endpoint_name, type(error).__name__, error.request_id, outcome),
    )


# Callers that leave


async def cancel_on_disconnect(request: Request, awaitable: Awaitable[T]) -> T:
    """Wait for something, and cancel it as soon as the caller of the application disconnects.

    ::

        return await cancel_on_disconnect(request, endpoint.predict(data))

    Args:
        request: the request that is being answered. Its body stays readable: it is received first, if it was not yet.
        awaitable: a coroutine, or a task or future, which is cancelled likewise.

    Raises:
        ClientDisconnectedError: the caller left. Let it through, for the sake of what stands between the handler and
            the server, such as a log.
    """
    try:
        try:
            await request.body()
        except RuntimeError as error:
            # What Starlette says when the handler has taken the body as a stream.
            if str(error) != "Stream consumed":
                raise
    except BaseException as error:
        if isinstance(awaitable, asyncio.Future):
            awaitable.cancel()
        elif inspect.iscoroutine(awaitable):
            awaitable.close()
        if isinstance(error, ClientDisconnect):
            raise ClientDisconnectedError from None
        raise
    async with _Beside(_disconnect(request.receive)):
        return await awaitable
    raise ClientDisconnectedError


async def _disconnect(receive: Receive) -> None:
    """Return when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _Beside:
    """An ``async with`` block beside some coroutines: the first one that ends cancels it, and they end with it.

    The cancellation ends the block and goes no further; what the coroutine raised, if it did, is raised. A block that
    has an outcome of its own keeps it; what a coroutine raised then is left to asyncio, which reports what nobody took.
    The block stays in its task, as with `asyncio.timeout`: a generator that holds a task group or a time limit insists
    on that.

    Args:
        coroutines: what runs beside the block.
    """

    def __init__(self, *coroutines: Coroutine[Any, Any, None]) -> None:
        self._coroutines = coroutines
        self._companions: list[asyncio.Task[None]] = []
        self._task: asyncio.Task[Any]
        self._cancelling = 0
        self._open = True
        self._cut_short_by: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancelling = self._task.cancelling()
        self._companions = [asyncio.create_task(coroutine) for coroutine in self._coroutines]
        for companion in self._companions:
            companion.add_done_callback(self._ended)

    def _ended(self, companion: asyncio.Task[None]) -> None:
        if self._open and not companion.cancelled():
            self._open = False
            self._cut_short_by = companion
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        # Removing the callbacks is not enough: that of a companion which has just ended is under way already.
        self._open = False
        for companion in self._companions:
            # To cancel one that is done would have asyncio keep its exception to itself.
            if not companion.done():
                companion.cancel()
        first = self._cut_short_by
        ours = first is not None and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError
        # Should this be cancelled, too: they end anyway.
        await asyncio.wait(self._companions)
        if first is None or not ours:
            return False
        first.result()
        return True


# Server-sent events

_LINE_END: Final = re.compile(r"\r\n|\r|\n")


@overload
def sse_response(
    stream: PredictionStream,
    view: Callable[[PredictionStream], AsyncIterable[Any]] | None = None,
    *,
    heartbeat: float | None = None,
) -> "SSEResponse": ...
@overload
def sse_response(stream: AsyncIterable[Any], *, heartbeat: float | None = None) -> "SSEResponse": ...
def sse_response(
    stream: PredictionStream | AsyncIterable[Any],
    view: Callable[[PredictionStream], AsyncIterable[Any]] | None = None,
    *,
    heartbeat: float | None = None,
) -> "SSEResponse":
    """Answer with server-sent events, one for each item of a stream.

    ::

        return sse_response(endpoint.stream(data), PredictionStream.jsonl, heartbeat=15.0)

    A ``str`` is an event's data as it stands, a `ServerSentEvent` is an event, anything else becomes JSON. Every line
    end in an event's data arrives as LF: text that has to arrive to the letter had better travel as JSON.

    An error before the first event is answered with a status, see `http_exception`; a later one is the last event, of
    type ``error``, and its data ``{"type": "ModelStreamError"}``. A caller that leaves ends the stream at once.

    Args:
        stream: the stream of an endpoint that was not entered yet, or anything to iterate over with ``async for``.
        view: makes the items of an endpoint's stream: a view, such as ``PredictionStream.sse``, or an async generator
            function of yours that takes the stream and iterates over one of its views. None is ``text``.
        heartbeat: seconds without an event after which a comment is sent, which browsers skip, and which keeps proxies
            from giving up on a silent connection; None for none. The first one begins the response, so that what fails
            after it is an event. The application's own faults are a ``500`` or end the response unfinished.

    Raises:
        ParamValidationError: ``stream`` is no stream, ``view`` is given for anything but an endpoint's stream, or
            ``heartbeat`` is no positive number of seconds.
    """
    if isinstance(stream, PredictionStream):
        return SSEResponse(_viewed(stream, view or PredictionStream.text), heartbeat=heartbeat)
    if view is not None:
        raise ParamValidationError([f"a view is for the stream of an endpoint; got {type(stream)}"])
    return SSEResponse(stream, heartbeat=heartbeat)


class SSEResponse(StreamingResponse):
    """A response of server-sent events; see `sse_response`.

    Args:
        items: what to send.
        heartbeat: seconds without an event after which a comment is sent; None for none.

    Raises:
        ParamValidationError: ``items`` cannot be iterated over, or ``heartbeat`` is no positive number of seconds.
    """

    media_type = "text/event-stream"

    def __init__(self, items: AsyncIterable[Any], *, heartbeat: float | None = None) -> None:
        faults = faulty_limits(heartbeat=heartbeat)
        if not isinstance(items, AsyncIterable):
            faults.append(f"the stream must be an endpoint's or an asynchronous iterable; got {type(items)}")
        if faults:
            raise ParamValidationError(faults)
        self._events = _encoded(items)
        self._heartbeat = heartbeat
        # The second is nginx's, which would collect what it passes on.
        super().__init__(self._events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response.

        Raises:
            HTTPException: before anything was sent, the stream failed or the caller left.
        """
        outlet = _Outlet(send, {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        companions = [_disconnect(receive)]
        if self._heartbeat is not None:
            companions.append(outlet.beat(self._heartbeat))
        with suppress(ClientDisconnect):
            async with _Beside(*companions):
                await self._deliver(outlet)
        if not outlet.begun:
            raise ClientDisconnectedError
        if self.background is not None:
            await self.background()

    async def _deliver(self, outlet: "_Outlet") -> None:
        try:
            async with _iterating(self._events) as events:
                async for event in events:
                    await outlet.write(event)
                    # Neither events that are there nor a server that drops them wait; the caller may leave meanwhile.
                    await asyncio.sleep(0)
        except ClientDisconnect:
            raise
        except Exception as error:
            await _tell(outlet, error)
        await outlet.write(b"", more=False)


async def _tell(outlet: "_Outlet", error: Exception) -> None:
    """Tell the caller what went wrong, in an event where there is a response already; raise what cannot end it well."""
    told = http_exception(error) if isinstance(error, AiosmrtError) else HTTPException(500, _OWN_FAULT)
    begun = outlet.begun
    if begun:
        data = JSON.serialize({"type": told.detail}).decode()
        # A caller who has left cannot be told, which makes it no less of an error.
        with suppress(ClientDisconnect):
            await outlet.write(_Encoder().encode(ServerSentEvent(event="error", data=data)))
    if not isinstance(error, AiosmrtError) or told.status_code == 500:
        raise error
    _log(error, "answered with an error event" if begun else f"answered with {told.status_code}")
    if not begun:
        raise told from error


async def _viewed(
    stream: PredictionStream, view: Callable[[PredictionStream], AsyncIterable[Any]]
) -> AsyncGenerator[Any, None]:
    async with stream, _iterating(view(stream)) as items:
        async for item in items:
            yield item


async def _encoded(items: AsyncIterable[Any]) -> AsyncGenerator[bytes, None]:
    encoder = _Encoder()
    async with _iterating(items) as iterator:
        async for item in iterator:
            yield encoder.encode(item)


@asynccontextmanager
async def _iterating(items: AsyncIterable[T]) -> AsyncIterator[AsyncIterator[T]]:
    """An iterator that is closed in the end if it is a generator: half way through, that holds what it has opened."""
    iterator = aiter(items)
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


class _Encoder:
    """Writes server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6).

    An id and a reconnection time hold until others come, so they are written where they change.

    >>> encoder = _Encoder()
    >>> encoder.encode({"text": "be"})
    b'data: {"text":"be"}\\n\\n'
    >>> encoder.encode(ServerSentEvent("note", "not\\r\\nevent: to be", id="7"))
    b'event: note\\nid: 7\\ndata: not\\ndata: event: to be\\n\\n'
    """

    def __init__(self) -> None:
        self._id = ""
        self._retry: int | None = None

    def encode(self, item: Any) -> bytes:
        """Write an item as an event.

        Args:
            item: text, an event, or what JSON can express.

        Raises:
            SerializationError: JSON cannot express it, a field would end before its end, or UTF-8 lacks a character.
        """
        if isinstance(item, ServerSentEvent):
            event = item
        else:
            event = ServerSentEvent(data=item if isinstance(item, str) else JSON.serialize(item).decode())
        lines = []
        if event.event not in ("", "message"):
            lines.append(f"event: {event.event}")
        if event.id not in ("", self._id):
            lines.append(f"id: {event.id}")
        if event.retry not in (None, self._retry):
            lines.append(f"retry: {event.retry}")
        if any(_LINE_END.search(line) for line in lines) or "\0" in event.id:
            raise SerializationError("an event's type, id and retry cannot hold a line end, nor an id U+0000")
        lines.extend(f"data: {line}" for line in _LINE_END.split(event.data))
        try:
            encoded = "\n".join(lines).encode() + b"\n\n"
        except UnicodeEncodeError:
            encoded = b""
        if not encoded:
            raise SerializationError("an event holds half of a surrogate pair, which UTF-8 cannot express")
        self._id = event.id or self._id
        self._retry = self._retry if event.retry is None else event.retry
        return encoded


class _Outlet:
    """A response on its way; its head goes out with the first piece of its body.

    Attributes:
        begun: whether anything was sent.

    Args:
        send: the server's.
        head: the message with status and headers.
    """

    def __init__(self, send: Send, head: Message) -> None:
        self.begun = False
        self._send = send
        self._head = head
        self._clock = asyncio.get_running_loop().time
        self._written_at = self._clock()
        self._writing = asyncio.Lock()

    async def write(self, body: bytes, *, more: bool = True) -> None:
        """Send a piece of the body.

        Args:
            body: the piece.
            more: whether others follow.

        Raises:
            ClientDisconnect: the server says that the caller has left.
        """
        async with self._writing:
            try:
                if not self.begun:
                    self.begun = True
                    await self._send(self._head)
                await self._send({"type": "http.response.body", "body": body, "more_body": more})
            except OSError:
                raise ClientDisconnect from None
            self._written_at = self._clock()

    async def beat(self, interval: float) -> None:
        """Send a comment whenever nothing was sent for so many seconds; return when the caller has left."""
        with suppress(ClientDisconnect):
            while True:
                due = self._written_at + interval - self._clock()
                if due > 0:
                    await asyncio.sleep(due)
                else:
                    await self.write(b":\n\n")
