"""Stateful sessions: calls that carry the id which the model assigned in its answer to the first of them.

A session belongs to the model: its container answers ``NEW_SESSION`` with an id and an expiry, keeps state under that
id, and announces in an answer that it has closed the session. The service routes all calls with an id to the instance
that assigned it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar, Unpack

from aiosmrt._frames import clear_locals
from aiosmrt._one_process import OneProcess
from aiosmrt._wire.operations import (
    INVOKE_ENDPOINT,
    INVOKE_ENDPOINT_WITH_RESPONSE_STREAM,
    NEW_SESSION,
    Operation,
)
from aiosmrt.config import UNSET, Unset
from aiosmrt.endpoint.inference import Inference
from aiosmrt.endpoint.options import CallOptions
from aiosmrt.endpoint.streaming import PredictionStream, TimeoutsCount
from aiosmrt.errors import AiosmrtError, ClientStateError, SessionClosedError

if TYPE_CHECKING:
    from aiosmrt.types import InvokeEndpointOutput

__all__ = ["Session"]

In = TypeVar("In")
Out = TypeVar("Out")
R = TypeVar("R")
In_contra = TypeVar("In_contra", contravariant=True)


class SessionEndpoint(Protocol[In_contra, Out]):
    """What a session needs of its endpoint."""

    name: str

    async def turn_to_open(self, opening: asyncio.Lock) -> float:
        """See `aiosmrt.endpoint.Endpoint.turn_to_open`."""
        ...

    async def inference(
        self,
        data: In_contra,
        options: CallOptions,
        on_response: Callable[[InvokeEndpointOutput], None] | None = None,
        began: float | None = None,
    ) -> Inference[Out]:
        """See `aiosmrt.endpoint.Endpoint.inference`."""
        ...

    async def acknowledgement(
        self, data: In_contra, options: CallOptions, on_response: Callable[[InvokeEndpointOutput], None]
    ) -> Inference[Out | bytes]:
        """See `aiosmrt.endpoint.Endpoint.acknowledgement`."""
        ...

    def stream(
        self,
        data: In_contra,
        *,
        first_part_timeout: float | None = None,
        part_timeout: float | None = None,
        timeouts_count: TimeoutsCount = "parts",
        **options: Unpack[CallOptions],
    ) -> PredictionStream:
        """See `aiosmrt.endpoint.Endpoint.stream`."""
        ...


_Call: TypeAlias = Callable[[In, CallOptions, Callable[["InvokeEndpointOutput"], None]], Awaitable[Inference[R]]]


class Session(OneProcess, Generic[In, Out]):
    """A stateful session; made by `Endpoint.session`, to be used with ``async with``.

    Args:
        endpoint: the endpoint to call.
        open_with: data to open the session with on entering. By default, the first call opens it.
        close_with: data to send on leaving. By default, nothing is sent.
        clock: returns the time in epoch seconds, to compare the session's expiry with.

    Attributes:
        id: the session's id; None until it is open.
        expires_at: the session's expiry in UTC; None until it is open, or if the model named none.
        opened_with: the answer to ``open_with``, if that was given. Its value is the body, as bytes, where the
            deserializer cannot read that: a session handler may answer with a sentence for people.
    """

    def __init__(
        self,
        endpoint: SessionEndpoint[In, Out],
        *,
        open_with: In | Unset = UNSET,
        close_with: In | Unset = UNSET,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._endpoint = endpoint
        self._open_with = open_with
        self._close_with = close_with
        self._clock = clock
        self._opening = asyncio.Lock()
        self._closed: str | None = "its `async with` block was not entered"
        self._entered = False
        self.id: str | None = None
        self.expires_at: datetime | None = None
        self.opened_with: Inference[Out | bytes] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed is not None else "open" if self.id is not None else "not open yet"
        return f"<Session at {self._endpoint.name} {state}>"

    async def __aenter__(self) -> Session[In, Out]:
        if self._entered:
            raise self._named(ClientStateError("a session can be entered only once; get another one from the endpoint"))
        self._entered = True
        self._closed = None
        if not isinstance(self._open_with, Unset):
            try:
                self.opened_with = await self._open(self._endpoint.acknowledgement, self._open_with, {})
            except BaseException as error:
                clear_locals(error)
                # The model may have opened the session with an answer that could not be read.
                await self.__aexit__(type(error), error, error.__traceback__)
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A cancelled task must leave at once: the session then ends at its expiry.
        wanted = kind is None or issubclass(kind, Exception)
        try:
            if wanted and not isinstance(self._close_with, Unset) and self.is_open:
                await self._endpoint.acknowledgement(self._close_with, {"session_id": self.id}, self._note)
        except BaseException as failure:
            clear_locals(failure)
            if error is None or not isinstance(failure, Exception):
                raise
            error.add_note(f"closing the session also failed: {failure}")
        finally:
            self._closed = self._closed or "its `async with` block has exited"

    @property
    def is_open(self) -> bool:
        """Whether the session is open: it was opened, has not expired and was not closed."""
        return self._closed is None and self.id is not None and not self._expired()

    async def predict(self, data: In, **options: Unpack[CallOptions]) -> Out:
        """Get the model's answer in this session; see `Endpoint.predict`.

        Raises:
            SessionClosedError: the session has expired or is closed, or the model did not open one.
        """
        invoking = self.invoke(data, **options)
        del data, options
        return (await invoking).value

    async def invoke(self, data: In, **options: Unpack[CallOptions]) -> Inference[Out]:
        """Get the model's answer in this session, with what the service reports about it; see `Endpoint.invoke`.

        Raises:
            SessionClosedError: the session has expired or is closed, or the model did not open one.
        """
        try:
            self._check()
            began = None
            if self.id is None:
                began = await self._endpoint.turn_to_open(self._opening)
                try:
                    self._check()
                    if self.id is None:
                        return await self._open(partial(self._endpoint.inference, began=began), data, options)
                finally:
                    self._opening.release()
            return await self._endpoint.inference(data, {**options, "session_id": self.id}, self._note, began)
        except BaseException as error:
            del data, options
            clear_locals(error)
            raise

    def stream(
        self,
        data: In,
        *,
        first_part_timeout: float | None = None,
        part_timeout: float | None = None,
        timeouts_count: TimeoutsCount = "parts",
        **options: Unpack[CallOptions],
    ) -> PredictionStream:
        """Get the answer part by part in this session, which must be open already; see `Endpoint.stream`.

        Raises:
            SessionClosedError: the session is not open; a stream cannot open one.
        """
        try:
            options = {**options, "session_id": self._opened()}
            return self._endpoint.stream(
                data,
                first_part_timeout=first_part_timeout,
                part_timeout=part_timeout,
                timeouts_count=timeouts_count,
                **options,
            )
        except BaseException as error:
            del data, options
            clear_locals(error)
            raise

    async def _open(self, call: _Call[In, R], data: In, options: CallOptions) -> Inference[R]:
        members: CallOptions = {**options, "session_id": NEW_SESSION}
        answer = await call(data, members, self._note)
        if self.id is None:
            fault = "the model did not open a session: its answer to NEW_SESSION lacks a session id"
            raise self._named(SessionClosedError(fault))
        return answer

    def _note(self, response: InvokeEndpointOutput) -> None:
        """Record what a response announces about the session, before its body is read."""
        announced = response.get("NewSessionId")
        if self.id is None and announced is not None:
            self.id, _, rest = announced.partition(";")
            self.expires_at = _expiry(rest)
        if self.id is not None and response.get("ClosedSessionId") == self.id:
            self._closed = "the model closed it"

    def _expired(self) -> bool:
        return self.expires_at is not None and self._clock() >= self.expires_at.timestamp()

    def _opened(self) -> str:
        """The session's id, for a stream; raise if it has none yet."""
        self._check(INVOKE_ENDPOINT_WITH_RESPONSE_STREAM)
        if self.id is None:
            fault = "the session is not open yet, and a stream cannot open it; use open_with"
            raise self._named(SessionClosedError(fault), INVOKE_ENDPOINT_WITH_RESPONSE_STREAM)
        return self.id

    def _check(self, operation: Operation = INVOKE_ENDPOINT) -> None:
        if self._closed is not None:
            raise self._named(SessionClosedError(f"the session is not usable: {self._closed}"), operation)
        if self._expired():
            fault = f"the session expired at {self.expires_at:%Y-%m-%d %H:%M:%S} UTC"
            raise self._named(SessionClosedError(fault), operation)

    def _named(self, error: AiosmrtError, operation: Operation = INVOKE_ENDPOINT) -> AiosmrtError:
        """Name the call that an error belongs to."""
        error.note_call(operation.name, self._endpoint.name)
        return error


def _expiry(attributes: str) -> datetime | None:
    """Return the expiry in the attributes after a session's id.

    >>> _expiry(" Expires=2030-01-01T12:00:00Z")
    datetime.datetime(2030, 1, 1, 12, 0, tzinfo=datetime.timezone.utc)
    """
    name, _, value = attributes.strip().partition("=")
    if name.lower() != "expires":
        return None
    try:
        return datetime.strptime(value.strip(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
