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
import re
import sys
from abc import ABC, abstractmethod
from collections import UserString, deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar, cast

from aiosmrt._core.outcome import concerns_every_call
from aiosmrt._frames import clear_locals
from aiosmrt.config import is_seconds, is_whole, shown
from aiosmrt.errors import AiosmrtError, ClientStateError, ParamValidationError, TooManyFailuresError
from aiosmrt.serializers.frames import is_frame, iterates_over_columns
from aiosmrt.serializers.objects import type_name

__all__ = ["Answer", "Buffered", "Outcome", "Result", "Results", "failure_limit"]

In = TypeVar("In")
Out = TypeVar("Out")

# A share of failures is meaningful from this many calls.
CALLS_FOR_A_SHARE: Final = 20

# Neither a sign, nor an exponent, nor the underscores that Python's numbers may have.
_PERCENTAGE: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,9})?%", re.ASCII)

# Items held for each call in flight: while one is called, another's result waits for the reader.
_HELD_PER_CALL = 2

# Methods that together make a mapping, whether it is registered as one or not, such as a module dictionary of PyTorch.
_OF_MAPPINGS: Final = ("keys", "values", "items", "__getitem__")

_CUT_OFF: Final = "the call was still in flight when drain() ended"


def failure_limit(most: int | float | str | None) -> int | float | None:
    """Read the limit on a map's failures: a number is an int, a share a float; if None, there is no limit.

    Args:
        most: an integer, a float from 0 to 1, text such as ``"2.5%"``, or None.

    Raises:
        ParamValidationError: it is something else.

    >>> failure_limit("2.5%"), failure_limit(10)
    (0.025, 10)
    """
    found: Any = most
    if isinstance(most, str) and _PERCENTAGE.fullmatch(most):
        found = float(most[:-1]) / 100
    if found is None or (isinstance(found, float) and 0 <= found <= 1) or is_whole(found, 0):
        limit: int | float | None = found
        return limit
    raise ParamValidationError(
        [f"max_failures must be an integer >= 0, a float from 0 to 1, a percentage as text, or None; got {shown(most)}"]
    )


class Buffered(AsyncIterator[In], ABC):
    """Asynchronous items of which some are there already: a worker takes those itself, at a fraction of the cost."""

    @abstractmethod
    def take_ready(self) -> In | None:
        """The next item, if it is there; None stands for none."""


class Answer(NamedTuple, Generic[Out]):
    """The outcome of a successful call.

    Args:
        value: the model's answer.
        attempts: how many requests were sent.
        waited: seconds for which the call waited outside its attempts.
        request_id: the service's id of the call, if it sent one.
    """

    value: Out
    attempts: int
    waited: float
    request_id: str | None


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
        request_id: the service's id of the call that was answered; None after a failure, whose error has it.

    >>> Result(0, "1,2,3", 0.75, None).unwrap()
    0.75
    """

    index: int
    item: In = field(repr=False)
    value: Out | None = field(repr=False)
    error: Exception | None
    attempts: int = 0
    waited: float = 0.0
    request_id: str | None = None

    def unwrap(self) -> Out:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return cast("Out", self.value)


# The arguments of a `Result`: that is made when it is read, and a batch job, which reads many, does without.
Outcome: TypeAlias = tuple[int, Any, Any, Exception | None, int, float, str | None]


class _Room:
    """Places for items; a semaphore that takes no coroutine while there are some.

    Args:
        places: how many there are.
    """

    __slots__ = ("_free", "_waiting")

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[asyncio.Future[None]] = deque()

    def try_acquire(self) -> bool:
        """Take a place if there is one."""
        if self._free > 0:
            self._free -= 1
            return True
        return False

    async def acquire(self) -> None:
        """Wait for a place, in order."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release()
            raise

    def release(self, places: int = 1) -> None:
        """Return places, to those that wait first."""
        while places and self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                places -= 1
        self._free += places


class Results(Generic[In, Out]):
    """The results of `Endpoint.map`, which documents them: an asynchronous context manager and iterator.

    Each item that was taken has one result. `stop` and `drain` end the map early, without losing one.

    Args:
        call: makes one call.
        items: the items to call with.
        concurrency: most calls in flight.
        ordered: whether results come in the order of the items.
        max_failures: how many items, or which share of them, may fail; one more ends the map; see `failure_limit`.
            Defaults to no limit.
    """

    def __init__(
        self,
        call: Callable[[In], Awaitable[Answer[Out] | tuple[Out, int, float, str | None]]],
        items: Iterable[In] | AsyncIterable[In],
        *,
        concurrency: int,
        ordered: bool,
        max_failures: int | float | str | None = None,
    ) -> None:
        faults = []
        if not is_whole(concurrency, 1):
            faults.append(f"concurrency must be an integer >= 1; got {shown(concurrency)}")
        most: int | float | None = None
        try:
            most = failure_limit(max_failures)
        except ParamValidationError as error:
            faults += error.faults
        # What is taken are items here, and lists of them in `GroupedResults`.
        self._source: Iterator[Any] | None = None
        self._asynchronous: AsyncIterator[In] | None = None
        if (mistake := mistaken_items(items)) is not None:
            faults.append(mistake)
        else:
            try:
                if isinstance(items, AsyncIterable):
                    self._asynchronous = aiter(items)
                else:
                    self._source = iter(items)
            except TypeError:
                faults.append(f"items must be an iterable or an asynchronous iterable; got {type(items)}")
        if faults:
            raise ParamValidationError(faults)
        self._buffered = items if isinstance(items, Buffered) else None
        self._call = call
        self._concurrency = concurrency
        self._ordered = ordered
        self._max_failures = most
        self._failures = 0
        self._calls = 0
        self._entered = False
        self._held = _Room(_HELD_PER_CALL * concurrency)
        self._workers: set[asyncio.Task[None]] = set()
        # How many workers there are or will be in a moment.
        self._at_work = 0
        # Requests of workers for asynchronous items, the items for them, and the task that gets them.
        self._wanted = asyncio.Semaphore(0)
        self._given: asyncio.Queue[Any] = asyncio.Queue()
        self._feeder: asyncio.Task[None] | None = None
        # Items taken, results read, and results not yet read by their index.
        self._taken = 0
        self._read = 0
        self._ready: dict[int, Outcome] = {}
        # Whether to take no more items: they ended, or a failure concerns all calls.
        self._ended = False
        self._failure: BaseException | None = None
        # what ended a worker, whose item has no result
        self._broken: BaseException | None = None
        # whether given items are lost, because the worker that asked for them was cancelled
        self._forsaken = False
        self._reader: asyncio.Future[None] | None = None
        self._left = False
        # whether `drain` has cancelled the calls in flight, and those who wait in it
        self._cut = False
        self._drains: set[asyncio.Future[None]] = set()

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
        self._wake_drains()
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
        self._failure = self._source = self._asynchronous = self._buffered = None
        if cancelled is not None:
            raise cancelled

    def __aiter__(self) -> Results[In, Out]:
        return self

    async def __anext__(self) -> Result[In, Out]:
        if not self._is_next_ready():
            await self._wait_for_next()
        index = self._read if self._ordered else next(iter(self._ready))
        outcome = self._ready.pop(index)
        self._read += 1
        self._release([index])
        return Result(*outcome)

    async def _take_ready(self) -> list[Outcome]:
        """All results that are there, at least one; none at the end. Raises what iteration raises.

        For a map whose results are not ordered. They count as not yet read, and no further items are taken in their
        places, until `_release` is called with their indices.
        """
        if not self._is_next_ready():
            try:
                await self._wait_for_next()
            except StopAsyncIteration:
                return []
        return self._take_at_once()

    def _take_at_once(self) -> list[Outcome]:
        """All results that are there, if any; see `_take_ready`."""
        ready, self._ready = self._ready, {}
        self._read += len(ready)
        return list(ready.values())

    def _is_next_ready(self) -> bool:
        """Whether the next result is there. Raises what ended a worker, if anything did."""
        if self._left or not self._entered:
            raise ClientStateError("results can be read only inside their `async with` block")
        if self._broken is not None:
            broken, self._broken = self._broken, None
            try:
                raise broken
            finally:
                del broken
        return self._read in self._ready if self._ordered else bool(self._ready)

    async def _wait_for_next(self) -> None:
        """Wait until the next result is there.

        Raises:
            StopAsyncIteration: there are no more of them, and nothing failed.
        """
        while not self._is_next_ready():
            if self._ended and self._read == self._taken and (self._given.empty() or self._forsaken):
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

    # Ending early

    def stop(self) -> None:
        """Take no more items. Calls in flight are finished; their results come as before, and then the map ends.

        May be called by any task of the map's event loop, and more than once. An item that an asynchronous iterable is
        about to give is not called.
        """
        if not self._ended:
            self._hand_over()
            self._end(None)

    async def drain(self, timeout: float | None = None) -> None:
        """Take no more items, and wait until the calls in flight are finished; their results come afterwards.

        Args:
            timeout: seconds to wait. Calls that take longer are cancelled, and the results of their items have a
                `ClientStateError`. If None, no limit.

        Raises:
            ParamValidationError: ``timeout`` is not a number of seconds.
            ClientStateError: the map was not entered.
        """
        if timeout is not None and not is_seconds(timeout):
            raise ParamValidationError([f"timeout must be a non-negative number of seconds, or None; got {timeout!r}"])
        if not self._entered:
            raise ClientStateError("results can be drained only inside their `async with` block")
        self.stop()
        timer = asyncio.timeout(timeout)
        try:
            async with timer:
                await self._all_finished()
        except TimeoutError:
            if not timer.expired():
                raise
            self._cut_off()
            await self._all_finished()

    def _is_finished(self) -> bool:
        """Whether all items that were taken have a result."""
        return self._left or (self._taken == self._read + len(self._ready) and (self._given.empty() or self._forsaken))

    async def _all_finished(self) -> None:
        while not self._is_finished():
            finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drains.add(finished)
            try:
                await finished
            finally:
                self._drains.discard(finished)

    def _wake_drains(self) -> None:
        if self._drains and self._is_finished():
            for waiting in self._drains:
                if not waiting.done():
                    waiting.set_result(None)

    def _cut_off(self) -> None:
        """Cancel the calls in flight."""
        self._cut = True
        for worker in self._workers:
            worker.cancel()
        # Workers that were about to have them are cancelled.
        while not self._given.empty():
            item = self._given.get_nowait()
            self._fail(self._count(item), item, ClientStateError(_CUT_OFF))

    def _hand_over(self) -> None:
        """Have workers take items that are held back until there are more of them."""

    # Inside

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
            clear_locals(failure)
            self._broken = failure
            self._ended = True
            self._wake_reader()

    async def _work(self) -> None:
        while not self._ended and (taken := self._take_at_hand() or await self._take()) is not None:
            if self._at_work < self._concurrency:
                self._start_next_worker()
            scoring = self._score(*taken)
            # Hold nothing of this item while waiting for the next one; and error trackers report locals.
            del taken
            await scoring

    async def _score(self, index: int, item: In) -> None:
        """Make the call for an item, and add its result."""
        value: Out | None = None
        attempts, waited = 0, 0.0
        request_id: str | None = None
        failure: Exception | None = None
        try:
            value, attempts, waited, request_id = await self._call(item)
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
            failure = self._cancellation()
        self._add((index, item, value, failure, attempts, waited, request_id))
        # An error's traceback has this frame.
        del item, value, failure

    def _cancellation(self) -> ClientStateError:
        """The error of a call that was cancelled, though the block was not left."""
        if self._cut:
            return ClientStateError(_CUT_OFF)
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # The worker itself was cancelled: it must end, and the map with it.
            failure = ClientStateError("the call was cancelled from inside, or a map() worker from outside")
            self._end(failure)
            return failure
        return ClientStateError("the call was cancelled from inside")

    def _add(self, outcome: Outcome, *, called: bool = True) -> None:
        """Add a result for the reader.

        Args:
            outcome: what it is made of.
            called: whether a call was made, which counts.
        """
        self._ready[outcome[0]] = outcome
        if called:
            self._calls += 1
            if outcome[3] is not None:
                self._failures += 1
                if self._too_many_failures(whole=False):
                    self._end(TooManyFailuresError(self._failures, self._calls))
        self._wake_reader()
        if self._drains:
            self._wake_drains()

    def _count(self, item: Any) -> int:
        """Count what was taken; returns its index."""
        index = self._taken
        self._taken += 1
        return index

    def _fail(self, index: int, item: Any, failure: Exception) -> None:
        """Add an error as the result of what was taken."""
        self._add((index, item, None, failure, 0, 0.0, None))

    def _release(self, indices: Collection[int]) -> None:
        """Let other items be taken for those whose results were read."""
        self._held.release(len(indices))

    def _too_many_failures(self, *, whole: bool) -> bool:
        """Return whether more calls failed than allowed.

        Args:
            whole: whether all calls were made; before that, a share of few calls is meaningless.
        """
        most = self._max_failures
        if most is None:
            return False
        if isinstance(most, float):
            return (whole or self._calls >= CALLS_FOR_A_SHARE) and self._failures > most * self._calls
        return self._failures > most

    def _take_at_hand(self) -> tuple[int, Any] | None:
        """The next item and its index, if it may be held and is there: without a coroutine, which costs as much."""
        if self._buffered is None or not self._held.try_acquire():
            return None
        if (ready := self._take_buffered()) is None:
            self._held.release()
            return None
        return self._count(ready), ready

    def _take_buffered(self) -> Any | None:
        """The next item, if it is there and every item before it is counted; None stands for none."""
        # A given item counts when a worker gets it, which it may not have done yet.
        return self._buffered.take_ready() if self._buffered is not None and self._given.empty() else None

    async def _take(self) -> tuple[int, Any] | None:
        """Return the next item and its index, once it may be held; None if there are no more."""
        if not self._held.try_acquire():
            await self._held.acquire()
        if self._ended:
            return None
        if self._source is None:
            if (ready := self._take_buffered()) is not None:
                return self._count(ready), ready
            self._wanted.release()
            try:
                item = await self._given.get()
            except asyncio.CancelledError:
                # At once: the item that is lost here may have been the last one.
                if not (self._left or self._cut):
                    self._forsaken = True
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
        return self._count(item), item

    async def _next(self, items: AsyncIterator[In]) -> Any:
        """What a worker asked for: the next item."""
        return await anext(items)

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
                item = await self._next(items)
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
            self._hand_over()
            self._end(failure)


def mistaken_items(items: object, for_frames: str = "use map_rows(frame), or map(batches(frame, rows))") -> str | None:
    """Say why to refuse an object that can be iterated, but hardly into what was meant.

    Args:
        items: the object.
        for_frames: what to do with a table.
    """
    accepted = f"items must be an iterable of items; got a {type_name(items)}"
    if is_frame(items):
        return f"{accepted}, which iterates over columns; {for_frames}"
    if iterates_over_columns(items):
        return f"{accepted}, which iterates over columns; pass its rows"
    if isinstance(items, Mapping) or all(callable(getattr(type(items), name, None)) for name in _OF_MAPPINGS):
        return f"{accepted}, which iterates over keys; pass its values(), or a list of mappings"
    if isinstance(items, (str, UserString)):
        return f"{accepted}, which iterates over characters; pass a list of texts"
    if isinstance(items, (bytes, bytearray, memoryview)) or _is_mapped_file(items):
        return f"{accepted}, which iterates over bytes; pass a list of bodies"
    if type(items).__name__.lower().endswith("groupby"):
        return f"{accepted}, which iterates over pairs of a key and a group; pass a list of the groups"
    return None


def _is_mapped_file(items: object) -> bool:
    mmap = sys.modules.get("mmap")
    return mmap is not None and isinstance(items, mmap.mmap)


def _cancelled(what: str) -> ClientStateError:
    return ClientStateError(f"the {what} of a map() were cancelled from outside")
