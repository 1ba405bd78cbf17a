"""Stateful sessions: calls that carry the id which the model gave to the first of them.

A session is the model's: its container answers ``NEW_SESSION`` with an id and an expiry, keeps what it likes under that
id, and says with an answer when it has closed it. The service sends all calls with an id to the instance that gave it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, TypeVar, Unpack

from aiosmrt.config import UNSET, Unset
from aiosmrt.errors import ClientStateError, SessionClosedError

if TYPE_CHECKING:
    from aiosmrt.endpoint.core import CallOptions, Endpoint, Inference
    from aiosmrt.endpoint.streaming import PredictionStream
    from aiosmrt.types import InvokeEndpointOutput

__all__ = ["Session"]

In = TypeVar("In")
Out = TypeVar("Out")


_NEW_SESSION: Final = "NEW_SESSION"


class Session(Generic[In, Out]):
    """A stateful session; made by `Endpoint.session`, to be used with ``async with``.

    Args:
        endpoint: whose session it is.
        open_with: data to open it with on entering; left out for the first call's.
        close_with: data to send on leaving; left out for none.
        clock: the time in epoch seconds, to compare the session's expiry with.

    Attributes:
        id: the session's id; None until it is open.
        expires_at: when it ends by itself, in UTC; None until it is open, or when the model did not say.
        opened_with: the answer to ``open_with``; None without it.
    """

    def __init__(
        self,
        endpoint: Endpoint[In, Out],
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
        self._closed: str | None = "it is used inside its `async with` block"
        self._entered = False
        self.id: str | None = None
        self.expires_at: datetime | None = None
        self.opened_with: Inference[Out] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed is not None else "open" if self.id is not None else "not opened yet"
        return f"<Session at {self._endpoint.name} {state}>"

    async def __aenter__(self) -> Session[In, Out]:
        if self._entered:
            raise ClientStateError("a session is entered once: ask the endpoint for another one")
        self._entered = True
        self._closed = None
        if not isinstance(self._open_with, Unset):
            try:
                self.opened_with = await self._open(self._open_with, {})
            except BaseException as error:
                # The model may have opened it all the same, with an answer that could not be read.
                await self.__aexit__(type(error), error, error.__traceback__)
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whoever is cancelled wants to be gone: the session then ends by its time.
        wanted = kind is None or issubclass(kind, Exception)
        try:
            if wanted and not isinstance(self._close_with, Unset) and self.is_open:
                await self.invoke(self._close_with)
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"the session could not be closed either: {failure}")
        finally:
            self._closed = self._closed or "it was left"

    @property
    def is_open(self) -> bool:
        """Whether calls go to an open session: one was opened, has not expired and was not closed."""
        return self._closed is None and self.id is not None and not self._expired()

    async def predict(self, data: In, **options: Unpack[CallOptions]) -> Out:
        """Get the model's answer in this session; see `Endpoint.predict`.

        Raises:
            SessionClosedError: the session has expired or is closed, or the model opened none.
        """
        return (await self.invoke(data, **options)).value

    async def invoke(self, data: In, **options: Unpack[CallOptions]) -> Inference[Out]:
        """Get the model's answer in this session, with what the service says about it; see `Endpoint.invoke`.

        Raises:
            SessionClosedError: the session has expired or is closed, or the model opened none.
        """
        self._check()
        if self.id is None:
            async with self._opening:
                self._check()
                if self.id is None:
                    return await self._open(data, options)
        members: CallOptions = {**options, "session_id": self.id}
        return await self._endpoint.inference(data, members, self._note)

    def stream(
        self,
        data: In,
        *,
        first_part_timeout: float | None = None,
        part_timeout: float | None = None,
        **options: Unpack[CallOptions],
    ) -> PredictionStream:
        """Get the answer part by part in this session, which has to be open already; see `Endpoint.stream`.

        Raises:
            SessionClosedError: the session is not open; a stream cannot open one.
        """
        self._check()
        if self.id is None:
            raise SessionClosedError("The session is not open yet, and a stream cannot open one: give open_with")
        members: CallOptions = {**options, "session_id": self.id}
        return self._endpoint.stream(data, first_part_timeout=first_part_timeout, part_timeout=part_timeout, **members)

    async def _open(self, data: In, options: CallOptions) -> Inference[Out]:
        members: CallOptions = {**options, "session_id": _NEW_SESSION}
        answer = await self._endpoint.inference(data, members, self._note)
        if self.id is None:
            raise SessionClosedError("The model opened no session: its answer to NEW_SESSION names none")
        return answer

    def _note(self, response: InvokeEndpointOutput) -> None:
        """Take in what a response says about the session, whatever becomes of its body."""
        announced = response.get("NewSessionId")
        if self.id is None and announced is not None:
            self.id, _, rest = announced.partition(";")
            self.expires_at = _expiry(rest)
        if self.id is not None and response.get("ClosedSessionId") == self.id:
            self._closed = "its model closed it"

    def _expired(self) -> bool:
        return self.expires_at is not None and self._clock() >= self.expires_at.timestamp()

    def _check(self) -> None:
        if self._closed is not None:
            raise SessionClosedError(f"The session cannot be used: {self._closed}")
        if self._expired():
            raise SessionClosedError(f"The session has expired, at {self.expires_at:%Y-%m-%d %H:%M:%S} UTC")


def _expiry(attributes: str) -> datetime | None:
    """The time in what follows a session's id.

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
