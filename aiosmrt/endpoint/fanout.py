"""Many calls: items in, results out, with a bound on both.

::

    items ──► workers (up to `concurrency`) ──► results not yet read ──► reader
                 └──────── at most 2 x `concurrency` items in all ───────┘

Each worker takes an item, makes its call, adds the result and takes the next item; it starts when the worker before it
has an item, so that three items need three workers. Asynchronous items are advanced in a separate task, whenever a
worker asks: a timeout or a task group that a generator opens around its `yield` belongs to the task that advances it,
and would otherwise cancel a call. All tasks belong to the block in which the results are read: leaving it cancels them
and waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar, cast

from aiosmrt._core.outcome import concerns_every_call
from aiosmrt.config import is_whole, shown
from aiosmrt.errors import AiosmrtError, ClientStateError, ParamValidationError, TooManyFailuresError
from aiosmrt.serializers.frames import is_frame, iterates_over_columns
from aiosmrt.serializers.objects import type_name

__all__ = ["Answer", "Result", "Results"]

In = TypeVar("In")
Out = TypeVar("Out")

# A share of failures is meaningful from this many calls.
_CALLS_FOR_A_SHARE = 20

# Items held for each call in flight: while one is called, another's result waits for the reader.
_HELD_PER_CALL = 2


class Answer(NamedTuple, Generic[Out]):
    """The outcome of a successful call.

    Args:
        value: the model's answer.
        attempts: how many requests were sent.
        waited: seconds for which the call waited outside its attempts.
    """

    value: Out
    attempts: int
    waited: float


@dataclass(frozen=True, slots=True)
class Result(Generic[In, Out]):
    """An item with its answer or its error.

    Attributes:
        index: the item's position, from 0.
        item: the item.
        value: the model's answer; None after a failure.
        error: the failure; None after a success.
        attempts: how many requests were sent.
        waited: seconds for which the call waited for a slot, for the service, and between attempts.

    >>> Result(0, "1,2,3", 0.75, None).unwrap()
    0.75
    """

    index: int
    item: In = field(repr=False)
    value: Out | None = field(repr=False)
    error: Exception | None
    attempts: int = 0
    waited: float = 0.0

    def unwrap(self) -> Out:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return cast("Out", self.value)


class Results(Generic[In, Out]):
    """The results of `Endpoint.map`, which documents them: an asynchronous context manager and iterator.

    Args:
        call: makes one call.
        items: the items to call with.
        concurrency: most calls in flight.
        ordered: whether results come in the order of the items.
        max_failures: how many calls, or which share of them, may fail; one more ends the map. Defaults to no limit.
    """

    def __init__(
        self,
        call: Callable[[In], Awaitable[Answer[Out]]],
        items: Iterable[In] | AsyncIterable[In],
        *,
        concurrency: int,
        ordered: bool,
        max_failures: int | float | None = None,
    ) -> None:
        faults = []
        if not is_whole(concurrency, 1):
            faults.append(f"concurrency must be an integer >= 1; got {shown(concurrency)}")
        is_share = isinstance(max_failures, float) and 0 <= max_failures <= 1
        if not (max_failures is None or is_share or is_whole(max_failures, 0)):
            faults.append(
                f"max_failures must be an integer >= 0, a float from 0 to 1, or None; got {shown(max_failures)}"
            )
        self._source: Iterator[In] | None = None
        self._asynchronous: AsyncIterator[In] | None = None
        if (mistake := _mistaken_items(items)) is not None:
            faults.append(mistake)
        try:
            if isinstance(items, AsyncIterable):
                self._asynchronous = aiter(items)
            else:
                self._source = iter(items)
        except TypeError:
            faults.append(f"items must be an iterable or an asynchronous iterable; got {type(items)}")
        if faults:
            raise ParamValidationError(faults)
        self._call = call
        self._concurrency = concurrency
        self._ordered = ordered
        self._max_failures = max_failures
        self._failures = 0
        self._calls = 0
        self._entered = False
        self._held = asyncio.Semaphore(_HELD_PER_CALL * concurrency)
        self._workers: set[asyncio.Task[None]] = set()
        # How many workers there are or will be in a moment.
        self._at_work = 0
        # Requests of workers for asynchronous items, the items for them, and the task that gets them.
        self._wanted = asyncio.Semaphore(0)
        self._given: asyncio.Queue[In] = asyncio.Queue()
        self._feeder: asyncio.Task[None] | None = None
        # Items taken, results read, and results not yet read by their index.
        self._taken = 0
        self._read = 0
        self._ready: dict[int, Result[In, Out]] = {}
        # Whether to take no more items: they ended, or a failure concerns all calls.
        self._ended = False
        self._failure: BaseException | None = None
        # what ended a worker, whose item has no result
        self._broken: BaseException | None = None
        self._reader: asyncio.Future[None] | None = None
        self._left = False

    def __repr__(self) -> str:
        return f"<Results taken={self._taken} read={self._read} calls={self._at_work}>"

    async def __aenter__(self) -> Results[In, Out]:
        if self._entered:
            raise ClientStateError("results can be entered only once; call map() again")
        self._entered = True
        if self._asynchronous is not None:
            self._feeder = asyncio.create_task(self._feed(self._asynchronous), name="aiosmrt-map-items")
            self._feeder.add_done_callback(self._feeder_ended)
        self._at_work = 1
        self._start_worker()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._left = self._ended = True
        self._wake_reader()
        tasks = [*self._workers] if self._feeder is None else [*self._workers, self._feeder]
        for task in tasks:
            task.cancel()
        # Wait for their ends in any case; pass a cancellation on afterwards.
        cancelled: asyncio.CancelledError | None = None
        while pending := [task for task in tasks if not task.done()]:
            try:
                await asyncio.wait(pending)
            except asyncio.CancelledError as again:
                cancelled = again
        self._ready.clear()
        self._failure = self._source = self._asynchronous = None
        if cancelled is not None:
            raise cancelled

    def __aiter__(self) -> Results[In, Out]:
        return self

    async def __anext__(self) -> Result[In, Out]:
        while True:
            if self._left or not self._entered:
                raise ClientStateError("results can be read only inside their `async with` block")
            if self._broken is not None:
                broken, self._broken = self._broken, None
                try:
                    raise broken
                finally:
                    del broken
            ready = self._ready
            if ready:
                index = self._read if self._ordered else next(iter(ready))
                if (result := ready.pop(index, None)) is not None:
                    self._read += 1
                    self._held.release()
                    return result
            if self._ended and self._read == self._taken:
                failure, self._failure = self._failure, None
                if failure is None and self._too_many_failures(whole=True):
                    self._max_failures = None
                    failure = TooManyFailuresError(self._failures, self._calls)
                if failure is None:
                    raise StopAsyncIteration
                try:
                    raise failure
                finally:
                    del failure
            if self._reader is not None:
                raise ClientStateError("another task is waiting for the next result")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _end(self, failure: BaseException | None) -> None:
        """Take no more items; raise a failure after the results."""
        self._ended = True
        if self._failure is None:
            self._failure = failure
        self._wake_reader()

    def _start_next_worker(self) -> None:
        """Start a worker in a callback; eager tasks (Python 3.12) would otherwise nest, each inside the one before."""
        self._at_work += 1
        asyncio.get_running_loop().call_soon(self._start_worker)

    def _start_worker(self) -> None:
        if self._ended:
            self._at_work -= 1
            return
        worker = asyncio.create_task(self._work(), name="aiosmrt-map")
        self._workers.add(worker)
        worker.add_done_callback(self._worker_ended)

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        self._at_work -= 1
        if worker.cancelled():
            if not self._ended:
                self._end(_cancelled("calls"))
        elif (failure := worker.exception()) is not None:
            # No Exception, which would be its item's result: what ends a program ends its map.
            self._broken = failure
            self._ended = True
            self._wake_reader()

    async def _work(self) -> None:
        while not self._ended and (taken := await self._take()) is not None:
            index, item = taken
            if self._at_work < self._concurrency:
                self._start_next_worker()
            value: Out | None = None
            attempts, waited = 0, 0.0
            failure: Exception | None = None
            try:
                value, attempts, waited = await self._call(item)
            except AiosmrtError as error:
                if concerns_every_call(error):
                    self._end(error)
                failure = error
                attempts, waited = error.attempts, error.waited.total_waiting
            except Exception as error:
                failure = error
            except asyncio.CancelledError:
                if self._left:
                    raise
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    # The worker itself was cancelled: it must end, and the map with it.
                    failure = ClientStateError("the call was cancelled from inside, or a map() worker from outside")
                    self._end(failure)
                else:
                    failure = ClientStateError("the call was cancelled from inside")
            self._calls += 1
            self._failures += failure is not None
            self._ready[index] = Result(index, item, value, failure, attempts, waited)
            if failure is not None and self._too_many_failures(whole=False):
                self._end(TooManyFailuresError(self._failures, self._calls))
            # Hold nothing of this item while waiting for the next one.
            del taken, item, value, failure
            self._wake_reader()

    def _too_many_failures(self, *, whole: bool) -> bool:
        """Return whether more calls failed than allowed.

        Args:
            whole: whether all calls were made; before that, a share of few calls is meaningless.
        """
        most = self._max_failures
        if most is None:
            return False
        if isinstance(most, float):
            return (whole or self._calls >= _CALLS_FOR_A_SHARE) and self._failures > most * self._calls
        return self._failures > most

    async def _take(self) -> tuple[int, In] | None:
        """Return the next item and its index, once it may be held; None if there are no more."""
        await self._held.acquire()
        if self._ended:
            return None
        if self._source is None:
            self._wanted.release()
            try:
                item = await self._given.get()
            except asyncio.CancelledError:
                # At once: the item that is lost here may have been the last one.
                if not self._left:
                    self._end(_cancelled("calls"))
                raise
        else:
            try:
                item = next(self._source)
            except StopIteration:
                self._end(None)
                return None
            except asyncio.CancelledError:
                self._end(_cancelled("items"))
                return None
            except Exception as error:
                self._end(error)
                return None
        index = self._taken
        self._taken += 1
        return index, item

    async def _feed(self, items: AsyncIterator[In]) -> None:
        """Advance asynchronous items by one whenever a worker asks."""
        # A generator that suppresses its cancellation yields an item after the block has exited.
        while not self._left:
            try:
                await self._wanted.acquire()
            except asyncio.CancelledError as cancelled:
                if self._left or not isinstance(items, AsyncGenerator):
                    raise
                # A timeout that the generator has opened around its `yield` cancels this task; thrown into the
                # generator, the cancellation becomes its own error.
                try:
                    await items.athrow(cancelled)
                except StopAsyncIteration:
                    return
                raise
            # A failed map takes no more items, but what the generator has opened needs this task.
            if self._ended:
                continue
            try:
                item = await anext(items)
            except StopAsyncIteration:
                return
            if not self._ended:
                self._given.put_nowait(item)
            del item

    def _feeder_ended(self, feeder: asyncio.Task[None]) -> None:
        """Note that there are no more asynchronous items: they ended, failed, or were cancelled.

        A callback runs after the workers that got items before, so all those items are counted.
        """
        self._feeder = None
        failure = _cancelled("items") if feeder.cancelled() else feeder.exception()
        if not self._left:
            self._end(failure)


def _mistaken_items(items: object) -> str | None:
    """Say why to refuse an object that can be iterated, but hardly into what was meant."""
    accepted = f"items must be an iterable of items; got a {type_name(items)}"
    if is_frame(items):
        return f"{accepted}, which iterates over columns; use map_rows(frame), or map(batches(frame, rows))"
    if iterates_over_columns(items):
        return f"{accepted}, which iterates over columns; pass its rows"
    if isinstance(items, Mapping):
        return f"{accepted}, which iterates over keys; pass its values(), or a list of mappings"
    if isinstance(items, str):
        return f"{accepted}, which iterates over characters; pass a list of texts"
    if isinstance(items, (bytes, bytearray, memoryview)):
        return f"{accepted}, which iterates over bytes; pass a list of bodies"
    return None


def _cancelled(what: str) -> ClientStateError:
    return ClientStateError(f"the {what} of a map() were cancelled from outside")
