"""Cancel a coroutine at each of its suspensions in turn.

A coroutine can be cancelled only where it suspends, so trying suspension 0, 1, 2, … until a run ends without having
been cancelled covers every await of one path through it. Two moments matter at each:

- `EARLY`: at once, while what is awaited is still under way;
- `LATE`: what is awaited has completed, but the task has not woken up yet. The future cannot be cancelled any more, so
  the cancellation strikes although the result is there: a slot granted, a connection made, a response complete.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Moment(enum.Enum):
    """When, at its suspension, a task is cancelled."""

    EARLY = "early"
    LATE = "late"


class CancelledRun(Generic[T]):
    """An awaitable that runs a coroutine and cancels its task at one of the coroutine's suspensions.

    Args:
        coroutine: what to run.
        at: the suspension, counted from 0.
        moment: when at the suspension.
        on_suspend: called with each suspension's number, before the cancellation if it is the one.
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, T],
        at: int,
        moment: Moment,
        on_suspend: Callable[[int], object] | None = None,
    ) -> None:
        self._coroutine = coroutine
        self._at = at
        self._moment = moment
        self._on_suspend = on_suspend
        self.suspensions = 0
        self.reached = False

    def __await__(self) -> Generator[Any, Any, T]:
        task = asyncio.current_task()
        assert task is not None
        resume: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            try:
                awaited = resume(value)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if self._on_suspend is not None:
                self._on_suspend(self.suspensions)
            if self.suspensions == self._at:
                self.reached = True
                if self._moment is Moment.EARLY or awaited is None:
                    task.cancel()
                else:
                    # Added before the task adds its own wake-up, so it runs first, in the same turn.
                    awaited.add_done_callback(lambda _: task.cancel())
            self.suspensions += 1
            try:
                value = yield awaited
                resume = self._coroutine.send
            except BaseException as error:
                value, resume = error, self._coroutine.throw


async def cancel_everywhere(
    prepare: Callable[[], Awaitable[Coroutine[Any, Any, object]]],
    moment: Moment,
    *,
    after: Callable[[], Awaitable[None]],
    on_suspend: Callable[[int], object] | None = None,
    at_most: int = 100,
) -> int:
    """Make a call again and again, cancelled one suspension further on each time, until one run gets through.

    Args:
        prepare: awaited before every run, uncancelled; makes the coroutine to cancel.
        moment: when at each suspension.
        after: awaited after every run, to look at what is left.
        on_suspend: called with the number of each suspension of each run; it lets a test move the other side on.
        at_most: runs after which a call counts as endless.

    Returns:
        At how many suspensions the call was cancelled.
    """
    for at in range(at_most):
        run = CancelledRun(await prepare(), at, moment, on_suspend)
        task = asyncio.create_task(_awaited(run), name="cancelled run")
        await asyncio.wait([task])
        if not run.reached:
            task.result()
        elif not task.cancelled():
            raise AssertionError(f"the cancellation at suspension {at} was swallowed") from task.exception()
        del task
        await after()
        if not run.reached:
            return at
    raise AssertionError(f"the call did not end within {at_most} suspensions")


async def no_task_is_left(before: set[asyncio.Task[Any]]) -> None:
    """Wait until every task has ended that was not there before, whatever its name.

    Args:
        before: the tasks that may be there.

    Raises:
        AssertionError: one does not end.
    """
    while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
        _, pending = await asyncio.wait(left, timeout=30)
        assert not pending, f"tasks were left: {pending}"


async def _awaited(run: CancelledRun[T]) -> T:
    return await run


def after_the_first(move_on: Callable[[], object]) -> Callable[[int], None]:
    """An ``on_suspend`` that acts at every suspension but the first."""

    def on_suspend(number: int) -> None:
        if number:
            move_on()

    return on_suspend
