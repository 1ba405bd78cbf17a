"""Several items a call: a group that fails is halved until its bad items are known.

::

    items ──► groups ──► one call for each ──► an answer ──► a result for each item
                              │
                              └─ fails by the group's own fault ──► both halves, each as one call

The halves of a group are called at the same time, within the map's ``concurrency``, the smallest first: failures are
known early. For k bad items among n, a group costs at most 1 + 2 k log2 n calls. Throttling, an outage or a refused
caller are not the group's fault, and halve nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import re
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast, runtime_checkable

from aiosmrt._core.outcome import concerns_every_call
from aiosmrt._frames import clear_locals
from aiosmrt.endpoint.fanout import Answer, Results
from aiosmrt.errors import (
    AiosmrtError,
    ClientStateError,
    DeserializationError,
    JobFailedError,
    ModelError,
    ParamValidationError,
    SerializationError,
    ServiceError,
    ValidationError,
)

if TYPE_CHECKING:
    from aiosmrt.endpoint.endpoint import Endpoint
    from aiosmrt.endpoint.options import CallOptions

__all__ = ["GroupScoring", "GroupedResults", "ReadsRows", "is_groups_fault", "split_answer"]

T = TypeVar("T")

# Members in which models return one value for each row, the likelier first: TensorFlow Serving and SageMaker's built-in
# algorithms, the Open Inference Protocol, and embeddings as OpenAI and Cohere name them.
_LISTS: Final = ("predictions", "outputs", "results", "scores", "data", "embeddings")

# A body that is too large is refused with 413, or by a parameter check whose message names the size.
_TOO_LARGE: Final = 413
_SIZE: Final = re.compile(r"too large|too long|exceed|less than or equal to|\b(size|length)\b", re.IGNORECASE)


@runtime_checkable
class ReadsRows(Protocol):
    """A deserializer that can read the answer to several rows by itself."""

    def deserialize_rows(self, body: bytes, content_type: str, count: int, /) -> Sequence[Any]:
        """Read an answer to ``count`` rows.

        Args:
            body: the response body.
            content_type: its content type; empty if it is missing.
            count: the number of rows that were sent.

        Returns:
            The values of the rows. If there are not ``count`` of them, the group is halved.

        Raises:
            DeserializationError: the body cannot be read.
        """
        ...


def split_answer(value: Any, count: int, /) -> Sequence[Any]:
    """The values of the items that were sent together.

    Takes a list, an array along its first axis, a table by rows, and text by lines; of an object the list under
    ``predictions``, ``outputs``, ``results``, ``scores``, ``data`` or ``embeddings``, or its only member if that is a
    list.

    Args:
        value: the deserialized answer.
        count: the number of items.

    Raises:
        DeserializationError: the answer does not have one value for each item.

    >>> split_answer({"predictions": [0.25, 0.5]}, 2)
    [0.25, 0.5]
    >>> split_answer([0.25], 2)
    Traceback (most recent call last):
        ...
    aiosmrt.errors.DeserializationError: the answer to 2 items has 1 value
    """
    found = _values(value)
    if found is None:
        kind = type(value).__qualname__
        raise DeserializationError(f"the answer, of type {kind}, lacks a list with a value for each of {count} items")
    return checked(found, count)


def checked(values: Sequence[Any], count: int) -> Sequence[Any]:
    """Values, if there is one for each item.

    Raises:
        DeserializationError: there is not.
    """
    if len(values) != count:
        raise DeserializationError(
            f"the answer to {count} item{'s' * (count != 1)} has {len(values)} value{'s' * (len(values) != 1)}"
        )
    return values


def _values(value: Any) -> Sequence[Any] | None:
    if isinstance(value, Mapping):
        members = [value.get(name) for name in _LISTS]
        if len(value) == 1:
            members += value.values()
        value = next((member for member in members if isinstance(member, list)), None)
    if isinstance(value, str):
        # Not as str.splitlines() has it: form feeds and Unicode's separators are part of a line.
        lines = value.split("\n")
        return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
    if isinstance(value, (list, tuple)):
        return value
    if callable(to_pylist := getattr(value, "to_pylist", None)):  # of pyarrow
        return cast("list[Any]", to_pylist())
    if getattr(value, "ndim", 0) > 0:
        return list(value)
    return None


def is_groups_fault(error: Exception) -> bool:
    """Tell whether a part of a group may succeed where all of it failed.

    The model refused it, it is too large, the answer did not have a value for each item, or one of the items cannot be
    serialized. Throttling, outages and timeouts are not the group's fault.

    Args:
        error: what the group's call raised.
    """
    if isinstance(error, (ModelError, JobFailedError, SerializationError, DeserializationError)):
        return True
    if isinstance(error, ServiceError):
        too_large = isinstance(error, ValidationError) and _SIZE.search(error.message) is not None
        return error.status == _TOO_LARGE or (too_large and not concerns_every_call(error))
    if isinstance(error, ParamValidationError):
        return any("parameter Body" in fault for fault in error.faults)
    # A custom serializer or deserializer may raise any error.
    return not isinstance(error, (AiosmrtError, OSError, MemoryError))


class GroupScoring(Generic[T]):
    """One call for several items; an object, because the variables of a closure are locals of its frame.

    Args:
        endpoint: makes the call.
        options: the map's.
        combine: makes what the serializer takes of a list of items. If None, it takes the list.
        split: returns the items' values, given the answer and their number. If None, the deserializer's
            ``deserialize_rows``, or else `split_answer`.
    """

    __slots__ = ("_combine", "_endpoint", "_options", "_read", "_split")

    def __init__(
        self,
        endpoint: Endpoint[Any, Any],
        options: CallOptions,
        combine: Callable[[list[T]], Any] | None,
        split: Callable[[Any, int], Sequence[Any]] | None,
    ) -> None:
        self._endpoint = endpoint
        self._options = options
        self._combine = combine
        self._split = split
        self._read = rows_reader(endpoint.deserializer, split)

    async def __call__(self, items: list[T]) -> Answer[Sequence[Any]]:
        endpoint = self._endpoint
        try:
            data = items if self._combine is None else self._combine(items)
            values, response, waited = await endpoint._exchange(data, self._options, partial(self._read, len(items)))
        except BaseException as error:
            items = data = None  # type: ignore[assignment]
            clear_locals(error)
            raise
        facts = response["ResponseMetadata"]
        return Answer(values, facts["RetryAttempts"] + 1, waited.total_waiting, facts.get("RequestId"))


def rows_reader(
    deserializer: Any, split: Callable[[Any, int], Sequence[Any]] | None
) -> Callable[[int, bytes, str], Sequence[Any]]:
    """A function that reads the values of so many rows out of a body of this content type."""

    def read(count: int, body: bytes, content_type: str) -> Sequence[Any]:
        if split is None and isinstance(deserializer, ReadsRows):
            return checked(deserializer.deserialize_rows(body, content_type, count), count)
        value = deserializer.deserialize(body, content_type)
        return split_answer(value, count) if split is None else checked(split(value, count), count)

    return read


class GroupedResults(Results[T, Any]):
    """The results of a map that makes one call for several items.

    Args:
        call: makes one call for a list of items, and returns a value for each.
        items: the items, or lists of them.
        size: items in a call. If None, ``items`` are lists already.
        concurrency, ordered, max_failures: as for `Results`.
    """

    def __init__(
        self,
        call: Callable[[list[T]], Awaitable[Answer[Sequence[Any]]]],
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        size: int | None,
        concurrency: int,
        ordered: bool,
        max_failures: int | float | str | None = None,
    ) -> None:
        super().__init__(cast("Any", call), items, concurrency=concurrency, ordered=ordered, max_failures=max_failures)
        self._call_group = call
        self._size = size
        if size is not None:
            # Single items are gathered by the feeder.
            self._buffered = None
        if self._source is not None and size is not None:
            self._source = _Groups(self._source, size)
        # Asynchronous items of a group that is not full.
        self._gathered: list[T] = []
        # For each index, how many results of its group are to be read.
        self._unread: dict[int, list[int]] = {}
        # The halves of groups are more calls than there are workers.
        self._slots = _Slots(concurrency)

    # What is taken

    async def _next(self, items: AsyncIterator[Any]) -> Any:
        if self._size is None:
            return await anext(items)
        while len(self._gathered) < self._size:
            item = await anext(items)
            if self._ended:
                break
            self._gathered.append(item)
            del item
        group, self._gathered = self._gathered, []
        return group

    def _hand_over(self) -> None:
        if self._gathered and not self._ended:
            self._given.put_nowait(self._gathered)
            self._gathered = []

    def _count(self, item: Any) -> int:
        first = self._taken
        self._taken += len(item)
        unread = [len(item)]
        for index in range(first, self._taken):
            self._unread[index] = unread
        return first

    def _release(self, indices: Collection[int]) -> None:
        for index in indices:
            unread = self._unread.pop(index)
            unread[0] -= 1
            if not unread[0]:
                self._held.release()

    # Calls

    async def _score(self, index: int, item: Any) -> None:
        open_items: dict[int, T] = dict(enumerate(item, index))
        del item
        try:
            await self._call_for(list(open_items.items()), open_items)
        except asyncio.CancelledError:
            if self._left:
                raise
            failure = self._cancellation()
        else:
            if not open_items:
                return
            # A task of a half was cancelled from outside.
            failure = ClientStateError("the call was cancelled from outside")
            self._end(failure)
        for number, one in open_items.items():
            self._add((number, one, None, failure, 0, 0.0, None))
        open_items.clear()

    def _fail(self, index: int, item: Any, failure: Exception) -> None:
        for number, one in enumerate(item, index):
            self._add((number, one, None, failure, 0, 0.0, None))

    async def _call_for(
        self,
        some: list[tuple[int, T]],
        open_items: dict[int, T],
        attempts: int = 0,
        waited: float = 0.0,
        *,
        is_half: bool = False,
    ) -> None:
        """Call for some items of a group, and for the halves of them as often as needed.

        Args:
            some: those to call for, and their indices.
            open_items: the items of the group that still lack a result, by index.
            attempts: requests that were sent for them before.
            waited: seconds for which these calls waited.
            is_half: whether these are a half of what failed.
        """
        values: Sequence[Any] = ()
        request_id: str | None = None
        failure: Exception | None = None
        called = False
        try:
            async with self._slots.slot(len(some)):
                # A map that has failed calls for no more halves.
                if self._failure is None or not is_half:
                    called = True
                    values, more, longer, request_id = await self._call_group([item for _, item in some])
                    attempts += more
                    waited += longer
                else:
                    failure = ClientStateError("the map ended before a call for this item alone")
        except AiosmrtError as error:
            if concerns_every_call(error):
                self._end(error)
            failure = error
            attempts += error.attempts
            waited += error.waited.total_waiting
        except Exception as error:
            failure = error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._left or self._cut or (task is not None and task.cancelling()):
                raise
            failure = self._cancellation()
        if called and failure is not None and len(some) > 1 and is_groups_fault(failure):
            middle = len(some) // 2
            halves = [some[:middle], some[middle:]]
            # An error's traceback has this frame.
            del some, failure, values
            calls = [self._call_for(half, open_items, attempts, waited, is_half=True) for half in halves]
            del halves, open_items
            async with asyncio.TaskGroup() as group:
                for call in calls:
                    group.create_task(call, name="aiosmrt-map-half")
            return
        for position, (index, item) in enumerate(some):
            open_items.pop(index, None)
            value = None if failure is not None else values[position]
            self._add((index, item, value, failure, attempts, waited, request_id), called=called)
            del item, value
        del some, open_items, failure, values


class _Slots:
    """A semaphore that lets the smallest in first.

    Args:
        free: how many may be in.
    """

    def __init__(self, free: int) -> None:
        self._free = free
        self._number = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def slot(self, size: int) -> AsyncIterator[None]:
        """Be in for a block; waits until there is room."""
        if self._free and not self._waiting:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (size, next(self._number), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._leave()
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class _Groups(Iterator[list[T]]):
    """Lists of so many items; the last one before an error or the end may have fewer."""

    def __init__(self, items: Iterator[T], size: int) -> None:
        self._items = items
        self._size = size
        self._failure: BaseException | None = None

    def __next__(self) -> list[T]:
        if (failure := self._failure) is not None:
            self._failure = None
            # the frame of the call before, with its items
            clear_locals(failure)
            raise failure
        group: list[T] = []
        while len(group) < self._size:
            try:
                group.append(next(self._items))
            except BaseException as error:
                if not group or not isinstance(error, (Exception, asyncio.CancelledError)):
                    raise
                self._failure = error
                break
        return group
